//! One pod: a namespace attached by the shim.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use weft_agent::lab::netns::Netns;
use weft_agent::lab::pods::{Answer, Shim};
use weft_agent::lab::probe::Echo;
use weft_agent::lab::topology::PodPlan;

use crate::wait_until;

/// An attached pod. Dropping it does nothing: the cluster removes its namespace.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Names.
    pub plan: PodPlan,
    /// How it was attached.
    pub shim: Shim,
    /// The ADD result.
    pub result: Answer,
    address: IpAddr,
}

impl Pod {
    /// ADD. The error of a failed one tells code and message.
    pub fn attach(shim: Shim, plan: PodPlan) -> Result<Self> {
        let what = format!("ADD of {}", plan.name);
        let result = shim.pod("ADD", &plan)?.ok(&what)?;
        let address = result.addresses().first().map(ipnet::IpNet::addr);
        let address = address.with_context(|| format!("{what}: no address: {}", result.json))?;
        Ok(Self { plan, shim, result, address })
    }

    /// DEL, then its namespace is removed.
    pub fn detach(&self) -> Result<Answer> {
        let answer = self.shim.pod("DEL", &self.plan)?.ok(&format!("DEL of {}", self.plan.name))?;
        self.netns().delete()?;
        Ok(answer)
    }

    /// Its namespace.
    pub fn netns(&self) -> Netns {
        Netns::named(&self.plan.netns)
    }

    /// Its (first) address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// MTU of its interface.
    pub fn mtu(&self) -> Result<usize> {
        let text = self.netns().exec(&["ip", "-o", "link", "show", "eth0"])?;
        let (_, rest) = text.split_once(" mtu ").context("no mtu")?;
        Ok(rest.split(' ').next().unwrap_or_default().parse()?)
    }

    /// One echo.
    pub fn ping(&self, to: IpAddr) -> Result<Option<Duration>> {
        Ok(Echo::open(&self.netns(), to)?.ping(1, 56, Duration::from_millis(250))?)
    }

    /// Echoes until one gets through; how long that took.
    pub fn wait_ping(&self, to: IpAddr, patience: Duration) -> Result<Duration> {
        let echo = Echo::open(&self.netns(), to)?;
        let mut sequence = 0_u16;
        wait_until(&format!("{} reaches {to}", self.plan.name), patience, || {
            sequence = sequence.wrapping_add(1);
            Ok(echo.ping(sequence, 56, Duration::from_millis(50))?.is_some())
        })
    }

    /// An echo that fills a packet of `bytes` with DF set.
    pub fn ping_whole(&self, to: IpAddr, bytes: usize) -> Result<io::Result<bool>> {
        const HEADERS: usize = 28;
        let echo = Echo::open(&self.netns(), to)?;
        echo.dont_fragment()?;
        let done = echo.ping(7, bytes.saturating_sub(HEADERS), Duration::from_secs(1));
        Ok(done.map(|rtt| rtt.is_some()))
    }
}
