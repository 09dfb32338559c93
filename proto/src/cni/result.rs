//! Results, in the words of each version of the specification.

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

use super::conf::RouteConf;
use super::error::CniError;
use super::json::{list, number, string, wrong};
use super::version::SpecVersion;

/// What ADD made, or what a `prevResult` tells of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Interfaces, of host and container.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes in the container.
    pub routes: Vec<Route>,
    /// Passed on as configured.
    pub dns: Option<Value>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// MAC, empty if not told.
    pub mac: String,
    /// MTU (told from 1.1.0 on).
    pub mtu: Option<u32>,
    /// Namespace path; empty for the host.
    pub sandbox: String,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// Address and prefix length.
    pub address: IpNet,
    /// Gateway.
    pub gateway: Option<IpAddr>,
    /// Index into the interfaces.
    pub interface: Option<usize>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop.
    pub gw: Option<IpAddr>,
    /// Table, if not the main one (told from 1.1.0 on).
    pub table: Option<u32>,
}

impl Outcome {
    /// The result object, or `prev` with this one added at its end.
    pub fn to_json(&self, version: SpecVersion, prev: Option<&Map<String, Value>>) -> Value {
        if version < SpecVersion::V0_3_0 {
            return self.to_json_before_interfaces(version);
        }
        let mut object = prev.cloned().unwrap_or_default();
        object.insert("cniVersion".into(), json!(version.as_str()));
        let interfaces = self.interfaces.iter().map(|i| i.to_json(version)).collect();
        let before = append(&mut object, "interfaces", interfaces);
        let ips = self.ips.iter().map(|ip| ip.to_json(version, before)).collect();
        append(&mut object, "ips", ips);
        // Routes of other tables cannot be told before 1.1.0; unsaid they would be wrong.
        let told = |r: &&Route| r.table.is_none() || version >= SpecVersion::V1_1_0;
        let routes = self.routes.iter().filter(told).map(Route::to_json).collect();
        append(&mut object, "routes", routes);
        let empty = |v: &Value| v.as_object().is_none_or(Map::is_empty);
        if object.get("dns").is_none_or(empty) {
            object.insert("dns".into(), self.dns.clone().unwrap_or_else(|| json!({})));
        }
        Value::Object(object)
    }

    fn to_json_before_interfaces(&self, version: SpecVersion) -> Value {
        let mut object = Map::new();
        object.insert("cniVersion".into(), json!(version.as_str()));
        for ip in &self.ips {
            let v4 = ip.address.addr().is_ipv4();
            let key = if v4 { "ip4" } else { "ip6" };
            if object.contains_key(key) {
                continue;
            }
            let routes: Vec<_> = self
                .routes
                .iter()
                .filter(|r| r.dst.addr().is_ipv4() == v4 && r.table.is_none())
                .map(Route::to_json)
                .collect();
            let mut value = json!({ "ip": ip.address, "routes": routes });
            if let Some(gateway) = ip.gateway {
                value["gateway"] = json!(gateway);
            }
            object.insert(key.into(), value);
        }
        object.insert("dns".into(), self.dns.clone().unwrap_or_else(|| json!({})));
        Value::Object(object)
    }

    /// Reads a `prevResult`, of any version.
    pub fn parse(object: &Map<String, Value>) -> Result<Self, CniError> {
        let mut outcome = Self::default();
        for (item, at) in objects(object, "interfaces")? {
            outcome.interfaces.push(Interface {
                name: string(item, "name", &at)?,
                mac: string(item, "mac", &at)?,
                mtu: number(item, "mtu", &at)?
                    .and_then(|n| u32::try_from(n).ok())
                    .filter(|n| *n != 0),
                sandbox: string(item, "sandbox", &at)?,
            });
        }
        for (item, at) in objects(object, "ips")? {
            outcome.ips.push(IpConfig {
                address: parsed(item, "address", &at)?.ok_or_else(|| wrong(&at, "an address"))?,
                gateway: parsed(item, "gateway", &at)?,
                interface: number(item, "interface", &at)?.and_then(|n| usize::try_from(n).ok()),
            });
        }
        for (item, at) in objects(object, "routes")? {
            outcome.routes.push(route(item, &at)?);
        }
        for key in ["ip4", "ip6"] {
            let Some(Value::Object(item)) = object.get(key) else { continue };
            let at = format!("prevResult.{key}.");
            outcome.ips.push(IpConfig {
                address: parsed(item, "ip", &at)?.ok_or_else(|| wrong(&at, "an address"))?,
                gateway: parsed(item, "gateway", &at)?,
                interface: None,
            });
            for value in list(item, "routes", &at)? {
                let Value::Object(item) = value else { return Err(wrong(&at, "well-formed")) };
                outcome.routes.push(route(item, &at)?);
            }
        }
        outcome.dns = object.get("dns").filter(|v| v.is_object()).cloned();
        Ok(outcome)
    }
}

impl Interface {
    fn to_json(&self, version: SpecVersion) -> Value {
        let mut value = json!({ "name": self.name });
        if !self.mac.is_empty() {
            value["mac"] = json!(self.mac);
        }
        if let Some(mtu) = self.mtu.filter(|_| version >= SpecVersion::V1_1_0) {
            value["mtu"] = json!(mtu);
        }
        if !self.sandbox.is_empty() {
            value["sandbox"] = json!(self.sandbox);
        }
        value
    }
}

impl IpConfig {
    fn to_json(&self, version: SpecVersion, interfaces_before: usize) -> Value {
        let mut value = json!({ "address": self.address });
        if let Some(gateway) = self.gateway {
            value["gateway"] = json!(gateway);
        }
        if let Some(index) = self.interface {
            value["interface"] = json!(index + interfaces_before);
        }
        if version < SpecVersion::V1_0_0 {
            value["version"] = json!(if self.address.addr().is_ipv4() { "4" } else { "6" });
        }
        value
    }
}

