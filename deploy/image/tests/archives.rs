//! What runtimes find in the archives.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::io::Read;

use ring::digest::{SHA256, digest};
use serde_json::Value;
use weft_image::{Image, Labels, Program, docker, oci};

/// A static program as far as its header tells.
fn program(name: &str, filler: u8) -> Program {
    let mut bytes = b"\x7fELF\x02\x01".to_vec();
    bytes.resize(64, 0);
    bytes[18] = 62;
    bytes.extend(vec![filler; 5000]);
    Program { name: name.to_owned(), bytes }
}

fn labels() -> Labels {
    Labels {
        reference: "registry.example.com:5000/net/weft:0.9".to_owned(),
        version: "0.9".to_owned(),
        created: 1_700_000_000,
    }
}

fn image() -> Image {
    Image::build(&[program("agent", 1), program("weft", 2)], &labels()).unwrap()
}

/// Entries of a tar file: path to (mode, content). Nobody owns them.
fn entries(tar: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut out = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        let path = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        out.insert(path, (header.mode().unwrap(), content));
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn check_layer(tar: &[u8]) {
    let files = entries(tar);
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["usr/", "usr/bin/", "usr/bin/agent", "usr/bin/weft"]);
    assert!(files.values().all(|(mode, _)| *mode == 0o755));
    assert_eq!(files["usr/bin/agent"].1, program("agent", 1).bytes);
    assert_eq!(files["usr/bin/weft"].1, program("weft", 2).bytes);
}

#[test]
fn every_blob_of_the_oci_archive_is_what_its_descriptor_says() {
    let files = entries(&oci(&image()).unwrap());
    let json = |path: &str| -> Value { serde_json::from_slice(&files[path].1).unwrap() };
    let blob = |of: &Value| -> Vec<u8> {
        let (algorithm, hash) = of["digest"].as_str().unwrap().split_once(':').unwrap();
        let content = files[&format!("blobs/{algorithm}/{hash}")].1.clone();
        assert_eq!(
            (hex(&content).as_str(), content.len() as u64),
            (hash, of["size"].as_u64().unwrap())
        );
        content
    };
    assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
    let index = json("index.json");
    let entry = &index["manifests"][0];
    assert_eq!(entry["platform"]["architecture"], "amd64");
    for name in ["io.containerd.image.name", "org.opencontainers.image.ref.name"] {
        assert_eq!(entry["annotations"][name], labels().reference);
    }
    let manifest: Value = serde_json::from_slice(&blob(entry)).unwrap();
    let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
    let gzip = blob(&manifest["layers"][0]);
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(gzip.as_slice()).read_to_end(&mut tar).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&tar)));
    assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/agent");
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    // The layout, the index and three blobs, and no more.
    assert_eq!(files.len(), 5);
    check_layer(&tar);
}

#[test]
fn the_docker_archive_holds_the_same_image() {
    let image = image();
    let files = entries(&docker(&image).unwrap());
    let manifest: Value = serde_json::from_slice(&files["manifest.json"].1).unwrap();
    assert_eq!(manifest[0]["RepoTags"][0], labels().reference);
    let config = &files[manifest[0]["Config"].as_str().unwrap()].1;
    assert_eq!(format!("sha256:{}", hex(config)), image.id());
    let tar = &files[manifest[0]["Layers"][0].as_str().unwrap()].1;
    let config: Value = serde_json::from_slice(config).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(tar)));
    assert_eq!(tar.len(), image.unpacked());
    check_layer(tar);
}

#[test]
fn the_same_programs_give_the_same_bytes() {
    let (one, other) = (image(), image());
    assert_eq!(oci(&one).unwrap(), oci(&other).unwrap());
    assert_eq!(docker(&one).unwrap(), docker(&other).unwrap());
    let changed = Image::build(&[program("agent", 1), program("weft", 3)], &labels()).unwrap();
    assert_ne!(changed.id(), one.id());
}

#[test]
fn what_cannot_run_in_an_empty_root_is_refused() {
    let script = Program { name: "agent".to_owned(), bytes: b"#!/bin/sh\n".to_vec() };
    let error = Image::build(&[script], &labels()).unwrap_err().to_string();
    assert!(error.starts_with("agent: not a 64-bit"), "{error}");
    let mut arm = program("weft", 2);
    arm.bytes[18] = 183;
    let error = Image::build(&[program("agent", 1), arm], &labels()).unwrap_err().to_string();
    assert!(error.contains("weft is for another machine than agent"), "{error}");
}
