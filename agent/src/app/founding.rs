//! From configuration to the part this node plays in founding the cluster.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::config::Init;
use crate::consensus::Founding;

/// One spelling per address: `10.0.0.1`, `[fd00::1]:7000`; the default port is left out.
/// Names stay names.
fn canonical(peer: &str, default_port: u16) -> String {
    if let Ok(ip) = peer.trim_matches(['[', ']']).parse::<IpAddr>() {
        return ip.to_canonical().to_string();
    }
    match peer.parse::<SocketAddr>() {
        Ok(address) if address.port() == default_port => address.ip().to_canonical().to_string(),
        Ok(address) => address.to_string(),
        Err(_) => {
            let port = format!(":{default_port}");
            peer.strip_suffix(port.as_str()).unwrap_or(peer).to_ascii_lowercase()
        }
    }
}

/// Which founding the list of peers means for the node with these addresses.
///
/// The list need not contain the node itself (Weave's launcher left it out):
/// it is added. A node without peers founds alone.
pub(super) fn founding(
    init: &Init,
    peers: &[String],
    own: &[IpAddr],
    node_name: &str,
    port: u16,
) -> Founding {
    let spell =
        |list: &[String]| -> BTreeSet<String> { list.iter().map(|p| canonical(p, port)).collect() };
    let own: Vec<String> = own.iter().map(|ip| canonical(&ip.to_string(), port)).collect();
    let names_me = |member: &String| own.contains(member) || member == node_name;
    match init {
        Init::Observer => Founding::Observer,
        Init::Seed(seed) => {
            let members = spell(seed);
            let mine = members.iter().find(|m| names_me(m)).cloned();
            Founding::Seats { members: members.into_iter().collect(), mine }
        }
        Init::Consensus(_) => {
            let mut members = spell(peers);
            let mut mine = members.iter().find(|m| names_me(m)).cloned();
            if mine.is_none()
                && let Some(first) = own.first()
            {
                members.insert(first.clone());
                mine = Some(first.clone());
            }
            if members.len() <= 1 {
                return Founding::Single;
            }
            Founding::Seats { members: members.into_iter().collect(), mine }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_same_list_on_every_node_is_the_same_founding() {
        let init = Init::Consensus(None);
        let a = founding(
            &init,
            &strings(&["10.0.0.2", "10.0.0.1:6783", "10.0.0.3"]),
            &["10.0.0.1".parse().unwrap()],
            "n1",
            6783,
        );
        let b = founding(
            &init,
            &strings(&["10.0.0.1", "10.0.0.3"]),
            &["10.0.0.2".parse().unwrap()],
            "n2",
            6783,
        );
        let members = strings(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        assert_eq!(a, Founding::Seats { members: members.clone(), mine: Some("10.0.0.1".into()) });
        assert_eq!(b, Founding::Seats { members, mine: Some("10.0.0.2".into()) });
    }

    #[test]
    fn alone_and_observing() {
        let own = ["10.0.0.1".parse().unwrap()];
        assert_eq!(founding(&Init::Consensus(None), &[], &own, "n1", 6783), Founding::Single);
        assert_eq!(
            founding(&Init::Consensus(None), &strings(&["10.0.0.1"]), &own, "n1", 6783),
            Founding::Single
        );
        assert_eq!(founding(&Init::Observer, &[], &own, "n1", 6783), Founding::Observer);
        assert_eq!(
            founding(&Init::Seed(strings(&["n1", "n2"])), &[], &own, "n1", 6783),
            Founding::Seats { members: strings(&["n1", "n2"]), mine: Some("n1".into()) }
        );
    }
}
