//! CHECK: is the attachment as ADD (and later plugins of the chain) left it?

use std::net::IpAddr;

use nix::errno::Errno;
use weft_proto::cni::{CniError, Conf, Env, Outcome, SpecVersion, code};
use weft_proto::names::{self, format_mac};

use crate::agent::Agent;
use crate::net::{
    AddressView, Batch, DUMP, KernelError, LinkView, NeighbourView, RouteView, Socket, gateway,
    get_addresses, get_link, get_neighbour, get_neighbours, get_route, get_routes,
};
use crate::netns::Sandbox;

fn failed(msg: String) -> CniError {
    CniError::new(code::CHECK_FAILED, msg).details("restart the pod if this stays")
}

pub(crate) fn run(env: &Env, conf: &Conf, agent: &Agent) -> Result<(), CniError> {
    conf.version.require(SpecVersion::V0_4_0, "CHECK")?;
    let prev = conf.prev_result.as_ref().ok_or_else(|| {
        CniError::new(code::INVALID_CONFIG, "CHECK without prevResult")
            .details("the runtime must pass what ADD returned")
    })?;
    let outcome = Outcome::parse(prev)?;
    let sandbox = Sandbox::open(&env.netns)?;
    let (index, told) = outcome
        .interfaces
        .iter()
        .enumerate()
        .find(|(_, it)| it.name == env.key.ifname && !it.sandbox.is_empty())
        .ok_or_else(|| {
            CniError::new(
                code::INVALID_CONFIG,
                format!("prevResult has no interface {}", env.key.ifname),
            )
        })?;
    let addresses: Vec<IpAddr> = outcome
        .ips
        .iter()
        .filter(|ip| ip.interface.is_none_or(|i| i == index))
        .map(|ip| ip.address.addr())
        .collect();

    let mut pod = sandbox.run(Socket::open)?;
    let inside = one_link(&mut pod, &env.key.ifname)?
        .ok_or_else(|| failed(format!("{} is gone from the container", env.key.ifname)))?;
    let mut wrong = Vec::new();
    if !inside.up {
        wrong.push(format!("{} is down", env.key.ifname));
    }
    if !told.mac.is_empty() && !told.mac.eq_ignore_ascii_case(&format_mac(inside.mac)) {
        wrong.push(format!(
            "{} has MAC {}, not {}",
            env.key.ifname,
            format_mac(inside.mac),
            told.mac
        ));
    }
    if let Some(mtu) = told.mtu.filter(|mtu| *mtu != inside.mtu) {
        wrong.push(format!("{} has MTU {}, not {mtu}", env.key.ifname, inside.mtu));
    }
    check_pod(&mut pod, &inside, &outcome, &addresses, &mut wrong)?;

    let mut host = Socket::open().map_err(|error| {
        CniError::new(code::KERNEL, format!("cannot open a netlink socket: {error}"))
    })?;
    check_host(&mut host, env, &inside, &addresses, &mut wrong)?;
    if !wrong.is_empty() {
        return Err(failed(wrong.join("; ")));
    }

    let lease = agent
        .attachment(&env.key)?
        .ok_or_else(|| failed(format!("the agent knows no attachment {}", env.key)))?;
    match addresses.iter().find(|address| !lease.addresses.contains(address)) {
        Some(address) => Err(failed(format!("the agent does not hold {address} for {}", env.key))),
        None => Ok(()),
    }
}

fn one_link(socket: &mut Socket, name: &str) -> Result<Option<LinkView>, KernelError> {
    let mut batch = Batch::default();
    batch.add(get_link(name), 0, format!("look at {name}"));
    match socket.run(&batch) {
        Ok(replies) => Ok(replies.iter().flatten().find_map(|r| LinkView::parse(&r.payload))),
        Err(error) if error.errno == Errno::ENODEV => Ok(None),
        Err(error) => Err(error),
    }
}

