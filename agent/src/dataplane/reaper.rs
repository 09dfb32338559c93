//! Removing the veths of released pods, many at once.
//!
//! The kernel waits out an RCU grace period per removal (16 to 19 ms), but
//! only one for a whole group of devices.

use netlink_sys::protocols::NETLINK_ROUTE;

use super::apply::{RTM_DELLINK, RTM_SETLINK, link_header};
use super::netlink::codec::{F_ACK, Writer};
use super::netlink::socket::{Refused, Requests};

/// "weft" in ASCII: nobody else uses this group.
const GROUP: u32 = 0x7765_6674;
const IFLA_GROUP: u16 = 27;
/// Acknowledgements must fit the receive buffer.
const BATCH: usize = 256;

/// Deletes these devices. One that is gone already is no failure.
pub(crate) fn reap(indexes: &[u32]) -> Result<(), Refused> {
    let mut socket = Requests::open(NETLINK_ROUTE)?;
    for some in indexes.chunks(BATCH) {
        let mut writer = Writer::default();
        for index in some {
            let seq = socket.next_seq();
            writer.message(RTM_SETLINK, F_ACK, seq, |w| {
                link_header(w, *index, 0, 0);
                w.attr_u32(IFLA_GROUP, GROUP);
            });
        }
        let refused = socket.send(&writer)?;
        if refused.len() == some.len() {
            continue;
        }
        let mut writer = Writer::default();
        let seq = socket.next_seq();
        writer.message(RTM_DELLINK, F_ACK, seq, |w| {
            link_header(w, 0, 0, 0);
            w.attr_u32(IFLA_GROUP, GROUP);
        });
        if let Some(error) = socket.send(&writer)?.into_iter().next()
            && error.errno != nix::libc::ENODEV
        {
            return Err(error);
        }
    }
    Ok(())
}
