//! Attachments: one interface of one sandbox, and how a veth carries its facts.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What CNI calls an attachment: (container id, interface name).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl std::fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// Longest IFLA_IFALIAS the kernel keeps (IFALIASZ - 1).
pub const ALIAS_MAX: usize = 255;
const ALIAS_TAG: &str = "weft1";

/// What the host veth's alias says, so that a lost lease store can be rebuilt
/// from the kernel: `weft1 CONTAINER IFNAME ADDR[,ADDR] [NAMESPACE/POD [UID]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// Attachment.
    pub key: AttachmentKey,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// `namespace/name` of the pod, cut if there is no room.
    pub pod: Option<String>,
    /// Uid of the pod, left out if there is no room.
    pub uid: Option<String>,
}

impl Alias {
    /// The alias text; `None` if even without the pod's name it does not fit
    /// (a container id over about 180 bytes).
    pub fn to_text(&self) -> Option<String> {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        let mut text = format!(
            "{ALIAS_TAG} {} {} {}",
            self.key.container_id,
            self.key.ifname,
            addresses.join(",")
        );
        if text.len() > ALIAS_MAX {
            return None;
        }
        if let Some(pod) = &self.pod {
            text.push(' ');
            text.extend(pod.chars().filter(char::is_ascii_graphic));
            // Only the pod's name is ASCII for certain here.
            while text.len() > ALIAS_MAX {
                text.pop();
            }
            if let Some(uid) = &self.uid {
                let word: String = uid.chars().filter(char::is_ascii_graphic).collect();
                if !word.is_empty() && text.len() + 1 + word.len() <= ALIAS_MAX {
                    text.push(' ');
                    text.push_str(&word);
                }
            }
        }
        Some(text)
    }

    /// Reads an alias; `None` for anything that is not ours.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next() != Some(ALIAS_TAG) {
            return None;
        }
        let container_id = words.next().filter(|w| !w.is_empty())?.to_owned();
        let ifname = words.next().filter(|w| !w.is_empty())?.to_owned();
        let addresses =
            words.next()?.split(',').map(str::parse).collect::<Result<Vec<_>, _>>().ok()?;
        let pod = words.next().filter(|w| !w.is_empty()).map(str::to_owned);
        let uid = words.next().filter(|w| !w.is_empty()).map(str::to_owned);
        Some(Self { key: AttachmentKey { container_id, ifname }, addresses, pod, uid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alias_round_trip_and_limit() {
        let alias = Alias {
            key: AttachmentKey { container_id: "a".repeat(64), ifname: "eth0".into() },
            addresses: vec!["10.32.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            pod: Some(format!("default/{}", "p".repeat(253))),
            uid: Some("1d2c".into()),
        };
        let text = alias.to_text().unwrap();
        assert_eq!(text.len(), ALIAS_MAX);
        assert_eq!(Alias::parse(&text).unwrap().uid, None, "there was no room");
        let short = Alias { pod: Some("default/p".into()), ..alias.clone() };
        assert_eq!(Alias::parse(&short.to_text().unwrap()), Some(short));
        let back = Alias::parse(&text).unwrap();
        assert_eq!((back.key, back.addresses), (alias.key.clone(), alias.addresses.clone()));
        assert_eq!(Alias::parse("eth0 of somebody"), None);
        let long =
            Alias { key: AttachmentKey { container_id: "a".repeat(300), ..alias.key }, ..alias };
        assert_eq!(long.to_text(), None);
    }
}
