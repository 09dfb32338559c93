//! What people and monitors see of a node: pure renderings of
//! [`weft_proto::api::Status`].

pub mod metrics;
pub mod policy;
pub mod report;
pub mod screen;
mod text;
pub mod weave;

pub(crate) use text::count;

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
pub(crate) mod tests;
