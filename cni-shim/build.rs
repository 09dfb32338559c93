//! Strips the plugin: a per-package profile (opt-level "s") makes cargo forget
//! the `strip` of the profile it refines.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo:rustc-link-arg-bins=-s");
    }
}
