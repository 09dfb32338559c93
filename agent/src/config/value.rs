//! Text to values, and the types that only configuration has. Every parser
//! answers with a reason that reads well after "is not usable: ".

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use crate::policy::world::Unknown;

/// `Err` is why not; empty where the expected form says it all.
pub(super) type Parsed<T> = Result<T, String>;

/// How a new cluster is founded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// A majority of the first peers must agree; with their number, if given.
    Consensus(Option<usize>),
    /// These peers own the range from the start.
    Seed(Vec<String>),
    /// Never founds, only joins.
    Observer,
}

/// Who may use Weave's changing routes without the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Callers {
    /// Nobody.
    #[default]
    Token,
    /// Any process that reaches the listener.
    Any,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

pub(super) fn boolean(text: &str) -> Parsed<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(String::new()),
    }
}

pub(super) fn ranges(text: &str) -> Parsed<Vec<IpNet>> {
    let nets = text.split(',').map(|part| range(part.trim())).collect::<Parsed<Vec<_>>>()?;
    for v4 in [true, false] {
        if nets.iter().filter(|n| n.addr().is_ipv4() == v4).count() > 1 {
            let family = if v4 { "IPv4" } else { "IPv6" };
            return Err(format!("more than one {family} range"));
        }
    }
    Ok(nets)
}

/// One range, as a network: aligned, large enough, usable for pods.
pub fn range(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text.parse().map_err(|_| format!("`{}` is not a network", short(text)))?;
    if net.addr() != net.network() {
        return Err(format!("host bits are set; the network is {}", net.trunc()));
    }
    if net.max_prefix_len() - net.prefix_len() < 2 {
        return Err(format!("{net} has fewer than 4 addresses"));
    }
    if net.prefix_len() == 0 {
        return Err(format!("{net} is every address there is"));
    }
    for (other, what) in UNUSABLE {
        if let Ok(other) = other.parse::<IpNet>()
            && (other.contains(&net) || net.contains(&other))
        {
            return Err(format!("{net} overlaps {other} ({what})"));
        }
    }
    Ok(net)
}

const UNUSABLE: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this network"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/3", "multicast and reserved"),
    ("::/8", "loopback and reserved"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

/// Ranges that nobody on the Internet uses.
const PRIVATE: &[&str] = &[
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "198.18.0.0/15",
    "fc00::/7",
];

/// True if pods in this range hide no host of the Internet.
pub(super) fn is_private(net: &IpNet) -> bool {
    PRIVATE.iter().any(|p| p.parse::<IpNet>().is_ok_and(|p| p.contains(net)))
}

pub(super) fn init(text: &str) -> Parsed<Init> {
    let (word, rest) = text.split_once('=').map_or((text, None), |(word, rest)| (word, Some(rest)));
    match (word, rest) {
        ("consensus", None | Some("")) => Ok(Init::Consensus(None)),
        ("consensus", Some(n)) => match n.parse() {
            // Weave's launcher passes the number of other nodes, which is 0 on the first.
            Ok(0) => Ok(Init::Consensus(None)),
            Ok(n @ 1..=10_000) => Ok(Init::Consensus(Some(n))),
            _ => Err(String::new()),
        },
        ("seed", Some(list)) => {
            let names: Vec<String> = list.split(',').map(|n| n.trim().to_owned()).collect();
            if names.iter().any(|n| node_name(n).is_err()) {
                return Err("a name in the list is empty or malformed".to_owned());
            }
            let mut sorted = names.clone();
            sorted.sort();
            sorted.dedup();
            if sorted.len() != names.len() {
                return Err("a name is listed twice".to_owned());
            }
            Ok(Init::Seed(names))
        }
        ("observer", None) => Ok(Init::Observer),
        _ => Err(String::new()),
    }
}

pub(super) fn mtu(text: &str) -> Parsed<Option<u32>> {
    match text {
        // 0 is Weave's word for "find out".
        "auto" | "0" => Ok(None),
        _ => bounded(text, u64::from(weft_proto::names::MIN_MTU), 65_535)
            .map(|n| u32::try_from(n).ok()),
    }
}

pub(super) fn bounded(text: &str, low: u64, high: u64) -> Parsed<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(n) if digits && (low..=high).contains(&n) => Ok(n),
        Ok(n) if digits => Err(format!("{n} is out of bounds")),
        _ => Err("not a number".to_owned()),
    }
}

pub(super) fn port(text: &str) -> Parsed<u16> {
    if text.contains("://") {
        return Err("it looks like a variable that Kubernetes sets for a Service; \
                    set `enableServiceLinks: false` on the pod"
            .to_owned());
    }
    bounded(text, 1, 65_535).and_then(|n| u16::try_from(n).map_err(|_| String::new()))
}

pub(super) fn peers(text: &str) -> Parsed<Vec<String>> {
    let mut peers: Vec<String> = Vec::new();
    for word in text.split([' ', ',', '\t', '\n']).filter(|w| !w.is_empty()) {
        if !is_target(word) {
            return Err(format!("`{}` is not a host or host:port", short(word)));
        }
        if !peers.iter().any(|p| p == word) {
            peers.push(word.to_owned());
        }
    }
    Ok(peers)
}

/// `HOST`, `HOST:PORT`, `ADDRESS`, `ADDRESS:PORT`, `[V6]:PORT`.
pub fn is_target(text: &str) -> bool {
    if text.parse::<IpAddr>().is_ok() {
        return true;
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return address.port() != 0;
    }
    let (host, rest) = text.rsplit_once(':').map_or((text, None), |(h, p)| (h, Some(p)));
    // Only digits and dots is an address, and it did not parse as one.
    let digits = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    !digits && host_name(host) && rest.is_none_or(|p| port(p).is_ok())
}

