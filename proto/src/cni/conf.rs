//! The network configuration on standard input.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::error::{CniError, code};
use super::json::{boolean, get, list, number, object, string, wrong};
use super::result::parsed;
use super::version::SpecVersion;
use crate::api::PortMapping;
use crate::attachment::AttachmentKey;
use crate::names::{POD_GATEWAY4, POD_GATEWAY6};

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    /// `cniVersion`.
    pub version: SpecVersion,
    /// `name`.
    pub name: String,
    /// `mtu`: wanted MTU, if smaller than the network's.
    pub mtu: Option<u32>,
    /// `hairpinMode`, over the agent's setting.
    pub hairpin: Option<bool>,
    /// `ipam.routes`, instead of the default route.
    pub routes: Option<Vec<RouteConf>>,
    /// `dns`, passed on.
    pub dns: Option<Value>,
    /// `runtimeConfig.portMappings`.
    pub port_mappings: Vec<PortMapping>,
    /// `runtimeConfig.bandwidth`, or `bandwidth`.
    pub bandwidth: Bandwidth,
    /// `agentAddr`.
    pub agent_addr: Option<String>,
    /// `runDir`.
    pub run_dir: Option<String>,
    /// `logFile`.
    pub log_file: Option<String>,
    /// `disableGC`.
    pub disable_gc: bool,
    /// `prevResult`, as it came.
    pub prev_result: Option<Map<String, Value>>,
    /// GC's list of what to keep; `None` if the runtime gave none.
    pub valid_attachments: Option<Vec<AttachmentKey>>,
}

/// A route of `ipam.routes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConf {
    /// Destination.
    pub dst: IpNet,
    /// Next hop: weft's gateway, or unsaid.
    pub gw: Option<IpAddr>,
}

/// Limits, bits per second and bits; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bandwidth {
    /// To the container.
    pub ingress_rate: u64,
    /// Bucket of the former.
    pub ingress_burst: u64,
    /// From the container.
    pub egress_rate: u64,
    /// Bucket of the former.
    pub egress_burst: u64,
}

fn invalid(msg: impl Into<String>) -> CniError {
    CniError::new(code::INVALID_CONFIG, msg)
}

impl Conf {
    /// Reads and checks a configuration.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        let value: Value = serde_json::from_slice(text).map_err(|error| {
            CniError::new(
                code::DECODE,
                format!("the configuration on standard input is not JSON: {error}"),
            )
        })?;
        let Value::Object(root) = value else {
            return Err(wrong("the configuration on standard input", "an object"));
        };
        let version = SpecVersion::parse(&string(&root, "cniVersion", "")?)?;
        let name = string(&root, "name", "")?;
        name_problem(&name)?;
        let runtime = object(&root, "runtimeConfig", "")?;
        let static_bandwidth = object(&root, "bandwidth", "")?;
        let bandwidth = match runtime
            .map(|r| object(r, "bandwidth", "runtimeConfig."))
            .transpose()?
            .flatten()
        {
            Some(map) => Bandwidth::parse(map, "runtimeConfig.bandwidth.")?,
            None => static_bandwidth
                .map(|map| Bandwidth::parse(map, "bandwidth."))
                .transpose()?
                .unwrap_or_default(),
        };
        let non_empty =
            |key| string(&root, key, "").map(|text| Some(text).filter(|t| !t.is_empty()));
        Ok(Self {
            version,
            name,
            // Go writes 0 for "not set".
            mtu: match number(&root, "mtu", "")? {
                None | Some(0) => None,
                Some(n) => {
                    Some(u32::try_from(n).map_err(|_| invalid(format!("mtu {n} is too large")))?)
                }
            },
            hairpin: boolean(&root, "hairpinMode", "")?,
            routes: object(&root, "ipam", "")?.map(ipam).transpose()?.flatten(),
            dns: object(&root, "dns", "")?.map(|dns| Value::Object(dns.clone())),
            port_mappings: match runtime {
                Some(map) => port_mappings(list(map, "portMappings", "runtimeConfig.")?)?,
                None => Vec::new(),
            },
            bandwidth,
            agent_addr: non_empty("agentAddr")?,
            run_dir: non_empty("runDir")?,
            log_file: non_empty("logFile")?,
            disable_gc: boolean(&root, "disableGC", "")?.unwrap_or(false),
            prev_result: object(&root, "prevResult", "")?.cloned(),
            valid_attachments: valid_attachments(&root)?,
        })
    }

    /// The `cniVersion` of a configuration that may be broken elsewhere, for error texts.
    pub fn version_text(text: &[u8]) -> Option<String> {
        match serde_json::from_slice::<Value>(text).ok()?.get("cniVersion")? {
            Value::String(version) if !version.is_empty() => Some(version.clone()),
            _ => None,
        }
    }
}

