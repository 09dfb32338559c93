//! Rule sets to and from the kernel: atomic batches and dumps.

use std::collections::BTreeSet;

use weft_proto::names::NFT_TABLE;

use super::ruleset::{
    Chain, ElementKey, Elements, Family, Hook, Ruleset, SETS, SetSpec, SetType, Table, Tables,
};
use crate::dataplane::netlink::codec::{F_APPEND, F_CREATE, Writer, attr, attrs, be32, text};
use crate::dataplane::netlink::socket::{Refused, Requests};

const SUBSYS: u16 = 10 << 8;
pub(crate) const NEWTABLE: u16 = SUBSYS;
const DELTABLE: u16 = SUBSYS | 2;
const NEWCHAIN: u16 = SUBSYS | 3;
pub(crate) const GETCHAIN: u16 = SUBSYS | 4;
pub(super) const NEWRULE: u16 = SUBSYS | 6;
pub(crate) const GETRULE: u16 = SUBSYS | 7;
pub(super) const DELRULE: u16 = SUBSYS | 8;
const NEWSET: u16 = SUBSYS | 9;
const GETSET: u16 = SUBSYS | 10;
const NEWSETELEM: u16 = SUBSYS | 12;
const GETSETELEM: u16 = SUBSYS | 13;
const DELSETELEM: u16 = SUBSYS | 14;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const SET_MAP: u32 = 8;
/// An attribute holds less than 64 KiB: elements travel in pieces.
const ELEMENTS_BYTES: usize = 32 << 10;

/// What the kernel holds of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ObservedRules {
    pub(crate) tables: Tables,
    pub(crate) elements: Elements,
}

/// `struct nfgenmsg`.
pub(crate) fn header(w: &mut Writer, family: u8, resource: u16) {
    w.raw(&[family, 0]);
    w.raw(&resource.to_be_bytes());
}

/// One transaction under construction. All of it takes effect, or nothing.
pub(super) struct Batch<'a> {
    socket: &'a mut Requests,
    w: Writer,
}

impl<'a> Batch<'a> {
    pub(super) fn new(socket: &'a mut Requests) -> Self {
        let mut w = Writer::default();
        let seq = socket.next_seq();
        w.message(BATCH_BEGIN, 0, seq, |w| header(w, 0, 10));
        Self { socket, w }
    }

    fn add(&mut self, kind: u16, flags: u16, family: Family, body: impl FnOnce(&mut Writer)) {
        self.add_to(kind, flags, family as u8, NFT_TABLE, body);
    }

    /// A message about any table.
    pub(super) fn add_to(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        table: &str,
        body: impl FnOnce(&mut Writer),
    ) {
        let seq = self.socket.next_seq();
        self.w.message(kind, flags, seq, |w| {
            header(w, family, 0);
            w.attr_str(1, table);
            body(w);
        });
    }

    pub(super) fn commit(mut self) -> Result<(), Refused> {
        let seq = self.socket.next_seq();
        self.w.message(BATCH_END, 0, seq, |w| header(w, 0, 10));
        // Refusals come back for whichever message; silence means it is in.
        let refused = self.socket.send(&self.w)?;
        refused.into_iter().next().map_or(Ok(()), Err)
    }
}

/// Puts the whole rule set in place of whatever is there.
pub(crate) fn replace(
    socket: &mut Requests,
    ruleset: &Ruleset,
    elements: &Elements,
) -> Result<(), Refused> {
    let mut batch = Batch::new(socket);
    for (family, table) in &ruleset.tables {
        // Made first, so that removing it cannot fail.
        batch.add(NEWTABLE, F_CREATE, *family, |_| {});
        batch.add(DELTABLE, 0, *family, |_| {});
        batch.add(NEWTABLE, F_CREATE, *family, |_| {});
        for spec in SETS.iter().filter(|spec| spec.family == *family) {
            batch.add(NEWSET, F_CREATE, *family, |w| new_set(w, spec));
        }
        for (name, chain) in &table.chains {
            batch.add(NEWCHAIN, F_CREATE, *family, |w| new_chain(w, name, chain));
        }
    }
    for (family, rule) in &ruleset.rules {
        batch.add(NEWRULE, F_CREATE | F_APPEND, *family, |w| {
            w.attr_str(2, rule.chain);
            w.nest(4, |w| w.raw(&rule.expressions));
            w.attr(7, &comment(&rule.mark()));
        });
    }
    put_elements(&mut batch, NEWSETELEM, F_CREATE, elements.iter().map(|(k, v)| (k, v.as_slice())));
    batch.commit()
}

