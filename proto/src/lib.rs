//! Wire messages, codec, HTTP API types, names, ports and limits of weft.
//!
//! Pure: no runtime, no clock, no socket. Everything two binaries (or two
//! nodes) must agree on lives here, and only here.

pub mod api;
pub mod attachment;
pub mod cni;
pub mod frame;
pub mod id;
pub mod ledger;
pub mod names;
pub mod wire;
