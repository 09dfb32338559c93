//! The kernel's share of an attach: a bare netlink program that makes the same pair,
//! port, address, neighbours and routes with as few messages as there are, and decides,
//! checks and stores nothing.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use weft_agent::lab::netns::Netns;

use super::plugins::Sandbox;

const BRIDGE: &str = "floor";
const POD: &str = "eth0";
const GATEWAY: [u8; 4] = [169, 254, 1, 1];

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const CREATE: u16 = 0x600;
const UP: u32 = 1;
/// Of links that go.
const GROUP: [u8; 4] = *b"flor";
const INET: u8 = 2;
/// struct rtmsg: a /32 of the main table, straight on a link.
const ON_LINK: [u8; 12] = [INET, 32, 0, 0, 254, 117, 253, 1, 0, 0, 0, 0];

/// What is different from pod to pod.
struct Pod {
    host: String,
    mac: [u8; 6],
    address: [u8; 4],
}

impl Pod {
    fn new(number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        Self {
            host: format!("floor{number}"),
            mac: [0x0a, 0x58, 10, 97, high, low],
            address: [10, 97, high, low],
        }
    }
}

/// A node of its own.
pub(crate) struct Floor {
    netns: Netns,
    bridge: u32,
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    count: usize,
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(((4 + value.len()) as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn attributes(list: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    list.iter().for_each(|(kind, value)| attribute(&mut out, *kind, value));
    out
}

fn text(value: &str) -> Vec<u8> {
    [value.as_bytes(), &[0]].concat()
}

/// struct ifinfomsg.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut out = vec![0; 4];
    [index, flags, flags].iter().for_each(|word| out.extend(word.to_ne_bytes()));
    out
}

/// struct ndmsg.
fn neighbour(family: u8, index: u32, state: u16, flags: u8) -> Vec<u8> {
    let mut out = vec![family, 0, 0, 0];
    out.extend(index.to_ne_bytes());
    out.extend(state.to_ne_bytes());
    out.extend([flags, 0]);
    out
}

impl Batch {
    fn add(mut self, kind: u16, flags: u16, header: &[u8], list: &[(u16, &[u8])]) -> Self {
        let body = [header, &attributes(list)].concat();
        self.count += 1;
        self.bytes.extend(((16 + body.len()) as u32).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        // A request, to be acknowledged.
        self.bytes.extend((5 | flags).to_ne_bytes());
        self.bytes.extend((self.count as u32).to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(body);
        self
    }

    fn run(&self, socket: &OwnedFd) -> Result<Vec<u8>> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(socket.as_raw_fd(), &self.bytes, &kernel, MsgFlags::empty())?;
        let (mut open, mut buffer, mut answer) = (self.count, vec![0; 32 << 10], Vec::new());
        while open > 0 {
            let got = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let message = &buffer[..got];
            if message.get(4..6) != Some(&[2, 0]) {
                answer = message.to_vec();
                continue;
            }
            open -= 1;
            let code = message.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
            if code != Some(0) {
                bail!("the kernel refused the floor's work: {code:?}");
            }
        }
        Ok(answer)
    }
}

fn open() -> Result<OwnedFd> {
    let route = SockProtocol::NetlinkRoute;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, route)?)
}

/// Own index and that of the other end, from RTM_NEWLINK.
fn indexes(message: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let (own, mut at) = (word(20)?, 32);
    while let Some(header) = word(at) {
        let (length, kind) = ((header & 0xffff) as usize, header >> 16);
        if kind == 5 {
            return Some((own, word(at + 4)?));
        }
        at += length.max(4).next_multiple_of(4);
    }
    None
}

impl Floor {
    /// In `netns`, which has no network of ours.
    pub(crate) fn new(netns: Netns) -> Result<Self> {
        // An address of its own: taking each new port's, it would forget all neighbours.
        let mac = "0a:58:0a:61:ff:fe";
        netns.ip(&format!(
            "link add {BRIDGE} address {mac} mtu 1450 type bridge\nlink set {BRIDGE} up\n"
        ))?;
        let bridge = netns.run(|| nix::net::if_::if_nametoindex(BRIDGE))??;
        Ok(Self { netns, bridge })
    }