fn check_pod(
    pod: &mut Socket,
    inside: &LinkView,
    outcome: &Outcome,
    addresses: &[IpAddr],
    wrong: &mut Vec<String>,
) -> Result<(), CniError> {
    let mut dump = |message, what: &str| {
        let mut batch = Batch::default();
        batch.add(message, DUMP, what);
        pod.run(&batch).map(|replies| replies.into_iter().flatten().collect::<Vec<_>>())
    };
    let there: Vec<_> = dump(get_addresses(), "list addresses")?
        .iter()
        .filter_map(|r| AddressView::parse(&r.payload))
        .collect();
    let neighbours: Vec<_> = dump(get_neighbours(), "list neighbours")?
        .iter()
        .filter_map(|r| NeighbourView::parse(&r.payload))
        .collect();
    let mut routes = Vec::new();
    for address in addresses {
        let replies = dump(get_routes(crate::net::family(*address)), "list routes")?;
        routes.extend(replies.iter().filter_map(|r| RouteView::parse(&r.payload)));
        if !there.iter().any(|it| it.link == inside.index && it.address == *address) {
            wrong.push(format!("{} has lost address {address}", inside.name));
        }
        let gateway = gateway(*address);
        if !neighbours.iter().any(|n| n.link == inside.index && n.permanent && n.address == gateway)
        {
            wrong.push(format!("{} has lost its gateway's neighbour entry {gateway}", inside.name));
        }
    }
    // Routes of other plugins are theirs to check.
    for told in outcome.routes.iter().filter(|r| r.gw.is_some_and(|gw| gw == gateway(gw))) {
        let found = routes.iter().any(|route| {
            route.link == Some(inside.index)
                && route.prefix == told.dst.prefix_len()
                && route.dst.is_none_or(|dst| dst == told.dst.network())
                && route.gateway == told.gw
                && told.table.is_none_or(|table| table == route.table)
        });
        if !found {
            wrong.push(format!(
                "the container has lost the route to {} by {}",
                told.dst, inside.name
            ));
        }
    }
    Ok(())
}

fn check_host(
    host: &mut Socket,
    env: &Env,
    inside: &LinkView,
    addresses: &[IpAddr],
    wrong: &mut Vec<String>,
) -> Result<(), CniError> {
    let name = names::host_ifname(&env.key.container_id, &env.key.ifname);
    let Some(bridge) = one_link(host, names::BRIDGE)? else {
        wrong.push(format!("bridge {} is missing on the node", names::BRIDGE));
        return Ok(());
    };
    match one_link(host, &name)? {
        None => wrong.push(format!("host end {name} is gone")),
        Some(end) => {
            if end.peer != Some(inside.index) || inside.peer != Some(end.index) {
                wrong.push(format!("{name} is not the other end of {}", inside.name));
            }
            if end.master != Some(bridge.index) {
                wrong.push(format!("{name} is not on bridge {}", bridge.name));
            }
            if !end.up {
                wrong.push(format!("{name} is down"));
            }
        }
    }
    for address in addresses {
        let mut batch = Batch::default();
        batch.add(get_route(*address), 0, format!("look up {address}"));
        batch.add(get_neighbour(bridge.index, *address), 0, format!("look up neighbour {address}"));
        let mut results = host.exchange(&batch)?.into_iter();
        let full = if address.is_ipv4() { 32 } else { 128 };
        let mut replies = || results.next().and_then(Result::ok).unwrap_or_default().into_iter();
        let route = replies().find_map(|reply| RouteView::parse(&reply.payload));
        if !route.is_some_and(|r| r.link == Some(bridge.index) && r.prefix == full) {
            wrong.push(format!("the node has lost the route to {address}"));
        }
        let neighbour = replies().find_map(|reply| NeighbourView::parse(&reply.payload));
        if !neighbour.is_some_and(|n| n.permanent && n.mac == inside.mac) {
            wrong.push(format!("the node has lost the neighbour entry of {address}"));
        }
    }
    Ok(())
}
