//! STATUS: could ADD be served now?

use weft_proto::cni::{CniError, Conf, SpecVersion, code};

use crate::agent::Agent;

pub(crate) fn run(conf: &Conf, agent: &Agent) -> Result<(), CniError> {
    conf.version.require(SpecVersion::V1_1_0, "STATUS")?;
    let readiness = agent.ready().map_err(|error| {
        // Containers that run keep their network without the agent.
        let error = CniError::from(error);
        CniError { code: code::NOT_AVAILABLE, ..error }
    })?;
    if readiness.ready {
        return Ok(());
    }
    let code =
        if readiness.connectivity { code::NOT_AVAILABLE } else { code::LIMITED_CONNECTIVITY };
    let mut reasons = readiness.reasons.into_iter();
    let msg =
        reasons.next().unwrap_or_else(|| "the weft agent is not ready and gives no reason".into());
    Err(CniError::new(code, msg).details(reasons.collect::<Vec<_>>().join("; ")))
}