    /// Makes an attachment; how long it took.
    pub(crate) fn add(&self, sandbox: &Sandbox) -> Result<Duration> {
        self.netns.run(|| self.attach(sandbox))?
    }

    /// Removes attachments; nobody measures that.
    pub(crate) fn del(&self, sandboxes: &[Sandbox]) -> Result<()> {
        let bridge = self.bridge.to_ne_bytes();
        self.netns.run(|| {
            let socket = open()?;
            for sandbox in sandboxes {
                let Pod { host, address, .. } = Pod::new(sandbox.number);
                Batch::default()
                    .add(DELROUTE, 0, &ON_LINK, &[(1, &address), (4, &bridge)])
                    .add(DELNEIGH, 0, &neighbour(INET, self.bridge, 0, 0), &[(1, &address)])
                    .add(SETLINK, 0, &link(0, 0), &[(3, &text(&host)), (27, &GROUP)])
                    .run(&socket)?;
            }
            // All at once: each by itself waits for a grace period.
            Batch::default().add(DELLINK, 0, &link(0, 0), &[(27, &GROUP)]).run(&socket).map(drop)
        })?
    }

    fn attach(&self, sandbox: &Sandbox) -> Result<Duration> {
        let Pod { host: name, mac, address: ip } = Pod::new(sandbox.number);
        let home = File::open("/proc/thread-self/ns/net")?;
        let start = Instant::now();
        let inside = File::open(sandbox.netns.path())?;
        let host = open()?;
        let (one, mtu) = (1_u32.to_ne_bytes(), 1450_u32.to_ne_bytes());
        let bridge = self.bridge.to_ne_bytes();
        let namespace = inside.as_raw_fd().to_ne_bytes();
        let mut peer = link(0, 0);
        let list: [(u16, &[u8]); 6] =
            [(3, &text(POD)), (1, &mac), (4, &mtu), (31, &one), (32, &one), (28, &namespace)];
        peer.extend(attributes(&list));
        let veth = attributes(&[(1, &text("veth")), (2, &attributes(&[(1, &peer)]))]);
        let flags = attributes(&[(33, &[1]), (8, &[0]), (9, &[0]), (27, &[0]), (30, &[0])]);
        let port = attributes(&[(4, &text("bridge")), (5, &flags)]);
        let made = Batch::default()
            .add(
                NEWLINK,
                CREATE,
                &link(0, 0),
                &[(3, &text(&name)), (4, &mtu), (10, &bridge), (31, &one), (32, &one), (18, &veth)],
            )
            .add(NEWLINK, 0, &link(0, UP), &[(3, &text(&name)), (20, b"floor"), (18, &port)])
            .add(GETLINK, 0, &link(0, 0), &[(3, &text(&name))])
            .run(&host)?;
        let (own, other) = indexes(&made).context("the kernel does not show the pair")?;
        Batch::default()
            .add(NEWNEIGH, CREATE, &neighbour(7, own, 0x40, 4), &[(2, &mac)])
            .add(NEWNEIGH, CREATE, &neighbour(INET, self.bridge, 0x80, 0), &[(1, &ip), (2, &mac)])
            .add(NEWROUTE, CREATE, &ON_LINK, &[(1, &ip), (4, &bridge)])
            .run(&host)?;
        setns(&inside, CloneFlags::CLONE_NEWNET)?;
        let pod = open()?;
        setns(&home, CloneFlags::CLONE_NEWNET)?;
        let index = other.to_ne_bytes();
        let address = [[INET, 32, 0, 0], index].concat();
        // The default route, through a gateway that no route leads to.
        let default = [INET, 0, 0, 0, 254, 117, 0, 1, 4, 0, 0, 0];
        Batch::default()
            .add(NEWLINK, 0, &link(1, UP), &[])
            .add(NEWLINK, 0, &link(other, UP), &[])
            .add(NEWADDR, CREATE, &address, &[(2, &ip), (1, &ip)])
            .add(NEWNEIGH, CREATE, &neighbour(INET, other, 0x80, 0), &[(1, &GATEWAY), (2, &mac)])
            .add(NEWROUTE, CREATE, &ON_LINK, &[(1, &GATEWAY), (4, &index)])
            .add(NEWROUTE, CREATE, &default, &[(5, &GATEWAY), (4, &index)])
            .run(&pod)?;
        Ok(start.elapsed())
    }
}