fn name_problem(name: &str) -> Result<(), CniError> {
    if name.is_empty() {
        return Err(invalid("the configuration has no name").details("add \"name\": \"weft\""));
    }
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if first && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        return Ok(());
    }
    Err(invalid(format!(
        "name {name:?} must be letters, digits, '_', '.', '-', first a letter or digit"
    )))
}

/// The routes of `ipam`. Addresses come from the cluster's range, whatever a
/// configuration says, so keys that would choose them are refused, not ignored.
fn ipam(map: &Map<String, Value>) -> Result<Option<Vec<RouteConf>>, CniError> {
    let kind = string(map, "type", "ipam.")?;
    if !matches!(kind.as_str(), "" | "weft" | "weave" | "weave-ipam") {
        return Err(CniError::new(
            code::UNSUPPORTED_FIELD,
            format!("ipam.type {kind:?}: weft gives out addresses itself"),
        )
        .details("remove \"ipam\" from the configuration"));
    }
    for (key, value) in map {
        let about = match key.as_str() {
            "type" | "routes" => continue,
            _ if value.is_null() || value == "" => continue,
            "subnet" | "ranges" | "rangeStart" | "rangeEnd" | "ips" | "addresses" => {
                "addresses come from IPALLOC_RANGE of the agent"
            }
            "gateway" => "every container's gateway is the node itself, by a link-local address",
            _ => "weft knows only \"routes\" here",
        };
        return Err(CniError::new(
            code::UNSUPPORTED_FIELD,
            format!("ipam.{key} = {value}: {about}"),
        )
        .details(format!("remove \"{key}\" from \"ipam\"")));
    }
    if get(map, "routes").is_none() {
        return Ok(None);
    }
    let mut routes = Vec::new();
    for (index, item) in list(map, "routes", "ipam.")?.iter().enumerate() {
        let at = format!("ipam.routes[{index}].");
        let Value::Object(item) = item else { return Err(wrong(&at, "an object")) };
        let dst: IpNet =
            parsed(item, "dst", &at)?.ok_or_else(|| wrong(&format!("{at}dst"), "a prefix"))?;
        let gw: Option<IpAddr> = parsed(item, "gw", &at)?;
        if gw.is_some_and(|gw| gw != IpAddr::V4(POD_GATEWAY4) && gw != IpAddr::V6(POD_GATEWAY6)) {
            return Err(CniError::new(
                code::UNSUPPORTED_FIELD,
                format!("{at}gw: every route of a container goes through its node"),
            )
            .details("remove \"gw\""));
        }
        if gw.is_some_and(|gw| gw.is_ipv4() != dst.addr().is_ipv4()) {
            return Err(invalid(format!("{at}gw is not of the family of dst {dst}")));
        }
        routes.push(RouteConf { dst: dst.trunc(), gw });
    }
    Ok(Some(routes))
}

