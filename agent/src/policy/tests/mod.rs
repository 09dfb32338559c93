//! Tests of the kernel part: pure ones, and ones with real packets in
//! namespaces of their own (as root).

mod churn;
mod engine;
mod pure;
mod rules;
mod states;
mod wires;
