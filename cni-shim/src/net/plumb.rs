//! Wiring one attachment: what to make of what is there, and the batches that
//! make it.

use std::net::IpAddr;
use std::os::fd::RawFd;

use nix::errno::Errno;
use weft_proto::attachment::{Alias, AttachmentKey};
use weft_proto::cni::{Bandwidth, CniError, RouteConf, code};
use weft_proto::names;

use super::message::{self, CREATE, DUMP, EXCLUSIVE, PodRoute, REPLACE};
use super::routing::{Routing, gateway, routing};
use super::socket::{Batch, KernelError, Reply, Socket};
use super::tbf;
use super::view::{LinkView, NeighbourView, RouteView};

const UPSERT: u16 = CREATE | REPLACE;
const ONCE: u16 = CREATE | EXCLUSIVE;
const GONE: &[Errno] = &[Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL];
const THERE: &[Errno] = &[Errno::EEXIST];
/// A kernel without IPv6, or a device too small for it.
const WITHOUT_IPV6: &[Errno] = &[Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::EINVAL];

/// What one attachment shall look like.
#[derive(Debug)]
pub(crate) struct Wiring<'a> {
    /// Who.
    pub key: &'a AttachmentKey,
    /// Host end.
    pub host_ifname: &'a str,
    /// Bridge.
    pub bridge: &'a str,
    /// MAC inside.
    pub mac: [u8; 6],
    /// The bridge's MAC.
    pub gateway_mac: [u8; 6],
    /// MTU of both ends.
    pub mtu: u32,
    /// Addresses, at most one per family.
    pub addresses: &'a [IpAddr],
    /// The pod network.
    pub ranges: &'a [ipnet::IpNet],
    /// Routes of the configuration, instead of the default route.
    pub routes: Option<&'a [RouteConf]>,
    /// On the port.
    pub hairpin: bool,
    /// Text for the host end's alias.
    pub alias: String,
    /// Limits.
    pub bandwidth: Bandwidth,
}

/// What has to be done first.
#[derive(Debug)]
pub(crate) struct Plan {
    bridge: u32,
    /// Host ends of pairs that must go.
    stale: Vec<u32>,
    /// The pair is this attachment's own, from an earlier ADD.
    pub reuse: bool,
    /// IPv4 routes of the container, if they stay as they were found.
    routes: Option<Vec<RouteView>>,
}

fn look(socket: &mut Socket, batch: &Batch) -> Result<Vec<Option<LinkView>>, KernelError> {
    let results = socket.exchange(batch)?;
    results
        .into_iter()
        .map(|result| match result {
            Ok(replies) => Ok(replies.first().and_then(|reply| LinkView::parse(&reply.payload))),
            Err(error) if GONE.contains(&error.errno) => Ok(None),
            Err(error) => Err(error),
        })
        .collect()
}

/// What is there before anything is done.
#[derive(Debug)]
pub(crate) struct Found {
    bridge: Option<LinkView>,
    host_end: Option<LinkView>,
    inside: Option<LinkView>,
    /// IPv4 routes of the container.
    routes: Vec<RouteView>,
}

impl Found {
    /// Looks at the bridge, the name of the host end, and into the container.
    pub(crate) fn look(
        host: &mut Socket,
        pod: &mut Socket,
        [bridge, host_ifname, ifname]: [&str; 3],
    ) -> Result<Self, KernelError> {
        let mut batch = Batch::default();
        batch.add(message::get_link(bridge), 0, "look at the bridge");
        batch.add(message::get_link(host_ifname), 0, "look at the host end");
        let mut found = look(host, &batch)?.into_iter();
        let (bridge, host_end) = (found.next().flatten(), found.next().flatten());
        let mut batch = Batch::default();
        batch.add(message::get_link(ifname), 0, "look into the container");
        let inside = look(pod, &batch)?.into_iter().next().flatten();
        let routes = routes(pod, message::AF_INET)?;
        Ok(Self { bridge, host_end, inside, routes })
    }

    /// The bridge is there, and nothing of an earlier ADD: what may be seen
    /// before the agent has answered. Anything else can be about to go.
    pub(crate) fn is_bare(&self) -> bool {
        self.bridge.is_some() && self.host_end.is_none() && self.inside.is_none()
    }
}

fn routes(pod: &mut Socket, family: u8) -> Result<Vec<RouteView>, KernelError> {
    let mut batch = Batch::default();
    batch.add(message::get_routes(family), DUMP, "list the container's routes");
    let replies = pod.run(&batch)?;
    Ok(replies.iter().flatten().filter_map(|r| RouteView::parse(&r.payload)).collect())
}

