//! Host ports: two attachments of a node cannot share one.

use std::collections::BTreeMap;

use weft_proto::api::{LeaseInfo, PortMapping};
use weft_proto::attachment::AttachmentKey;

use super::LeaseFacts;
use crate::api::backend::BackendError;

fn clash(a: &PortMapping, b: &PortMapping) -> bool {
    a.host_port == b.host_port
        && a.protocol.eq_ignore_ascii_case(&b.protocol)
        && (a.host_ip.is_none() || b.host_ip.is_none() || a.host_ip == b.host_ip)
}

/// Refuses host ports that another attachment has.
pub(super) fn check(
    leases: &BTreeMap<AttachmentKey, LeaseInfo>,
    key: &AttachmentKey,
    facts: &LeaseFacts,
) -> Result<(), BackendError> {
    if facts.port_mappings.is_empty() {
        return Ok(());
    }
    for lease in leases.values().filter(|lease| lease.key != *key) {
        let taken = |want: &&PortMapping| lease.port_mappings.iter().any(|have| clash(want, have));
        if let Some(port) = facts.port_mappings.iter().find(taken) {
            return Err(BackendError::Conflict(format!(
                "host port {}/{} is taken by {}",
                port.host_port,
                port.protocol,
                lease.pod.clone().unwrap_or_else(|| lease.key.to_string())
            )));
        }
    }
    Ok(())
}
