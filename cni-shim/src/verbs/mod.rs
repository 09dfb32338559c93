//! The verbs of CNI.

mod add;
mod check;
mod del;
mod gc;
pub(crate) mod loopback;
mod status;

use serde_json::json;
use weft_proto::cni::{CniError, Command, Conf, Env, SUPPORTED, SpecVersion};

use crate::agent::Agent;

/// Carries out any verb but VERSION; what it returns goes to standard output.
pub(crate) fn run(
    env: &Env,
    conf: &Conf,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<String, CniError> {
    let agent = Agent::new(conf, get);
    match env.command {
        Command::Add => add::run(env, conf, &agent),
        Command::Del => del::run(env, conf, &agent).map(|()| String::new()),
        Command::Check => check::run(env, conf, &agent).map(|()| String::new()),
        Command::Status => status::run(conf, &agent).map(|()| String::new()),
        Command::Gc => gc::run(conf, &agent).map(|()| String::new()),
        Command::Version => Ok(version(&[])),
    }
}

/// VERSION: never an error, so that a runtime with a newer specification can ask.
pub(crate) fn version(input: &[u8]) -> String {
    let asked = Conf::version_text(input).and_then(|text| SpecVersion::parse(&text).ok());
    let all: Vec<_> = SUPPORTED.iter().map(|version| version.as_str()).collect();
    let version = asked.unwrap_or(SpecVersion::LATEST);
    format!("{}\n", json!({ "cniVersion": version.as_str(), "supportedVersions": all }))
}
