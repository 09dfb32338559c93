//! Policies as a test sees them: objects of the API, and what they must mean.
//!
//! Plain JSON, and nothing of the agent: the same worlds go to the compiler alone and
//! to real pods.
//!
//! ```no_run
//! use weft_tests::policy::{Generator, Plan};
//! let mut generator = Generator::new(7, Plan::nine(true, false));
//! let mut objects = generator.world();
//! let table = objects.expected();      // every pair, {80, 81}, {TCP, UDP, SCTP}
//! for step in generator.step(&objects) {
//!     objects.take(&step);
//! }
//! ```

mod cases;
mod cluster_naive;
mod generate;
mod generate_cluster;
pub mod naive;
mod objects;

pub use cases::{Case, cases};
pub use generate::Generator;
pub use objects::{Cell, NodePlan, Objects, PORTS, PROTOCOLS, Plan, PodPlan, Step, key};
