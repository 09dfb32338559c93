use weft_proto::api::{Health, Readiness};

use super::{metrics, report, sample, screen, weave};
use crate::api::{ApiStats, StatsSnapshot};

#[test]
fn weave_overview() {
    let text = weave::overview(&sample::status());
    assert_eq!(
        text,
        "        Version: 0.1.0 (version check update disabled)

        Service: router
       Protocol: weft 1
           Name: aaaaaaaa(n1)
     Encryption: control plane only
  PeerDiscovery: enabled
        Targets: 2
    Connections: 2 (1 established, 1 retrying)
          Peers: 3 (with 1 established connections)
 TrustedSubnets: none

        Service: ipam
         Status: ready
          Range: 10.32.0.0/24
  DefaultSubnet: 10.32.0.0/24
"
    );
}

#[test]
fn weave_parts() {
    let status = sample::status();
    assert_eq!(weave::targets(&status), "192.0.2.2\n192.0.2.3:6783\n");
    assert_eq!(
        weave::connections(&status),
        "-> 192.0.2.2:6783        established encrypted   quic bbbbbbbb(n2) encrypted=true rtt=0.4ms\n\
         -> 192.0.2.3:6783        retrying    timed out [31m, retry in 3s\n"
    );
    assert_eq!(
        weave::peers(&status),
        "aaaaaaaa(n1)\n   \
         -> 192.0.2.2:6783        bbbbbbbb(n2)                          established\n   \
         -> 192.0.2.3:6783        ()                                    pending\n\
         bbbbbbbb(n2)\ndddddddd(n3)\n"
    );
    assert_eq!(
        weave::ipam(&status),
        "aaaaaaaa(n1)                                63 IPs (24.8% of total) (2 active)\n\
         bbbbbbbb(n2)                                64 IPs (25.2% of total)\n\
         dddddddd(n3)                                63 IPs (24.8% of total) - unreachable!\n"
    );
    let mut empty = status;
    empty.ipam.owners.clear();
    assert_eq!(weave::ipam(&empty), "");
}

#[test]
fn own_screen() {
    let text = screen::render(&sample::status(), false);
    assert_eq!(
        text,
        "DEGRADED  node n1, up 1h2m, weft 0.1.0
  ! PeerUnreachable: n3 has not answered for 5m
    do: if it is gone for good: agent rmpeer n3

node       aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, cluster cccccccccccccccccccccccccccccccc
           underlay 192.0.2.1, overlay 10.32.0.1
consensus  leader, quorum (2 of 3 voters reachable), leader n1, term 3, applied 42
addresses  ready, range 10.32.0.0/24
           here 2 of 63 leased in 1 block (10.32.0.0/26)
           cluster: 254 usable, 64 owned by nobody, 0 resting
data plane in sync, 2 routes, 1 pod, MTU 1450 (eth0 1500 minus 50), 1 repair
           last repair: route 10.32.0.64/26 put back
policy     enforced, 2 of 3 pods restricted, 13 packets refused, 1 rule not as written
kubernetes https://10.96.0.1, answers for 1m0s, cluster founded by n1
peers      1 of 2 alive
  NAME  STATE  ADDRESS    RTT    OVERLAY  BLOCKS  LEASES  VERSION
  n3    dead   192.0.2.3  -      -        1       5       0.1.0
  n2    alive  192.0.2.2  0.4ms  0.5ms    1       5       0.1.0
"
    );
}

#[test]
fn colour_only_when_asked_and_never_from_outside() {
    let mut status = sample::status();
    status.mesh.members[0].name = "x\u{1b}[2J\r\n".into();
    status.conditions[0].message = "a\u{1b}[31mb\nOK".into();
    let plain = screen::render(&status, false);
    assert!(!plain.contains(['\u{1b}', '\r']) && plain.starts_with("DEGRADED"));
    assert!(!plain.contains("\nOK"));
    let coloured = screen::render(&status, true);
    assert!(coloured.starts_with("\u{1b}[33m"));
    assert!(!coloured.contains("\u{1b}[2J"));
    for (health, word) in [(Health::Ok, "OK"), (Health::Broken, "BROKEN")] {
        status.health = health;
        assert!(screen::render(&status, false).starts_with(word));
    }
}

