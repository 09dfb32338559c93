//! The plugin of one version with the agent of the other: for a moment after an upgrade,
//! and for pods whose DEL was under way.

use anyhow::ensure;
use serde_json::{Value, json};
use weft_agent::lab::netns::Netns;
use weft_agent::lab::pods::{Answer, Call, IFNAME, Shim};
use weft_agent::lab::topology::PodPlan;
use weft_tests::{Cluster, Pod, Result, audit};

use crate::upgrade::common::{Versions, check};

fn call(shim: &Shim, verb: &str, pod: &PodPlan, conf: Value) -> Result<Answer> {
    shim.call(&Call {
        verb,
        container_id: &pod.container_id,
        ifname: IFNAME,
        netns: Some(Netns::named(&pod.netns).path()),
        args: "",
        conf,
    })
}

#[test]
#[ignore = "needs programs of an earlier version: make test-upgrade"]
fn plugin_and_agent_of_different_versions() -> Result {
    let Versions { old, new } = Versions::find()?;
    for (what, agent, shim, own) in
        [("old plugin, new agent", &new, &old, &new), ("new plugin, old agent", &old, &new, &old)]
    {
        let mut cluster = Cluster::builder().nodes(1).binaries(agent).start()?;
        // One that the agent's own plugin attached, for the other to see and to end.
        let first = cluster.node(1).add_pod()?;
        cluster.node_mut(1).use_shim(shim);
        let node = cluster.node(1);
        let other = node.shim();
        let second = node.add_pod()?;
        ensure!(first.address() != second.address(), "{what}: two addresses");
        let again = Pod::attach(other.clone(), second.plan.clone())?;
        ensure!(again.address() == second.address(), "{what}: ADD again is the same ADD");
        for pod in [&first, &second] {
            check(&other, pod)?;
        }
        first.wait_ping(second.address(), weft_tests::cluster::REACH)?;
        audit::wait_exactly(node, &[&first, &second])?;

        let conf = other.conf("1.1.0");
        call(&other, "STATUS", &second.plan, conf.clone())?.ok(what)?;
        let mut keep = conf;
        let valid = |pod: &Pod| json!({"containerID": pod.plan.container_id, "ifname": IFNAME});
        keep["cni.dev/valid-attachments"] = json!([valid(&first), valid(&second)]);
        call(&other, "GC", &second.plan, keep.clone())?.ok(what)?;
        audit::wait_exactly(node, &[&first, &second])?;

        call(&other, "DEL", &first.plan, other.conf("1.0.0"))?.ok(what)?;
        first.netns().delete()?;
        audit::wait_exactly(node, &[&second])?;
        // And the agent's own plugin ends what the other began.
        cluster.node_mut(1).use_shim(own);
        let node = cluster.node(1);
        check(&node.shim(), &second)?;
        let third = node.add_pod()?;
        keep["cni.dev/valid-attachments"] = json!([valid(&third)]);
        call(&other, "GC", &third.plan, keep)?.ok(what)?;
        audit::wait_exactly(node, &[&third])?;

        // No agent at all: STATUS says so, DEL is done, and the next agent knows.
        cluster.node_mut(1).kill9()?;
        let node = cluster.node(1);
        let down = call(&other, "STATUS", &third.plan, other.conf("1.1.0"))?;
        ensure!(down.exit != Some(0) && down.code().is_some(), "{what}: {down:?}");
        call(&other, "DEL", &third.plan, other.conf("1.0.0"))?.ok(what)?;
        third.netns().delete()?;
        ensure!(node.veths()?.is_empty(), "{what}: the plugin removes it itself");
        cluster.node_mut(1).restart()?;
        audit::wait_exactly(cluster.node(1), &[])?;
        println!("{what}: ADD, CHECK, STATUS, GC, DEL");
    }
    Ok(())
}
