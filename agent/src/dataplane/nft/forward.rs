//! Chains of others that would drop pod traffic on its way through this node.
//!
//! What our own rules accept, another table's chain on the same hook may still
//! drop: Docker's `ip filter FORWARD` with policy drop, firewalld's chain that
//! ends in a reject. In iptables' own chain two accepts of ours are kept, as any
//! program that uses iptables would have them; other chains are only told of.
//! Network policy is enforced in our own table on the same hook, so that these
//! accepts never let pass what it drops.

use std::collections::BTreeSet;

use ipnet::IpNet;
use weft_proto::api::Condition;
use weft_proto::names::{BRIDGE, NFT_TABLE, VXLAN};

use super::batch::{
    Batch, DELRULE, GETCHAIN, GETRULE, NEWRULE, comment, gone_is_empty, header, parse_comment,
};
use super::expr::{ACCEPT, Rule};
use super::ruleset::RuleSpec;
use crate::dataplane::desired::condition;
use crate::dataplane::netlink::codec::{F_CREATE, attr, attrs, be32, text};
use crate::dataplane::netlink::socket::{Refused, Requests};

const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const HOOK_FORWARD: u32 = 2;
const DROP: u32 = 0;
/// Where iptables-nft keeps what `iptables -A FORWARD` says.
const IPTABLES_TABLE: &str = "filter";
const IPTABLES_CHAIN: &str = "FORWARD";

/// A base chain of others on the forward hook.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Chain {
    family: u8,
    table: String,
    chain: String,
    /// Its policy is to drop.
    policy: bool,
    rules: Vec<Seen>,
    /// A rule somewhere in the table, not of ours, means pod traffic to pass.
    passes: bool,
}

/// What counts of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    handle: u64,
    /// The mark of a rule of ours.
    mark: Option<String>,
    drops_all: bool,
}

/// A change to a chain of others: rules of ours come and go, nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    /// At the head of iptables' chain of a family, this accept of ours.
    Insert(u8, usize),
    /// A rule of ours, by handle.
    Delete(u8, u64),
}

/// All base chains of others on the forward hook.
pub(crate) fn look(socket: &mut Requests, ranges: &[IpNet]) -> Result<Vec<Chain>, Refused> {
    let mut chains = Vec::new();
    socket.dump(GETCHAIN, |w| header(w, 0, 0), |_, payload| chains.extend(base_chain(payload)))?;
    for chain in &mut chains {
        let ask = |w: &mut _| {
            header(w, chain.family, 0);
            w.attr_str(1, &chain.table);
        };
        let (mut rules, mut passes) = (Vec::new(), false);
        gone_is_empty(socket.dump(GETRULE, ask, |_, payload| {
            let body = payload.get(4..).unwrap_or_default();
            let is = |kind, name: &str| attr(body, kind).map(text).as_deref() == Some(name);
            if payload.first() != Some(&chain.family) || !is(1, &chain.table) {
                return;
            }
            let rule = attr(body, 4).unwrap_or_default();
            let mark = attr(body, 7).and_then(parse_comment).filter(|mark| is_ours(mark));
            passes |= mark.is_none() && lets_pass(rule, ranges);
            if is(2, &chain.chain) {
                let handle = attr(body, 3).and_then(be64).unwrap_or_default();
                rules.push(Seen { handle, mark, drops_all: drops_everything(rule) });
            }
        }))?;
        (chain.rules, chain.passes) = (rules, passes);
    }
    Ok(chains)
}

/// The accepts we keep in iptables' chain, in their order.
fn accepts() -> [RuleSpec; 2] {
    // As iptables writes `-i weft+`: bridge and tunnel, either way.
    [Rule::default().iif_prefix(BRIDGE), Rule::default().oif_prefix(BRIDGE)].map(|rule| RuleSpec {
        chain: IPTABLES_CHAIN,
        expressions: rule.counter().verdict(ACCEPT, None).build(),
    })
}

fn is_ours(mark: &str) -> bool {
    mark.starts_with("weft:")
}

impl Chain {
    fn is_of_iptables(&self) -> bool {
        [IPV4, IPV6].contains(&self.family)
            && self.table == IPTABLES_TABLE
            && self.chain == IPTABLES_CHAIN
    }

