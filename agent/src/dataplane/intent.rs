//! What the rest of the agent wants of the kernel, in overlay terms.
//!
//! One value, replaced as a whole; `desired` turns it into kernel objects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weft_proto::api::PortMapping;
use weft_proto::attachment::AttachmentKey;
use weft_proto::id::NodeId;

/// Everything the data plane needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Intent {
    /// The pod network. Empty until the cluster's ranges are known.
    pub ranges: Vec<IpNet>,
    /// This node's own overlay addresses: on the bridge, with the range's prefix length.
    pub own: Vec<IpAddr>,
    /// Where to send packets for whose blocks; shared with whoever made the list, which
    /// may be of thousands.
    pub peers: Arc<BTreeMap<NodeId, PeerIntent>>,
    /// Attachments of this node.
    pub pods: BTreeMap<AttachmentKey, PodIntent>,
    /// While true, objects are added and changed but none is removed: for the
    /// time after a start when peers or leases are not all known yet.
    pub settling: bool,
}

/// A peer and its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIntent {
    /// Outer destination address.
    pub underlay: IpAddr,
    /// Its blocks.
    pub blocks: Vec<IpNet>,
}

/// One attachment of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIntent {
    /// Host end of its veth.
    pub host_ifname: String,
    /// MAC of its interface.
    pub mac: [u8; 6],
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its host ports.
    pub port_mappings: Vec<PortMapping>,
}
