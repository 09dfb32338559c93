//! Who may join: the proof of the cluster key, then the facts both sides tell.

use std::fmt::Write as _;

use ipnet::IpNet;
use ring::{hkdf, hmac};
use weft_proto::id::{ClusterId, NodeId};
use weft_proto::wire::v1::{Failure, Hello};

/// Label of the TLS exporter, and first bytes of every proof.
pub(super) const LABEL: &[u8] = b"weft hello v1";

/// Which side of a connection a proof speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It dialled.
    Client,
    /// It accepted.
    Server,
}

impl Role {
    fn byte(self) -> u8 {
        match self {
            Self::Client => b'c',
            Self::Server => b's',
        }
    }
}

/// The cluster keys: the first signs, all verify, so that a key can be rotated.
pub(super) struct ClusterKeys {
    keys: Vec<hmac::Key>,
    keyed: bool,
}

impl ClusterKeys {
    /// Keys of these passwords; without any, everybody is let in.
    pub(super) fn new(passwords: &[String]) -> Self {
        let mut keys: Vec<_> =
            passwords.iter().filter(|p| !p.is_empty()).filter_map(|p| derive(p)).collect();
        let keyed = !keys.is_empty();
        if !keyed {
            keys.push(hmac::Key::new(hmac::HMAC_SHA256, &[]));
        }
        Self { keys, keyed }
    }

    /// True if there is a password.
    pub(super) fn keyed(&self) -> bool {
        self.keyed
    }

    /// Proof for this connection. Who dials uses the first key; who answers the
    /// one that [`ClusterKeys::verify`] found, which the peer surely has.
    pub(super) fn prove(
        &self,
        which: usize,
        role: Role,
        exporter: &[u8; 32],
        node: NodeId,
    ) -> [u8; 32] {
        let mut proof = [0; 32];
        if let Some(key) = self.keys.get(which).or(self.keys.first()) {
            let tag = hmac::sign(key, &statement(role, exporter, node));
            proof.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        }
        proof
    }

    /// Which of the keys made this proof, if any.
    pub(super) fn verify(
        &self,
        role: Role,
        exporter: &[u8; 32],
        node: NodeId,
        proof: &[u8; 32],
    ) -> Option<usize> {
        let statement = statement(role, exporter, node);
        self.keys.iter().position(|key| hmac::verify(key, &statement, proof).is_ok())
    }
}

fn derive(password: &str) -> Option<hmac::Key> {
    hkdf::Salt::new(hkdf::HKDF_SHA256, b"weft cluster key v1")
        .extract(password.as_bytes())
        .expand(&[LABEL], hmac::HMAC_SHA256)
        .ok()
        .map(Into::into)
}

fn statement(role: Role, exporter: &[u8; 32], node: NodeId) -> Vec<u8> {
    [LABEL, &[role.byte()], exporter, &node.0].concat()
}

/// What this node holds a peer against.
pub(super) struct Facts<'a> {
    pub(super) node: NodeId,
    pub(super) name: &'a str,
    pub(super) session: u64,
    pub(super) cluster: Option<ClusterId>,
    pub(super) ranges: &'a [IpNet],
    /// A live member, other than the peer, that has the peer's name.
    pub(super) namesake: Option<NodeId>,
}

/// Judges a peer that has proved the cluster key. The message of a refusal is
/// shown on both sides, so it names both values and what to do.
pub(super) fn judge(me: &Facts<'_>, peer: &Hello) -> Result<(), Failure> {
    let refuse = |code, message| Err(Failure { code, message });
    let theirs = printable(&peer.name, 253);
    if peer.node == me.node {
        return refuse(
            Failure::CLONE,
            format!(
                "`{theirs}` and `{}` have the same identity {}: the state directory was copied; \
                 delete it on one of them and restart its agent",
                me.name, me.node
            ),
        );
    }
    // Within one cluster the ledger says what the ranges are, and who has others
    // was away while they grew: it must get in to learn of it.
    let one_cluster = me.cluster.is_some() && me.cluster == peer.cluster;
    let given = !me.ranges.is_empty() && !peer.ranges.is_empty();
    if !one_cluster && given && !same(me.ranges, &peer.ranges) {
        return refuse(
            Failure::RANGE,
            format!(
                "IPALLOC_RANGE differs: `{}` has {}, `{theirs}` has {}; give the joining node the cluster's range",
                me.name,
                list(me.ranges),
                list(&peer.ranges)
            ),
        );
    }
    if let (Some(mine), Some(other)) = (me.cluster, peer.cluster)
        && mine != other
    {
        return refuse(
            Failure::CLUSTER,
            format!(
                "`{}` belongs to cluster {mine}, `{theirs}` to cluster {other}; \
                 reset the state directory of the node that shall change over",
                me.name
            ),
        );
    }
    if peer.name == me.name {
        let (younger, older) =
            if peer.session >= me.session { (peer.node, me.node) } else { (me.node, peer.node) };
        return refuse(
            Failure::NAME,
            format!(
                "two nodes are named `{theirs}`: {} (up first) and {}; set another NODE_NAME on the latter",
                older.short(),
                younger.short()
            ),
        );
    }
    if let Some(holder) = me.namesake {
        return refuse(
            Failure::NAME,
            format!(
                "the name `{theirs}` of {} belongs to the live member {}; set another NODE_NAME on the newcomer",
                peer.node.short(),
                holder.short()
            ),
        );
    }
    Ok(())
}

