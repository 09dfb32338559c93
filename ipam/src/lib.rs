//! Block ledger and local leases of weft: pure.
