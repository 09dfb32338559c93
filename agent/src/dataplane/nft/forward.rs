//! Chains of others that would drop pod traffic on its way through this node.
//!
//! What our own rules accept, another table's chain on the same hook may still
//! drop: Docker's `ip filter FORWARD` with policy drop, firewalld's chain that
//! ends in a reject. Nothing is done about it, but it is told.

use std::collections::BTreeSet;

use ipnet::IpNet;
use weft_proto::api::Condition;
use weft_proto::names::{BRIDGE, NFT_TABLE, VXLAN};

use super::batch::{GETCHAIN, GETRULE, gone_is_empty, header};
use crate::dataplane::desired::condition;
use crate::dataplane::netlink::codec::{attr, attrs, be32, text};
use crate::dataplane::netlink::socket::{Refused, Requests};

const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const HOOK_FORWARD: u32 = 2;
const DROP: u32 = 0;

/// A chain on the forward hook that drops what it does not know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Blocker {
    family: u8,
    table: String,
    chain: String,
    /// By its policy; else by its last rule.
    policy: bool,
}

/// Base chains of others on the forward hook that let nothing of ours pass.
pub(crate) fn blockers(
    socket: &mut Requests,
    ranges: &[IpNet],
) -> Result<BTreeSet<Blocker>, Refused> {
    let mut chains = Vec::new();
    socket.dump(GETCHAIN, |w| header(w, 0, 0), |_, payload| chains.extend(base_chain(payload)))?;
    let mut out = BTreeSet::new();
    for (mut blocker, drops) in chains {
        if !concerns(blocker.family, ranges) {
            continue;
        }
        blocker.policy = drops;
        let mut last = Vec::new();
        let mut passes = false;
        let ask = |w: &mut _| {
            header(w, blocker.family, 0);
            w.attr_str(1, &blocker.table);
        };
        gone_is_empty(socket.dump(GETRULE, ask, |_, payload| {
            let body = payload.get(4..).unwrap_or_default();
            let is = |kind, name: &str| attr(body, kind).map(text).as_deref() == Some(name);
            if payload.first() != Some(&blocker.family) || !is(1, &blocker.table) {
                return;
            }
            let rule = attr(body, 4).unwrap_or_default();
            passes |= lets_pass(rule, ranges);
            if is(2, &blocker.chain) {
                last = rule.to_vec();
            }
        }))?;
        if !passes && (drops || drops_everything(&last)) {
            out.insert(blocker);
        }
    }
    Ok(out)
}

fn concerns(family: u8, ranges: &[IpNet]) -> bool {
    family == INET || ranges.iter().any(|range| range.addr().is_ipv6() == (family == IPV6))
}

/// A filter chain on the forward hook, and whether its policy is to drop.
fn base_chain(payload: &[u8]) -> Option<(Blocker, bool)> {
    let family = *payload.first()?;
    let body = payload.get(4..)?;
    let hook = attr(attr(body, 4)?, 1).and_then(be32)?;
    let table = attr(body, 1).map(text)?;
    let chain = attr(body, 3).map(text)?;
    let ours = family == INET && table == NFT_TABLE;
    if ours || hook != HOOK_FORWARD || ![INET, IPV4, IPV6].contains(&family) {
        return None;
    }
    let drops = attr(body, 5).and_then(be32) == Some(DROP);
    Some((Blocker { family, table, chain, policy: drops }, drops))
}

/// The expressions of a rule: name and data.
fn expressions(rule: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    attrs(rule).filter_map(|(_, e)| Some((attr(e, 1).map(text)?, attr(e, 2).unwrap_or_default())))
}

fn verdict(data: &[u8]) -> Option<u32> {
    attr(attr(attr(data, 2)?, 2)?, 1).and_then(be32)
}

/// A rule without a match that drops or rejects.
fn drops_everything(rule: &[u8]) -> bool {
    let mut drops = false;
    for (name, data) in expressions(rule) {
        match name.as_str() {
            "counter" | "log" => {}
            "reject" => drops = true,
            "immediate" => drops |= verdict(data) == Some(DROP),
            _ => return false,
        }
    }
    drops
}

/// A rule that names our devices or our range and does not drop: whoever wrote
/// it means us.
fn lets_pass(rule: &[u8], ranges: &[IpNet]) -> bool {
    let mut named = false;
    for (name, data) in expressions(rule) {
        match name.as_str() {
            "cmp" => {
                let value = attr(data, 3).and_then(|d| attr(d, 1)).unwrap_or_default();
                named |= names_us(value, ranges);
            }
            "reject" => return false,
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
pub(crate) fn conditions<'a>(blockers: impl IntoIterator<Item = &'a Blocker>) -> Vec<Condition> {
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
