//! `GET /report`: one JSON document with everything, under Weave's keys, and
//! what Weave had no key for under `Weft`.

use serde_json::{Value, json};
use weft_proto::api::{LeaseInfo, Readiness, Status};

/// The document.
pub fn full(status: &Status, readiness: &Readiness, config: &Value, leases: &[LeaseInfo]) -> Value {
    json!({
        "Ready": readiness.ready,
        "Version": status.node.version,
        "VersionCheck": { "Enabled": false, "Success": false, "NewVersion": "", "NextCheckAt": null },
        "Router": router(status),
        "IPAM": ipam(status),
        "Weft": { "Status": status, "Readiness": readiness, "Config": config, "Leases": leases },
    })
}

fn router(status: &Status) -> Value {
    let (node, mesh) = (&status.node, &status.mesh);
    let connections: Vec<Value> = mesh
        .connections
        .iter()
        .map(|c| {
            json!({
                "Address": c.address,
                "Outbound": c.outbound,
                "State": c.state,
                "Info": c.info,
                "Attrs": {
                    "name": "quic",
                    "mtu": status.dataplane.mtu,
                    "encrypted": true,
                },
            })
        })
        .collect();
    let links: Vec<Value> = mesh
        .connections
        .iter()
        .filter(|c| c.node.is_some())
        .map(|c| {
            json!({
                "Name": c.node,
                "NickName": c.name,
                "Address": c.address,
                "Outbound": c.outbound,
                "Established": c.state == "established",
            })
        })
        .collect();
    let me = json!({ "Name": node.id, "NickName": node.name, "Connections": links });
    let others = mesh.members.iter().map(|m| {
        json!({ "Name": m.id, "NickName": m.name, "Version": m.ledger_index, "Connections": null })
    });
    let peers: Vec<Value> = std::iter::once(me).chain(others).collect();
    json!({
        "Protocol": "weft",
        "ProtocolMinVersion": 1,
        "ProtocolMaxVersion": 1,
        "Encryption": mesh.keyed,
        "PeerDiscovery": true,
        "Name": node.id,
        "NickName": node.name,
        "Port": weft_proto::names::MESH_PORT,
        "Peers": peers,
        "UnicastRoutes": null,
        "BroadcastRoutes": null,
        "Connections": connections,
        "TerminationCount": super::metrics::terminations(status),
        "Targets": mesh.targets,
        "OverlayDiagnostics": {},
        "TrustedSubnets": null,
        "Interface": weft_proto::names::VXLAN,
        "CaptureStats": {},
        "MACs": null,
    })
}

fn ipam(status: &Status) -> Value {
    let ipam = &status.ipam;
    let entries: Vec<Value> = ipam
        .owners
        .iter()
        .map(|o| {
            json!({
                "Token": null,
                "Size": o.addresses,
                "Peer": o.id,
                "Nickname": o.name,
                "IsKnownPeer": o.alive,
                "Version": status.consensus.applied,
            })
        })
        .collect();
    let range = ipam.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    json!({
        "Paxos": null,
        "Range": range,
        "RangeNumIPs": ipam.usable,
        "ActiveIPs": ipam.leases,
        "DefaultSubnet": ipam.ranges.first(),
        "Entries": entries,
        "PendingClaims": null,
        "PendingAllocates": ipam.waiting,
    })
}
