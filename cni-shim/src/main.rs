//! The program `weft`.
//!
//! Where the C library hands the arguments over without its help, it does without the
//! Rust runtime's start: that reads `/proc/self/maps` and makes a stack for signals, a
//! tenth of what an attach costs outside the kernel.

#![cfg_attr(target_env = "gnu", no_main)]

#[cfg(not(target_env = "gnu"))]
fn main() -> std::process::ExitCode {
    weft_cni_shim::run().into()
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the C library calls it by this name, once, in one thread")]
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    i32::from(weft_cni_shim::run_bare())
}
