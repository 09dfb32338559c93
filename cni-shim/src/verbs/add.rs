//! ADD: addresses from the agent, then the wiring, then the result.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use weft_proto::api::{AttachRequest, Attachment};
use weft_proto::attachment::Alias;
use weft_proto::cni::{CniError, Conf, Env, Interface, IpConfig, Outcome, Route, code};
use weft_proto::names::{self, MIN_MTU, format_mac};

use super::del;
use crate::agent::{Agent, run_dir};
use crate::net::{Found, LinkView, Plan, PodRoute, Socket, Wiring, gateway};
use crate::netns::Sandbox;
use crate::note;

pub(crate) fn run(env: &Env, conf: &Conf, agent: &Agent) -> Result<String, CniError> {
    let sandbox = Sandbox::open(&env.netns)?;
    // An old "it is gone" must not outlive what now comes.
    note::withdraw(&run_dir(conf), &env.key);
    let request = AttachRequest {
        key: env.key.clone(),
        netns: env.netns.clone(),
        args: env.args.clone(),
        port_mappings: conf.port_mappings.clone(),
        wait_ms: None,
    };
    let mut ahead = None;
    let attachment = agent.attach(request, || ahead = Ahead::look(env, &sandbox))?;
    let mut progress = Progress::default();
    match wire(env, conf, agent, &sandbox, &attachment, ahead, &mut progress) {
        Ok(outcome) => {
            Ok(format!("{}\n", outcome.to_json(conf.version, conf.prev_result.as_ref())))
        }
        Err(error) => {
            // An attachment that worked before this call keeps working.
            if !progress.reused {
                undo(env, conf, agent, &attachment, &progress);
            }
            Err(error)
        }
    }
}

/// For how long a look from before the agent's answer is worth something.
const FRESH: Duration = Duration::from_millis(500);

/// Sockets, and a look at what is there, from the time in which the agent works.
struct Ahead {
    host: Socket,
    inside: Socket,
    /// Under the names that the agent will most likely answer with.
    found: Option<Found>,
    at: Instant,
}

impl Ahead {
    /// `None` if anything goes wrong: it is tried again where it has an error to give.
    fn look(env: &Env, sandbox: &Sandbox) -> Option<Self> {
        let (mut host, mut inside) = sockets(sandbox).ok()?;
        let host_ifname = names::host_ifname(&env.key.container_id, &env.key.ifname);
        let what = [names::BRIDGE, &host_ifname, &env.key.ifname];
        let found = Found::look(&mut host, &mut inside, what).ok();
        Some(Self { host, inside, found, at: Instant::now() })
    }

    fn found_for(&mut self, attachment: &Attachment, env: &Env) -> Option<Found> {
        let key = &env.key;
        let as_asked = attachment.bridge == names::BRIDGE
            && attachment.host_ifname == names::host_ifname(&key.container_id, &key.ifname);
        let found = self.found.take()?;
        (as_asked && found.is_bare() && self.at.elapsed() < FRESH).then_some(found)
    }
}

/// Netlink sockets on the node, and in the container.
fn sockets(sandbox: &Sandbox) -> Result<(Socket, Socket), CniError> {
    let host = Socket::open().map_err(|error| {
        CniError::new(code::KERNEL, format!("cannot open a netlink socket: {error}"))
    })?;
    Ok((host, sandbox.run(Socket::open)?))
}

#[derive(Default)]
struct Progress {
    reused: bool,
    created: bool,
}

