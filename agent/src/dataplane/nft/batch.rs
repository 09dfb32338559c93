//! Transactions with nftables, for any table of ours: all of a batch takes
//! effect, or nothing.

use super::ruleset::{Family, Hook};
use crate::dataplane::netlink::codec::{Writer, attr, be32, text};
use crate::dataplane::netlink::socket::{Refused, Requests};

const SUBSYS: u16 = 10 << 8;
pub(crate) const NEWTABLE: u16 = SUBSYS;
pub(crate) const GETTABLE: u16 = SUBSYS | 1;
pub(crate) const DELTABLE: u16 = SUBSYS | 2;
pub(crate) const NEWCHAIN: u16 = SUBSYS | 3;
pub(crate) const GETCHAIN: u16 = SUBSYS | 4;
pub(crate) const DELCHAIN: u16 = SUBSYS | 5;
pub(crate) const NEWRULE: u16 = SUBSYS | 6;
pub(crate) const GETRULE: u16 = SUBSYS | 7;
pub(crate) const DELRULE: u16 = SUBSYS | 8;
pub(crate) const NEWSET: u16 = SUBSYS | 9;
pub(crate) const GETSET: u16 = SUBSYS | 10;
pub(crate) const DELSET: u16 = SUBSYS | 11;
pub(crate) const NEWSETELEM: u16 = SUBSYS | 12;
pub(crate) const GETSETELEM: u16 = SUBSYS | 13;
pub(crate) const DELSETELEM: u16 = SUBSYS | 14;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// An attribute holds less than 64 KiB: elements travel in pieces.
const ELEMENTS_BYTES: usize = 32 << 10;

/// `struct nfgenmsg`.
pub(crate) fn header(w: &mut Writer, family: u8, resource: u16) {
    w.raw(&[family, 0]);
    w.raw(&resource.to_be_bytes());
}

/// One transaction under construction.
pub(crate) struct Batch<'a> {
    socket: &'a mut Requests,
    table: &'a str,
    w: Writer,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(socket: &'a mut Requests, table: &'a str) -> Self {
        let mut w = Writer::default();
        let seq = socket.next_seq();
        w.message(BATCH_BEGIN, 0, seq, |w| header(w, 0, 10));
        Self { socket, table, w }
    }

    /// A message about our table; `body` adds to its name.
    pub(crate) fn add(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        body: impl FnOnce(&mut Writer),
    ) {
        self.add_to(kind, flags, family as u8, body);
    }

    /// The same for a table of a family that we have none in.
    pub(crate) fn add_to(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        body: impl FnOnce(&mut Writer),
    ) {
        let (seq, table) = (self.socket.next_seq(), self.table);
        self.w.message(kind, flags, seq, |w| {
            header(w, family, 0);
            w.attr_str(1, table);
            body(w);
        });
    }

    pub(crate) fn commit(mut self) -> Result<(), Refused> {
        let seq = self.socket.next_seq();
        self.w.message(BATCH_END, 0, seq, |w| header(w, 0, 10));
        // Refusals come back for whichever message; silence means it is in.
        let refused = self.socket.send(&self.w)?;
        refused.into_iter().next().map_or(Ok(()), Err)
    }
}

/// Elements on their way into a batch, gathered to messages of bounded size.
/// Those of one set must come in a row.
pub(crate) struct Pieces {
    kind: u16,
    flags: u16,
    set: Option<(Family, String)>,
    list: Writer,
}

impl Pieces {
    /// `kind` is [`NEWSETELEM`] or [`DELSETELEM`].
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        Self { kind, flags, set: None, list: Writer::default() }
    }

    /// One element; `body` writes its attributes.
    pub(crate) fn put(
        &mut self,
        batch: &mut Batch<'_>,
        family: Family,
        set: &str,
        body: impl FnOnce(&mut Writer),
    ) {
        let same = self.set.as_ref().is_some_and(|(f, s)| *f == family && s == set);
        if !same || self.list.len() > ELEMENTS_BYTES {
            self.end(batch);
            self.set = Some((family, set.to_owned()));
        }
        self.list.nest(1, body);
    }

    /// Hands over what has been gathered.
    pub(crate) fn end(&mut self, batch: &mut Batch<'_>) {
        if let Some((family, set)) = self.set.take()
            && !self.list.is_empty()
        {
            let list = &self.list;
            batch.add(self.kind, self.flags, family, |w| {
                w.attr_str(2, &set);
                w.nest(3, |w| w.raw(list.bytes()));
            });
        }
        self.list.clear();
    }
}

pub(crate) fn new_chain(w: &mut Writer, name: &str, hook: Option<&Hook>) {
    w.attr_str(3, name);
    if let Some(hook) = hook {
        w.nest(4, |w| {
            w.attr_be32(1, hook.hook);
            w.attr_be32(2, hook.priority.cast_unsigned());
        });
        w.attr_be32(5, 1);
        w.attr_str(7, &hook.kind);
    }
}

/// Name and hook of a chain, from a message's attributes.
pub(crate) fn parse_chain(body: &[u8]) -> Option<(String, Option<Hook>)> {
    let name = attr(body, 3).map(text)?;
    let hook = attr(body, 4).and_then(|hook| {
        let accepts = attr(body, 5).and_then(be32) == Some(1);
        // Another policy is another chain: shown as a kind we never want.
        let kind = attr(body, 7).map(text).filter(|_| accepts).unwrap_or_default();
        Some(Hook {
            kind,
            hook: attr(hook, 1).and_then(be32)?,
            priority: attr(hook, 2).and_then(be32)?.cast_signed(),
        })
    });
    Some((name, hook))
}

/// User data that `nft list ruleset` shows as a comment.
pub(crate) fn comment(mark: &str) -> Vec<u8> {
    let len = u8::try_from(mark.len() + 1).unwrap_or(u8::MAX);
    let mut out = vec![0, len];
    out.extend(mark.as_bytes());
    out.push(0);
    out
}

pub(crate) fn parse_comment(data: &[u8]) -> Option<String> {
    let [0, len, rest @ ..] = data else { return None };
    rest.get(..usize::from(*len)).map(text)
}

pub(crate) fn gone_is_empty(result: Result<(), Refused>) -> Result<(), Refused> {
    match result {
        Err(e) if e.errno == nix::libc::ENOENT => Ok(()),
        other => other,
    }
}
