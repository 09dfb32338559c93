//! The API server for tests, seen through plain HTTP: what it promises to the
//! tests that stand on it.

mod client;
mod faults;
mod reads;
mod real_client;
mod writes;
