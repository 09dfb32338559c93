//! Integration tests and benchmarks of weft: namespaces, real binaries, real packets.
//!
//! A test builds a [`Cluster`], does to it what operators, other programs and
//! bad luck do, and waits for conditions. Everything is uniquely named and
//! removed on drop; what a killed test leaves, the next one removes.

pub mod apiserver;
pub mod audit;
pub mod baseline;
pub mod binaries;
pub mod cluster;
pub mod conditions;
pub mod datagrams;
pub mod dice;
pub mod kubernetes;
pub mod manifest;
pub mod middle;
pub mod node;
pub mod pin;
pub mod pinger;
pub mod plot;
pub mod pod;
pub mod podman;
pub mod policy;
pub mod policy_lab;
pub mod prober;
pub mod ratios;
pub mod reference;
pub mod sctp;
pub mod stats;
pub mod stranger;
pub mod stream;
pub mod told;
pub mod wait;

pub use apiserver::ApiServer;
pub use cluster::Cluster;
pub use node::Node;
pub use pod::Pod;
pub use wait::wait_until;

/// What tests and helpers return.
pub type Result<T = ()> = anyhow::Result<T>;
