//! New lives of the agent: same process, new program, everything found as after
//! a crash. A consensus store that the disk has failed once takes nothing more until it
//! is opened again. Till the disk takes writes the agent goes on without it,
//! pods start from the blocks it owns; then it replaces itself by a fresh life
//! of the same program, which finds everything as after a crash.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use weft_proto::api::{Condition, Health};

use super::App;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// No life is shorter, should the store fail at once again.
const LIFE: Duration = Duration::from_secs(5);
/// The disk must have more space than a moment's worth.
const ROOM: usize = 512 * 1024;

/// Completes when a new life would do better, or is asked for.
pub(super) async fn needed(app: &App) {
    tokio::select! {
        () = store_failed(app) => {}
        () = asked(app) => {}
    }
}

async fn asked(app: &App) {
    let mut renewal = app.renewal.subscribe();
    let why = match renewal.wait_for(Option::is_some).await {
        Ok(why) => why.clone().unwrap_or_default(),
        Err(_) => return std::future::pending().await,
    };
    tracing::info!("the agent starts anew: {why}");
    tokio::time::sleep(LIFE.saturating_sub(app.started.elapsed())).await;
}

async fn store_failed(app: &App) {
    let mut told = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(why) = app.consensus.failed() else { continue };
        if !told {
            told = true;
            app.condition(
                "StoreFailed",
                Some(Condition {
                    health: Health::Degraded,
                    reason: "StoreFailed".into(),
                    message: why,
                    hint: "pods start from blocks already owned; free space on, or repair, \
                           STATE_DIR: the agent then starts again by itself"
                        .into(),
                }),
            );
        }
        let file = app.config.state_dir.join(".room");
        let room = tokio::task::spawn_blocking(move || room(&file)).await;
        if app.started.elapsed() >= LIFE && matches!(room, Ok(Ok(()))) {
            tracing::warn!("STATE_DIR takes writes again: the agent starts anew");
            return;
        }
    }
}

fn room(path: &Path) -> io::Result<()> {
    let tried = File::create(path).and_then(|mut file| {
        file.write_all(&vec![0x5a; ROOM])?;
        file.sync_all()
    });
    tried.and(fs::remove_file(path))
}

/// Becomes the same program again: same process, arguments and environment.
/// Returns only if that fails.
pub(super) fn again() -> io::Error {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "agent".into());
    Command::new("/proc/self/exe").arg0(name).args(arguments).exec()
}
