//! The job of the plugin `loopback`. containerd runs one for every pod beside
//! that of the network, and starts no pod without it. Where a node has none,
//! the agent installs this program under that name.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use weft_proto::cni::{CniError, Command, Conf, Env, Interface, IpConfig, Outcome, code};

use crate::net::{Batch, LinkView, Socket, get_link, set_up};
use crate::netns::Sandbox;

/// The name that calls for it.
pub(crate) const NAME: &str = "loopback";
const DEVICE: &str = "lo";
/// Its index in every namespace.
const INDEX: u32 = 1;

/// Any verb but VERSION. There is nothing to undo: the device is the namespace's.
pub(crate) fn run(env: &Env, conf: &Conf) -> Result<String, CniError> {
    match env.command {
        Command::Add => {
            let sandbox = Sandbox::open(&env.netns)?;
            let mut batch = Batch::default();
            batch.add(set_up(INDEX), 0, format!("bring {DEVICE} up"));
            sandbox.run(Socket::open)?.run(&batch)?;
            let outcome = outcome(&env.netns);
            Ok(format!("{}\n", outcome.to_json(conf.version, conf.prev_result.as_ref())))
        }
        Command::Check => {
            let sandbox = Sandbox::open(&env.netns)?;
            let mut batch = Batch::default();
            batch.add(get_link(DEVICE), 0, format!("show {DEVICE}"));
            let replies = sandbox.run(Socket::open)?.run(&batch)?;
            let link = replies.iter().flatten().find_map(|reply| LinkView::parse(&reply.payload));
            match link {
                Some(link) if link.up => Ok(String::new()),
                _ => Err(CniError::new(code::CHECK_FAILED, format!("{DEVICE} is down"))
                    .details("restart the pod if this stays")),
            }
        }
        _ => Ok(String::new()),
    }
}

fn outcome(netns: &str) -> Outcome {
    let address = IpNet::new_assert(Ipv4Addr::LOCALHOST.into(), 8);
    Outcome {
        interfaces: vec![Interface {
            name: DEVICE.to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            mtu: None,
            sandbox: netns.to_owned(),
        }],
        ips: vec![IpConfig { address, gateway: None, interface: Some(0) }],
        ..Outcome::default()
    }
}
