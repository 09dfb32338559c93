//! Pods that came or went: what that changes, and nothing else is looked at, so
//! that it costs the same however many pods and peers there are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use weft_proto::names::{BRIDGE, VXLAN};

use super::super::DataplaneError;
use super::super::desired::{DesiredPods, desired_pod, host_net};
use super::super::handle::PodChange;
use super::super::intent::{Intent, PodIntent};
use super::super::model::Observed;
use super::super::nft::ruleset::{ElementKey, Elements, sources};
use super::super::nft::transaction;
use super::super::plan::plan_pods;
use super::reaping::REAP;
use super::{Driver, has_ports};

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
}

impl Driver {
    /// As an intent that differs from the last one in these pods only.
    pub(super) fn take_changes(&mut self, changes: &[PodChange]) -> Result<(), DataplaneError> {
        let Some(intent) = &mut self.intent else {
            // Nothing is handed over before the first intent, which has every pod.
            return Ok(());
        };
        let touched = Touched::of(intent, changes);
        // A host port can be wanted twice: who has it depends on all pods.
        let ports = touched.all().any(|pod| !pod.port_mappings.is_empty());
        let had_ports = has_ports(intent);
        change(Arc::make_mut(intent), changes);
        let (settling, same_ports) = (intent.settling, had_ports == has_ports(intent));
        self.wait_for_reaper();
        if ports || self.rules_behind || self.rules.tables != self.ruleset.tables {
            return self.carry_out(same_ports);
        }
        for pod in &touched.before {
            self.pods.pods.remove(&pod.host_ifname);
            sources(pod).for_each(|key| drop(self.elements.remove(&key)));
        }
        for pod in &touched.after {
            let (name, wiring) = desired_pod(pod);
            self.pods.pods.insert(name, wiring);
            self.elements.extend(sources(pod).map(|key| (key, Vec::new())));
        }
        // Rules first: no pod is reachable before its isolation.
        let result = self.change_rules(&touched, settling);
        let pods = touched.after.iter().map(desired_pod).collect();
        let pods = DesiredPods { pods, port: self.pods.port };
        let plan = plan_pods(&self.desired, &pods, &self.observed_of(&touched), settling);
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

    /// What was last seen of these pods.
    fn observed_of(&self, touched: &Touched) -> Observed {
        let mut part = Observed::default();
        let all = &self.observed;
        let mut link = |name: &str| {
            if let Some(link) = all.links.get(name) {
                part.links.insert(name.to_owned(), link.clone());
            }
        };
        [BRIDGE, VXLAN].into_iter().for_each(&mut link);
        touched.all().for_each(|pod| link(&pod.host_ifname));
        for pod in touched.all() {
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

/// The elements of these pods as they are in the kernel, and as they shall be.
fn edits(
    touched: &Touched,
    wanted: &Elements,
    there: &Elements,
    settling: bool,
) -> (Elements, Elements) {
    let keys: Vec<ElementKey> = touched.all().flat_map(sources).collect();
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
