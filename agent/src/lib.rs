//! The weft agent: effects around the pure cores of `weft-ipam` and `weft-proto`.

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod consensus;
pub mod dataplane;
mod files;
mod host;
pub mod ipam_service;
pub mod kube;
#[cfg(feature = "lab")]
pub mod lab;
pub mod mesh;
pub mod policy;
pub mod probe;
#[cfg(test)]
mod sim;
pub mod status;
