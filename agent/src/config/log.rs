//! What is logged.

use tracing_subscriber::filter::{LevelFilter, Targets};

use super::value::Parsed;

pub(super) fn level(text: &str) -> Parsed<String> {
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "error" | "warn" | "info" | "debug" | "trace" => Ok(lower),
        "warning" => Ok("warn".to_owned()),
        _ => Err(String::new()),
    }
}

/// Libraries that tell at `info` and below what only their authors need.
const TALKATIVE: &[&str] = &[
    "openraft",
    "openraft::core::raft_core",
    "openraft::replication",
    "quinn",
    "quinn_proto",
    "quinn_udp",
    "rustls",
    "foca",
    "netlink_proto",
    "netlink_sys",
    "netlink_packet_route",
    "rtnetlink",
    "kube",
    "kube_client",
    "tower",
    "hyper",
    "hyper_util",
];

/// A level for this program, and warnings only of the libraries below it.
pub(super) fn quiet(level: &str) -> String {
    if level == "error" {
        return level.to_owned();
    }
    // A warning of openraft is a step of an ordinary vote, and most of its errors
    // are voters that are away: `agent status` tells that, and its end, better.
    let level_of = |target: &str| match target {
        "openraft" => "error",
        "openraft::core::raft_core" | "openraft::replication" => "off",
        // An outage is told once, by `kube::ask`, and not with every attempt.
        "kube_client" => "off",
        _ => "warn",
    };
    let libraries = TALKATIVE.iter().map(|target| format!(",{target}={}", level_of(target)));
    std::iter::once(level.to_owned()).chain(libraries).collect()
}

pub(super) fn filter(text: &str) -> Parsed<String> {
    targets(text).map(|_| text.to_owned())
}

/// What is logged, of directives LEVEL, TARGET or TARGET=LEVEL.
pub(super) fn targets(text: &str) -> Parsed<Targets> {
    let mut directives = text.split(',').map(str::trim).filter(|text| !text.is_empty()).peekable();
    let errors = LevelFilter::ERROR;
    let nothing = directives.peek().is_none().then(|| Targets::new().with_default(errors));
    directives.try_fold(nothing.unwrap_or_default(), |all, directive| {
        let (target, level) = match directive.split_once('=') {
            None => match directive.parse::<LevelFilter>() {
                Ok(level) => return Ok(all.with_default(level)),
                Err(_) => (directive, LevelFilter::TRACE),
            },
            Some((target, level)) => match level.parse() {
                Ok(level) => (target, level),
                Err(_) => return Err(format!("`{level}` is no level")),
            },
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "_:-.".contains(c);
        if target.is_empty() || !target.chars().all(plain) {
            return Err(format!("`{target}` is no part of a program"));
        }
        Ok(all.with_target(target, level))
    })
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter as L;

    use super::*;

    #[test]
    fn directives_are_levels_of_parts() {
        let all = targets("info, weft_agent::mesh=Debug,quinn=off,hyper,").unwrap();
        let lets = |target, level: L| all.would_enable(target, &level.into_level().unwrap());
        assert!(lets("weft_agent::app", L::INFO) && !lets("weft_agent::app", L::DEBUG));
        assert!(lets("weft_agent::mesh::conn", L::DEBUG) && !lets("weft_agent::mesh", L::TRACE));
        assert!(!lets("quinn", L::ERROR) && lets("hyper", L::TRACE));
        // As it is with other programs that read RUST_LOG.
        assert_eq!(targets(",").unwrap().default_level(), Some(L::ERROR));
        assert_eq!(targets("hyper=warn").unwrap().default_level(), None);
        assert_eq!(targets("a=loud").unwrap_err(), "`loud` is no level");
        assert!(targets("weft[=debug").is_err() && targets("=debug").is_err());
        for level in ["error", "warn", "info", "debug", "trace"] {
            assert!(targets(&quiet(level)).is_ok(), "{level}");
        }
    }
}
