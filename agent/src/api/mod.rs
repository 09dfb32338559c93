//! The local HTTP endpoint: Weave's routes, JSON under `/v1`, metrics.

pub mod backend;
