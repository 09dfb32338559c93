//! The node's address between nodes may change while the agent runs: a lease of DHCP that was
//! not renewed, a cable in another port. Tunnels, records and sockets know the old one, so the
//! agent starts anew; nothing in the kernel changes by that alone.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::App;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row that must agree: an address is often taken away and given back at once.
const AGREE: u32 = 3;

/// The address to start anew with: the one in use is gone from this machine, and there is
/// another. An address that is only no longer the preferred one still works.
fn moved(used: &[IpAddr], preferred: &[IpAddr], all: &[IpAddr]) -> Option<IpAddr> {
    let old = used.first()?;
    let new = preferred.first().filter(|new| *new != old)?;
    (!all.contains(old)).then_some(*new)
}

/// Asks for a new life when the underlay address has changed.
pub(super) async fn watch(app: Arc<App>) {
    let mut seen: Option<(IpAddr, u32)> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = moved(&app.underlay, &app.dataplane.underlay(), &app.dataplane.addresses());
        seen = now.map(|now| match seen {
            Some((before, times)) if before == now => (now, times + 1),
            _ => (now, 1),
        });
        if let (Some((now, AGREE)), Some(old)) = (seen, app.underlay.first()) {
            app.renew(format!("the underlay address is now {now}, it was {old}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_that_is_gone_is_left() {
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(moved(&[a], &[a], &[a]), None);
        assert_eq!(moved(&[a], &[b], &[a, b]), None, "the old one still works");
        assert_eq!(moved(&[a], &[], &[]), None, "there is nothing to go to");
        assert_eq!(moved(&[a], &[b], &[b]), Some(b));
        assert_eq!(moved(&[], &[b], &[b]), None, "none was used");
    }
}