impl Route {
    fn to_json(&self) -> Value {
        let mut value = json!({ "dst": self.dst });
        if let Some(gw) = self.gw {
            value["gw"] = json!(gw);
        }
        if let Some(table) = self.table {
            value["table"] = json!(table);
        }
        value
    }
}

impl From<&RouteConf> for Route {
    fn from(conf: &RouteConf) -> Self {
        Self { dst: conf.dst, gw: conf.gw, table: None }
    }
}

fn route(item: &Map<String, Value>, at: &str) -> Result<Route, CniError> {
    Ok(Route {
        dst: parsed(item, "dst", at)?.ok_or_else(|| wrong(at, "a route"))?,
        gw: parsed(item, "gw", at)?,
        table: number(item, "table", at)?.and_then(|n| u32::try_from(n).ok()),
    })
}

/// A key whose text is an address or a prefix; empty counts as absent.
pub(super) fn parsed<T: std::str::FromStr>(
    item: &Map<String, Value>,
    key: &str,
    at: &str,
) -> Result<Option<T>, CniError> {
    let text = string(item, key, at)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| wrong(&format!("{at}{key} {text:?}"), "an address"))
}

/// An object, and its place for messages.
type Placed<'a> = (&'a Map<String, Value>, String);

/// The objects of a list.
fn objects<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Vec<Placed<'a>>, CniError> {
    let items = list(object, key, "prevResult.")?;
    let mut found = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let at = format!("prevResult.{key}[{index}].");
        match item {
            Value::Object(map) => found.push((map, at)),
            _ => return Err(wrong(&at, "an object")),
        }
    }
    Ok(found)
}

/// Adds items to a list; says how many were there before.
fn append(object: &mut Map<String, Value>, key: &str, items: Vec<Value>) -> usize {
    match object.get_mut(key) {
        Some(Value::Array(there)) => {
            let before = there.len();
            there.extend(items);
            before
        }
        _ => {
            object.insert(key.to_owned(), Value::Array(items));
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::SUPPORTED;

    fn outcome() -> Outcome {
        Outcome {
            interfaces: vec![
                Interface {
                    name: "weftabc".into(),
                    mac: String::new(),
                    mtu: Some(1400),
                    sandbox: String::new(),
                },
                Interface {
                    name: "eth0".into(),
                    mac: "0a:58:0a:20:00:01".into(),
                    mtu: Some(1400),
                    sandbox: "/run/netns/x".into(),
                },
            ],
            ips: vec![
                IpConfig {
                    address: "10.32.0.1/32".parse().unwrap(),
                    gateway: "169.254.1.1".parse().ok(),
                    interface: Some(1),
                },
                IpConfig {
                    address: "fd00::1/128".parse().unwrap(),
                    gateway: None,
                    interface: Some(1),
                },
            ],
            routes: vec![
                Route {
                    dst: "0.0.0.0/0".parse().unwrap(),
                    gw: "169.254.1.1".parse().ok(),
                    table: None,
                },
                Route { dst: "::/0".parse().unwrap(), gw: None, table: Some(7) },
            ],
            dns: Some(json!({"nameservers": ["10.0.0.1"]})),
        }
    }

    #[test]
    fn first_form() {
        for version in [SpecVersion::V0_1_0, SpecVersion::V0_2_0] {
            assert_eq!(
                outcome().to_json(version, None),
                json!({
                    "cniVersion": version.as_str(),
                    "ip4": {"ip": "10.32.0.1/32", "gateway": "169.254.1.1",
                            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]},
                    "ip6": {"ip": "fd00::1/128", "routes": []},
                    "dns": {"nameservers": ["10.0.0.1"]},
                })
            );
        }
    }

    #[test]
    fn later_forms() {
        for version in &SUPPORTED[2..] {
            let value = outcome().to_json(*version, None);
            assert_eq!(value["cniVersion"], version.as_str());
            assert_eq!(value["ips"][0]["interface"], 1);
            let family = value["ips"][1].get("version");
            assert_eq!(family, (*version < SpecVersion::V1_0_0).then_some(&json!("6")));
            let latest = *version == SpecVersion::V1_1_0;
            assert_eq!(value["interfaces"][1].get("mtu").is_some(), latest);
            assert_eq!(value["routes"].as_array().unwrap().len(), if latest { 2 } else { 1 });
            assert!(value["interfaces"][0].get("sandbox").is_none());
        }
    }

    #[test]
    fn round_trip() {
        let value = outcome().to_json(SpecVersion::V1_1_0, None);
        assert_eq!(Outcome::parse(value.as_object().unwrap()).unwrap(), outcome());
        let old = outcome().to_json(SpecVersion::V0_2_0, None);
        assert_eq!(Outcome::parse(old.as_object().unwrap()).unwrap().ips.len(), 2);
    }

    #[test]
    fn chained_results_keep_what_was_there() {
        let prev = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "net1", "pciID": "0000:00:01.0"}],
            "ips": [{"address": "192.0.2.1/24", "interface": 0}],
            "dns": {"domain": "first"},
        });
        let value = outcome().to_json(SpecVersion::V1_1_0, prev.as_object());
        assert_eq!(value["interfaces"][0]["pciID"], "0000:00:01.0");
        assert_eq!(value["interfaces"][2]["name"], "eth0");
        assert_eq!(value["ips"][1]["interface"], 2);
        assert_eq!(value["dns"]["domain"], "first");
    }
}
