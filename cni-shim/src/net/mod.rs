//! The kernel, by netlink: blocking sockets, many messages per call.

mod message;
mod plumb;
mod routing;
mod socket;
mod tbf;
pub(crate) mod view;

pub(crate) use message::PodRoute;
pub(crate) use plumb::{Found, Plan, Wiring, clear};
pub(crate) use routing::gateway;
pub(crate) use socket::{Batch, KernelError, Socket};
pub(crate) use view::{AddressView, LinkView, NeighbourView, RouteView};

pub(crate) use message::{
    DUMP, family, get_addresses, get_link, get_links, get_neighbour, get_neighbours, get_route,
    get_routes, set_up,
};
