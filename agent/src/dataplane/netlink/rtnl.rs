//! The kernel through rtnetlink: devices of ours, addresses, routes.
//!
//! A connection and a small runtime of its own, driven only while a call
//! waits: the data plane's thread stays the one that decides when things happen.
//!
//! What stays with the codec next door, and why:
//! - nexthop objects and the tunnels in them: rtnetlink has no type for them;
//! - thousands of routes, neighbours and FDB entries: written in batches, one
//!   system call for 256 of them with an answer to each; read with every look
//!   at the kernel, where typed messages cost three to four times as much;
//! - nftables: another protocol;
//! - the list of devices and of neighbours: a message that the typed decoder
//!   does not understand is left out, and a device that is left out would be
//!   taken for one that is gone. The list holds everybody's devices.

use std::future::poll_fn;
use std::io;
use std::pin::pin;

use futures_util::Stream;
use ipnet::IpNet;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressMessage,
};
use rtnetlink::packet_route::link::{BridgeStpState, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Error, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVxlan};
use tokio::runtime::{Builder, Runtime};

use super::codec;
use super::socket::Refused;
use crate::dataplane::model::{Kind, LinkSpec};

/// An rtnetlink connection for callers that are not async. Not to be opened
/// or used on a thread that belongs to a runtime.
pub(crate) struct Rtnl {
    runtime: Runtime,
    handle: Handle,
    port: u32,
}

impl Rtnl {
    /// In the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let entered = runtime.enter();
        let (mut connection, handle, _) = rtnetlink::new_connection()?;
        // The end of a list is what tells that the list changed meanwhile.
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_mut();
        let port = socket.bind_auto()?.port_number();
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        runtime.spawn(connection);
        drop(entered);
        Ok(Self { runtime, handle, port })
    }

    /// The port that notifications caused by this connection carry.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// All addresses.
    pub(crate) fn addresses(&mut self) -> Result<Vec<AddressMessage>, Refused> {
        let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump(all, |found| match found {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        })
    }

    /// All routes of a family, of every table.
    pub(crate) fn routes(&mut self, family: AddressFamily) -> Result<Vec<RouteMessage>, Refused> {
        // Anything more in the header would filter the list: the message
        // builder's defaults alone leave nothing of it.
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        self.dump(RouteNetlinkMessage::GetRoute(all), |found| match found {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        })
    }

    /// `Handle::route().get()` and its like drop the header, and with it the
    /// word that the list changed while it was read.
    fn dump<T>(
        &mut self,
        what: RouteNetlinkMessage,
        wanted: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Refused> {
        let mut request = NetlinkMessage::from(what);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let answers = self.handle.request(request).map_err(|e| refused(&e))?;
        self.runtime.block_on(async {
            let mut answers = pin!(answers);
            let mut out = Vec::new();
            let mut interrupted = false;
            while let Some(answer) = poll_fn(|cx| answers.as_mut().poll_next(cx)).await {
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => out.extend(wanted(message)),
                    NetlinkPayload::Done(_) if interrupted => return Err(Refused::interrupted()),
                    NetlinkPayload::Done(_) => return Ok(out),
                    NetlinkPayload::Error(e) => return Err(refused(&Error::NetlinkError(e))),
                    _ => {}
                }
            }
            Err(lost())
        })
    }

    /// Makes a device of ours, up.
    pub(crate) fn add_link(&self, name: &str, spec: &LinkSpec) -> Result<(), Refused> {
        self.run(async |handle| match spec.kind {
            Kind::Bridge => {
                let bridge = LinkBridge::new(name)
                    .address(spec.mac.to_vec())
                    .stp_state(BridgeStpState::Disabled)
                    // Nothing is flooded, so there is nothing to snoop.
                    .mcast_snooping(false)
                    .build();
                handle.link().add(bridge).execute().await?;
                // Only an MTU set afterwards stays when ports come and go.
                let mtu = LinkUnspec::new_with_name(name).mtu(spec.mtu).build();
                handle.link().change(mtu).execute().await
            }
            _ => handle.link().add(vxlan(name, spec)).execute().await,
        })
    }

    /// Sets address and MTU, and brings it up.
    pub(crate) fn set_link(&self, index: u32, spec: &LinkSpec) -> Result<(), Refused> {
        let link =
            LinkUnspec::new_with_index(index).address(spec.mac.to_vec()).mtu(spec.mtu).up().build();
        self.run(async |handle| handle.link().change(link).execute().await)
    }

    pub(crate) fn del_link(&self, index: u32) -> Result<(), Refused> {
        self.run(async |handle| handle.link().del(index).execute().await)
    }

    /// Adds an address without a route to its prefix.
    pub(crate) fn add_addr(&self, index: u32, net: IpNet) -> Result<(), Refused> {
        self.run(async |handle| {
            let mut add = handle.address().add(index, net.addr(), net.prefix_len());
            let message = add.message_mut();
            let mut flags = AddressFlags::Noprefixroute;
            if net.addr().is_ipv6() {
                flags |= AddressFlags::Nodad;
            }
            message.attributes.retain(|a| !matches!(a, AddressAttribute::Broadcast(_)));
            message.attributes.push(AddressAttribute::Flags(flags));
            add.execute().await
        })
    }

    pub(crate) fn del_addr(&self, index: u32, net: IpNet) -> Result<(), Refused> {
        let mut message = AddressMessage::default();
        message.header = AddressHeader { prefix_len: net.prefix_len(), index, ..message.header };
        message.header.family =
            if net.addr().is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.attributes.push(AddressAttribute::Local(net.addr()));
        self.run(async |handle| handle.address().del(message).execute().await)
    }

    fn run(&self, call: impl AsyncFnOnce(&Handle) -> Result<(), Error>) -> Result<(), Refused> {
        self.runtime.block_on(call(&self.handle)).map_err(|e| refused(&e))
    }
}

fn vxlan(name: &str, spec: &LinkSpec) -> LinkMessage {
    let (port, external) = match spec.kind {
        Kind::Vxlan { port, external } => (port, external),
        _ => (0, false),
    };
    LinkMessageBuilder::<LinkVxlan>::new(name)
        .up()
        .address(spec.mac.to_vec())
        .mtu(spec.mtu)
        .learning(false)
        .port(port)
        // Zero checksums over IPv6 are how peers send.
        .udp_zero_csum6_rx(true)
        .collect_metadata(external)
        .build()
}

fn lost() -> Refused {
    Refused { seq: 0, errno: nix::libc::EIO, text: "the netlink connection has ended".to_owned() }
}

fn refused(error: &Error) -> Refused {
    let Error::NetlinkError(message) = error else { return lost() };
    // Capped answers: the request's header, then what the kernel has to say.
    let text = message.header.get(codec::HEADER..).and_then(|tlvs| codec::attr(tlvs, 1));
    Refused {
        seq: 0,
        errno: message.raw_code().saturating_neg(),
        text: text.map(codec::text).unwrap_or_default(),
    }
}