fn same(a: &[IpNet], b: &[IpNet]) -> bool {
    let sorted = |nets: &[IpNet]| {
        let mut nets: Vec<_> = nets.iter().map(IpNet::trunc).collect();
        nets.sort();
        nets.dedup();
        nets
    };
    sorted(a) == sorted(b)
}

fn list(nets: &[IpNet]) -> String {
    let mut text = String::new();
    for (i, net) in nets.iter().take(16).enumerate() {
        let _ = write!(text, "{}{net}", if i == 0 { "" } else { "," });
    }
    text
}

/// Text of a stranger, fit for a log or a terminal.
pub(super) fn printable(text: &str, longest: usize) -> String {
    text.chars().take(longest).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Counter and status word of a refusal.
pub(super) fn reason(code: u16) -> &'static str {
    match code {
        Failure::WRONG_KEY => "wrong_key",
        Failure::RANGE => "range",
        Failure::NAME => "name",
        Failure::CLUSTER => "cluster",
        Failure::BUSY => "busy",
        Failure::CLONE => "clone",
        Failure::EVICTED => "evicted",
        Failure::BAD_REQUEST => "bad_request",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPORTER: [u8; 32] = [7; 32];
    const NODE: NodeId = NodeId([1; 16]);

    fn keys(list: &[&str]) -> ClusterKeys {
        ClusterKeys::new(&list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_proof_holds_for_its_key_role_connection_and_node_only() {
        let ours = keys(&["secret"]);
        let proof = ours.prove(0, Role::Client, &EXPORTER, NODE);
        assert!(keys(&["secret"]).verify(Role::Client, &EXPORTER, NODE, &proof).is_some());
        assert!(keys(&["other"]).verify(Role::Client, &EXPORTER, NODE, &proof).is_none());
        assert!(keys(&[]).verify(Role::Client, &EXPORTER, NODE, &proof).is_none());
        assert!(ours.verify(Role::Server, &EXPORTER, NODE, &proof).is_none(), "reflected");
        assert!(ours.verify(Role::Client, &[8; 32], NODE, &proof).is_none(), "replayed or relayed");
        assert!(ours.verify(Role::Client, &EXPORTER, NodeId([2; 16]), &proof).is_none());
    }

    /// Computed by hand: with another proof, nodes of the version before are strangers.
    #[test]
    fn the_proof_is_frozen() {
        let hex = |role| -> String {
            let proof = keys(&["secret"]).prove(0, role, &EXPORTER, NODE);
            proof.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let client = "57bbc8ed06fc84a25d75b70780f98aeb76cbc1ba35526aebe52dddd479c87ca4";
        let server = "1945b1182a785745f11f2ed81a7b9f05ca9ee14e293bd5707fba5410116a073c";
        assert_eq!((hex(Role::Client).as_str(), hex(Role::Server).as_str()), (client, server));
    }

    #[test]
    fn keys_rotate() {
        let (old, both, new) = (keys(&["a"]), keys(&["b", "a"]), keys(&["b"]));
        let by = |k: &ClusterKeys| k.prove(0, Role::Client, &EXPORTER, NODE);
        assert!(both.verify(Role::Client, &EXPORTER, NODE, &by(&old)).is_some());
        assert!(new.verify(Role::Client, &EXPORTER, NODE, &by(&both)).is_some());
        assert!(old.verify(Role::Client, &EXPORTER, NODE, &by(&both)).is_none());
        assert!(both.keyed() && !keys(&[""]).keyed());
        assert!(keys(&[]).verify(Role::Client, &EXPORTER, NODE, &by(&keys(&[""]))).is_some());
    }

    fn hello() -> Hello {
        Hello {
            node: NodeId([2; 16]),
            name: "b".to_owned(),
            cluster: None,
            ranges: vec!["10.32.0.0/12".parse().unwrap()],
            session: 20,
            software: String::new(),
            observed: "127.0.0.1:1".parse().unwrap(),
            proof: [0; 32],
        }
    }

    #[test]
    fn a_refusal_names_both_values() {
        let ranges: Vec<IpNet> = vec!["10.32.0.0/12".parse().unwrap()];
        let me = || Facts {
            node: NODE,
            name: "a",
            session: 10,
            cluster: Some(ClusterId([1; 16])),
            ranges: &ranges,
            namesake: None,
        };
        let code = |me: &Facts<'_>, peer: &Hello| judge(me, peer).map_err(|f| (f.code, f.message));
        assert_eq!(code(&me(), &hello()), Ok(()));
        let clone = Hello { node: NODE, ..hello() };
        assert_eq!(code(&me(), &clone).unwrap_err().0, Failure::CLONE);
        let other = Hello { ranges: vec!["10.99.0.0/16".parse().unwrap()], ..hello() };
        let (number, text) = code(&me(), &other).unwrap_err();
        assert_eq!(number, Failure::RANGE);
        assert!(text.contains("10.32.0.0/12") && text.contains("10.99.0.0/16"), "{text}");
        let behind = Hello { cluster: me().cluster, ..other };
        assert_eq!(code(&me(), &behind), Ok(()), "its ledger is only older");
        let foreign = Hello { cluster: Some(ClusterId([9; 16])), ..hello() };
        assert_eq!(code(&me(), &foreign).unwrap_err().0, Failure::CLUSTER);
        let twin = Hello { name: "a".to_owned(), ..hello() };
        assert_eq!(code(&me(), &twin).unwrap_err().0, Failure::NAME);
        let taken = Facts { namesake: Some(NodeId([3; 16])), ..me() };
        assert_eq!(code(&taken, &hello()).unwrap_err().0, Failure::NAME);
        assert!(!printable("a\u{1b}[2Jb\n", 10).contains(char::is_control));
    }
}
