//! The calls that need no running data plane: overlaps before a start, and
//! removing everything of ours.

use std::collections::BTreeMap;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_NETFILTER;
use weft_proto::names::{BRIDGE, VXLAN, is_host_ifname};

use super::DataplaneError;
use super::apply::{Indexes, apply};
use super::model::{Kind, Observed, Op};
use super::netlink::Kernel;
use super::netlink::socket::{Refused, Requests};
use super::nft::{forward, transaction};
use super::{facts, observe, reaper};

/// Host routes and addresses that overlap one of `ranges`, each with a
/// description; our own objects do not count.
pub fn overlaps(ranges: &[IpNet]) -> Result<Vec<(IpNet, String)>, DataplaneError> {
    let read = || {
        let mut kernel = open()?;
        observe::host(&mut kernel).map_err(|e| failed("read routes", &e))
    };
    Ok(facts::overlaps(&aside(read)??, ranges))
}

/// Removes every kernel object of ours: rules, routes, nexthops, pods' host
/// ends, the VXLAN device and the bridge. Goes on after a failure and tells all.
pub fn cleanup() -> Result<(), Vec<DataplaneError>> {
    let mut errors = Vec::new();
    if let Err(e) = remove_rules() {
        errors.push(e);
    }
    match aside(remove_objects).flatten() {
        Ok(more) => errors.extend(more),
        Err(e) => errors.push(e),
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn open() -> Result<Kernel, DataplaneError> {
    Kernel::open().map_err(|e| failed("open socket", &e.into()))
}

/// On a thread that belongs to no async runtime, as the caller's may; a new
/// thread stays in the network namespace of its maker.
fn aside<R: Send>(f: impl FnOnce() -> R + Send) -> Result<R, DataplaneError> {
    std::thread::scope(|scope| scope.spawn(f).join()).map_err(|_| DataplaneError::Stopped)
}

fn remove_rules() -> Result<(), DataplaneError> {
    let rules = |e: Refused| DataplaneError::Nftables {
        what: "remove tables weft".to_owned(),
        why: e.to_string(),
    };
    let mut nft = Requests::open(NETLINK_NETFILTER).map_err(|e| rules(e.into()))?;
    transaction::remove(&mut nft).map_err(rules)?;
    let accepts = |e: Refused| DataplaneError::Nftables {
        what: "remove the accepts from iptables' FORWARD chain".to_owned(),
        why: e.to_string(),
    };
    let found = forward::look(&mut nft, &[]).map_err(accepts)?;
    let edits = forward::edits(&found, &[], false);
    if edits.is_empty() { Ok(()) } else { forward::apply(&mut nft, &edits).map_err(accepts) }
}

fn remove_objects() -> Result<Vec<DataplaneError>, DataplaneError> {
    let mut kernel = open()?;
    let observed = observe::observe(&mut kernel, || false).map_err(|e| failed("read links", &e))?;
    let observed = observed.unwrap_or_default();
    let mut errors = Vec::new();
    if let Err(e) = reaper::reap(&pod_links(&observed)) {
        errors.push(failed("delete the pods' host ends", &e));
    }
    let mut indexes: Indexes =
        observed.links.iter().map(|(name, link)| (name.clone(), link.index)).collect();
    let failures = apply(&mut kernel, &mut indexes, &removals(&observed), |_| {});
    errors.extend(failures.into_iter().map(|e| failed(&e.op.to_string(), &e.why)));
    Ok(errors)
}

fn pod_links(observed: &Observed) -> Vec<u32> {
    let of_pod = |name: &str, master: Option<&str>, alias: bool| {
        alias || (is_host_ifname(name) && master == Some(BRIDGE))
    };
    observed
        .links
        .iter()
        .filter(|(name, link)| of_pod(name, link.master.as_deref(), link.alias.is_some()))
        .map(|(_, link)| link.index)
        .collect()
}

/// Routes before nexthops before links.
fn removals(observed: &Observed) -> Vec<Op> {
    let mut ops: Vec<Op> = Vec::new();
    ops.extend(observed.routes.keys().map(|key| Op::DelRoute(*key)));
    ops.extend(observed.pod_routes.iter().map(|net| Op::DelPodRoute(*net)));
    ops.extend(observed.nexthops.keys().map(|id| Op::DelNexthop(*id)));
    let kinds = BTreeMap::from([(BRIDGE, true), (VXLAN, false)]);
    for (name, bridge) in kinds {
        let ours = observed.links.get(name).is_some_and(|link| match link.kind {
            Kind::Bridge => bridge,
            Kind::Vxlan { .. } => !bridge,
            Kind::Other(_) => false,
        });
        if ours {
            ops.push(Op::DelLink(name.to_owned()));
        }
    }
    ops
}

pub(crate) fn failed(what: &str, why: &Refused) -> DataplaneError {
    DataplaneError::Netlink { what: what.to_owned(), why: why.to_string() }
}
