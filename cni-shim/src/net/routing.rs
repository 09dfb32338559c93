//! Which routes an interface of a container gets. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_proto::cni::RouteConf;
use weft_proto::names::{POD_GATEWAY4, POD_GATEWAY6};

use super::message::PodRoute;
use super::view::{NeighbourView, RouteView};

const MAIN: u32 = 254;
/// Tables of further interfaces: this plus the interface's index.
const TABLES: u32 = 117 << 16;
/// Before the rule for the main table (32766).
pub(crate) const RULE_PRIORITY: u32 = 11_700;

/// The gateway every container sees, of an address's family.
pub(crate) fn gateway(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { POD_GATEWAY4.into() } else { POD_GATEWAY6.into() }
}

fn everything(address: IpAddr) -> IpNet {
    if address.is_ipv4() {
        Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into()
    }
}

/// Routes and source rules of one interface.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Routing {
    /// Routes.
    pub routes: Vec<PodRoute>,
    /// "What has this source address looks in that table."
    pub rules: Vec<(IpAddr, u32)>,
}

/// The first interface gets the default route. A further one gets a table of
/// its own for what it sends from its own address (replies must leave by the
/// interface they were asked on: the node drops other sources on its port) and,
/// in the main table, the pod network, unless the first is weft's too and
/// reaches it already.
pub(crate) fn routing(
    addresses: &[IpAddr],
    ranges: &[IpNet],
    configured: Option<&[RouteConf]>,
    link: u32,
    gateway_mac: [u8; 6],
    others: &[RouteView],
    neighbours: &[NeighbourView],
) -> Routing {
    let mut routing = Routing::default();
    for address in addresses {
        let v4 = address.is_ipv4();
        let gateway = gateway(*address);
        let everything = everything(*address);
        let default = others.iter().find(|route| {
            route.prefix == 0
                && route.table == MAIN
                && route.gateway.is_none_or(|gw| gw.is_ipv4() == v4)
        });
        let first_is_ours = default.is_some_and(|route| {
            route.gateway == Some(gateway)
                && neighbours.iter().any(|n| {
                    n.address == gateway && Some(n.link) == route.link && n.mac == gateway_mac
                })
        });
        let main: Vec<IpNet> = match (configured, default) {
            (Some(routes), _) => routes
                .iter()
                .map(|route| route.dst)
                .filter(|dst| dst.addr().is_ipv4() == v4)
                .collect(),
            (None, None) => vec![everything],
            (None, Some(_)) if first_is_ours => Vec::new(),
            (None, Some(_)) => {
                ranges.iter().copied().filter(|range| range.addr().is_ipv4() == v4).collect()
            }
        };
        let has_default = main.contains(&everything);
        routing.routes.extend(main.into_iter().map(|dst| PodRoute { dst, gateway, table: None }));
        if default.is_some() && !has_default {
            let table = TABLES | (link & 0xffff);
            routing.routes.push(PodRoute { dst: everything, gateway, table: Some(table) });
            routing.rules.push((*address, table));
        }
    }
    routing
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn plan(configured: Option<&[RouteConf]>, others: &[RouteView], mac: [u8; 6]) -> Routing {
        let address = "10.32.0.1".parse().unwrap();
        let neighbour =
            NeighbourView { link: 2, permanent: true, address: POD_GATEWAY4.into(), mac };
        let ranges = ["10.32.0.0/12".parse().unwrap(), "fd00::/48".parse().unwrap()];
        routing(&[address], &ranges, configured, 5, MAC, others, &[neighbour])
    }

    fn default_via(gateway: &str) -> RouteView {
        RouteView {
            dst: None,
            prefix: 0,
            table: MAIN,
            gateway: gateway.parse().ok(),
            link: Some(2),
        }
    }

    fn main_table(routing: &Routing) -> Vec<String> {
        routing.routes.iter().filter(|r| r.table.is_none()).map(|r| r.dst.to_string()).collect()
    }

    #[test]
    fn first_interface() {
        let routing = plan(None, &[], MAC);
        assert_eq!(main_table(&routing), ["0.0.0.0/0"]);
        assert!(routing.rules.is_empty());
    }

    #[test]
    fn behind_another_network() {
        for (gateway, mac) in [("192.0.2.1", MAC), ("169.254.1.1", [9; 6])] {
            let routing = plan(None, &[default_via(gateway)], mac);
            assert_eq!(main_table(&routing), ["10.32.0.0/12"], "{gateway}");
            assert_eq!(routing.rules.len(), 1);
        }
    }

    #[test]
    fn behind_our_own() {
        let routing = plan(None, &[default_via("169.254.1.1")], MAC);
        assert!(main_table(&routing).is_empty());
        assert_eq!(routing.rules, [("10.32.0.1".parse().unwrap(), TABLES | 5)]);
        assert_eq!(routing.routes[0].table, Some(TABLES | 5));
    }

    #[test]
    fn as_configured() {
        let routes = [
            RouteConf { dst: "10.0.0.0/8".parse().unwrap(), gw: None },
            RouteConf { dst: "fd00::/8".parse().unwrap(), gw: None },
        ];
        assert_eq!(main_table(&plan(Some(&routes), &[], MAC)), ["10.0.0.0/8"]);
        assert!(plan(Some(&[]), &[], MAC).routes.is_empty());
    }

    #[test]
    fn other_tables_and_families_do_not_count() {
        let other_table = RouteView { table: 7, ..default_via("192.0.2.1") };
        let v6 = default_via("fe80::1");
        assert_eq!(main_table(&plan(None, &[other_table, v6], MAC)), ["0.0.0.0/0"]);
    }
}
