//! DEL: with the agent, one request; without it, by hand and with a note.

use std::io::Write;
use std::net::IpAddr;

use weft_proto::attachment::{Alias, AttachmentKey};
use weft_proto::cni::{CniError, Conf, Env, Outcome};
use weft_proto::names;

use crate::agent::{Agent, run_dir};
use crate::net::{Batch, DUMP, LinkView, Socket, clear, get_links};
use crate::note;

pub(crate) fn run(env: &Env, conf: &Conf, agent: &Agent) -> Result<(), CniError> {
    match agent.detach(&env.key) {
        // The agent takes the route, the addresses and, in batches, the device.
        Ok(()) => note::withdraw(&run_dir(conf), &env.key),
        Err(error) => {
            log(&format!("{error}; removing {} without it", env.key));
            clear_kernel(&env.key, names::BRIDGE, &told_addresses(env, conf));
            if let Err(error) = note::leave(&run_dir(conf), &env.key) {
                // The agent's sweep finds leases without an interface, too, only later.
                log(&format!("cannot leave a note for the agent: {error}"));
            }
        }
    }
    Ok(())
}

/// What `prevResult` says of this interface's addresses. Absent or nonsense is
/// nothing: a DEL has to succeed.
fn told_addresses(env: &Env, conf: &Conf) -> Vec<IpAddr> {
    let Some(Ok(outcome)) = conf.prev_result.as_ref().map(Outcome::parse) else {
        return Vec::new();
    };
    let ours = |index: Option<usize>| {
        index.is_none_or(|i| outcome.interfaces.get(i).is_some_and(|it| it.name == env.key.ifname))
    };
    outcome.ips.iter().filter(|ip| ours(ip.interface)).map(|ip| ip.address.addr()).collect()
}

/// Removes the pair, routes and neighbours of an attachment. The addresses are
/// those of the pair's alias and `told`, but none that another pair has by now:
/// a DEL may be repeated long after.
pub(crate) fn clear_kernel(key: &AttachmentKey, bridge: &str, told: &[IpAddr]) {
    let cleared = Socket::open().map_err(|error| error.to_string()).and_then(|mut socket| {
        clear_with(&mut socket, key, bridge, told).map_err(|error| error.to_string())
    });
    if let Err(error) = cleared {
        log(&format!("cannot remove all of {key}: {error}"));
    }
}

fn clear_with(
    socket: &mut Socket,
    key: &AttachmentKey,
    bridge: &str,
    told: &[IpAddr],
) -> Result<(), crate::net::KernelError> {
    let mut batch = Batch::default();
    batch.add(get_links(), DUMP, "list links");
    let replies = socket.run(&batch)?;
    let links: Vec<LinkView> =
        replies.iter().flatten().filter_map(|reply| LinkView::parse(&reply.payload)).collect();
    let name = names::host_ifname(&key.container_id, &key.ifname);
    let mut own = None;
    let mut addresses = told.to_vec();
    let mut others = Vec::new();
    for link in links.iter().filter(|link| names::is_host_ifname(&link.name)) {
        match Alias::parse(&link.alias) {
            Some(alias) if alias.key == *key => addresses.extend(alias.addresses),
            Some(alias) => {
                others.extend(alias.addresses);
                continue;
            }
            None => {}
        }
        if link.name == name && link.kind == "veth" {
            own = Some(link.index);
        }
    }
    addresses.retain(|address| !others.contains(address));
    addresses.sort_unstable();
    addresses.dedup();
    clear(socket, bridge, own, &addresses)
}

fn log(text: &str) {
    let _ = writeln!(std::io::stderr(), "weft: {text}");
}
