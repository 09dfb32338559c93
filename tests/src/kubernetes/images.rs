//! Container images without a registry: archives that every node imports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ring::digest;
use serde_json::json;

use super::binaries::Binaries;

/// Holds a pod's namespaces.
pub const PAUSE: &str = "weft.test/pause:1";
/// busybox and agnhost, for everything else.
pub const TOOLBOX: &str = "weft.test/toolbox:1";

/// Writes both archives into `directory`.
pub fn build(binaries: &Binaries, directory: &Path) -> Result<()> {
    let pause = [("bin/busybox", binaries.path("busybox"))];
    archive(directory, "pause", PAUSE, &pause, &["/bin/busybox", "sleep", "2147483647"])?;
    let toolbox =
        [("bin/busybox", binaries.path("busybox")), ("agnhost", binaries.path("agnhost"))];
    archive(directory, "toolbox", TOOLBOX, &toolbox, &["/agnhost"])
}

/// One image of one layer, in the format of `docker save`.
fn archive(
    directory: &Path,
    name: &str,
    reference: &str,
    files: &[(&str, PathBuf)],
    entrypoint: &[&str],
) -> Result<()> {
    let work = directory.with_file_name(format!("image-{name}"));
    let root = work.join("root");
    for part in ["bin", "etc", "proc", "sys", "dev", "tmp", "var"] {
        fs::create_dir_all(root.join(part))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    for (path, from) in files {
        fs::copy(from, root.join(path)).with_context(|| format!("no {}", from.display()))?;
    }
    // `kubectl exec POD -- ip addr` and the like.
    for applet in ["sh", "ip", "nc", "httpd", "cat", "ls", "sleep", "hostname", "sha256sum", "dd"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    tar(&root, &work.join("layer.tar"), &["."])?;
    let layer = sha256(&work.join("layer.tar"))?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": entrypoint,
            "Env": ["PATH=/bin:/"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        "history": [{"created_by": "tests"}],
    });
    fs::write(work.join("config.json"), config.to_string())?;
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": [reference],
        "Layers": ["layer.tar"],
    }]);
    fs::write(work.join("manifest.json"), manifest.to_string())?;
    let done = work.join("image.tar");
    tar(&work, &done, &["manifest.json", "config.json", "layer.tar"])?;
    fs::rename(done, directory.join(format!("{name}.tar")))?;
    fs::remove_dir_all(work)?;
    Ok(())
}

fn tar(directory: &Path, archive: &Path, parts: &[&str]) -> Result<()> {
    let output = Command::new("tar")
        .args(["--owner=0", "--group=0", "--numeric-owner", "-C"])
        .arg(directory)
        .arg("-cf")
        .arg(archive)
        .args(parts)
        .output()
        .context("cannot run tar")?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    let sum = digest::digest(&digest::SHA256, &fs::read(file)?);
    Ok(sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}
