//! The smallest client: one request, one connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use weft_tests::{ApiServer, Result};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const JSON: &str = "application/json";

/// An answer that is still being read.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: BufReader<TcpStream>,
    chunked: bool,
}

pub(crate) fn send(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\
         Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(reader.read_line(&mut head)? > 0, "the answer ends in its head: {head}");
    }
    let code = head.split(' ').nth(1).context("no code")?.parse()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok(Answer { code, head, body: reader, chunked })
}

impl Answer {
    pub(crate) fn json(mut self) -> Result<Value> {
        let mut body = String::new();
        ensure!(!self.chunked, "only watches are sent in pieces");
        self.body.read_to_string(&mut body)?;
        serde_json::from_str(&body).with_context(|| format!("no JSON: {body}"))
    }

    /// The events of the next chunk of a watch; none at its end.
    pub(crate) fn events(&mut self) -> Result<Option<Vec<Value>>> {
        let mut size = String::new();
        self.body.read_line(&mut size)?;
        if size.is_empty() {
            bail!("the watch was cut");
        }
        let size = usize::from_str_radix(size.trim(), 16)?;
        let mut chunk = vec![0; size + 2];
        self.body.read_exact(&mut chunk)?;
        let lines = std::str::from_utf8(&chunk[..size])?.lines();
        let events: Vec<_> =
            lines.map(serde_json::from_str).collect::<std::result::Result<_, _>>()?;
        Ok((size > 0).then_some(events))
    }

    /// Reads until `count` events came: type, name and version.
    pub(crate) fn next(&mut self, count: usize) -> Result<Vec<(String, String, String)>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut seen = Vec::new();
        while seen.len() < count {
            let events = self.events()?.context("the watch has ended")?;
            seen.extend(events.iter().map(|event| {
                let meta = &event["object"]["metadata"];
                (text(&event["type"]), text(&meta["name"]), text(&meta["resourceVersion"]))
            }));
        }
        Ok(seen)
    }
}

pub(crate) fn get(server: &ApiServer, path: &str) -> Result<Value> {
    send(server.address(), "GET", path, "", "")?.json()
}

pub(crate) fn watch(server: &ApiServer, path: &str) -> Result<Answer> {
    let answer = send(server.address(), "GET", path, "", "")?;
    ensure!(answer.code == 200 && answer.chunked, "no watch: {}", answer.head);
    Ok(answer)
}

pub(crate) fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array();
    items.into_iter().flatten().filter_map(|item| item["metadata"]["name"].as_str()).collect()
}