impl Bandwidth {
    fn parse(map: &Map<String, Value>, at: &str) -> Result<Self, CniError> {
        let field = |key| number(map, key, at).map(|n| n.unwrap_or(0));
        let bandwidth = Self {
            ingress_rate: field("ingressRate")?,
            ingress_burst: field("ingressBurst")?,
            egress_rate: field("egressRate")?,
            egress_burst: field("egressBurst")?,
        };
        for (what, rate, burst) in [
            ("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst),
            ("egress", bandwidth.egress_rate, bandwidth.egress_burst),
        ] {
            if (rate == 0) != (burst == 0) {
                return Err(invalid(format!(
                    "{at}{what}Rate and {what}Burst must be set together"
                )));
            }
            // Below one byte per second there is nothing to shape with.
            if rate != 0 && rate < 8 {
                return Err(invalid(format!(
                    "{at}{what}Rate {rate} is less than 8 bits per second"
                )));
            }
        }
        Ok(bandwidth)
    }
}

fn port_mappings(items: &[Value]) -> Result<Vec<PortMapping>, CniError> {
    let mut mappings = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let at = format!("runtimeConfig.portMappings[{index}].");
        let Value::Object(item) = item else { return Err(wrong(&at, "an object")) };
        let port = |key| -> Result<u16, CniError> {
            let port = number(item, key, &at)?.unwrap_or(0);
            u16::try_from(port).map_err(|_| invalid(format!("{at}{key} {port} is not a port")))
        };
        let (host_port, container_port) = (port("hostPort")?, port("containerPort")?);
        // Runtimes list container ports without a host port, too.
        if host_port == 0 {
            continue;
        }
        if container_port == 0 {
            return Err(invalid(format!("{at}containerPort is missing")));
        }
        let protocol = match string(item, "protocol", &at)?.to_ascii_lowercase() {
            text if text.is_empty() => "tcp".to_owned(),
            text => text,
        };
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(invalid(format!("{at}protocol {protocol:?} is not tcp, udp or sctp")));
        }
        // The unspecified address means what leaving it out means.
        let host_ip = parsed::<IpAddr>(item, "hostIP", &at)?.filter(|ip| !ip.is_unspecified());
        mappings.push(PortMapping { host_port, container_port, protocol, host_ip });
    }
    Ok(mappings)
}

