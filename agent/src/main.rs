//! The weft agent.
fn main() {}
