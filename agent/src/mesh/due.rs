//! What is to happen at a time: entries of a queue in which the earliest is first, and of
//! the same time that which was entered first.

use std::cmp::Ordering;

/// An entry. Equal only to itself: no two of a queue have one number.
#[derive(Debug)]
pub(super) struct Due<T, E> {
    /// When.
    pub(super) at: T,
    /// Which of the queue's entries, in their order.
    pub(super) seq: u64,
    /// What.
    pub(super) what: E,
}

impl<T: Ord, E> PartialEq for Due<T, E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T: Ord, E> Eq for Due<T, E> {}

impl<T: Ord, E> PartialOrd for Due<T, E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord, E> Ord for Due<T, E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at).then(self.seq.cmp(&other.seq))
    }
}