fn host_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
}

pub(super) fn node_name(text: &str) -> Parsed<String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(good) {
        return Err(String::new());
    }
    Ok(text.to_owned())
}

pub(super) fn expose(text: &str, ranges: &[IpNet]) -> Parsed<Option<IpNet>> {
    let net = if let Ok(address) = text.parse::<IpAddr>() {
        let Some(range) = ranges.iter().find(|r| r.contains(&address)) else {
            return Err("outside IPALLOC_RANGE it needs a prefix length".to_owned());
        };
        IpNet::new(address, range.prefix_len()).map_err(|_| String::new())?
    } else {
        text.parse::<IpNet>().map_err(|_| String::new())?
    };
    unicast(net.addr())?;
    Ok(Some(net))
}

pub(super) fn node_ip(text: &str) -> Parsed<Option<IpAddr>> {
    let address = text.parse().map_err(|_| String::new())?;
    unicast(address)?;
    Ok(Some(address))
}

fn unicast(address: IpAddr) -> Parsed<()> {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return Err(format!("{address} is not the address of a host"));
    }
    Ok(())
}

pub(super) fn listen(text: &str) -> Parsed<Option<SocketAddr>> {
    match text {
        "off" => Ok(None),
        // Weave takes `:6782` for "every address".
        _ if text.starts_with(':') => port(&text[1..])
            .map(|port| Some(SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), port))),
        _ => socket(text).map(Some),
    }
}

pub(super) fn auto_or_off(text: &str) -> Parsed<bool> {
    match text {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err(String::new()),
    }
}

pub(super) fn http_addr(text: &str, remote: bool) -> Parsed<SocketAddr> {
    let address = socket(text)?;
    if !address.ip().is_loopback() && !remote {
        return Err(format!(
            "{} is not a loopback address, and HTTP_ALLOW_REMOTE is not set",
            address.ip()
        ));
    }
    Ok(address)
}

fn socket(text: &str) -> Parsed<SocketAddr> {
    let text = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    text.parse().map_err(|_| String::new())
}

pub(super) fn directory(text: &str) -> Parsed<PathBuf> {
    if !text.starts_with('/') || text.contains('\0') {
        return Err("the path is not absolute".to_owned());
    }
    if text.split('/').any(|part| part == "..") {
        return Err("the path contains `..`".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// `500ms`, `30s`, `1h30m`: at most a week.
pub fn duration(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(168 * 3600);
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(String::new());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| "no number".to_owned())?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = &rest[..letters];
        rest = &rest[letters..];
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "" => return Err("no unit".to_owned()),
            _ => return Err(format!("unknown unit `{unit}`")),
        };
        total = total.saturating_add(Duration::from_millis(number.saturating_mul(millis)));
    }
    if total > MOST {
        return Err("too long".to_owned());
    }
    Ok(total)
}

pub(super) fn callers(text: &str) -> Parsed<Callers> {
    match text {
        "token" => Ok(Callers::Token),
        "any" => Ok(Callers::Any),
        _ => Err(String::new()),
    }
}

pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(String::new()),
    }
}

pub(super) fn iptables_backend(text: &str) -> Parsed<()> {
    match text {
        "auto" | "nft" | "legacy" => Ok(()),
        _ => Err(String::new()),
    }
}

/// Keys, one per line.
pub fn keys(text: &str) -> Parsed<Vec<String>> {
    let keys: Vec<String> = text
        .split('\n')
        .map(|line| line.trim_end_matches('\r'))
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect();
    if keys.is_empty() { Err("there is no key in it".to_owned()) } else { Ok(keys) }
}

pub(super) fn unknown(text: &str) -> Parsed<Unknown> {
    match text {
        "deny" => Ok(Unknown::Deny),
        "allow" => Ok(Unknown::Allow),
        _ => Err(String::new()),
    }
}

/// True if connections are dropped.
pub(super) fn established(text: &str) -> Parsed<bool> {
    match text {
        "drop" => Ok(true),
        "keep" => Ok(false),
        _ => Err(String::new()),
    }
}

pub(super) fn kubernetes(text: &str) -> Parsed<bool> {
    match text {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err(String::new()),
    }
}

/// `https://HOST[:PORT]`; `http` too, for tests and proxies on this machine.
pub(super) fn api_server(text: &str) -> Parsed<String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else { return Err("it begins with neither https:// nor http://".into()) };
    let host = rest.strip_suffix('/').unwrap_or(rest);
    if host.contains(['/', '@', '?', '#']) {
        return Err("there is more in it than a host and a port".to_owned());
    }
    is_target(host)
        .then(|| text.trim_end_matches('/').to_owned())
        .ok_or_else(|| format!("`{}` is not HOST:PORT", short(host)))
}

pub(super) fn host(text: &str) -> Parsed<String> {
    let named = is_target(text) && (text.parse::<IpAddr>().is_ok() || !text.contains(':'));
    named.then(|| text.to_owned()).ok_or_else(String::new)
}

/// RFC 1123 label, as namespaces are named.
pub(super) fn namespace(text: &str) -> Parsed<String> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = text.len() <= 63
        && text.chars().all(inner)
        && edge(text.chars().next())
        && edge(text.chars().last());
    good.then(|| text.to_owned()).ok_or_else(String::new)
}

fn short(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}
