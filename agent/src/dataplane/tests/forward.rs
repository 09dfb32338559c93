//! Others' chains that drop, and lost notifications.

use weft_proto::id::NodeId;

use super::node::{intent, node};
use super::ns::{Ns, eventually, settle};
use crate::dataplane::{DataplaneConfig, DataplaneHandle, cleanup};

fn start(ns: &Ns) -> DataplaneHandle {
    start_with(ns, true)
}

fn start_with(ns: &Ns, forward_accept: bool) -> DataplaneHandle {
    let config = DataplaneConfig { forward_accept, ..DataplaneConfig::new("n1", NodeId([1; 16])) };
    let handle = ns.start(config);
    settle(&handle, &intent());
    handle
}

/// Chain FORWARD as its own program prints it; the mark's digits are left out.
fn listed(ns: &Ns, tool: &str) -> Vec<String> {
    let text = ns.sh(&format!("{tool} -S FORWARD"));
    text.lines()
        .map(|line| {
            let (before, mark) = line.split_once("weft:").unwrap_or((line, ""));
            let after = mark.trim_start_matches(|c: char| c.is_ascii_hexdigit());
            let mark = if mark.is_empty() { "" } else { "weft:" };
            format!("{before}{mark}{after}").replace('"', "")
        })
        .collect()
}

const ACCEPTS: [&str; 2] = [
    "-A FORWARD -i weft+ -m comment --comment weft: -j ACCEPT",
    "-A FORWARD -o weft+ -m comment --comment weft: -j ACCEPT",
];

#[test]
fn a_forward_chain_that_drops_gets_two_accepts() {
    let ns = node("fwd");
    ns.sh("iptables-nft -N DOCKER-USER && iptables-nft -A FORWARD -j DOCKER-USER &&
           iptables-nft -A FORWARD -i docker0 -j ACCEPT && iptables-nft -P FORWARD DROP");
    let handle = start(&ns);
    let with_accepts = || listed(&ns, "iptables-nft").get(1..3).is_some_and(|two| two == ACCEPTS);
    eventually("the accepts", with_accepts);
    let all = listed(&ns, "iptables-nft");
    assert_eq!(all[0], "-P FORWARD DROP");
    assert_eq!(all[3..], ["-A FORWARD -j DOCKER-USER", "-A FORWARD -i docker0 -j ACCEPT"]);
    eventually("no complaint", || told(&handle).is_empty());
    // What iptables itself saves, it restores.
    ns.sh("iptables-nft-save > /dev/null && iptables-nft-save -c | iptables-nft-restore -c");
    assert!(with_accepts());
    assert!(!ns.sh("iptables-nft -L FORWARD -nv 2>&1").contains("incompatible"));

    // Whoever removes them: they come back. No look is asked for.
    for harm in [
        "iptables-nft -F FORWARD",
        "iptables-nft -D FORWARD 1",
        "nft delete table ip filter; iptables-nft -P FORWARD DROP",
        "nft flush ruleset; iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -i br7 -j ACCEPT",
    ] {
        ns.sh(harm);
        eventually(harm, with_accepts);
    }
    // The other family was never in the way.
    assert_eq!(listed(&ns, "ip6tables-nft"), ["-P FORWARD ACCEPT"]);
    ns.sh("ip6tables-nft -P FORWARD DROP");
    eventually("of IPv6, too", || listed(&ns, "ip6tables-nft").len() == 3);

    // Not needed any more: gone, and others' rules are as they were.
    ns.sh("iptables-nft -P FORWARD ACCEPT");
    let left = ["-P FORWARD ACCEPT", "-A FORWARD -i br7 -j ACCEPT"];
    eventually("withdrawn", || listed(&ns, "iptables-nft") == left);
    drop(handle);
    // Stopping leaves them, cleanup does not.
    assert_eq!(listed(&ns, "ip6tables-nft")[1..], ACCEPTS);
    ns.run(|| cleanup().unwrap());
    assert_eq!(listed(&ns, "ip6tables-nft"), ["-P FORWARD DROP"]);
    assert_eq!(listed(&ns, "iptables-nft"), left);
}

#[test]
fn a_closing_reject_is_preceded_and_a_drop_put_first_is_told() {
    let ns = node("fwd");
    ns.sh("iptables-nft -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT &&
           iptables-nft -A FORWARD -j REJECT --reject-with icmp-host-prohibited");
    let handle = start(&ns);
    eventually("the accepts", || {
        listed(&ns, "iptables-nft").get(1..3).is_some_and(|t| t == ACCEPTS)
    });
    eventually("no complaint", || told(&handle).is_empty());
    // A rule that drops some packets is its owner's will; it stays where it was put.
    ns.sh("iptables-nft -I FORWARD -s 203.0.113.9 -j DROP");
    look(&ns);
    eventually("in sync", || handle.status().in_sync);
    let all = listed(&ns, "iptables-nft");
    assert_eq!(all[1], "-A FORWARD -s 203.0.113.9/32 -j DROP");
    assert_eq!(all[2..4], ACCEPTS);
    // One that drops everything is what the accepts are there for.
    ns.sh("iptables-nft -I FORWARD -j DROP");
    eventually("first again", || {
        listed(&ns, "iptables-nft").get(1..3).is_some_and(|t| t == ACCEPTS)
    });
    assert!(told(&handle).is_empty());
}

#[test]
fn switched_off_it_takes_its_accepts_back() {
    let ns = node("fwd");
    ns.sh("iptables-nft -P FORWARD DROP");
    drop(start(&ns));
    assert_eq!(listed(&ns, "iptables-nft").len(), 3);
    let handle = start_with(&ns, false);
    eventually("taken back and told", || {
        listed(&ns, "iptables-nft").len() == 1 && told(&handle).len() == 1
    });
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
    let handle = start_with(&ns, false);
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