    fn concerns(&self, ranges: &[IpNet]) -> bool {
        self.family == INET
            || ranges.iter().any(|range| range.addr().is_ipv6() == (self.family == IPV6))
    }

    /// Drops what no rule of it names.
    fn drops(&self) -> bool {
        self.policy || self.rules.last().is_some_and(|rule| rule.drops_all)
    }

    /// Our accepts are there, each in its present form, before anything that
    /// drops all. What others put before them that drops some of it is their say.
    fn has_accepts(&self, wanted: &[RuleSpec]) -> bool {
        let open = self.rules.iter().take_while(|rule| !rule.drops_all);
        let marks: BTreeSet<&str> = open.filter_map(|rule| rule.mark.as_deref()).collect();
        wanted.iter().all(|rule| marks.contains(rule.mark().as_str()))
    }
}

/// What is to be done so that our accepts are where they are needed, and
/// nowhere else. Applied, there is nothing more to do.
pub(crate) fn edits(chains: &[Chain], ranges: &[IpNet], enabled: bool) -> Vec<Edit> {
    let mut out = Vec::new();
    let wanted = accepts();
    for chain in chains.iter().filter(|chain| chain.is_of_iptables()) {
        let needed = enabled && chain.concerns(ranges) && chain.drops() && !chain.passes;
        let ours: Vec<&Seen> = chain.rules.iter().filter(|rule| rule.mark.is_some()).collect();
        if needed && ours.len() == wanted.len() && chain.has_accepts(&wanted) {
            continue;
        }
        out.extend(ours.iter().map(|rule| Edit::Delete(chain.family, rule.handle)));
        if needed {
            // Each goes to the head: the last first.
            out.extend((0..wanted.len()).rev().map(|at| Edit::Insert(chain.family, at)));
        }
    }
    out
}

/// Makes all the changes, or none.
pub(crate) fn apply(socket: &mut Requests, edits: &[Edit]) -> Result<(), Refused> {
    let wanted = accepts();
    let mut batch = Batch::new(socket, IPTABLES_TABLE);
    for edit in edits {
        match edit {
            Edit::Insert(family, at) => {
                let Some(rule) = wanted.get(*at) else { continue };
                batch.add_to(NEWRULE, F_CREATE, *family, |w| {
                    w.attr_str(2, IPTABLES_CHAIN);
                    w.nest(4, |w| w.raw(&rule.expressions));
                    w.attr(7, &comment(&rule.mark()));
                });
            }
            Edit::Delete(family, handle) => {
                batch.add_to(DELRULE, 0, *family, |w| {
                    w.attr_str(2, IPTABLES_CHAIN);
                    w.attr(3, &handle.to_be_bytes());
                });
            }
        }
    }
    batch.commit()
}

/// Those that let nothing of ours pass.
pub(crate) fn blockers<'a>(
    chains: &'a [Chain],
    ranges: &'a [IpNet],
) -> impl Iterator<Item = &'a Chain> {
    let wanted = accepts();
    chains.iter().filter(move |chain| {
        chain.concerns(ranges) && chain.drops() && !chain.passes && !chain.has_accepts(&wanted)
    })
}

/// A notification about a chain on the forward hook, or iptables' rules there.
/// `kind` is the message type without the subsystem.
pub(crate) fn matters(kind: u16, payload: &[u8]) -> bool {
    const NEWCHAIN: u16 = 3;
    const DELRULE: u16 = 8;
    let body = payload.get(4..).unwrap_or_default();
    let is = |kind, name: &str| attr(body, kind).map(text).as_deref() == Some(name);
    let hooked = || attr(body, 4).and_then(|hook| attr(hook, 1)).and_then(be32);
    match kind {
        NEWCHAIN..=5 => is(3, IPTABLES_CHAIN) || hooked() == Some(HOOK_FORWARD),
        6..=DELRULE => is(1, IPTABLES_TABLE) && is(2, IPTABLES_CHAIN),
        _ => false,
    }
}

