//! The table of targets.

mod api;
mod backend;
mod cni;
mod config;
mod files;
mod ledger;
mod wire;

use weft_agent::{consensus, dataplane, mesh, policy};

use crate::Target;

const fn target(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, run, seeds, longest: 4096 }
}

const fn long(target: Target, longest: usize) -> Target {
    Target { longest, ..target }
}

/// Messages of consensus and rows of the log share their samples.
fn consensus_samples() -> Vec<Vec<u8>> {
    consensus::fuzzing::samples()
}

pub(crate) const ALL: &[Target] = &[
    target("frame", wire::frame, wire::golden),
    target("wire", wire::message, wire::golden),
    target("probe", wire::probe, wire::probes),
    target("swim_packet", mesh::fuzzing::swim_packet, mesh::fuzzing::swim_conversation),
    target("swim_machine", mesh::fuzzing::swim_machine, mesh::fuzzing::swim_conversation),
    target("records", mesh::fuzzing::records, wire::rumors),
    target("greeting", mesh::fuzzing::greeting, wire::hellos),
    target("ledger_snapshot", ledger::snapshot, ledger::snapshots),
    target("ledger_delta", ledger::delta, ledger::deltas),
    target("raft_message", consensus::fuzzing::message, consensus_samples),
    target("raft_row", consensus::fuzzing::row, consensus_samples),
    target("journal", files::journal, files::journals),
    target("state_files", files::state, files::states),
    long(target("http_server", api::server, api::requests), 2048),
    target("http_client", api::client, api::answers),
    target("cni_conf", cni::conf, cni::confs),
    target("cni_env", cni::env, cni::envs),
    target("alias", cni::alias, cni::aliases),
    target("config", config::config, config::configs),
    target("netlink", dataplane::fuzzing::netlink, cni::links),
    target("shim_view", cni::view, cni::links),
    target("nftables", dataplane::fuzzing::nftables, cni::nothing),
    target("legacy_table", dataplane::fuzzing::legacy_table, cni::nothing),
    target("nflog", policy::fuzzing::logged_packet, cni::logged),
    target("conntrack", policy::fuzzing::connection, cni::connections),
    target("policy_sets", policy::fuzzing::sets, cni::nothing),
    long(target("policy_objects", policy::fuzzing::objects, config::objects), 8192),
];
