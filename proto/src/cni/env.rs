//! What a runtime says through the environment.

use std::collections::BTreeMap;

use super::error::{CniError, code};
use crate::attachment::{Alias, AttachmentKey};

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach a container.
    Del,
    /// Is the attachment as ADD left it?
    Check,
    /// Can ADD be served?
    Status,
    /// Give up all attachments but those listed.
    Gc,
    /// Which versions are spoken?
    Version,
}

impl Command {
    /// As written in `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version]
            .into_iter()
            .find(|c| c.as_str() == text)
    }
}

/// The environment of one call, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    /// Verb.
    pub command: Command,
    /// Who; empty strings for STATUS, GC and VERSION.
    pub key: AttachmentKey,
    /// Path of the container's network namespace; may be empty for DEL.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: BTreeMap<String, String>,
}

impl Env {
    /// Reads the environment through `get`. Code 4 names every bad variable.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let var = |name: &str| get(name).unwrap_or_default();
        let text = var("CNI_COMMAND");
        let command = Command::parse(&text).ok_or_else(|| {
            bad(format!("CNI_COMMAND is {text:?}"))
                .details("it must be ADD, DEL, CHECK, STATUS, GC or VERSION; weft is a CNI plugin, called by a container runtime")
        })?;
        let key = AttachmentKey { container_id: var("CNI_CONTAINERID"), ifname: var("CNI_IFNAME") };
        let netns = var("CNI_NETNS");
        let (needs_key, needs_netns) = match command {
            Command::Add | Command::Check => (true, true),
            Command::Del => (true, false),
            Command::Status | Command::Gc | Command::Version => (false, false),
        };
        if !needs_key {
            let key = AttachmentKey { container_id: String::new(), ifname: String::new() };
            return Ok(Self { command, key, netns, args: BTreeMap::new() });
        }
        let mut wrong = Vec::new();
        wrong.extend(container_id_problem(&key.container_id));
        wrong.extend(ifname_problem(&key.ifname));
        if needs_netns && netns.is_empty() {
            wrong.push("CNI_NETNS is missing".to_owned());
        }
        if !wrong.is_empty() {
            return Err(bad(wrong.join("; ")));
        }
        // Facts that do not fit the alias of the veth would be lost with the agent's memory.
        let alias = Alias {
            key: key.clone(),
            addresses: vec![
                std::net::Ipv4Addr::BROADCAST.into(),
                std::net::Ipv6Addr::from([0xff; 16]).into(),
            ],
            pod: None,
            uid: None,
        };
        if alias.to_text().is_none() {
            return Err(bad(format!(
                "CNI_CONTAINERID is {} bytes long; up to 150 are kept",
                key.container_id.len()
            )));
        }
        // A DEL must never fail for a word in CNI_ARGS.
        let args = match parse_args(&var("CNI_ARGS")) {
            Ok(args) => args,
            Err(_) if command == Command::Del => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { command, key, netns, args })
    }
}

fn bad(msg: String) -> CniError {
    CniError::new(code::BAD_ENVIRONMENT, msg)
}

fn container_id_problem(id: &str) -> Option<String> {
    if id.is_empty() {
        return Some("CNI_CONTAINERID is missing".to_owned());
    }
    let starts = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    (!starts || !rest).then(|| {
        format!(
            "CNI_CONTAINERID {id:?} must be letters, digits, '_', '.', '-', first a letter or digit"
        )
    })
}

fn ifname_problem(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("CNI_IFNAME is missing".to_owned());
    }
    if name.len() > 15 {
        return Some(format!("CNI_IFNAME {name:?} is longer than 15 bytes"));
    }
    // '%' makes the kernel number the name itself.
    let forbidden = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
    (name == "." || name == ".." || name.contains(forbidden)).then(|| {
        format!("CNI_IFNAME {name:?} must not be '.', '..' or hold '/', ':', '%' or space")
    })
}

/// Reads `CNI_ARGS` (`K=V;K=V`). Kubernetes' own keys are known; any other key
/// is an error unless `IgnoreUnknown` is set to a true value, and is passed on
/// to the agent if it is.
pub fn parse_args(text: &str) -> Result<BTreeMap<String, String>, CniError> {
    let mut args = BTreeMap::new();
    for pair in text.split(';').filter(|p| !p.is_empty()) {
        let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(bad(format!("CNI_ARGS: {pair:?} is not KEY=VALUE")));
        };
        args.insert(name.to_owned(), value.to_owned());
    }
    let ignore = match args.remove("IgnoreUnknown").as_deref() {
        None => false,
        Some(value) => match value.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" | "on" | "yes" => true,
            "" | "0" | "f" | "false" | "off" | "no" => false,
            _ => return Err(bad(format!("CNI_ARGS: IgnoreUnknown={value:?} is not 1 or 0"))),
        },
    };
    if !ignore && let Some(name) = args.keys().find(|name| !name.starts_with("K8S_POD_")) {
        return Err(bad(format!("CNI_ARGS: {name:?} is not known to weft"))
            .details("add IgnoreUnknown=1 if it is meant for another plugin"));
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Env, CniError> {
        Env::read(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn good_environment() {
        let env = read(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "ab_c.d-1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;FOO=a=b"),
        ])
        .unwrap();
        assert_eq!(env.command, Command::Add);
        assert_eq!(env.args["K8S_POD_NAME"], "web");
        assert_eq!(env.args["FOO"], "a=b");
        assert!(!env.args.contains_key("IgnoreUnknown"));
        assert!(read(&[("CNI_COMMAND", "STATUS")]).is_ok());
    }

    #[test]
    fn every_missing_variable_is_named() {
        let error = read(&[("CNI_COMMAND", "ADD")]).unwrap_err();
        assert_eq!(error.code, 4);
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            assert!(error.msg.contains(name), "{error}");
        }
        assert_eq!(read(&[]).unwrap_err().code, 4);
        assert!(
            read(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "b")]).is_ok()
        );
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "a".repeat(300);
        for (id, ifname) in [
            ("-a", "eth0"),
            ("a/b", "eth0"),
            ("a b", "eth0"),
            (long.as_str(), "eth0"),
            ("a", "eth0/1"),
            ("a", "e:0"),
            ("a", "e 0"),
            ("a", "sixteen-letters-"),
            ("a", ".."),
            ("a", "eth%d"),
        ] {
            let vars = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", id), ("CNI_IFNAME", ifname)];
            assert_eq!(read(&vars).unwrap_err().code, 4, "{id} {ifname}");
        }
    }

    #[test]
    fn args() {
        assert!(parse_args("").unwrap().is_empty());
        assert_eq!(parse_args("FOO=1").unwrap_err().code, 4);
        assert_eq!(parse_args("FOO").unwrap_err().code, 4);
        assert_eq!(parse_args("IgnoreUnknown=maybe").unwrap_err().code, 4);
        assert_eq!(parse_args("K8S_POD_UID=1").unwrap()["K8S_POD_UID"], "1");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(values in proptest::collection::vec(".*", 5)) {
            let names = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"];
            let vars: Vec<_> = names.into_iter().zip(values.iter().map(String::as_str)).collect();
            let _ = read(&vars);
            let with_add: Vec<_> = [("CNI_COMMAND", "ADD")].into_iter().chain(vars).collect();
            let _ = read(&with_add);
        }
    }
}
