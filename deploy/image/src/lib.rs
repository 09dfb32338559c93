//! The container image, without a daemon and without root: two static programs
//! in an empty root, as an OCI archive and as a docker archive.
//!
//! The same programs give the same bytes, whenever and wherever: no clock, no
//! owner, no order of a directory comes into it.

mod archive;
pub mod elf;
mod layer;

use std::fmt::Write as _;

use anyhow::{Result, bail, ensure};
use ring::digest;
use serde_json::{Value, json};

pub use archive::{docker, oci};
use elf::Arch;
use layer::Layer;

/// Directory of the programs in the image; the agent expects the plugin beside itself.
const BIN: &str = "usr/bin";

/// A program of the image.
#[derive(Debug, Clone)]
pub struct Program {
    /// File name.
    pub name: String,
    /// Content.
    pub bytes: Vec<u8>,
}

/// What an image is called and shows.
#[derive(Debug, Clone)]
pub struct Labels {
    /// Name and tag, as in `image:` of a manifest.
    pub reference: String,
    /// Version of the software.
    pub version: String,
    /// Seconds since 1970 that every file and the image carry.
    pub created: u64,
}

/// An image, ready to be written in either form.
#[derive(Debug)]
pub struct Image {
    pub(crate) reference: String,
    /// Configuration, as JSON.
    pub(crate) config: Vec<u8>,
    pub(crate) layer: Layer,
    pub(crate) annotations: Value,
    pub(crate) arch: Arch,
}

impl Image {
    /// Puts the programs into an image whose entry point is the first of them.
    ///
    /// Fails if one of them cannot run in an empty root, if they are for
    /// different machines, or if `labels` make no sense.
    pub fn build(programs: &[Program], labels: &Labels) -> Result<Self> {
        let Some(entry) = programs.first() else { bail!("an image needs a program") };
        check_reference(&labels.reference)?;
        let mut arch = None;
        for program in programs {
            let name = &program.name;
            let found =
                elf::inspect(&program.bytes).map_err(|why| anyhow::anyhow!("{name}: {why}"))?;
            ensure!(
                *arch.get_or_insert(found) == found,
                "{name} is for another machine than {}: build both with the same --target",
                entry.name
            );
        }
        let arch = arch.unwrap_or(Arch::X86_64);
        let layer = Layer::build(BIN, programs, labels.created)?;
        let created = rfc3339(labels.created);
        let annotations = json!({
            "org.opencontainers.image.title": "weft",
            "org.opencontainers.image.description": env!("CARGO_PKG_DESCRIPTION"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            "org.opencontainers.image.version": labels.version,
        });
        let config = json!({
            "architecture": arch.oci(),
            "os": "linux",
            "created": created,
            "config": {
                "Entrypoint": [format!("/{BIN}/{}", entry.name)],
                "Env": [format!("PATH=/{BIN}")],
                "WorkingDir": "/",
                "Labels": annotations,
            },
            "rootfs": { "type": "layers", "diff_ids": [layer.diff_id.clone()] },
            "history": [{ "created": created, "created_by": "weft-image" }],
        });
        let config = serde_json::to_vec(&config)?;
        Ok(Self { reference: labels.reference.clone(), config, layer, annotations, arch })
    }

    /// Bytes of the layer, unpacked: what the image takes on a node.
    pub fn unpacked(&self) -> usize {
        self.layer.tar.len()
    }

    /// Bytes that travel: the compressed layer.
    pub fn packed(&self) -> usize {
        self.layer.gzip.len()
    }

    /// Digest of the configuration: what runtimes show as the image's id.
    pub fn id(&self) -> String {
        sha256(&self.config)
    }
}

/// `NAME:TAG`, with a registry or path before it. Anything else is refused by
/// runtimes much later, with less to go by.
fn check_reference(reference: &str) -> Result<()> {
    let (name, tag) = reference.rsplit_once(':').unwrap_or((reference, ""));
    let part = |text: &str, more: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c))
    };
    let tag_is_good = (1..=128).contains(&tag.len())
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    ensure!(
        tag_is_good && name.split('/').all(|text| part(text, "._-:")),
        "`{reference}` is no image name with a tag; for example localhost/weft:{}",
        env!("CARGO_PKG_VERSION")
    );
    Ok(())
}

/// `sha256:` and the digest in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let mut out = "sha256:".to_owned();
    for byte in digest::digest(&digest::SHA256, bytes).as_ref() {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// A time as RFC 3339 writes it, in UTC.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn names_of_images() {
        for good in
            ["weft:1", "localhost/weft:0.1.0", "registry.example.com:5000/net/weft:v1_2-rc.3"]
        {
            check_reference(good).unwrap();
        }
        for bad in ["", "weft", "weft:", "Weft:1", "a//b:1", "weft:-1", "weft:a b", "we ft:1"] {
            let error = check_reference(bad).unwrap_err().to_string();
            assert!(error.contains("for example"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_known_digest() {
        let of_nothing = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b""), of_nothing);
    }
}