impl Plan {
    /// From what was found. `is_live` tells whether another attachment is in
    /// use; an interface of one that is not may be replaced.
    pub(crate) fn make(
        found: Found,
        host: &mut Socket,
        wiring: &Wiring<'_>,
        is_live: impl Fn(&AttachmentKey) -> Result<bool, CniError>,
    ) -> Result<Self, CniError> {
        // Those of a pair that has to go are not to be reckoned with.
        let bare = found.is_bare();
        let Found { bridge, host_end, inside, routes } = found;
        let routes = bare.then_some(routes);
        let Some(bridge) = bridge else {
            return Err(CniError::new(
                code::TRY_AGAIN,
                format!("bridge {} is missing on this node", wiring.bridge),
            )
            .details("the agent puts it back within a second; see `agent status`"));
        };
        let mut plan = Self { bridge: bridge.index, stale: Vec::new(), reuse: false, routes };
        if let Some(inside) = inside {
            let other =
                other_end(host, &inside)?.ok_or_else(|| exists(wiring.key, &inside.kind))?;
            match Alias::parse(&other.alias) {
                Some(alias) if alias.key == *wiring.key => {
                    plan.reuse = alias.addresses == wiring.addresses && inside.mac == wiring.mac;
                }
                Some(alias) if is_live(&alias.key)? => {
                    return Err(exists(wiring.key, &format!("attachment {}", alias.key)));
                }
                // Left over from a DEL whose slow part is still to come.
                _ => {}
            }
            if !plan.reuse {
                plan.stale.push(other.index);
            }
        }
        if let Some(end) = host_end.filter(|end| !plan.reuse && !plan.stale.contains(&end.index)) {
            let whose = Alias::parse(&end.alias).map(|alias| alias.key);
            if end.kind != "veth" || whose.is_some_and(|key| key != *wiring.key) {
                return Err(CniError::new(
                    code::INTERFACE_EXISTS,
                    format!("the node has an interface {} that is not weft's", end.name),
                )
                .details(format!("look at it with `ip -d link show {}`", end.name)));
            }
            plan.stale.push(end.index);
        }
        Ok(plan)
    }
}

fn exists(key: &AttachmentKey, kind: &str) -> CniError {
    CniError::new(
        code::INTERFACE_EXISTS,
        format!("container {} already has an interface {} ({kind})", key.container_id, key.ifname),
    )
    .details("attach with another CNI_IFNAME, or delete the old attachment first")
}

/// The host end of a pair of ours, found from inside; `None` if the link inside
/// is not of such a pair.
fn other_end(host: &mut Socket, inside: &LinkView) -> Result<Option<LinkView>, KernelError> {
    let Some(index) = inside.peer.filter(|_| inside.kind == "veth") else { return Ok(None) };
    let mut batch = Batch::default();
    batch.add(message::get_link_at(index), 0, "look at the other end");
    let other = look(host, &batch)?.into_iter().next().flatten();
    Ok(other.filter(|other| {
        other.kind == "veth"
            && other.peer == Some(inside.index)
            && names::is_host_ifname(&other.name)
    }))
}

