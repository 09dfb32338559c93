//! CNI: environment, configuration, results and errors, specification 0.1.0 to 1.1.0.
//!
//! Everything here is a function of strings and values; the plugin (crate
//! `cni-shim`) adds the effects. Nothing from outside makes it panic.

mod conf;
mod conflist;
mod env;
mod error;
mod json;
mod result;
mod version;

pub use conf::{Bandwidth, Conf, RouteConf};
pub use conflist::{ConflistOptions, conflist};
pub use env::{Command, Env, parse_args};
pub use error::{CniError, code};
pub use result::{Interface, IpConfig, Outcome, Route};
pub use version::{SUPPORTED, SpecVersion};
