//! Others' chains that drop, and lost notifications.

use weft_proto::id::NodeId;

use super::node::{intent, node};
use super::ns::{Ns, eventually, settle};
use crate::dataplane::{DataplaneConfig, DataplaneHandle};

fn start(ns: &Ns) -> DataplaneHandle {
    let handle = ns.start(DataplaneConfig::new("n1", NodeId([1; 16])));
    settle(&handle, &intent());
    handle
}

/// An address of the underlay is always a reason to look.
fn look(ns: &Ns) {
    ns.sh("ip addr add 192.0.2.77/24 dev eth0; ip addr del 192.0.2.77/24 dev eth0");
}

fn told(handle: &DataplaneHandle) -> Vec<String> {
    let of = |c: weft_proto::api::Condition| {
        (c.reason == "ForwardDrop").then(|| format!("{}\n{}", c.message, c.hint))
    };
    handle.conditions().into_iter().filter_map(of).collect()
}

#[test]
fn a_foreign_policy_drop_is_told_with_its_remedy() {
    let ns = node("fwd");
    ns.sh("nft add table ip filter &&
           nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }' &&
           nft add rule ip filter FORWARD iifname docker0 accept");
    let handle = start(&ns);
    eventually("told", || told(&handle).len() == 1);
    let text = told(&handle).remove(0);
    assert!(text.contains("ip filter FORWARD") && text.contains("policy drop"), "{text}");
    // The hint is what to type; its effect ends the condition.
    let command = text.lines().nth(1).unwrap();
    if ns.try_sh("command -v iptables-nft").0 {
        ns.sh(&command.replace("iptables", "iptables-nft"));
    } else {
        ns.sh("nft insert rule ip filter FORWARD iifname '\"weft*\"' accept");
    }
    look(&ns);
    eventually("remedied", || told(&handle).is_empty());
}

#[test]
fn a_closing_drop_and_a_rule_for_the_range() {
    let ns = node("fwd");
    let handle = start(&ns);
    ns.sh("printf '%s\\n' 'table inet strict {' 'chain passage {' \
           'type filter hook forward priority 10; policy accept;' 'ct state established accept' \
           'counter drop' '}' '}' | nft -f -");
    look(&ns);
    eventually("told", || told(&handle).len() == 1);
    let text = told(&handle).remove(0);
    assert!(text.contains("inet strict passage") && text.contains("ends with a drop"), "{text}");
    let command = text.lines().nth(1).unwrap().to_owned();
    ns.sh(&command);
    look(&ns);
    eventually("remedied", || told(&handle).is_empty());
    // By address instead of by device: as good.
    ns.sh("nft flush chain inet strict passage && nft add rule inet strict passage counter drop");
    look(&ns);
    eventually("told again", || told(&handle).len() == 1);
    ns.sh("nft insert rule inet strict passage ip saddr 10.32.0.0/12 accept");
    look(&ns);
    eventually("remedied again", || told(&handle).is_empty());
}

#[test]
fn harmless_chains_are_not_mentioned() {
    let ns = node("fwd");
    ns.sh("nft add table ip filter &&
           nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy accept; }' &&
           nft add rule ip filter FORWARD ip daddr 203.0.113.9 drop &&
           nft add chain ip filter INPUT '{ type filter hook input priority 0; policy drop; }'");
    let handle = start(&ns);
    look(&ns);
    eventually("quiet", || handle.status().in_sync);
    assert_eq!(handle.conditions(), Vec::new());
}

#[test]
fn a_drop_of_iptables_legacy_is_told() {
    let ns = node("fwd");
    if !ns.try_sh("iptables-legacy -S").0 {
        eprintln!("NOT TESTED: no iptables-legacy here, or not in this kernel");
        return;
    }
    let handle = start(&ns);
    look(&ns);
    eventually("quiet", || handle.status().in_sync);
    assert_eq!(told(&handle), Vec::<String>::new(), "its tables are there, and accept");
    ns.sh("iptables-legacy -A FORWARD -i docker0 -j ACCEPT && iptables-legacy -P FORWARD DROP");
    look(&ns);
    eventually("told", || told(&handle).len() == 1);
    let text = told(&handle).remove(0);
    ns.sh(text.lines().nth(1).unwrap());
    look(&ns);
    eventually("remedied", || told(&handle).is_empty());
}
