//! JSON under `/v1` of the agent's local HTTP endpoint.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::attachment::AttachmentKey;

pub mod policy;
pub use policy::{
    PolicyDirection, PolicyPod, PolicyProblem, PolicyRefusedPort, PolicySource, PolicyStatus,
    PolicyTable,
};

/// Header that carries the local token on requests that change something.
pub const TOKEN_HEADER: &str = "x-weft-token";

/// `POST /v1/attachments`: give this attachment its addresses. Idempotent per key.
/// When it answers, anti-spoofing, host ports and isolation are in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Who.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// `CNI_NETNS`, for reports.
    #[serde(default)]
    pub netns: String,
    /// `K8S_POD_NAMESPACE`/`K8S_POD_NAME` and what else CNI_ARGS said.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// Host ports of this attachment.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// How long the agent may wait for an address, milliseconds; bounded by the agent.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

/// One host port (CNI capability `portMappings`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// On the node.
    pub host_port: u16,
    /// In the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// Only on this address of the node.
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

fn tcp() -> String {
    "tcp".to_owned()
}

/// What the shim needs to wire the attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Who.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// Host end of the veth: [`crate::names::host_ifname`].
    pub host_ifname: String,
    /// MAC of the pod's interface.
    pub mac: String,
    /// Addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// The bridge to hang the host end on.
    pub bridge: String,
    /// The bridge's MAC: what the pod's gateway resolves to.
    pub gateway_mac: String,
    /// MTU of the pod's interface.
    pub mtu: u32,
    /// The pod network: what a second interface gets a route for.
    pub ranges: Vec<IpNet>,
    /// Set on the bridge port (HAIRPIN_MODE).
    pub hairpin: bool,
    /// True if this key already had its addresses before this request.
    pub existing: bool,
}

/// `GET /v1/attachments`: all leases of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// Who.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Uid of the pod, if the runtime gave one: a pod made again has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
    /// Host end of the veth, empty for leases without one (the node's own address, claims over HTTP).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host_ifname: String,
    /// Host ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
}

/// `POST /v1/gc`: keep only these attachments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcRequest {
    /// The runtime's list.
    pub keep: Vec<AttachmentKey>,
}

/// Answer to [`GcRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GcReply {
    /// Leases given up.
    pub released: Vec<AttachmentKey>,
}

/// `GET /v1/ready`: can this node serve ADD?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// ADD would be served now.
    pub ready: bool,
    /// Existing pods have their network.
    pub connectivity: bool,
    /// If not: why, and what to do.
    #[serde(default)]
    pub reasons: Vec<String>,
}

/// Body of every error under `/v1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// Stable word: `exhausted`, `not_ready`, `not_found`, `bad_request`,
    /// `forbidden`, `conflict`, `internal`.
    pub error: String,
    /// What failed, on what, and what to do next.
    pub message: String,
    /// Try again after this many milliseconds, if that can help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// How well something is. Exit codes 0, 1, 2 of `agent status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing to do.
    #[default]
    Ok,
    /// Works, but look at it.
    Degraded,
    /// Does not work.
    Broken,
}

/// One thing an operator should know: what is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// How bad.
    pub health: Health,
    /// Stable CamelCase word, for alerts: `NoQuorum`, `RouteOverlap`, …
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

/// `GET /v1/status`: the whole state of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Worst of the conditions.
    pub health: Health,
    /// What is not as it should be.
    pub conditions: Vec<Condition>,
    /// This node.
    pub node: NodeStatus,
    /// Its connections and members.
    pub mesh: MeshStatus,
    /// Ledger and voters.
    pub consensus: ConsensusStatus,
    /// Addresses.
    pub ipam: IpamStatus,
    /// Kernel objects.
    pub dataplane: DataplaneStatus,
    /// Probes through the overlay.
    #[serde(default)]
    pub overlay: OverlayStatus,
    /// Network policy; absent where it is not enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyStatus>,
    /// The API server; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesStatus>,
}

/// What this node has to do with the API server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KubernetesStatus {
    /// Its address, as configured.
    pub server: String,
    /// The endpoint that the last connection was made to, if the address itself did
    /// not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// The last request was answered.
    pub reachable: bool,
    /// Seconds since it became so.
    pub since_s: u64,
    /// Seconds since the last answer; absent if there was none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_answer_s: Option<u64>,
    /// Name of the node that founded the cluster, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founder: Option<String>,
    /// What the last failed request said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Requests made, by verb, resource and code (`-`: no answer).
    #[serde(default)]
    pub requests: Vec<KubernetesRequests>,
}

