//! GC: give up every attachment that the runtime does not list.

use std::io::Write;

use weft_proto::cni::{CniError, Conf, SpecVersion, code};

use crate::agent::Agent;

pub(crate) fn run(conf: &Conf, agent: &Agent) -> Result<(), CniError> {
    conf.version.require(SpecVersion::V1_1_0, "GC")?;
    if conf.disable_gc {
        return Ok(());
    }
    let keep = conf.valid_attachments.clone().ok_or_else(|| {
        CniError::new(code::INVALID_CONFIG, "GC without cni.dev/valid-attachments").details(
            "an empty list would mean that no container is left; a missing one means nothing",
        )
    })?;
    // The agent removes the addresses, routes and devices, goes on after
    // errors and reports them together.
    let reply = agent.gc(keep)?;
    for key in reply.released {
        let _ = writeln!(std::io::stderr(), "weft: released {key}");
    }
    Ok(())
}
