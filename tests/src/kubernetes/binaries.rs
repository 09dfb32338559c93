//! The programs that `tests/kubernetes/build` makes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The version of Kubernetes.
pub const VERSION: &str = "1.20.2";

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The directory that holds them all.
    pub directory: PathBuf,
}

impl Binaries {
    /// What an API server needs.
    pub fn api() -> Result<Self> {
        Self::with(&["etcd", "kube-apiserver", "kubectl"], " --api-only")
    }

    /// What a whole cluster needs.
    pub fn all() -> Result<Self> {
        Self::with(
            &[
                "etcd",
                "kube-apiserver",
                "kubectl",
                "containerd",
                "runc",
                "busybox",
                "kubelet",
                "kube-controller-manager",
                "kube-scheduler",
                "kube-proxy",
                "agnhost",
            ],
            "",
        )
    }

    fn with(names: &[&str], option: &str) -> Result<Self> {
        let cache = match std::env::var_os("WEFT_CACHE") {
            Some(cache) => PathBuf::from(cache),
            None => Path::new(&std::env::var_os("HOME").context("no HOME and no WEFT_CACHE")?)
                .join(".cache/weft"),
        };
        let directory = cache.join(format!("kubernetes-{VERSION}/bin"));
        for name in names {
            if !directory.join(name).is_file() {
                // A skip would look like a pass.
                bail!("no {name} in {}: run tests/kubernetes/build{option}", directory.display());
            }
        }
        Ok(Self { directory })
    }

    /// One program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}