/// Both spellings that libraries have used. Null is Go's empty list; a missing
/// key is not, since "keep nothing" would be the most dangerous reading.
fn valid_attachments(root: &Map<String, Value>) -> Result<Option<Vec<AttachmentKey>>, CniError> {
    let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    let Some(key) = keys.into_iter().find(|key| root.contains_key(*key)) else { return Ok(None) };
    let mut keep = Vec::new();
    for (index, item) in list(root, key, "")?.iter().enumerate() {
        let at = format!("{key}[{index}].");
        let Value::Object(item) = item else { return Err(wrong(&at, "an object")) };
        let attachment = AttachmentKey {
            container_id: string(item, "containerID", &at)?,
            ifname: string(item, "ifname", &at)?,
        };
        if attachment.container_id.is_empty() || attachment.ifname.is_empty() {
            return Err(wrong(&at, "an attachment: containerID and ifname are needed"));
        }
        keep.push(attachment);
    }
    Ok(Some(keep))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn conf(extra: Value) -> Result<Conf, CniError> {
        let mut base = json!({"cniVersion": "1.0.0", "name": "weft", "type": "weft"});
        if let Value::Object(extra) = extra {
            for (key, value) in extra {
                base[key] = value;
            }
        }
        Conf::parse(base.to_string().as_bytes())
    }

    #[test]
    fn a_full_configuration() {
        let conf = conf(json!({
            "mtu": 1300, "hairpinMode": true, "dns": {"domain": "x"}, "disableGC": true,
            "ipam": {"routes": [{"dst": "10.0.0.0/8"}, {"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]},
            "bandwidth": {"ingressRate": 1, "ingressBurst": 1},
            "runtimeConfig": {
                "portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": ""},
                    {"hostPort": 0, "containerPort": 81},
                    {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
                ],
                "bandwidth": {"ingressRate": 8000, "ingressBurst": 80, "egressRate": null},
            },
            "agentAddr": "127.0.0.1:1", "runDir": "/x", "logFile": "/y", "ignored": [1],
        }))
        .unwrap();
        assert_eq!((conf.mtu, conf.hairpin, conf.disable_gc), (Some(1300), Some(true), true));
        assert_eq!(conf.routes.unwrap().len(), 2);
        assert_eq!(conf.port_mappings.len(), 2);
        assert_eq!(conf.port_mappings[0].protocol, "tcp");
        assert_eq!(conf.port_mappings[0].host_ip, None);
        // The static limit is nonsense, but the runtime's comes first.
        assert_eq!((conf.bandwidth.ingress_rate, conf.bandwidth.egress_rate), (8000, 0));
    }

    /// As containerd 1.6 writes it.
    #[test]
    fn the_case_of_keys_does_not_matter() {
        let conf = conf(json!({"runtimeConfig": {
            "portMappings": [
                {"HostPort": 8088, "ContainerPort": 8080, "Protocol": "TCP", "HostIP": ""},
            ],
            "bandwidth": {"IngressRate": 8000, "IngressBurst": 80, "EgressRate": 0, "EgressBurst": 0},
        }}))
        .unwrap();
        let ports: Vec<_> =
            conf.port_mappings.iter().map(|port| (port.host_port, port.container_port)).collect();
        assert_eq!(ports, [(8088, 8080)]);
        assert_eq!((conf.bandwidth.ingress_rate, conf.bandwidth.egress_rate), (8000, 0));
    }

    #[test]
    fn null_is_absent() {
        let conf = conf(json!({"mtu": null, "ipam": {}, "dns": null, "runtimeConfig": null, "prevResult": null})).unwrap();
        assert_eq!((conf.mtu, conf.routes, conf.prev_result), (None, None, None));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (extra, code) in [
            (json!({"cniVersion": "9.0.0"}), 1),
            (json!({"cniVersion": 1}), 6),
            (json!({"name": ""}), 7),
            (json!({"name": "-x"}), 7),
            (json!({"mtu": -1}), 6),
            (json!({"mtu": 5_000_000_000_u64}), 7),
            (json!({"ipam": {"type": "host-local"}}), 2),
            (json!({"ipam": {"subnet": "10.0.0.0/8"}}), 2),
            (json!({"ipam": {"gateway": "10.0.0.1"}}), 2),
            (json!({"ipam": {"routes": [{"dst": "10.0.0.0/8", "gw": "10.0.0.1"}]}}), 2),
            (json!({"ipam": {"routes": [{"dst": "::/0", "gw": "169.254.1.1"}]}}), 7),
            (json!({"ipam": {"routes": [{}]}}), 6),
            (json!({"bandwidth": {"ingressRate": 1000}}), 7),
            (json!({"bandwidth": {"ingressRate": 7, "ingressBurst": 1}}), 7),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 1}]}}),
                7,
            ),
            (json!({"runtimeConfig": {"portMappings": [{"hostPort": 1}]}}), 7),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "x"}]}}),
                7,
            ),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "x"}]}}),
                6,
            ),
            (json!({"cni.dev/attachments": [{"containerID": "a"}]}), 6),
        ] {
            assert_eq!(conf(extra.clone()).unwrap_err().code, code, "{extra}");
        }
        assert_eq!(Conf::parse(b"{").unwrap_err().code, 6);
        assert_eq!(Conf::parse(b"[]").unwrap_err().code, 6);
    }

    #[test]
    fn gc_lists() {
        let one = json!([{"containerID": "a", "ifname": "eth0"}]);
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let conf = conf(json!({key: one})).unwrap();
            assert_eq!(conf.valid_attachments.unwrap()[0].container_id, "a");
        }
        assert_eq!(conf(json!({})).unwrap().valid_attachments, None);
        assert_eq!(
            conf(json!({"cni.dev/attachments": null})).unwrap().valid_attachments,
            Some(vec![])
        );
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Conf::parse(&bytes);
            let _ = Conf::version_text(&bytes);
        }

        #[test]
        fn arbitrary_values_never_panic(key in 0_usize..20, value in 0_usize..12) {
            let keys = ["cniVersion", "name", "mtu", "hairpinMode", "ipam", "dns", "runtimeConfig",
                "bandwidth", "agentAddr", "runDir", "logFile", "disableGC", "prevResult",
                "cni.dev/valid-attachments", "cni.dev/attachments"];
            let values = [json!(null), json!(1), json!(-1), json!(1e300), json!("x"), json!([]), json!([1]),
                json!({}), json!([{}]), json!({"routes": [{"dst": "x"}]}),
                json!({"portMappings": {}, "bandwidth": []}),
                json!({"interfaces": [{"name": 1}], "ips": [{"address": "x"}], "ip4": {"ip": 3}})];
            if let Ok(conf) = conf(json!({keys[key % keys.len()]: values[value]}))
                && let Some(prev) = conf.prev_result {
                let _ = super::super::result::Outcome::parse(&prev);
            }
        }
    }
}
