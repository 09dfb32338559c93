//! Lost notifications are a reason to look.

use std::fmt::Write;

use super::ns::Ns;
use crate::dataplane::events::{Events, Source};

#[test]
fn lost_events_lead_to_a_look() {
    let ns = Ns::new("lost");
    // Routes of another table: none of them concerns us.
    let routes = |count: u32| {
        let mut batch = String::new();
        for n in 0..count {
            let to = std::net::Ipv4Addr::from(0x0ac8_0000 + n);
            writeln!(batch, "route replace {to} dev lo table 77").unwrap();
        }
        let path = std::env::temp_dir().join(&ns.name);
        std::fs::write(&path, batch).unwrap();
        ns.sh(&format!("ip -batch {}; rm {0}", path.display()));
    };
    let mut events = ns.run(|| Events::open(Source::Route).unwrap());
    assert!(!events.drain(&[1, 2, 3], &[], &[]));
    routes(10);
    assert!(!events.drain(&[1, 2, 3], &[], &[]), "what does not concern us is no reason");
    routes(20_000);
    assert!(events.drain(&[1, 2, 3], &[], &[]), "more than the buffer holds");
    routes(10);
    assert!(!events.drain(&[1, 2, 3], &[], &[]), "once told, all is as before");
}