/// Changes only the elements that differ.
pub(crate) fn edit(socket: &mut Requests, from: &Elements, to: &Elements) -> Result<(), Refused> {
    let gone = from.iter().filter(|(key, value)| to.get(*key) != Some(*value));
    let new = to.iter().filter(|(key, value)| from.get(*key) != Some(*value));
    let mut batch = Batch::new(socket);
    put_elements(&mut batch, DELSETELEM, 0, gone.map(|(k, _)| (k, [].as_slice())));
    put_elements(&mut batch, NEWSETELEM, F_CREATE, new.map(|(k, v)| (k, v.as_slice())));
    batch.commit()
}

/// Removes our tables.
pub(crate) fn remove(socket: &mut Requests) -> Result<(), Refused> {
    let mut batch = Batch::new(socket);
    for family in [Family::Inet, Family::Bridge] {
        batch.add(NEWTABLE, F_CREATE, family, |_| {});
        batch.add(DELTABLE, 0, family, |_| {});
    }
    batch.commit()
}

fn put_elements<'e>(
    batch: &mut Batch<'_>,
    kind: u16,
    flags: u16,
    elements: impl Iterator<Item = (&'e ElementKey, &'e [u8])>,
) {
    // Elements come sorted by family and set.
    let mut open: Option<(Family, &str)> = None;
    let mut list = Writer::default();
    for ((family, set, key), value) in elements {
        if open != Some((*family, *set)) || list.len() > ELEMENTS_BYTES {
            flush(batch, kind, flags, open, &mut list);
            open = Some((*family, set));
        }
        list.nest(1, |w| {
            w.nest(1, |w| w.attr(1, key));
            if !value.is_empty() {
                w.nest(2, |w| w.attr(1, value));
            }
        });
    }
    flush(batch, kind, flags, open, &mut list);
}

fn flush(
    batch: &mut Batch<'_>,
    kind: u16,
    flags: u16,
    set: Option<(Family, &str)>,
    list: &mut Writer,
) {
    if let Some((family, set)) = set
        && !list.is_empty()
    {
        batch.add(kind, flags, family, |w| {
            w.attr_str(2, set);
            w.nest(3, |w| w.raw(list.bytes()));
        });
    }
    list.clear();
}

fn new_set(w: &mut Writer, spec: &SetSpec) {
    w.attr_str(2, spec.name);
    w.attr_be32(3, if spec.data > 0 { SET_MAP } else { 0 });
    w.attr_be32(4, spec.key_type);
    w.attr_be32(5, spec.key());
    if spec.data > 0 {
        w.attr_be32(6, spec.data_type);
        w.attr_be32(7, spec.data);
    }
    // The kernel wants an id to find a set within its own transaction.
    let id = SETS.iter().position(|other| other.name == spec.name).unwrap_or(0);
    w.attr_be32(10, u32::try_from(id + 1).unwrap_or(0));
}

fn new_chain(w: &mut Writer, name: &str, chain: &Chain) {
    w.attr_str(3, name);
    if let Some(hook) = &chain.hook {
        w.nest(4, |w| {
            w.attr_be32(1, hook.hook);
            w.attr_be32(2, hook.priority.cast_unsigned());
        });
        w.attr_be32(5, 1);
        w.attr_str(7, &hook.kind);
    }
}

