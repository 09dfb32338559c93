//! Identifiers: nodes, clusters, voters, requests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An identifier was not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an identifier: expected 32 hexadecimal digits")]
pub struct BadId(pub String);

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// The first eight hexadecimal digits: enough to tell two apart on a screen.
            pub fn short(&self) -> String {
                self.to_string().chars().take(8).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let bad = || BadId(text.chars().take(64).collect());
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(bad());
                }
                u128::from_str_radix(text, 16)
                    .map(|number| Self(number.to_be_bytes()))
                    .map_err(|_| bad())
            }
        }

        // Text where people read it (JSON), sixteen plain bytes on the wire.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() {
                    s.collect_str(self)
                } else {
                    self.0.serialize(s)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(d).map(Self)
                }
            }
        }
    };
}

id128! {
    /// A node: the first 16 bytes of SHA-256 over its Ed25519 public key.
    /// A node that lost its state directory is a new node.
    NodeId
}
id128! {
    /// A cluster: random, drawn once at founding, never changed.
    ClusterId
}
id128! {
    /// A seat among the voters of the ledger.
    ///
    /// For founding members it is derived from the founding address, so that
    /// all of them name the same seats before they have ever talked; for later
    /// voters it is their [`NodeId`]. A voter that lost its disk never sits in
    /// its old seat again.
    RaftId
}
id128! {
    /// What a set of founders agrees on before there is a cluster: the hash of
    /// the sorted founding addresses (or of the founding ConfigMap's uid).
    FoundingId
}

/// Names one request for all time, so that a retry is never a second request.
///
/// `session` is drawn (Unix milliseconds at agent start) so that it grows from
/// one life of the agent to the next; `seq` counts within a session.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct RequestId {
    /// The node that asks.
    pub node: NodeId,
    /// The life of the agent that asks.
    pub session: u64,
    /// Number of the request in that life, from 1.
    pub seq: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse() {
        let id = NodeId([0xab; 16]);
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert_eq!(id.short(), "abababab");
        assert!("abc".parse::<NodeId>().is_err());
        assert!("+babababababababababababababababab".parse::<NodeId>().is_err());
        assert!("é".repeat(16).parse::<NodeId>().is_err());
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
    }
}
