//! The table to and from the kernel.

use std::collections::BTreeMap;

use super::TABLE;
use super::layout::REFUSED_PORTS;
use super::model::{Body, Chain, Edit, Elements, Key, Observed, Set, Shape, mark};
use crate::dataplane::netlink::codec::{F_APPEND, F_CREATE, Writer, attr, attrs, be32, text};
use crate::dataplane::netlink::socket::{Refused, Requests};
use crate::dataplane::nft::batch::{
    Batch, DELCHAIN, DELRULE, DELSET, DELSETELEM, DELTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM,
    GETTABLE, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM, NEWTABLE, Pieces, comment, gone_is_empty,
    header, new_chain, parse_chain, parse_comment,
};
use crate::dataplane::nft::expr::JUMP;
use crate::dataplane::nft::ruleset::Family;
use crate::policy::engine::Count;

const FAMILY: Family = Family::Inet;
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
const INTERVAL_END: u32 = 1;
/// What `NFTA_SET_FLAGS` says beyond what was asked for.
const FLAGS_KEPT: u32 = 4 | 8 | 16 | 32 | 128;

/// Makes one transaction of it: all of it takes effect, or nothing.
pub(crate) fn write(socket: &mut Requests, edit: &Edit) -> Result<(), Refused> {
    let mut batch = Batch::new(socket, TABLE);
    if edit.reset {
        // Made first, so that removing it cannot fail.
        batch.add(NEWTABLE, F_CREATE, FAMILY, |_| {});
        batch.add(DELTABLE, 0, FAMILY, |_| {});
        batch.add(NEWTABLE, F_CREATE, FAMILY, |_| {});
    }
    for ((name, shape), id) in edit.new_sets.iter().zip(1..) {
        batch.add(NEWSET, F_CREATE, FAMILY, |w| new_set(w, name, *shape, id));
    }
    for (name, body) in &edit.new_chains {
        batch.add(NEWCHAIN, F_CREATE, FAMILY, |w| new_chain(w, name, body.hook.as_ref()));
    }
    let mut pieces = Pieces::new(DELSETELEM, 0);
    for (set, keys) in &edit.remove {
        for key in keys {
            pieces.put(&mut batch, FAMILY, set, |w| element(w, key, ""));
        }
    }
    pieces.end(&mut batch);
    let mut pieces = Pieces::new(NEWSETELEM, F_CREATE);
    for (set, elements) in &edit.add {
        for (key, value) in elements {
            pieces.put(&mut batch, FAMILY, set, |w| element(w, key, value));
        }
    }
    pieces.end(&mut batch);
    for name in edit.rewrite.keys().chain(&edit.old_chains) {
        batch.add(DELRULE, 0, FAMILY, |w| w.attr_str(2, name));
    }
    for (name, body) in edit.new_chains.iter().chain(&edit.rewrite) {
        put_rules(&mut batch, name, body);
    }
    for name in &edit.old_chains {
        batch.add(DELCHAIN, 0, FAMILY, |w| w.attr_str(3, name));
    }
    for name in &edit.old_sets {
        batch.add(DELSET, 0, FAMILY, |w| w.attr_str(2, name));
    }
    batch.commit()
}

/// True if there is a table of that name.
pub(crate) fn exists(socket: &mut Requests) -> Result<bool, Refused> {
    let mut found = false;
    let all = |w: &mut Writer| header(w, FAMILY as u8, 0);
    socket.dump(GETTABLE, all, |_, payload| found |= body(payload).is_some())?;
    Ok(found)
}

/// Removes the table. One that is not there is no error.
pub(crate) fn remove(socket: &mut Requests) -> Result<(), Refused> {
    let mut batch = Batch::new(socket, TABLE);
    batch.add(NEWTABLE, F_CREATE, FAMILY, |_| {});
    batch.add(DELTABLE, 0, FAMILY, |_| {});
    batch.commit()
}

fn put_rules(batch: &mut Batch<'_>, chain: &str, body: &Body) {
    for rule in &body.rules {
        batch.add(NEWRULE, F_CREATE | F_APPEND, FAMILY, |w| {
            w.attr_str(2, chain);
            w.nest(4, |w| w.raw(rule));
            w.attr(7, &comment(&mark(rule)));
        });
    }
}

fn new_set(w: &mut Writer, name: &str, shape: Shape, id: u32) {
    w.attr_str(2, name);
    w.attr_be32(3, shape.flags);
    w.attr_be32(4, shape.key_type);
    w.attr_be32(5, shape.key);
    if shape.verdicts {
        w.attr_be32(6, NFT_DATA_VERDICT);
    }
    if shape.size > 0 {
        w.nest(9, |w| w.attr_be32(1, shape.size));
    }
    w.attr_be32(10, id);
    if shape.counted {
        w.nest(17, |w| {
            w.attr_str(1, "counter");
            w.nest(2, |_| {});
        });
    }
}

fn element(w: &mut Writer, key: &Key, chain: &str) {
    w.nest(1, |w| w.attr(1, &key.bytes));
    if !chain.is_empty() {
        w.nest(2, |w| {
            w.nest(2, |w| {
                w.attr_be32(1, JUMP.cast_unsigned());
                w.attr_str(2, chain);
            });
        });
    }
    if key.end {
        w.attr_be32(3, INTERVAL_END);
    }
}

/// Reads the table back.
pub(crate) fn read(socket: &mut Requests) -> Result<Observed, Refused> {
    let mut left = 5;
    loop {
        match read_once(socket) {
            Err(e) if e.errno == nix::libc::EAGAIN && left > 0 => left -= 1,
            other => return other,
        }
    }
}

