//! Notes to an agent that was not there: "this attachment is gone".

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use weft_proto::attachment::AttachmentKey;
use weft_proto::names;

fn place(run_dir: &Path, key: &AttachmentKey) -> PathBuf {
    // A name that any container id turns into safely.
    let name = names::host_ifname(&key.container_id, &key.ifname);
    run_dir.join(names::RELEASED_DIR).join(format!("{name}.json"))
}

/// Leaves the note; never half of one.
pub(crate) fn leave(run_dir: &Path, key: &AttachmentKey) -> io::Result<()> {
    let path = place(run_dir, key);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    let written = serde_json::to_vec(key)
        .map_err(io::Error::from)
        .and_then(|text| file.write_all(&text))
        .and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Takes a note back: the attachment is there again, or the agent has heard of its end.
pub(crate) fn withdraw(run_dir: &Path, key: &AttachmentKey) {
    let _ = fs::remove_file(place(run_dir, key));
}
