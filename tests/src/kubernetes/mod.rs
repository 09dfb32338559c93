//! A real Kubernetes on this machine, from Debian's packages.
//!
//! [`ApiServer`] is etcd and kube-apiserver alone, for tests that need just the
//! API. [`KubeCluster`] adds controllers, and nodes that are namespaces with
//! their own containerd, kubelet and kube-proxy. What they run is built by
//! `tests/kubernetes/build`, once, into a cache outside the checkout.

pub mod api;
pub mod binaries;
pub mod cluster;
pub mod home;
pub mod images;
pub mod kubectl;
pub mod node;
pub mod pods;
pub mod process;
pub mod reference;
pub mod report;
pub mod weft;

pub use api::ApiServer;
pub use cluster::KubeCluster;
pub use kubectl::Kubectl;
pub use node::KubeNode;
