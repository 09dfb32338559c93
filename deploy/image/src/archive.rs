//! One image in the two forms that runtimes load.

use anyhow::Result;
use serde_json::{Value, json};
use tar::Builder;

use crate::layer::{Kind, add};
use crate::{Image, sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An OCI image layout (version 1.1 of the specification) in a tar file.
pub fn oci(image: &Image) -> Result<Vec<u8>> {
    let layer = descriptor(LAYER, &image.layer.gzip);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &image.config),
        "layers": [layer],
        "annotations": image.annotations,
    }))?;
    let mut entry = descriptor(MANIFEST, &manifest);
    entry["platform"] = json!({ "architecture": image.arch.oci(), "os": "linux" });
    // The first is containerd's name for it, the second everybody else's.
    entry["annotations"] = json!({
        "io.containerd.image.name": image.reference,
        "org.opencontainers.image.ref.name": image.reference,
    });
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [entry],
    }))?;
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    for blob in [image.config.as_slice(), &manifest, &image.layer.gzip] {
        file(&mut tar, &format!("blobs/{}", sha256(blob).replace(':', "/")), blob)?;
    }
    file(&mut tar, "index.json", &index)?;
    Ok(tar.into_inner()?)
}

/// What `docker save` writes and `docker load` reads.
pub fn docker(image: &Image) -> Result<Vec<u8>> {
    let config = format!("{}.json", hex(&image.id()));
    let layer = format!("{}/layer.tar", hex(&image.layer.diff_id));
    let manifest = serde_json::to_vec(&json!([{
        "Config": config,
        "RepoTags": [image.reference],
        "Layers": [layer],
    }]))?;
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "manifest.json", &manifest)?;
    file(&mut tar, &config, &image.config)?;
    file(&mut tar, &layer, &image.layer.tar)?;
    Ok(tar.into_inner()?)
}

fn file(tar: &mut Builder<Vec<u8>>, path: &str, content: &[u8]) -> Result<()> {
    add(tar, path, Kind::File, content, 0)
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha256(blob), "size": blob.len() })
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}
