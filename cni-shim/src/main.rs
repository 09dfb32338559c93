//! The program `weft`.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft_cni_shim::run()
}
