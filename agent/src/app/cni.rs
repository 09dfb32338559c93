//! Installing the plugin and its configuration on the host.
//!
//! The configuration file is what tells the runtime that this node has a
//! network, so it is written only once ADD can be served.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::files;

/// Name of the configuration file; sorts before most others.
pub(super) const CONFLIST: &str = "10-weft.conflist";
/// Name of the plugin binary.
pub(super) const PLUGIN: &str = "weft";

/// Name of a plugin that containerd runs for every pod, whatever the network.
const LOOPBACK: &str = "loopback";

/// Something could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot install {}: {source}; check that the directory is mounted and writable", .path.display())]
pub(super) struct InstallError {
    path: PathBuf,
    source: io::Error,
}

fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, InstallError> {
    let fail = |source| InstallError { path: path.to_owned(), source };
    if fs::read(path).is_ok_and(|old| old == content)
        && fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o777 == mode)
    {
        return Ok(false);
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(fail)?;
    }
    files::replace(path, content, mode).map_err(fail)?;
    Ok(true)
}

/// Installs the plugin binary that lies beside the agent.
pub(super) fn install_plugin(config: &Config) -> Result<(), InstallError> {
    let Some(dir) = &config.cni_bin_dir else { return Ok(()) };
    let to = dir.join(PLUGIN);
    let fail = |source| InstallError { path: to.clone(), source };
    let beside = std::env::current_exe().map_err(fail)?.with_file_name(PLUGIN);
    let content = fs::read(&beside)
        .map_err(|e| fail(io::Error::new(e.kind(), format!("{}: {e}", beside.display()))))?;
    if replace(&to, &content, 0o755)? {
        tracing::info!("CNI plugin installed as {}", to.display());
    }
    if lend_loopback(dir)? {
        tracing::info!("there is no plugin `{LOOPBACK}` in {}: installed ours", dir.display());
    }
    Ok(())
}

/// Nodes have `loopback` from their distribution; where they have not, no pod
/// could start. The plugin does its job if called by that name. A link, so that
/// it is always of the same version, and known to be ours.
fn lend_loopback(dir: &Path) -> Result<bool, InstallError> {
    let path = dir.join(LOOPBACK);
    match std::os::unix::fs::symlink(PLUGIN, &path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(InstallError { path, source }),
    }
}

/// Writes the configuration list.
pub(super) fn install_conflist(config: &Config, text: &str) -> Result<(), InstallError> {
    let Some(dir) = &config.cni_conf_dir else { return Ok(()) };
    let to = dir.join(CONFLIST);
    if replace(&to, text.as_bytes(), 0o644)? {
        tracing::info!("CNI configuration installed as {}", to.display());
    }
    Ok(())
}

/// Removes all of it (`agent cleanup`); what was there.
pub(super) fn uninstall(config: &Config) -> Vec<String> {
    let lent = config.cni_bin_dir.as_ref().map(|d| d.join(LOOPBACK));
    let files = [
        lent.filter(|path| fs::read_link(path).is_ok_and(|to| to == Path::new(PLUGIN))),
        config.cni_conf_dir.as_ref().map(|d| d.join(CONFLIST)),
        config.cni_bin_dir.as_ref().map(|d| d.join(PLUGIN)),
    ];
    files
        .into_iter()
        .flatten()
        .filter(|path| fs::remove_file(path).is_ok())
        .map(|path| path.display().to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_only_what_differs() {
        let dir = std::env::temp_dir().join(format!("weft-cni-{}", std::process::id()));
        let path = dir.join("10-weft.conflist");
        assert!(replace(&path, b"one", 0o644).unwrap());
        assert!(!replace(&path, b"one", 0o644).unwrap());
        assert!(replace(&path, b"two", 0o644).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_loopback_plugin_is_lent_only_where_there_is_none() {
        let dir = std::env::temp_dir().join(format!("weft-loopback-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert!(lend_loopback(&dir).unwrap());
        assert!(!lend_loopback(&dir).unwrap());
        let path = dir.join(LOOPBACK);
        assert_eq!(fs::read_link(&path).unwrap(), Path::new(PLUGIN));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "the distribution's").unwrap();
        assert!(!lend_loopback(&dir).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"the distribution's");
        fs::remove_dir_all(dir).unwrap();
    }
}
