use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::api::tests::fake::Server;
use crate::config::{MapEnv, VARS};

fn words(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

fn parse(line: &str) -> (Cli, Flags) {
    args::parse(words(line)).unwrap_or_else(|e| panic!("{line}: {e}"))
}

static STARTED: AtomicUsize = AtomicUsize::new(0);

fn hooks() -> Hooks {
    Hooks {
        daemon: |config| {
            assert_eq!(config.mtu, Some(1400));
            STARTED.fetch_add(1, Ordering::SeqCst);
            Ok(())
        },
        cleanup: |_| Ok(Cleaned::default()),
        lab: |args| Ok(ExitCode::from(u8::try_from(args.len()).unwrap())),
    }
}

fn dispatch_line(line: &str, env: &MapEnv) -> ExitCode {
    let (cli, flags) = parse(line);
    dispatch(cli, &flags, env, hooks())
}

#[test]
fn the_command_is_sound_and_has_a_flag_for_each_variable() {
    args::command().debug_assert();
    for var in VARS {
        for command in ["agent", "agent config"] {
            let (_, flags) = parse(&format!("{command} --{} value", var.flag()));
            assert_eq!(flags.get(var.name).map(String::as_str), Some("value"));
        }
    }
    let (_, flags) = parse("agent status --http-addr 127.0.0.1:1 --run-dir /x");
    assert_eq!(flags.len(), 2);
}

#[test]
fn commands_parse() {
    for line in [
        "agent",
        "agent status",
        "agent status peers -o json",
        "agent status --watch ipam",
        "agent status connections",
        "agent status targets",
        "agent report -o json",
        "agent config --running",
        "agent ps",
        "agent status policy -o json",
        "agent policy explain a/x b/y 80",
        "agent policy explain a/x 10.0.0.1 53/udp -o json --http-addr 127.0.0.1:1",
        "agent rmpeer n1 --force",
        "agent connect a b --replace",
        "agent forget a",
        "agent grow 10.96.0.0/16",
        "agent cleanup",
        "agent version -o json",
    ] {
        parse(line);
    }
    for line in [
        "agent nothing",
        "agent status dns",
        "agent rmpeer",
        "agent policy",
        "agent policy explain a/x b/y",
        "agent connect",
        "agent --no-such 1",
        "agent status -o xml",
    ] {
        assert!(args::parse(words(line)).is_err(), "{line}");
    }
}

#[test]
fn the_lab_gets_its_arguments_untouched() {
    let code = dispatch_line("agent lab --nodes 3 --help", &MapEnv::new([]));
    assert_eq!(code, ExitCode::from(3));
}

#[test]
fn daemon_starts_only_with_a_good_configuration() {
    let env = MapEnv::new([("MTU", "1400")]);
    assert_eq!(dispatch_line("agent --mtu x", &env), ExitCode::from(USAGE));
    assert_eq!(STARTED.load(Ordering::SeqCst), 0);
    assert_eq!(dispatch_line("agent --conn-limit 5", &env), ExitCode::SUCCESS);
    assert_eq!(STARTED.load(Ordering::SeqCst), 1);
}

#[test]
fn a_silent_agent_is_broken() {
    let env = MapEnv::new([("HTTP_ADDR", "127.0.0.1:1"), ("RUN_DIR", "/nonexistent")]);
    assert_eq!(dispatch_line("agent status", &env), ExitCode::from(2));
    assert_eq!(dispatch_line("agent status -o json", &env), ExitCode::from(2));
    assert_eq!(dispatch_line("agent report", &env), ExitCode::FAILURE);
    assert_eq!(dispatch_line("agent rmpeer x", &env), ExitCode::FAILURE);
    assert_eq!(dispatch_line("agent cleanup", &env), ExitCode::SUCCESS);
    let wrong = MapEnv::new([("HTTP_ADDR", "nowhere")]);
    assert_eq!(dispatch_line("agent status", &wrong), ExitCode::from(USAGE));
    // What the daemon would refuse does not keep a client from asking.
    let odd = MapEnv::new([("HTTP_ADDR", "127.0.0.1:1"), ("MTU", "x")]);
    assert_eq!(dispatch_line("agent status", &odd), ExitCode::from(2));
}

#[test]
fn config_text_names_sources() {
    let env =
        MapEnv::new([("WEAVE_MTU", "1400"), ("PASSWORD", "sesame open"), ("WEAVE_NO_FASTDP", "1")]);
    let config = Config::parse(&env, &Flags::new()).unwrap();
    let text = config_text(&config.report());
    let line = |name: &str| text.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
    assert!(line("MTU").ends_with("env WEAVE_MTU"));
    assert!(line("PASSWORD ").contains("(hidden)") && !text.contains("sesame"));
    assert!(line("WEAVE_NO_FASTDP").contains("without effect"));
    assert!(text.contains("warning: WEAVE_NO_FASTDP has no effect"));
    assert_eq!(text.lines().filter(|l| !l.starts_with("warning")).count(), VARS.len());
}

/// Runs command lines against a fake agent on loopback.
async fn against(server: &Server, lines: &[(&'static str, u8)]) {
    let run_dir = std::env::temp_dir().join(format!("weft-cli-{}", server.address.port()));
    std::fs::create_dir_all(&run_dir).unwrap();
    std::fs::write(run_dir.join("token"), server.token.reveal()).unwrap();
    let (http, dir) = (server.address.to_string(), run_dir.display().to_string());
    for (line, code) in lines {
        let env = MapEnv::new([("HTTP_ADDR", http.as_str()), ("RUN_DIR", dir.as_str())]);
        let (line, code) = (*line, *code);
        let got = tokio::task::spawn_blocking(move || dispatch_line(line, &env)).await.unwrap();
        assert_eq!(got, ExitCode::from(code), "{line}");
    }
    std::fs::remove_dir_all(run_dir).unwrap();
}

#[tokio::test]
async fn commands_against_an_agent() {
    let server = Server::start(crate::config::Callers::Token).await;
    against(
        &server,
        &[
            ("agent status", 0),
            ("agent status -o json", 0),
            ("agent status peers", 0),
            ("agent report", 0),
            ("agent config --running", 0),
            ("agent ps -o json", 0),
            ("agent status policy", 0),
            ("agent policy explain a/x b/y 80", 0),
            ("agent policy explain a/x b/y 81/udp", 1),
            ("agent policy explain a/x nobody/y 81", 2),
            ("agent policy explain x b/y 80 -o json", 2),
            ("agent rmpeer dead", 0),
            ("agent rmpeer live", 1),
            ("agent rmpeer live --force", 0),
            ("agent rmpeer nobody", 1),
            ("agent connect n2 n3:6783 --replace", 0),
            ("agent connect a!", 1),
            ("agent forget n2", 0),
            ("agent grow 10.96.0.0/16", 0),
            ("agent grow 10.96.0.1/16", 1),
            // Whatever listens there, it may be the agent.
            ("agent cleanup", 1),
        ],
    )
    .await;
    assert_eq!(
        server.fake.calls(),
        [r#"connect ["n2", "n3:6783"] true"#, r#"connect ["a!"] false"#, r#"forget ["n2"]"#]
    );
    for health in [1, 2] {
        server.fake.health.store(health.into(), Ordering::SeqCst);
        against(&server, &[("agent status", health), ("agent status ipam -o json", health)]).await;
    }
}