impl Wiring<'_> {
    /// Makes the pair and the host's entries. `created` is set as soon as there
    /// is something to undo.
    pub(crate) fn wire_host(
        &self,
        host: &mut Socket,
        plan: &Plan,
        namespace: RawFd,
        created: &mut bool,
    ) -> Result<LinkView, CniError> {
        let mut batch = Batch::default();
        for index in &plan.stale {
            batch.add_tolerant(message::del_link(*index), 0, "delete a left-over pair", GONE);
        }
        let (name, ifname) = (self.host_ifname, &self.key.ifname);
        if plan.reuse {
            let what = format!("put {name} on bridge {}", self.bridge);
            batch.add(message::set_master(name, plan.bridge, self.mtu), 0, what);
        } else {
            let pair = message::new_pair(name, plan.bridge, self.mtu, ifname, self.mac, namespace);
            batch.add(
                pair,
                ONCE,
                format!("create the pair {name} - {ifname} on bridge {}", self.bridge),
            );
        }
        let what = format!("keep IPv6 off {name}");
        batch.add_tolerant(message::no_link_local(name), 0, what, WITHOUT_IPV6);
        batch.add(
            message::set_port(name, &self.alias, self.hairpin),
            0,
            format!("set port {name}"),
        );
        batch.add(message::get_link(name), 0, format!("look at {name}"));
        let results = host.exchange(&batch)?;
        *created = !plan.reuse && results.get(plan.stale.len()).is_some_and(Result::is_ok);
        let replies: Vec<Vec<Reply>> = results.into_iter().collect::<Result<_, _>>()?;
        let end = replies
            .last()
            .and_then(|replies| LinkView::parse(&replies.first()?.payload))
            .ok_or_else(|| {
                CniError::new(code::KERNEL, format!("the kernel does not show {name}"))
            })?;

        let mut batch = Batch::default();
        batch.add(message::set_up(end.index), 0, format!("bring {name} up"));
        batch.add(
            message::new_fdb(end.index, self.mac),
            UPSERT,
            format!("add the forwarding entry of {name}"),
        );
        for address in self.addresses {
            let neighbour = message::new_neighbour(plan.bridge, *address, self.mac);
            batch.add(neighbour, UPSERT, format!("add neighbour {address} on {}", self.bridge));
            let route = message::new_host_route(plan.bridge, *address);
            batch.add(route, UPSERT, format!("add the route to {address} on {}", self.bridge));
        }
        let (rate, burst) = (self.bandwidth.ingress_rate, self.bandwidth.ingress_burst);
        tbf::limit(
            &mut batch,
            end.index,
            rate,
            burst,
            self.mtu,
            "limit the bandwidth to the container",
        );
        host.run(&batch)?;
        Ok(end)
    }

    /// Sets the container's end up. `link` is its index.
    pub(crate) fn wire_pod(
        &self,
        pod: &mut Socket,
        plan: &Plan,
        link: u32,
    ) -> Result<Vec<PodRoute>, CniError> {
        let routing = self.look_at_routes(pod, plan, link)?;
        let ifname = &self.key.ifname;
        let mut batch = Batch::default();
        batch.add(message::set_up(1), 0, "bring lo up");
        let up = if plan.reuse {
            message::set_pod_link(link, self.mac, self.mtu)
        } else {
            message::set_up(link)
        };
        batch.add(up, 0, format!("bring {ifname} up"));
        for address in self.addresses {
            let what = format!("add {address} to {ifname}");
            batch.add(message::new_address(link, *address), UPSERT, what);
            let gateway = gateway(*address);
            let what = format!("add neighbour {gateway} on {ifname}");
            batch.add(message::new_neighbour(link, gateway, self.gateway_mac), UPSERT, what);
            // For people and programs that look for it; our own routes do without.
            if address.is_ipv4() {
                let what = format!("add the route to {gateway} on {ifname}");
                batch.add_tolerant(message::new_host_route(link, gateway), ONCE, what, THERE);
            }
        }
        for route in &routing.routes {
            let what = format!("add the route to {} on {ifname}", route.dst);
            // Of a reused pair they are there; a new table's are nobody else's.
            let (flags, tolerated) = match (route.table, plan.reuse) {
                (Some(_), _) => (UPSERT, [].as_slice()),
                (None, true) => (ONCE, THERE),
                (None, false) => (ONCE, [].as_slice()),
            };
            batch.add_tolerant(route.message(link), flags, what, tolerated);
        }
        for (source, table) in &routing.rules {
            let rule = message::new_source_rule(*source, *table, super::routing::RULE_PRIORITY);
            batch.add_tolerant(rule, ONCE, format!("add the rule for {source}"), THERE);
        }
        let (rate, burst) = (self.bandwidth.egress_rate, self.bandwidth.egress_burst);
        tbf::limit(
            &mut batch,
            link,
            rate,
            burst,
            self.mtu,
            "limit the bandwidth from the container",
        );
        pod.run(&batch)?;
        Ok(routing.routes)
    }

    fn look_at_routes(
        &self,
        pod: &mut Socket,
        plan: &Plan,
        link: u32,
    ) -> Result<Routing, KernelError> {
        let mut others = Vec::new();
        for address in self.addresses {
            match plan.routes.as_ref().filter(|_| address.is_ipv4()) {
                Some(routes) => others.extend(routes),
                None => others.extend(routes(pod, message::family(*address))?),
            }
        }
        others.retain(|route| route.link != Some(link));
        let to_gateway = |route: &RouteView| {
            route.prefix == 0 && route.gateway.is_some_and(|gw| gw == gateway(gw))
        };
        let mut neighbours = Vec::new();
        if others.iter().any(to_gateway) {
            let mut batch = Batch::default();
            batch.add(message::get_neighbours(), DUMP, "list the container's neighbours");
            neighbours.extend(
                pod.run(&batch)?.iter().flatten().filter_map(|r| NeighbourView::parse(&r.payload)),
            );
        }
        Ok(routing(
            self.addresses,
            self.ranges,
            self.routes,
            link,
            self.gateway_mac,
            &others,
            &neighbours,
        ))
    }
}

/// Removes routes and neighbours of `addresses`, then the link (the slow part).
/// Nothing of it missing is an error.
pub(crate) fn clear(
    host: &mut Socket,
    bridge: &str,
    link: Option<u32>,
    addresses: &[IpAddr],
) -> Result<(), KernelError> {
    let mut batch = Batch::default();
    batch.add(message::get_link(bridge), 0, "look at the bridge");
    let bridge_index = look(host, &batch)?.into_iter().next().flatten().map(|link| link.index);
    let mut batch = Batch::default();
    if let Some(index) = bridge_index {
        for address in addresses {
            let what = format!("delete the route to {address}");
            batch.add_tolerant(message::del_host_route(index, *address), 0, what, GONE);
            let what = format!("delete neighbour {address}");
            batch.add_tolerant(message::del_neighbour(index, *address), 0, what, GONE);
        }
    }
    if let Some(index) = link {
        batch.add_tolerant(message::del_link(index), 0, "delete the pair", GONE);
    }
    host.run(&batch).map(drop)
}
