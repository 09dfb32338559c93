//! The weft CNI plugin: what a container runtime runs to attach a container to
//! the network, and to detach it. One process per call, one thread, no runtime.

mod agent;
mod bare;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod net;
mod netns;
mod note;
mod verbs;

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Instant;

use verbs::loopback;
use weft_proto::cni::{CniError, Command, Conf, Env, SpecVersion, code};

/// A GC list of ten thousand attachments is about 1 MiB.
const MAX_INPUT: u64 = 16 << 20;

const SUCCESS: u8 = 0;
const FAILURE: u8 = 1;
/// What a Rust program ends with after a panic.
const PANICKED: u8 = 101;

/// [`run`], and before it what the Rust runtime would have seen to: the standard streams are
/// open, a reader that is gone is an error and no signal, and a panic ends here.
pub fn run_bare() -> u8 {
    if bare::prepare().is_err() {
        return FAILURE;
    }
    std::panic::catch_unwind(run).unwrap_or(PANICKED)
}

/// Reads the call from the environment and standard input, does it, answers on
/// standard output (CNI spec, section 2). The exit code.
pub fn run() -> u8 {
    let start = Instant::now();
    let get = |name: &str| std::env::var(name).ok();
    // A person who tries the plugin by hand has no standard input to give.
    if get("CNI_COMMAND").is_none()
        && std::env::args().nth(1).is_some_and(|a| a.trim_start_matches('-') == "version")
    {
        return print(&format!("weft CNI plugin {}\n", env!("CARGO_PKG_VERSION")), SUCCESS);
    }
    let mut input = Vec::new();
    let read = io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut input);
    let result = match read {
        Err(error) => Err(CniError::new(code::IO, format!("cannot read standard input: {error}"))),
        Ok(length) if length as u64 > MAX_INPUT => Err(CniError::new(
            code::DECODE,
            format!("standard input is longer than {MAX_INPUT} bytes"),
        )),
        Ok(_) => call(&input, &get, start),
    };
    match result {
        Ok(text) => print(&text, SUCCESS),
        Err(error) => {
            let version = Conf::version_text(&input)
                .unwrap_or_else(|| SpecVersion::LATEST.as_str().to_owned());
            // Free text for logs goes to standard error, the error itself to standard output.
            let _ = writeln!(io::stderr(), "weft: {error}");
            print(&format!("{}\n", error.to_json(&version)), FAILURE)
        }
    }
}

fn print(text: &str, code: u8) -> u8 {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => code,
        // Whoever called is gone and would not know what was attached.
        Err(_) => FAILURE,
    }
}

fn call(
    input: &[u8],
    get: &dyn Fn(&str) -> Option<String>,
    start: Instant,
) -> Result<String, CniError> {
    let env = Env::read(get)?;
    if env.command == Command::Version {
        return Ok(verbs::version(input));
    }
    let conf = Conf::parse(input)?;
    let result = if called_as(loopback::NAME) {
        loopback::run(&env, &conf)
    } else {
        verbs::run(&env, &conf, get)
    };
    if let Some(path) = &conf.log_file {
        let outcome = match &result {
            Ok(_) => "ok".to_owned(),
            Err(error) => format!("error {}: {error}", error.code),
        };
        log(
            path,
            &format!("{} {} {:?} {outcome}\n", env.command.as_str(), env.key, start.elapsed()),
        );
    }
    result
}

/// One program can be several plugins, by the name of its file.
fn called_as(name: &str) -> bool {
    let own = std::env::args_os().next();
    own.is_some_and(|path| Path::new(&path).file_name().is_some_and(|file| file == name))
}

/// A log that cannot be written must not stop a pod.
fn log(path: &str, line: &str) {
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = since_epoch.map_or(0.0, |d| d.as_secs_f64());
    if let Err(error) =
        file.and_then(|mut f| f.write_all(format!("{seconds:.3} {line}").as_bytes()))
    {
        let _ = writeln!(io::stderr(), "weft: cannot write {path}: {error}");
    }
}