/// User data that `nft list ruleset` shows as a comment.
pub(super) fn comment(mark: &str) -> Vec<u8> {
    let len = u8::try_from(mark.len() + 1).unwrap_or(u8::MAX);
    let mut out = vec![0, len];
    out.extend(mark.as_bytes());
    out.push(0);
    out
}

pub(super) fn parse_comment(data: &[u8]) -> Option<String> {
    let [0, len, rest @ ..] = data else { return None };
    rest.get(..usize::from(*len)).map(text)
}

/// Reads our tables back.
pub(crate) fn observe(socket: &mut Requests) -> Result<ObservedRules, Refused> {
    let mut left = 5;
    loop {
        match observe_once(socket) {
            Err(e) if e.errno == nix::libc::EAGAIN && left > 0 => left -= 1,
            other => return other,
        }
    }
}

fn observe_once(socket: &mut Requests) -> Result<ObservedRules, Refused> {
    let mut out = ObservedRules::default();
    for family in [Family::Inet, Family::Bridge] {
        let mut table = Table::default();
        let of_table = |payload: &[u8]| {
            let body = payload.get(4..).unwrap_or_default();
            (attr(body, 1).map(text).as_deref() == Some(NFT_TABLE)).then(|| body.to_vec())
        };
        let ask = |w: &mut Writer| {
            header(w, family as u8, 0);
            w.attr_str(1, NFT_TABLE);
        };
        socket.dump(
            GETCHAIN,
            |w| header(w, family as u8, 0),
            |_, payload| {
                if let Some((name, chain)) = of_table(payload).and_then(|b| parse_chain(&b)) {
                    table.chains.insert(name, chain);
                }
            },
        )?;
        if table.chains.is_empty() {
            continue;
        }
        gone_is_empty(socket.dump(GETRULE, ask, |_, payload| {
            let Some(body) = of_table(payload) else { return };
            let Some(chain) = attr(&body, 2).map(text) else { return };
            let mark = attr(&body, 7).and_then(parse_comment).unwrap_or_default();
            if let Some(chain) = table.chains.get_mut(&chain) {
                chain.rules.push(mark);
            }
        }))?;
        gone_is_empty(socket.dump(GETSET, ask, |_, payload| {
            let Some(body) = of_table(payload) else { return };
            let number = |kind| attr(&body, kind).and_then(be32).unwrap_or_default();
            if let Some(name) = attr(&body, 2).map(text) {
                table.sets.insert(name, SetType { key: number(5), data: number(7) });
            }
        }))?;
        let known: BTreeSet<String> = table.sets.keys().cloned().collect();
        for spec in SETS.iter().filter(|s| s.family == family && known.contains(s.name)) {
            elements(socket, spec, &mut out.elements)?;
        }
        out.tables.insert(family, table);
    }
    Ok(out)
}

pub(crate) fn gone_is_empty(result: Result<(), Refused>) -> Result<(), Refused> {
    match result {
        Err(e) if e.errno == nix::libc::ENOENT => Ok(()),
        other => other,
    }
}

fn parse_chain(body: &[u8]) -> Option<(String, Chain)> {
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
    Some((name, Chain { hook, rules: Vec::new() }))
}

fn elements(
    socket: &mut Requests,
    spec: &'static SetSpec,
    out: &mut Elements,
) -> Result<(), Refused> {
    let ask = |w: &mut Writer| {
        header(w, spec.family as u8, 0);
        w.attr_str(1, NFT_TABLE);
        w.attr_str(2, spec.name);
    };
    gone_is_empty(socket.dump(GETSETELEM, ask, |_, payload| {
        let list = payload.get(4..).and_then(|body| attr(body, 3)).unwrap_or_default();
        for (_, element) in attrs(list) {
            let Some(key) = attr(element, 1).and_then(|k| attr(k, 1)) else { continue };
            let value = attr(element, 2).and_then(|v| attr(v, 1)).unwrap_or_default();
            out.insert((spec.family, spec.name, key.to_vec()), value.to_vec());
        }
    }))
}
