//! Names of sets and chains, made of their content: the same on every node, whatever
//! its processor.

use ring::digest::{Context, SHA256};

use super::groups::{Group, Scope, SetDef};
use crate::policy::objects::Text;
use crate::policy::selector::{Requirement, Selector};
use crate::policy::state::{Action, Chain, ChainId, Direction, Peers, Ports, Rule, SetId};

/// Of 32 letters, 110 bits: `x-` and 22 letters.
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

struct Writer(Context);

impl Writer {
    fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    fn byte(&mut self, byte: u8) {
        self.0.update(&[byte]);
    }

    fn count(&mut self, count: usize) {
        self.0.update(&(count as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text.as_bytes());
    }

    fn texts(&mut self, texts: &[Text]) {
        self.count(texts.len());
        texts.iter().for_each(|text| self.text(text));
    }

    fn selector(&mut self, selector: &Selector) {
        self.count(selector.requirements().len());
        for requirement in selector.requirements() {
            match requirement {
                Requirement::In(key, values) => {
                    self.byte(1);
                    self.text(key);
                    self.texts(values);
                }
                Requirement::NotIn(key, values) => {
                    self.byte(2);
                    self.text(key);
                    self.texts(values);
                }
                Requirement::Exists(key) => {
                    self.byte(3);
                    self.text(key);
                }
                Requirement::DoesNotExist(key) => {
                    self.byte(4);
                    self.text(key);
                }
            }
        }
    }

    fn groups(&mut self, groups: &[Group]) {
        self.count(groups.len());
        for group in groups {
            match &group.scope {
                Scope::Named(name) => {
                    self.byte(1);
                    self.text(name);
                }
                Scope::Matching(selector) => {
                    self.byte(2);
                    self.selector(selector);
                }
            }
            self.selector(&group.pods);
        }
    }

    fn rules(&mut self, rules: &[Rule]) {
        self.count(rules.len());
        for rule in rules {
            match &rule.peers {
                Peers::Any => self.byte(1),
                Peers::Set(id) => {
                    self.byte(2);
                    self.text(&id.0);
                }
            }
            match &rule.ports {
                Ports::Any => self.byte(1),
                Ports::Listed(ranges) => {
                    self.byte(2);
                    self.count(ranges.len());
                    for (protocol, low, high) in ranges {
                        self.byte(*protocol as u8);
                        self.0.update(&low.to_le_bytes());
                        self.0.update(&high.to_le_bytes());
                    }
                }
                Ports::PerDestination(id) => {
                    self.byte(3);
                    self.text(&id.0);
                }
            }
            self.action(rule.action);
        }
    }

    fn action(&mut self, action: Action) {
        self.byte(match action {
            Action::Accept => 1,
            Action::Deny => 2,
            Action::Pass => 3,
        });
    }

    fn name(self, prefix: char) -> Text {
        let digest = self.0.finish();
        let (mut name, mut bits, mut held) = (format!("{prefix}-"), 0_u32, 0_u32);
        for byte in digest.as_ref() {
            held = (held << 8) | u32::from(*byte);
            bits += 8;
            while bits >= 5 && name.len() < 24 {
                bits -= 5;
                name.push(char::from(LETTERS[(held >> bits) as usize & 31]));
            }
            held &= (1 << bits) - 1;
            if name.len() == 24 {
                break;
            }
        }
        name.into()
    }
}

/// Name of a set: `p-` pods, `n-` nodes, `r-` ranges, `t-` named ports.
pub(super) fn set(def: &SetDef) -> SetId {
    let mut writer = Writer::new();
    let prefix = match def {
        SetDef::Pods(groups) => {
            writer.groups(groups);
            'p'
        }
        SetDef::Nodes(selector) => {
            writer.selector(selector);
            'n'
        }
        SetDef::Ranges(ranges) => {
            for (low, high) in ranges {
                writer.text(&format!("{low}-{high}"));
            }
            'r'
        }
        SetDef::Ports(groups, protocol, name) => {
            writer.byte(u8::from(groups.is_some()));
            writer.groups(groups.as_deref().unwrap_or_default());
            writer.byte(protocol.map_or(0, |protocol| protocol as u8));
            writer.text(name);
            't'
        }
    };
    SetId(writer.name(prefix))
}

/// Name of a chain: `i-` ingress, `e-` egress.
pub(super) fn chain(chain: &Chain) -> ChainId {
    let mut writer = Writer::new();
    writer.rules(&chain.admin);
    writer.rules(&chain.main);
    writer.action(chain.end);
    ChainId(writer.name(match chain.direction {
        Direction::Ingress => 'i',
        Direction::Egress => 'e',
    }))
}
