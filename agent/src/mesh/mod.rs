//! Mesh: identity, QUIC transport, membership, node records.

pub mod net;
