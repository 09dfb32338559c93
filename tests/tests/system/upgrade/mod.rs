//! An earlier version beside this one. `make test-upgrade` gets its programs and runs
//! these; what needs no programs of another version is in `upgrade_state`.

mod common;
mod mixed;
mod plugin;
mod policy;
mod rolling;