fn wire(
    env: &Env,
    conf: &Conf,
    agent: &Agent,
    sandbox: &Sandbox,
    attachment: &Attachment,
    ahead: Option<Ahead>,
    progress: &mut Progress,
) -> Result<Outcome, CniError> {
    let addresses = &attachment.addresses;
    let (v4, v6): (Vec<&IpAddr>, Vec<&IpAddr>) =
        addresses.iter().partition(|address| address.is_ipv4());
    if addresses.is_empty() || v4.len() > 1 || v6.len() > 1 || !addresses.iter().all(is_usable) {
        return Err(unusable(
            "its addresses must be unicast, at least one, at most one per family",
        ));
    }
    let pod = env.args.get("K8S_POD_NAME").map(|name| {
        let namespace = env.args.get("K8S_POD_NAMESPACE").map_or("", String::as_str);
        format!("{namespace}/{name}")
    });
    let uid = env.args.get("K8S_POD_UID").cloned();
    let alias = Alias { key: env.key.clone(), addresses: attachment.addresses.clone(), pod, uid };
    let wiring = Wiring {
        key: &env.key,
        host_ifname: &attachment.host_ifname,
        bridge: &attachment.bridge,
        mac: parse_mac(&attachment.mac).ok_or_else(|| unusable("its mac is not one"))?,
        gateway_mac: parse_mac(&attachment.gateway_mac)
            .ok_or_else(|| unusable("its gateway_mac is not one"))?,
        mtu: mtu(conf, attachment)?,
        addresses: &attachment.addresses,
        ranges: &attachment.ranges,
        routes: conf.routes.as_deref(),
        hairpin: conf.hairpin.unwrap_or(attachment.hairpin),
        alias: alias.to_text().ok_or_else(|| unusable("its addresses do not fit the alias"))?,
        bandwidth: conf.bandwidth,
    };
    let with_v6 = attachment.addresses.iter().any(IpAddr::is_ipv6);
    let (mut host, mut inside, found) = match ahead {
        Some(mut ahead) => {
            let found = ahead.found_for(attachment, env);
            (ahead.host, ahead.inside, found)
        }
        None => {
            let (host, inside) = sockets(sandbox)?;
            (host, inside, None)
        }
    };
    let found = match found {
        Some(found) => found,
        None => Found::look(
            &mut host,
            &mut inside,
            [wiring.bridge, wiring.host_ifname, &wiring.key.ifname],
        )?,
    };
    let plan = Plan::make(found, &mut host, &wiring, |key| {
        agent.attachment(key).map(|lease| lease.is_some()).map_err(CniError::from)
    })?;
    progress.reused = plan.reuse;
    let host_end = wiring.wire_host(&mut host, &plan, sandbox.fd(), &mut progress.created)?;
    if with_v6 {
        sandbox.run(|| enable_v6(&env.key.ifname))?;
    }
    let link = host_end.peer.ok_or_else(|| {
        CniError::new(code::KERNEL, format!("{} has no other end", host_end.name))
    })?;
    let routes = wiring.wire_pod(&mut inside, &plan, link)?;
    Ok(outcome(env, conf, &wiring, &host_end, &routes))
}

fn is_usable(address: &IpAddr) -> bool {
    let special = address.is_multicast() || address.is_unspecified() || address.is_loopback();
    !special && *address != IpAddr::V4(std::net::Ipv4Addr::BROADCAST)
}

fn unusable(why: &str) -> CniError {
    CniError::new(code::REFUSED, format!("the agent's answer cannot be used: {why}"))
        .details("agent and plugin may be of different versions; the agent installs the plugin when it starts")
}

fn mtu(conf: &Conf, attachment: &Attachment) -> Result<u32, CniError> {
    let Some(wanted) = conf.mtu else { return Ok(attachment.mtu) };
    // 68: the smallest a node must pass in IPv4 (RFC 791).
    let least = if attachment.addresses.iter().any(IpAddr::is_ipv6) { MIN_MTU } else { 68 };
    if (least..=attachment.mtu).contains(&wanted) {
        return Ok(wanted);
    }
    Err(CniError::new(
        code::INVALID_CONFIG,
        format!("mtu {wanted} must be from {least} to the network's {}", attachment.mtu),
    )
    .details("correct or remove \"mtu\"; the network's own is MTU of the agent"))
}

/// Runtimes turn IPv6 off in namespaces that have no IPv6 address yet. In the
/// container's namespace, where /proc/sys/net is the container's.
fn enable_v6(ifname: &str) -> std::io::Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6");
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim() == "0" => Ok(()),
        _ => std::fs::write(path, "0"),
    }
}

fn outcome(
    env: &Env,
    conf: &Conf,
    wiring: &Wiring<'_>,
    host_end: &LinkView,
    routes: &[PodRoute],
) -> Outcome {
    let interface = |name: &str, mac, sandbox: &str| Interface {
        name: name.to_owned(),
        mac: format_mac(mac),
        mtu: Some(wiring.mtu),
        sandbox: sandbox.to_owned(),
    };
    Outcome {
        interfaces: vec![
            interface(&host_end.name, host_end.mac, ""),
            interface(&env.key.ifname, wiring.mac, &env.netns),
        ],
        ips: wiring
            .addresses
            .iter()
            .map(|address| IpConfig {
                address: (*address).into(),
                gateway: Some(gateway(*address)),
                interface: Some(1),
            })
            .collect(),
        routes: routes
            .iter()
            .map(|route| Route { dst: route.dst, gw: Some(route.gateway), table: route.table })
            .collect(),
        dns: conf.dns.clone(),
    }
}

/// Takes back what this call did. Its own errors matter less than the one that
/// led here; what stays is found by GC and by the agent's sweep.
fn undo(env: &Env, conf: &Conf, agent: &Agent, attachment: &Attachment, progress: &Progress) {
    if progress.created {
        del::clear_kernel(&env.key, &attachment.bridge, &attachment.addresses);
    }
    if agent.detach(&env.key).is_err() {
        let _ = note::leave(&run_dir(conf), &env.key);
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = parts
            .next()
            .filter(|p| p.len() == 2 && !p.starts_with('+'))
            .and_then(|p| u8::from_str_radix(p, 16).ok())?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs() {
        assert_eq!(parse_mac("0a:58:0a:20:00:01"), Some([0x0a, 0x58, 0x0a, 0x20, 0, 1]));
        for bad in ["", "0a:58", "0a:58:0a:20:00:01:02", "0a:58:0a:20:00:+1", "xx:58:0a:20:00:01"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
