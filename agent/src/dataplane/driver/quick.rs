//! Pods that came or went: what that changes, and nothing else is looked at, so
//! that it costs the same however many pods and peers there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use weft_proto::names::{BRIDGE, VXLAN};

use super::super::DataplaneError;
use super::super::desired::{DesiredPods, desired_pod, has_ports, host_net};
use super::super::handle::PodChange;
use super::super::intent::{Intent, PodIntent};
use super::super::model::Observed;
use super::super::nft::ruleset::{ElementKey, Elements, pod_elements};
use super::super::nft::transaction;
use super::super::plan::plan_pods;
use super::Driver;
use super::reaping::REAP;

/// The intent after the changes.
pub(super) fn change(intent: &mut Intent, changes: &[PodChange]) {
    for (key, pod) in changes {
        match pod {
            Some(pod) => drop(intent.pods.insert(key.clone(), pod.clone())),
            None => drop(intent.pods.remove(key)),
        }
    }
}

/// The pods that changed, before and after, one entry per attachment.
struct Touched {
    before: Vec<PodIntent>,
    after: Vec<PodIntent>,
}

impl Touched {
    fn of(intent: &Intent, changes: &[PodChange]) -> Self {
        let last: BTreeMap<_, _> = changes.iter().map(|(key, pod)| (key, pod)).collect();
        Self {
            before: last.keys().filter_map(|key| intent.pods.get(*key).cloned()).collect(),
            after: last.into_values().flatten().cloned().collect(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &PodIntent> {
        self.before.iter().chain(&self.after)
    }

    /// One of these wants a host port that another pod has: who gets it depends on all.
    fn clashes(&self, elements: &Elements) -> bool {
        let gone: BTreeSet<_> = self.before.iter().flat_map(pod_elements).map(|(k, _)| k).collect();
        let mut new = Elements::new();
        self.after.iter().flat_map(pod_elements).any(|(key, value)| {
            let there = elements.get(&key).filter(|_| !gone.contains(&key));
            let taken = there.is_some_and(|other| *other != value);
            taken || new.insert(key, value.clone()).is_some_and(|other| other != value)
        })
    }

    /// Takes them over into what is wanted of all pods.
    fn want(&self, pods: &mut DesiredPods, elements: &mut Elements) {
        for pod in &self.before {
            pods.pods.remove(&pod.host_ifname);
            pod_elements(pod).for_each(|(key, _)| drop(elements.remove(&key)));
        }
        for pod in &self.after {
            let (name, wiring) = desired_pod(pod);
            pods.pods.insert(name, wiring);
            elements.extend(pod_elements(pod));
        }
    }

    /// What is wanted of these alone.
    fn desired(&self, all: &DesiredPods) -> DesiredPods {
        DesiredPods { pods: self.after.iter().map(desired_pod).collect(), port: all.port }
    }

    /// What was last seen of them.
    fn seen(&self, all: &Observed) -> Observed {
        let mut part = Observed::default();
        let mut link = |name: &str| {
            if let Some(link) = all.links.get(name) {
                part.links.insert(name.to_owned(), link.clone());
            }
        };
        [BRIDGE, VXLAN].into_iter().for_each(&mut link);
        self.all().for_each(|pod| link(&pod.host_ifname));
        for pod in self.all() {
            let ports = (pod.host_ifname.clone(), [0; 6])..=(pod.host_ifname.clone(), [0xff; 6]);
            part.fdb.extend(all.fdb.range(ports).cloned());
            for address in &pod.addresses {
                let net = host_net(*address);
                part.pod_routes.extend(all.pod_routes.get(&net).copied());
                let key = (BRIDGE.to_owned(), *address);
                part.neighs.extend(all.neighs.get(&key).map(|mac| (key, *mac)));
            }
        }
        part
    }
}

impl Driver {
    /// As an intent that differs from the last one in these pods only.
    pub(super) fn take_changes(&mut self, changes: &[PodChange]) -> Result<(), DataplaneError> {
        let Some(intent) = &mut self.intent else {
            // Nothing is handed over before the first intent, which has every pod.
            return Ok(());
        };
        let touched = Touched::of(intent, changes);
        let ports = touched.all().any(|pod| !pod.port_mappings.is_empty());
        // As long as nobody wants what another has, host ports are elements like others.
        let fought = self.conditions.get("ports").is_some_and(|found| !found.is_empty());
        let clash = ports && (fought || touched.clashes(&self.elements));
        change(Arc::make_mut(intent), changes);
        // With a node's first host port come chains and a sysctl; a look takes them away.
        let (settling, first) = (intent.settling, !self.port_chains && has_ports(intent));
        self.wait_for_reaper();
        let behind = self.rules_behind || self.rules.tables != self.ruleset.tables;
        if clash || behind || first {
            return self.carry_out(!first);
        }
        touched.want(&mut self.pods, &mut self.elements);
        // Rules first: no pod is reachable before its isolation.
        let result = self.change_rules(&touched, settling);
        let pods = touched.desired(&self.pods);
        let plan = plan_pods(&self.desired, &pods, &touched.seen(&self.observed), settling);
        if !plan.ops.is_empty() {
            self.execute(&plan);
        }
        if changes.iter().any(|(_, pod)| pod.is_none()) {
            self.reap_at.get_or_insert_with(|| Instant::now() + REAP);
        }
        result
    }

    /// Sets and removes the elements of these pods in one transaction.
    fn change_rules(&mut self, touched: &Touched, settling: bool) -> Result<(), DataplaneError> {
        let (from, to) = edits(touched, &self.elements, &self.rules.elements, settling);
        if from == to {
            return Ok(());
        }
        if transaction::edit(&mut self.nft, &from, &to).is_err() {
            // The picture was old: all of it anew.
            return self.apply_rules().map(drop);
        }
        for key in from.keys() {
            self.rules.elements.remove(key);
        }
        self.rules.elements.extend(to);
        Ok(())
    }
}

/// The elements of these pods as they are in the kernel, and as they shall be.
fn edits(
    touched: &Touched,
    wanted: &Elements,
    there: &Elements,
    settling: bool,
) -> (Elements, Elements) {
    let keys: Vec<ElementKey> = touched.all().flat_map(pod_elements).map(|(k, _)| k).collect();
    let some = |of: &Elements| -> Elements {
        keys.iter()
            .filter_map(|key| of.get_key_value(key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    let (from, mut to) = (some(there), some(wanted));
    if settling {
        for (key, value) in &from {
            to.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    (from, to)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;
    use weft_proto::api::PortMapping;
    use weft_proto::attachment::AttachmentKey;
    use weft_proto::names::{host_ifname, pod_mac};

    use super::*;
    use crate::dataplane::desired::{desired, desired_pods};
    use crate::dataplane::model::{Kind, Link};
    use crate::dataplane::nft::ruleset::elements;
    use crate::dataplane::plan::plan;
    use crate::dataplane::tests::pure::facts;

    fn mapping(port: u8) -> PortMapping {
        PortMapping {
            host_port: 8000 + u16::from(port),
            container_port: 80,
            protocol: "tcp".to_owned(),
            host_ip: None,
        }
    }

    /// A pod with some of a few addresses, and of a few host ports; none when it goes.
    fn pod(number: u8, addresses: &[u8], ports: &[u8]) -> PodChange {
        let key = AttachmentKey { container_id: format!("c{number}"), ifname: "eth0".to_owned() };
        let addresses: Vec<IpAddr> =
            addresses.iter().map(|n| Ipv4Addr::new(10, 32, 0, *n).into()).collect();
        let pod = addresses.first().map(|first| PodIntent {
            host_ifname: host_ifname(&key.container_id, &key.ifname),
            mac: pod_mac(*first),
            addresses: addresses.clone(),
            port_mappings: ports.iter().map(|port| mapping(*port)).collect(),
        });
        (key, pod)
    }

    /// Whether every address has one pod, as the leases guarantee.
    fn is_sound(intent: &Intent) -> bool {
        let all: Vec<_> = intent.pods.values().flat_map(|pod| &pod.addresses).collect();
        let once: BTreeSet<_> = all.iter().collect();
        all.len() == once.len()
    }

    /// The shim makes the device of a pod that comes; whoever takes it away later, the
    /// kernel takes what is on it along.
    fn wire(observed: &mut Observed, touched: &Touched) {
        for pod in &touched.after {
            observed.links.entry(pod.host_ifname.clone()).or_insert_with(|| Link {
                index: 0,
                kind: Kind::Other("veth".to_owned()),
                mac: [2; 6],
                mtu: 1450,
                up: true,
                alias: None,
                master: None,
                port: None,
            });
        }
    }

    proptest! {
        #[test]
        fn the_quick_way_ends_where_the_full_one_does(
            batches in prop::collection::vec(
                prop::collection::vec(
                    (0_u8..5, prop::collection::btree_set(2_u8..9, 0..3),
                     prop::collection::btree_set(0_u8..6, 0..2)),
                    1..4),
                1..12),
        ) {
            let mut intent = Intent {
                ranges: vec!["10.32.0.0/12".parse().unwrap()],
                own: vec![[10, 32, 0, 1].into()],
                ..Intent::default()
            };
            let wanted = desired(&intent, &facts(false));
            let mut pods = desired_pods(&intent, true);
            let (mut all, _) = elements(&intent);
            let mut rules = all.clone();
            let mut fought = false;
            let mut kernel = Observed::default();
            for op in plan(&wanted, &pods, &kernel, false).ops {
                kernel.apply(&op);
            }
            for batch in batches {
                let changes: Vec<PodChange> = batch
                    .iter()
                    .map(|(number, set, ports)| {
                        let ports: Vec<_> = ports.iter().copied().collect();
                        pod(*number, &set.iter().copied().collect::<Vec<_>>(), &ports)
                    })
                    .collect();
                let mut next = intent.clone();
                change(&mut next, &changes);
                if !is_sound(&next) {
                    continue;
                }
                let touched = Touched::of(&intent, &changes);
                intent = next;
                wire(&mut kernel, &touched);
                let mut full = kernel.clone();

                let (whole, conflicts) = elements(&intent);
                let clash = fought || touched.clashes(&all);
                // What is refused the quick way is refused with reason, and nothing else is.
                prop_assert!(clash || conflicts.is_empty());
                prop_assert_eq!(touched.clashes(&all) && !fought, !fought && !conflicts.is_empty());
                fought = !conflicts.is_empty();
                if clash {
                    pods = desired_pods(&intent, true);
                    (all, rules) = (whole.clone(), whole);
                } else {
                    touched.want(&mut pods, &mut all);
                    let (from, to) = edits(&touched, &all, &rules, false);
                    from.keys().for_each(|key| drop(rules.remove(key)));
                    rules.extend(to);
                }
                let ops =
                    plan_pods(&wanted, &touched.desired(&pods), &touched.seen(&kernel), false).ops;
                ops.iter().for_each(|op| kernel.apply(op));

                let every = desired_pods(&intent, true);
                for op in plan(&wanted, &every, &full, false).ops {
                    full.apply(&op);
                }
                prop_assert_eq!(&pods, &every);
                prop_assert_eq!(&all, &elements(&intent).0);
                prop_assert_eq!(&rules, &all);
                prop_assert_eq!(&kernel, &full);
            }
        }

        #[test]
        fn while_settling_nothing_is_taken_away(
            first in prop::collection::btree_set(2_u8..9, 1..3),
            then in prop::collection::btree_set(2_u8..9, 0..3),
        ) {
            let mut intent = Intent { settling: true, ..Intent::default() };
            let of = |set: &BTreeSet<u8>| {
                pod(1, &set.iter().copied().collect::<Vec<_>>(), &[])
            };
            change(&mut intent, &[of(&first)]);
            let (mut all, _) = elements(&intent);
            let rules = all.clone();
            let touched = Touched::of(&intent, &[of(&then)]);
            touched.want(&mut desired_pods(&intent, true), &mut all);
            let (from, to) = edits(&touched, &all, &rules, true);
            prop_assert!(from.keys().all(|key| to.contains_key(key)));
            prop_assert!(all.keys().all(|key| to.contains_key(key)));
        }
    }
}
