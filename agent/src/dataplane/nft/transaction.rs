//! Rule sets to and from the kernel: atomic batches and dumps.

use std::collections::BTreeSet;

use weft_proto::names::NFT_TABLE;

use super::batch::{
    Batch, DELSETELEM, DELTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM, NEWCHAIN, NEWRULE, NEWSET,
    NEWSETELEM, NEWTABLE, Pieces, comment, gone_is_empty, header, new_chain, parse_chain,
    parse_comment,
};
use super::ruleset::{
    Chain, ElementKey, Elements, Family, Ruleset, SETS, SetSpec, SetType, Table, Tables,
};
use crate::dataplane::netlink::codec::{F_APPEND, F_CREATE, Writer, attr, attrs, be32, text};
use crate::dataplane::netlink::socket::{Refused, Requests};

const SET_MAP: u32 = 8;
/// What the kernel holds of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ObservedRules {
    pub(crate) tables: Tables,
    pub(crate) elements: Elements,
}

/// Puts the whole rule set in place of whatever is there.
pub(crate) fn replace(
    socket: &mut Requests,
    ruleset: &Ruleset,
    elements: &Elements,
) -> Result<(), Refused> {
    let mut batch = Batch::new(socket, NFT_TABLE);
    for (family, table) in &ruleset.tables {
        // Made first, so that removing it cannot fail.
        batch.add(NEWTABLE, F_CREATE, *family, |_| {});
        batch.add(DELTABLE, 0, *family, |_| {});
        batch.add(NEWTABLE, F_CREATE, *family, |_| {});
        for spec in SETS.iter().filter(|spec| spec.family == *family) {
            batch.add(NEWSET, F_CREATE, *family, |w| new_set(w, spec));
        }
        for (name, chain) in &table.chains {
            batch.add(NEWCHAIN, F_CREATE, *family, |w| new_chain(w, name, chain.hook.as_ref()));
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
    let mut batch = Batch::new(socket, NFT_TABLE);
    put_elements(&mut batch, DELSETELEM, 0, gone.map(|(k, _)| (k, [].as_slice())));
    put_elements(&mut batch, NEWSETELEM, F_CREATE, new.map(|(k, v)| (k, v.as_slice())));
    batch.commit()
}

/// Removes our tables.
pub(crate) fn remove(socket: &mut Requests) -> Result<(), Refused> {
    let mut batch = Batch::new(socket, NFT_TABLE);
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
    let mut pieces = Pieces::new(kind, flags);
    for ((family, set, key), value) in elements {
        pieces.put(batch, *family, set, |w| {
            w.nest(1, |w| w.attr(1, key));
            if !value.is_empty() {
                w.nest(2, |w| w.attr(1, value));
            }
        });
    }
    pieces.end(batch);
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
                if let Some((name, hook)) = of_table(payload).and_then(|b| parse_chain(&b)) {
                    table.chains.insert(name, Chain { hook, rules: Vec::new() });
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
