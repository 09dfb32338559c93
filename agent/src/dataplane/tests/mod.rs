//! Tests of the data plane: pure ones, and ones against the real kernel in
//! namespaces of their own (as root).

mod events;
mod fabric;
mod families;
mod forward;
mod node;
pub(crate) mod ns;
mod peers;
pub(crate) mod pure;
