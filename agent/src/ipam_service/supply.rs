//! When to ask for more addresses, and whom: decisions without effects.

use weft_proto::id::NodeId;

/// What one family of this node's addresses looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stock {
    /// Requests waiting for an address of this family.
    pub waiting: usize,
    /// Addresses owned and free.
    pub free: u64,
    /// Addresses of a standard block.
    pub block: u64,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Enough in stock.
    Nothing,
    /// Somebody waits: a block from the ledger, or, if it has none, from other nodes.
    Now,
    /// Running low: a block from the ledger ahead of need, if it has one.
    Ahead,
}

/// Keeps half a block free ahead of need, so that pods start without asking
/// anybody, also while there is no quorum. Only a waiting request may take
/// addresses from other nodes: spares taken from each other would wander for ever.
///
/// `unowned`: addresses nobody owns, by the ledger.
pub fn order(stock: Stock, unowned: impl FnOnce() -> u128) -> Order {
    if stock.waiting > 0 && stock.free == 0 {
        Order::Now
    } else if stock.free < (stock.block / 2).max(1) && unowned() > 0 {
        Order::Ahead
    } else {
        Order::Nothing
    }
}

/// A node that may have addresses to spare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Donor {
    /// Who.
    pub node: NodeId,
    /// What it last told of its free addresses; may be out of date.
    pub free: u32,
}

/// In which order to ask: the richest first; of those that told of none, a few
/// all the same, since the hint lags (all of them in a small cluster).
pub fn donors(mut all: Vec<Donor>, patience: usize) -> Vec<Donor> {
    all.sort_by_key(|d| (std::cmp::Reverse(d.free), d.node));
    all.truncate(patience);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders() {
        let stock = Stock { waiting: 0, free: 62, block: 64 };
        let some = || 1000;
        assert_eq!(order(stock, some), Order::Nothing);
        assert_eq!(order(Stock { free: 31, ..stock }, some), Order::Ahead);
        assert_eq!(order(Stock { free: 31, ..stock }, || 0), Order::Nothing);
        assert_eq!(order(Stock { free: 0, waiting: 1, ..stock }, || 0), Order::Now);
        assert_eq!(order(Stock { free: 0, block: 1, ..stock }, some), Order::Ahead);
        assert_eq!(order(Stock { free: 1, block: 2, ..stock }, some), Order::Nothing);
    }

    #[test]
    fn richest_first() {
        let donor = |n: u8, free| Donor { node: NodeId([n; 16]), free };
        assert_eq!(
            donors(vec![donor(1, 0), donor(2, 9), donor(3, 5)], 2),
            [donor(2, 9), donor(3, 5)]
        );
    }
}