fn body(payload: &[u8]) -> Option<&[u8]> {
    let body = payload.get(4..)?;
    (attr(body, 1).map(text).as_deref() == Some(TABLE)).then_some(body)
}

fn ask(w: &mut Writer) {
    header(w, FAMILY as u8, 0);
    w.attr_str(1, TABLE);
}

fn read_once(socket: &mut Requests) -> Result<Observed, Refused> {
    let mut out = Observed::default();
    let all = |w: &mut Writer| header(w, FAMILY as u8, 0);
    socket.dump(GETTABLE, all, |_, payload| {
        if let Some(body) = body(payload) {
            out.live = attr(body, 2).and_then(be32).unwrap_or(0) == 0;
        }
    })?;
    if !out.live {
        return Ok(out);
    }
    socket.dump(GETCHAIN, all, |_, payload| {
        if let Some((name, hook)) = body(payload).and_then(parse_chain) {
            out.chains.insert(name, Chain { hook, rules: Vec::new() });
        }
    })?;
    gone_is_empty(socket.dump(GETRULE, ask, |_, payload| {
        let Some(body) = body(payload) else { return };
        let mark = attr(body, 7).and_then(parse_comment).unwrap_or_default();
        if let Some(chain) = attr(body, 2).map(text).and_then(|name| out.chains.get_mut(&name)) {
            chain.rules.push(mark);
        }
    }))?;
    gone_is_empty(socket.dump(GETSET, ask, |_, payload| {
        if let Some((name, shape)) = body(payload).and_then(parse_set) {
            out.sets.insert(name, Set { shape, elements: Elements::new() });
        }
    }))?;
    for (name, set) in &mut out.sets {
        // What the kernel fills by itself is no part of the policy.
        if name != REFUSED_PORTS {
            set.elements = elements(socket, name, parse_element)?.into_iter().collect();
        }
    }
    Ok(out)
}

pub(crate) fn parse_set(body: &[u8]) -> Option<(String, Shape)> {
    let number = |kind| attr(body, kind).and_then(be32).unwrap_or_default();
    let expression = attr(body, 17).and_then(|e| attr(e, 1)).map(text);
    let shape = Shape {
        flags: number(3) & FLAGS_KEPT,
        key_type: number(4),
        key: number(5),
        verdicts: number(6) == NFT_DATA_VERDICT,
        counted: expression.as_deref() == Some("counter"),
        size: attr(body, 9).and_then(|desc| attr(desc, 1)).and_then(be32).unwrap_or_default(),
    };
    Some((attr(body, 2).map(text)?, shape))
}

/// All elements of a set. One that is not there has none.
fn elements<T>(
    socket: &mut Requests,
    set: &str,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<Vec<T>, Refused> {
    let mut out = Vec::new();
    let ask = |w: &mut Writer| {
        ask(w);
        w.attr_str(2, set);
    };
    gone_is_empty(socket.dump(GETSETELEM, ask, |_, payload| {
        let list = payload.get(4..).and_then(|body| attr(body, 3)).unwrap_or_default();
        out.extend(attrs(list).filter_map(|(_, element)| parse(element)));
    }))?;
    Ok(out)
}

pub(crate) fn parse_element(element: &[u8]) -> Option<(Key, String)> {
    let bytes = attr(element, 1).and_then(|key| attr(key, 1))?;
    let end = attr(element, 3).and_then(be32).unwrap_or(0) & INTERVAL_END != 0;
    let value = attr(element, 2).and_then(|data| attr(data, 2)).map(verdict).unwrap_or_default();
    Some((Key { bytes: bytes.into(), end }, value))
}

/// Where a verdict leads, if it is one that we write.
fn verdict(data: &[u8]) -> String {
    let jumps = attr(data, 1).and_then(be32) == Some(JUMP.cast_unsigned());
    match attr(data, 2).map(text) {
        Some(chain) if jumps => chain,
        // Never equal to a name of ours.
        other => format!("?{}", other.unwrap_or_default()),
    }
}

/// What the elements of a set have counted, by key.
pub(crate) fn counts(
    socket: &mut Requests,
    set: &str,
) -> Result<BTreeMap<Box<[u8]>, Count>, Refused> {
    let counted = |element: &[u8]| {
        let key = attr(element, 1).and_then(|key| attr(key, 1))?;
        Some((key.into(), attr(element, 7).and_then(counter).unwrap_or_default()))
    };
    Ok(elements(socket, set, counted)?.into_iter().collect())
}

pub(crate) fn counter(expression: &[u8]) -> Option<Count> {
    let data = attr(expression, 2)?;
    let number = |kind| {
        let bytes = attr(data, kind)?.get(..8)?.try_into().ok()?;
        Some(u64::from_be_bytes(bytes))
    };
    Some(Count { bytes: number(1)?, packets: number(2)? })
}

/// Number of the rule sets' generation: the same number, the same rules, of all
/// tables of the namespace.
pub(crate) fn generation(socket: &mut Requests) -> Result<u32, Refused> {
    const GETGEN: u16 = (10 << 8) | 16;
    let mut found = None;
    socket.ask(
        GETGEN,
        |w| header(w, 0, 0),
        |_, payload| {
            found = payload.get(4..).and_then(|body| attr(body, 1)).and_then(be32);
        },
    )?;
    found.ok_or_else(Refused::interrupted)
}
