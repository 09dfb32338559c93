//! Network namespaces for tests.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use weft_proto::attachment::{Alias, AttachmentKey};
use weft_proto::names::{host_ifname, pod_mac};

use crate::dataplane::intent::{Intent, PodIntent};
use crate::dataplane::{Dataplane, DataplaneConfig, DataplaneHandle};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A namespace; deleted when dropped.
pub(crate) struct Ns {
    pub(crate) name: String,
}

impl Ns {
    pub(crate) fn new(what: &str) -> Self {
        let name =
            format!("wdp{}-{}-{what}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        sh(&format!("ip netns add {name}"));
        let ns = Self { name };
        ns.sh("ip link set lo up");
        ns
    }

    /// Runs `f` on a thread in this namespace.
    pub(crate) fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        let file = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    f()
                })
                .join()
                .unwrap()
        })
    }

    /// Shell in this namespace; must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let (ok, text) = self.try_sh(script);
        assert!(ok, "{script}: {text}");
        text
    }

    pub(crate) fn try_sh(&self, script: &str) -> (bool, String) {
        let out = Command::new("ip")
            .args(["netns", "exec", &self.name, "sh", "-c", script])
            .output()
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        (out.status.success(), text)
    }

    pub(crate) fn start(&self, config: DataplaneConfig) -> DataplaneHandle {
        self.run(|| Dataplane::start(config).unwrap())
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

pub(crate) fn sh(script: &str) -> String {
    let out = Command::new("sh").args(["-c", script]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{script}: {text}{}", String::from_utf8_lossy(&out.stderr));
    text
}

/// Waits for a condition; fails with `what` if it does not come.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < end, "did not happen: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits without a runtime of the test's own.
pub(crate) fn block<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

pub(crate) fn settle(handle: &DataplaneHandle, intent: &Intent) {
    handle.set_intent(intent.clone());
    block(handle.settled()).unwrap();
}

/// A pod as the IPAM side describes it.
pub(crate) fn pod(id: &str, address: &str) -> (AttachmentKey, PodIntent) {
    let address = address.parse().unwrap();
    let pod = PodIntent {
        host_ifname: host_ifname(id, "eth0"),
        mac: pod_mac(address),
        addresses: vec![address],
        port_mappings: Vec::new(),
    };
    (AttachmentKey { container_id: id.to_owned(), ifname: "eth0".to_owned() }, pod)
}

/// Wires a pod the way the shim does.
pub(crate) fn wire(node: &Ns, pod_ns: &Ns, key: &AttachmentKey, pod: &PodIntent) {
    let alias = Alias { key: key.clone(), addresses: pod.addresses.clone(), pod: None, uid: None };
    let alias = alias.to_text().unwrap();
    let host = &pod.host_ifname;
    let mac = weft_proto::names::format_mac(pod.mac);
    node.sh(&format!(
        "ip link add {host} type veth peer name eth0 address {mac} netns {ns} &&
         ip link set {host} alias '{alias}' && ip link set {host} master weft up &&
         bridge link set dev {host} isolated on learning off flood off mcast_flood off \
            bcast_flood off hairpin on &&
         bridge fdb replace {mac} dev {host} master static",
        ns = pod_ns.name
    ));
    let gateway = node.sh("cat /sys/class/net/weft/address");
    pod_ns.sh("ip link set eth0 up");
    for ip in &pod.addresses {
        let (v, len, via) = if ip.is_ipv6() { (6, 128, "fe80::1") } else { (4, 32, "169.254.1.1") };
        node.sh(&format!(
            "ip neigh replace {ip} lladdr {mac} dev weft nud permanent protocol 117 &&
             ip -{v} route replace {ip}/{len} dev weft proto 117 scope link"
        ));
        pod_ns.sh(&format!(
            "ip -{v} addr add {ip}/{len} dev eth0 {nodad} &&
             ip -{v} route add {via} dev eth0 scope link &&
             ip neigh add {via} lladdr {gw} dev eth0 nud permanent &&
             ip -{v} route add default via {via} dev eth0",
            nodad = if ip.is_ipv6() { "nodad" } else { "" },
            gw = gateway.trim()
        ));
    }
}
