//! A node and pods as namespaces, and connections between them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::states::ip;
use crate::dataplane::netlink::socket::Requests;
use crate::dataplane::tests::ns::Ns;
use crate::policy::nft::kernel;
use crate::policy::nft::layout::{Families, layout};
use crate::policy::nft::model::{Edit, Observed, diff};
use crate::policy::state::PolicyState;

pub(super) const BOTH: Families = Families { v4: true, v6: true };
/// Long enough for what passes; what is refused is waited for this long only.
const REFUSED: Duration = Duration::from_millis(250);
const PASSES: Duration = Duration::from_secs(10);

/// A pod with servers on some ports.
pub(super) struct Pod {
    pub(super) ns: Ns,
    pub(super) v4: IpAddr,
    pub(super) v6: IpAddr,
    stop: Arc<AtomicBool>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A node that forwards between its pods `10.32.N.2` and `fd00:N::2`, N from 1.
pub(super) struct Node {
    pub(super) ns: Ns,
    pub(super) pods: Vec<Pod>,
}

impl Node {
    pub(super) fn new(count: usize) -> Self {
        let ns = Ns::new("pol");
        ns.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
               net.netfilter.nf_conntrack_checksum=0");
        let pods = (1..=count).map(|n| pod(&ns, n)).collect();
        Self { ns, pods }
    }

    pub(super) fn requests(&self) -> Requests {
        self.ns.run(|| Requests::open(NETLINK_NETFILTER).unwrap())
    }

    pub(super) fn read(&self) -> Observed {
        kernel::read(&mut self.requests()).unwrap()
    }

    pub(super) fn write(&self, edit: &Edit) {
        kernel::write(&mut self.requests(), edit).unwrap();
    }

    /// Makes the kernel hold a state; then it must hold just that.
    pub(super) fn hold(&self, state: &PolicyState) {
        let desired = layout(state, BOTH);
        self.write(&diff(&desired, &self.read()));
        // The kernel's dump may skip elements while a set's hash table grows
        // (rhashtable resizes in the background): it must hold soon, then.
        let mut left = diff(&desired, &self.read());
        for _ in 0..50 {
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
            left = diff(&desired, &self.read());
        }
        panic!("{}\n{}", format!("{left:?}").chars().take(2000).collect::<String>(), self.rules());
    }

    pub(super) fn rules(&self) -> String {
        self.ns.sh("nft -a list table inet weft-policy")
    }

    fn address(&self, pod: usize, v6: bool) -> IpAddr {
        let pod = &self.pods[pod - 1];
        if v6 { pod.v6 } else { pod.v4 }
    }

    /// A TCP connection from a pod to a pod, by number.
    pub(super) fn tcp(&self, from: usize, to: usize, port: u16, v6: bool, expect: bool) -> bool {
        let to = SocketAddr::new(self.address(to, v6), port);
        let patience = if expect { PASSES } else { REFUSED };
        self.pods[from - 1].ns.run(|| TcpStream::connect_timeout(&to, patience).is_ok())
    }

    /// A question and its answer over UDP.
    pub(super) fn udp(&self, from: usize, to: usize, port: u16, v6: bool, expect: bool) -> bool {
        let to = SocketAddr::new(self.address(to, v6), port);
        let patience = if expect { PASSES } else { REFUSED };
        self.pods[from - 1].ns.run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(any(to.is_ipv6()), 0)).unwrap();
            socket.set_read_timeout(Some(patience)).unwrap();
            socket.connect(to).unwrap();
            let _ = socket.send(b"x");
            socket.recv(&mut [0; 8]).is_ok()
        })
    }

    /// Both families and protocols must agree with `expect`.
    pub(super) fn check(&self, from: usize, to: usize, port: u16, tcp: bool, udp: bool) {
        for v6 in [false, true] {
            let found = self.tcp(from, to, port, v6, tcp);
            assert_eq!(found, tcp, "tcp {from}->{to}:{port} v6={v6}\n{}", self.rules());
            let found = self.udp(from, to, port, v6, udp);
            assert_eq!(found, udp, "udp {from}->{to}:{port} v6={v6}\n{}", self.rules());
        }
    }

    /// An open connection: client and server end.
    pub(super) fn connection(&self, from: usize, to: usize, v6: bool) -> (TcpStream, TcpStream) {
        let address = self.address(to, v6);
        let listener =
            self.pods[to - 1].ns.run(|| TcpListener::bind(SocketAddr::new(any(v6), 0)).unwrap());
        let to = SocketAddr::new(address, listener.local_addr().unwrap().port());
        let client =
            self.pods[from - 1].ns.run(|| TcpStream::connect_timeout(&to, PASSES).unwrap());
        (client, listener.accept().unwrap().0)
    }
}

/// True if a byte gets through, which takes as long as it takes, or does not in
/// the time that a refused one is given.
pub(super) fn passes(from: &mut TcpStream, to: &mut TcpStream, expect: bool) -> bool {
    to.set_read_timeout(Some(if expect { PASSES } else { REFUSED })).unwrap();
    from.write_all(b"x").is_ok() && to.read_exact(&mut [0]).is_ok()
}

fn any(v6: bool) -> IpAddr {
    if v6 { ip("::") } else { ip("0.0.0.0") }
}

fn pod(node: &Ns, n: usize) -> Pod {
    let ns = Ns::new("pp");
    node.sh(&format!(
        "ip link add p{n} type veth peer name eth0 netns {} && ip link set p{n} up &&
         ip addr add 10.32.{n}.1/24 dev p{n} && ip addr add fd00:{n}::1/64 dev p{n} nodad",
        ns.name
    ));
    ns.sh(&format!(
        "ip link set eth0 up && ip addr add 10.32.{n}.2/24 dev eth0 &&
         ip addr add fd00:{n}::2/64 dev eth0 nodad &&
         ip route add default via 10.32.{n}.1 && ip -6 route add default via fd00:{n}::1"
    ));
    let stop = Arc::new(AtomicBool::new(false));
    for port in [80, 81, 90] {
        for v6 in [false, true] {
            serve(&ns, SocketAddr::new(any(v6), port), &stop);
        }
    }
    Pod { v4: ip(&format!("10.32.{n}.2")), v6: ip(&format!("fd00:{n}::2")), ns, stop }
}

/// Sockets stay in the namespace they were made in; threads need not.
fn serve(ns: &Ns, address: SocketAddr, stop: &Arc<AtomicBool>) {
    let (tcp, udp) = ns.run(|| {
        // One socket for each family: `::` must not take IPv4 as well.
        if address.is_ipv6() {
            std::fs::write("/proc/sys/net/ipv6/bindv6only", "1").unwrap();
        }
        (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap())
    });
    udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        // The kernel accepts; nothing is said over these.
        let _tcp = tcp;
        let mut buf = [0; 64];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((len, from)) = udp.recv_from(&mut buf) {
                let _ = udp.send_to(&buf[..len], from);
            }
        }
    });
}
