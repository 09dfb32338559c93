//! Tests of the data plane: pure ones, and ones against the real kernel in
//! namespaces of their own (as root).

mod fabric;
mod node;
mod ns;
mod pure;