/// How often a request was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KubernetesRequests {
    /// `get`, `list`, `patch`, ….
    pub verb: String,
    /// `nodes`, `secrets`, ….
    pub resource: String,
    /// HTTP status, or `-` without an answer.
    pub code: String,
    /// So often.
    pub count: u64,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Identity.
    pub id: String,
    /// Name.
    pub name: String,
    /// Software version.
    pub version: String,
    /// Cluster id, empty before founding.
    pub cluster: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Underlay addresses.
    pub underlay: Vec<IpAddr>,
    /// Own overlay addresses (the bridge's).
    pub overlay: Vec<IpAddr>,
}

/// Mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MeshStatus {
    /// True if a cluster key is set.
    pub keyed: bool,
    /// Configured peer addresses.
    pub targets: Vec<String>,
    /// Connections, also those being tried.
    pub connections: Vec<ConnectionStatus>,
    /// Members, also the dead, without this node.
    pub members: Vec<MemberStatus>,
    /// Named counters (`handshake_wrong_key`, `frame_too_long`, …).
    pub counters: BTreeMap<String, u64>,
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// Remote address.
    pub address: SocketAddr,
    /// We dialled.
    pub outbound: bool,
    /// `connecting`, `established`, `retrying`, `failed`: Weave's words.
    pub state: String,
    /// Peer id, once known.
    pub node: Option<String>,
    /// Peer name, once known.
    pub name: Option<String>,
    /// Error text, next try.
    pub info: String,
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: Option<u64>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Identity.
    pub id: String,
    /// Name.
    pub name: String,
    /// `alive`, `suspect`, `dead`.
    pub state: String,
    /// Underlay addresses.
    pub underlay: Vec<IpAddr>,
    /// Overlay addresses.
    pub overlay: Vec<IpAddr>,
    /// Blocks it owns, by the ledger.
    pub blocks: usize,
    /// Addresses in use, by its record.
    pub leases: u32,
    /// Software version.
    pub version: String,
    /// Ledger position it told.
    pub ledger_index: u64,
    /// Round-trip time of the last probe through the overlay, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay_rtt_us: Option<u64>,
    /// Whether probes through the overlay come back; absent while not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay_ok: Option<bool>,
}

/// Ledger and voters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConsensusStatus {
    /// `founding`, `voter`, `leader`, `follower`.
    pub role: String,
    /// Why it waits, if it waits (no majority of founders, no quorum, …).
    pub waiting: Option<String>,
    /// Leader's name or id, if known.
    pub leader: Option<String>,
    /// Term.
    pub term: u64,
    /// Voters by name (or seat), with whether they are reachable from here.
    pub voters: Vec<VoterStatus>,
    /// Last applied index of this replica.
    pub applied: u64,
    /// A command can be committed, as far as this node knows.
    pub quorum: bool,
}

/// A voter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterStatus {
    /// Seat.
    pub seat: String,
    /// Node name, if known.
    pub name: Option<String>,
    /// Reachable.
    pub alive: bool,
}

/// Addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IpamStatus {
    /// Weave's words: `idle`, `awaiting consensus (…)`, `ready`, `waiting for IP(s) to become available`, ….
    pub state: String,
    /// The ranges.
    pub ranges: Vec<IpNet>,
    /// Usable addresses of the ranges.
    pub usable: u64,
    /// Own blocks.
    pub blocks: Vec<IpNet>,
    /// Addresses in own blocks that can be leased.
    pub owned: u64,
    /// Leases here.
    pub leases: usize,
    /// Requests waiting for an address.
    pub waiting: Vec<String>,
    /// Owner (name or id) -> addresses, for the whole cluster.
    pub owners: Vec<OwnerStatus>,
    /// Free in the ledger (owned by nobody).
    pub unowned: u64,
    /// Resting after an eviction.
    pub quarantined: u64,
}

/// One owner of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerStatus {
    /// Identity.
    pub id: String,
    /// Name.
    pub name: String,
    /// Addresses in its blocks.
    pub addresses: u64,
    /// Blocks.
    pub blocks: usize,
    /// Leases, as it told.
    pub leases: u32,
    /// Reachable.
    pub alive: bool,
}

/// Kernel objects.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DataplaneStatus {
    /// The last look found everything in place (after repairs).
    pub in_sync: bool,
    /// Overlay MTU.
    pub mtu: u32,
    /// Where the MTU comes from.
    pub mtu_source: String,
    /// Encap routes.
    pub routes: usize,
    /// Pods wired.
    pub pods: usize,
    /// Changes made to the kernel since start, after the first pass.
    pub repairs: u64,
    /// What was last repaired.
    pub last_repair: Option<String>,
    /// Changes that the kernel refused, with its reason.
    pub errors: Vec<String>,
}

/// Probes through the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OverlayStatus {
    /// Named counters of probes: `sent`, `answered`, `lost`, ….
    pub counters: BTreeMap<String, u64>,
    /// Peers that can be judged and answer small and large probes.
    pub peers_ok: usize,
    /// Peers that answer no probe.
    pub peers_lost: usize,
    /// Peers that answer only small probes.
    pub peers_large_lost: usize,
}
