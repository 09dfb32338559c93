//! The readers of what comes from outside, for the fuzz targets.

pub use crate::http::{HttpError, Response, parse, segment};
pub use crate::net::view::{AddressView, LinkView, NeighbourView, RouteView, attributes};
