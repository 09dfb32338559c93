//! Does the overlay carry packets? Small and full-size probes to every peer,
//! through the tunnel itself: a mesh can look fine while packets die.
//!
//! ```text
//! members ─► Prober (whom to ask, what to think) ─► asks ─► socket ─► tunnel
//!                 ▲ answers                                    │
//!                 └──────── Echo (whom to answer) ◄────────────┘
//! ```
//! [`Prober`] and [`Echo`] are pure; time is what the caller says it is.

mod core;
mod echo;
mod socket;
#[cfg(test)]
mod tests;
mod wire;

pub use self::core::{Ask, Counters, Fault, Peer, Prober, Verdict};
pub use echo::Echo;
pub use socket::ProbeSocket;
pub use wire::{Packet, SMALLEST, udp_payload};
