//! The configured addresses of peers, and how dialling them goes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_proto::id::NodeId;
use weft_proto::names::MESH_PORT;

/// How a target is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Phase {
    /// Not tried yet, or being tried.
    #[default]
    Connecting,
    /// There is a connection to this node.
    Connected(NodeId),
    /// Failed; tried again later. True if the other side, or we, refused.
    Waiting { error: String, refused: bool, next: Option<Instant> },
    /// It is this node itself.
    Own,
}

/// One target.
#[derive(Debug, Clone, Default)]
pub(super) struct Target {
    /// Tells one life of an entry from the next.
    pub(super) epoch: u64,
    pub(super) phase: Phase,
    pub(super) address: Option<SocketAddr>,
}

/// All targets by their text.
#[derive(Debug, Default)]
pub(super) struct Targets {
    list: BTreeMap<String, Target>,
    epoch: u64,
}

impl Targets {
    pub(super) fn add(&mut self, target: &str) {
        if !self.list.contains_key(target) {
            self.epoch += 1;
            let entry = Target { epoch: self.epoch, ..Target::default() };
            self.list.insert(target.to_owned(), entry);
        }
    }

    pub(super) fn remove(&mut self, target: &str) {
        self.list.remove(target);
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.list.keys().cloned().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Target)> {
        self.list.iter()
    }

    /// Changes the entry if it is still the one the caller works for.
    pub(super) fn set(
        &mut self,
        target: &str,
        epoch: u64,
        change: impl FnOnce(&mut Target),
    ) -> bool {
        match self.list.get_mut(target) {
            Some(entry) if entry.epoch == epoch => {
                change(entry);
                true
            }
            _ => false,
        }
    }
}

/// Host and port of a target: `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
pub(super) fn parse(target: &str) -> Result<(String, u16), String> {
    let bad = |why: &str| {
        Err(format!("target `{}`: {why}; write host or host:port", target.escape_debug()))
    };
    if target.is_empty()
        || target.len() > 300
        || target.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return bad("not a host name or address");
    }
    if target.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok((target.to_owned(), MESH_PORT));
    }
    let (host, port) = match target.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, rest)) if rest.starts_with(':') => (host, rest.strip_prefix(':')),
            _ => return bad("bracket not closed"),
        },
        None => match target.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (target, None),
        },
    };
    if host.is_empty() || host.contains(['/', '[', ']']) {
        return bad("not a host name or address");
    }
    let port = match port.map(str::parse::<u16>) {
        None => MESH_PORT,
        Some(Ok(port)) if port != 0 => port,
        Some(_) => return bad("the port is not a number from 1 to 65535"),
    };
    Ok((host.to_owned(), port))
}

/// Looks a target up.
pub(super) async fn resolve(target: &str) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = parse(target)?;
    let lookup = tokio::net::lookup_host((host.as_str(), port));
    match tokio::time::timeout(Duration::from_secs(5), lookup).await {
        Ok(Ok(found)) => {
            let found: Vec<_> = found.take(16).collect();
            if found.is_empty() { Err(format!("`{host}` has no address")) } else { Ok(found) }
        }
        Ok(Err(e)) => Err(format!("`{host}` does not resolve: {e}")),
        Err(_) => Err(format!("`{host}` does not resolve: no answer in 5 s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_parse() {
        let ok = |t: &str| parse(t).unwrap();
        assert_eq!(ok("node-a"), ("node-a".to_owned(), 6783));
        assert_eq!(ok("10.0.0.1:7000"), ("10.0.0.1".to_owned(), 7000));
        assert_eq!(ok("fd00::1"), ("fd00::1".to_owned(), 6783));
        assert_eq!(ok("[fd00::1]:7000"), ("fd00::1".to_owned(), 7000));
        assert_eq!(ok("[fd00::1]"), ("fd00::1".to_owned(), 6783));
        for bad in ["", ":1", "a:0", "a:x", "a b", "[fd00::1", "http://a", "a\n", "[::1]x"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