#[test]
fn report_has_weaves_keys() {
    let status = sample::status();
    let ready = Readiness { ready: true, connectivity: true, reasons: vec![] };
    let report = report::full(&status, &ready, &serde_json::json!({}), &[]);
    assert_eq!(report["Ready"], true);
    for key in [
        "Protocol",
        "ProtocolMinVersion",
        "ProtocolMaxVersion",
        "Encryption",
        "PeerDiscovery",
        "Name",
        "NickName",
        "Port",
        "Peers",
        "UnicastRoutes",
        "BroadcastRoutes",
        "Connections",
        "TerminationCount",
        "Targets",
        "OverlayDiagnostics",
        "TrustedSubnets",
        "Interface",
        "CaptureStats",
        "MACs",
    ] {
        assert!(report["Router"].get(key).is_some(), "{key}");
    }
    for key in [
        "Paxos",
        "Range",
        "RangeNumIPs",
        "ActiveIPs",
        "DefaultSubnet",
        "Entries",
        "PendingClaims",
        "PendingAllocates",
    ] {
        assert!(report["IPAM"].get(key).is_some(), "{key}");
    }
    assert_eq!(report["Router"]["Connections"][0]["State"], "established");
    assert_eq!(report["Router"]["TerminationCount"], 4);
    assert_eq!(report["IPAM"]["Entries"][1]["IsKnownPeer"], false);
    assert_eq!(report["Weft"]["Status"]["node"]["name"], "n1");
}

/// Prometheus text, checked line by line: `name{label="value",…} number`.
pub(crate) fn check_metrics(text: &str) -> Vec<String> {
    let mut series = Vec::new();
    let mut families = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let words: Vec<_> = rest.splitn(3, ' ').collect();
            assert!(matches!(words[0], "HELP" | "TYPE") && words.len() == 3, "{line}");
            if words[0] == "TYPE" {
                assert!(families.insert(words[1].to_owned()), "twice: {line}");
            }
            continue;
        }
        let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let (name, labels) = key.split_once('{').unwrap_or((key, "}"));
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "{line}"
        );
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end).filter(|base| families.contains(*base)))
            .unwrap_or(name);
        assert!(families.contains(base), "no TYPE before: {line}");
        let mut rest = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
        while !rest.is_empty() {
            let (key, tail) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            let mut escaped = false;
            let end = tail
                .char_indices()
                .find(|(_, c)| {
                    let here = *c == '"' && !escaped;
                    escaped = *c == '\\' && !escaped;
                    here
                })
                .unwrap_or_else(|| panic!("{line}"))
                .0;
            rest = &tail[end + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        assert!(!series.contains(&key.to_owned()), "twice: {line}");
        series.push(key.to_owned());
    }
    series
}

#[test]
fn metrics_parse_and_have_weaves_names() {
    let mut status = sample::status();
    status.node.name = "odd\"name\\\nx".into();
    status.conditions.push(status.conditions[0].clone());
    status.mesh.connections.push(status.mesh.connections[0].clone());
    let stats = ApiStats::default();
    stats.answered("/v1/attachments", "POST", 200, std::time::Duration::from_millis(3));
    stats.refused("token");
    let text = metrics::render(&status, &stats.snapshot(), metrics::Process::read().as_ref());
    let series = check_metrics(&text);
    for wanted in [
        "weave_connections{state=\"established\",type=\"fastdp\",encryption=\"\"}",
        "weave_connection_terminations_total",
        "weave_ips{state=\"local-used\"}",
        "weave_max_ips",
        "weave_ipam_unreachable_count",
        "weave_ipam_unreachable_percentage",
        "weave_ipam_pending_allocates",
        "weave_ipam_pending_claims",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "weft_cni_add_seconds_bucket{le=\"+Inf\"}",
        "weft_api_requests_total{route=\"/v1/attachments\",method=\"POST\",code=\"200\"}",
        "weft_api_refused_total{reason=\"token\"}",
    ] {
        assert!(series.iter().any(|s| s == wanted), "{wanted} is missing in\n{text}");
    }
    assert!(
        text.contains("weave_max_ips 254\n") && text.contains("weave_ipam_unreachable_count 1\n")
    );
    let bare = metrics::render(&status, &StatsSnapshot::default(), None);
    check_metrics(&bare);
}