/// A filter chain of others on the forward hook, its rules still to be read.
pub(crate) fn base_chain(payload: &[u8]) -> Option<Chain> {
    let family = *payload.first()?;
    let body = payload.get(4..)?;
    let hook = attr(attr(body, 4)?, 1).and_then(be32)?;
    let table = attr(body, 1).map(text)?;
    let chain = attr(body, 3).map(text)?;
    let ours = family == INET && table == NFT_TABLE;
    if ours || hook != HOOK_FORWARD || ![INET, IPV4, IPV6].contains(&family) {
        return None;
    }
    let policy = attr(body, 5).and_then(be32) == Some(DROP);
    Some(Chain { family, table, chain, policy, rules: Vec::new(), passes: false })
}

fn be64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?))
}

/// The expressions of a rule: name and data.
fn expressions(rule: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    attrs(rule).filter_map(|(_, e)| Some((attr(e, 1).map(text)?, attr(e, 2).unwrap_or_default())))
}

fn verdict(data: &[u8]) -> Option<u32> {
    attr(attr(attr(data, 2)?, 2)?, 1).and_then(be32)
}

/// A match or target in the form of iptables' own modules, by name.
fn is_module(data: &[u8], name: &str) -> bool {
    attr(data, 1).map(text).as_deref() == Some(name)
}

/// A rule without a match that drops or rejects.
pub(crate) fn drops_everything(rule: &[u8]) -> bool {
    let mut drops = false;
    for (name, data) in expressions(rule) {
        match name.as_str() {
            "counter" | "log" => {}
            "match" if is_module(data, "comment") => {}
            "reject" => drops = true,
            "target" if is_module(data, "REJECT") => drops = true,
            "immediate" => drops |= verdict(data) == Some(DROP),
            _ => return false,
        }
    }
    drops
}

/// A rule that names our devices or our range and does not drop: whoever wrote
/// it means us.
pub(crate) fn lets_pass(rule: &[u8], ranges: &[IpNet]) -> bool {
    let mut named = false;
    for (name, data) in expressions(rule) {
        match name.as_str() {
            "cmp" => {
                let value = attr(data, 3).and_then(|d| attr(d, 1)).unwrap_or_default();
                named |= names_us(value, ranges);
            }
            "reject" => return false,
            "target" if is_module(data, "REJECT") => return false,
            "immediate" if verdict(data) == Some(DROP) => return false,
            _ => {}
        }
    }
    named
}

fn names_us(value: &[u8], ranges: &[IpNet]) -> bool {
    let range = |net: &IpNet| {
        let octets = super::expr::octets(net.network());
        let least = usize::from(net.prefix_len()).div_ceil(8).max(1);
        value.len() >= least && octets.starts_with(value)
    };
    value.starts_with(BRIDGE.as_bytes()) || ranges.iter().any(range)
}

/// What an operator should know about them.
pub(crate) fn conditions<'a>(blockers: impl IntoIterator<Item = &'a Chain>) -> Vec<Condition> {
    blockers
        .into_iter()
        .map(|b| {
            let family = match b.family {
                INET => "inet",
                IPV6 => "ip6",
                _ => "ip",
            };
            let (table, chain) = (&b.table, &b.chain);
            let how = if b.policy { "has policy drop" } else { "ends with a drop" };
            let message = format!(
                "chain {family} {table} {chain} on the forward hook {how}, and no rule there lets \
                 pod traffic pass; an accept of weft's cannot overrule it"
            );
            condition("ForwardDrop", message, &fix(family, table, chain))
        })
        .collect()
}

/// The commands that let pod traffic pass.
fn fix(family: &str, table: &str, chain: &str) -> String {
    match (family, table, chain) {
        ("inet", "firewalld", _) => format!(
            "firewall-cmd --permanent --zone=trusted --add-interface={BRIDGE} \
             --add-interface={VXLAN} && firewall-cmd --reload"
        ),
        ("ip" | "ip6", "filter", "FORWARD") => {
            let tool = if family == "ip" { "iptables" } else { "ip6tables" };
            format!(
                "{tool} -I FORWARD -i {BRIDGE}+ -j ACCEPT && {tool} -I FORWARD -o {BRIDGE}+ -j ACCEPT"
            )
        }
        _ => format!(
            "nft insert rule {family} {table} {chain} iifname '\"{BRIDGE}*\"' accept && \
             nft insert rule {family} {table} {chain} oifname '\"{BRIDGE}*\"' accept"
        ),
    }
}
