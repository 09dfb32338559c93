//! Small clusters, so that what the benchmark shows for thousands cannot be lost unseen.
//! Bytes and virtual seconds only.

use super::scenes::{cold, death, heal, join, rest, settled};

#[test]
fn a_hundred_nodes_keep_to_their_limits() {
    let mut world = settled(100);
    let resting = rest(&mut world);
    println!("{resting:?}");
    assert!(resting.seconds.is_some(), "all see all alive: {resting:?}");
    assert!(resting.bytes < 2000.0, "at rest: {resting:?}");
    assert!(resting.connections < 20.0, "no full mesh: {resting:?}");
    let joined = join(&mut world);
    println!("{joined:?}");
    assert!(joined.seconds.is_some_and(|s| s < 5.0), "join: {joined:?}");
    let died = death(&mut world);
    println!("{died:?}");
    assert!(died.seconds.is_some_and(|s| s < 25.0), "death: {died:?}");
    let healed = heal(&mut world);
    println!("{healed:?}");
    assert!(healed.seconds.is_some_and(|s| s < 60.0), "heal: {healed:?}");
}

#[test]
fn ten_nodes_are_a_full_mesh_at_rest() {
    let mut world = settled(10);
    let resting = rest(&mut world);
    println!("{resting:?}");
    assert!(resting.seconds.is_some(), "all see all alive: {resting:?}");
    assert!(resting.bytes < 2000.0, "at rest: {resting:?}");
    assert!((resting.connections - 9.0).abs() < 0.01, "full mesh: {resting:?}");
    let died = death(&mut world);
    assert!(died.seconds.is_some_and(|s| s < 15.0), "death: {died:?}");
}

#[test]
fn a_hundred_cold_starts_are_no_storm() {
    let cold = cold(100);
    println!("{cold:?}");
    assert!(cold.seconds.is_some_and(|s| s < 30.0), "{cold:?}");
    assert!(cold.bytes < 1e6, "{cold:?}");
}
