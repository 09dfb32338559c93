//! A small blocking HTTP client for the agent of this machine.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::de::DeserializeOwned;
use weft_proto::api::{ApiError, TOKEN_HEADER};

use crate::api::Token;
use crate::config::Endpoint;

const CONNECT: Duration = Duration::from_secs(2);
/// Longer than the agent lets any of these requests take.
const ANSWER: Duration = Duration::from_secs(40);
/// A report of thousands of nodes is a few megabytes.
const LONGEST: u64 = 256 * 1024 * 1024;

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody listens, or nobody answers.
    #[error(
        "the agent at {address} does not answer ({cause}): is it running on this machine? \
         `journalctl -u weft` or `kubectl -n kube-system logs -l name=weft` say why not; \
         HTTP_ADDR says where to ask"
    )]
    Silent { address: SocketAddr, cause: io::Error },
    /// Something else listens there.
    #[error(
        "{address} does not speak as an agent does ({what}): does another program listen there?"
    )]
    Strange { address: SocketAddr, what: String },
    /// The agent said no.
    #[error("{message}")]
    Refused { code: u16, message: String },
    /// The token could not be read.
    #[error(
        "cannot read {path} ({cause}): this command changes something and needs the agent's token, \
         which only root can read; RUN_DIR says where it is"
    )]
    Token { path: String, cause: io::Error },
}

/// The agent of this machine.
pub(super) struct Client {
    endpoint: Endpoint,
}

impl Client {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Reads.
    pub(super) fn get(&self, path: &str) -> Result<String, ClientError> {
        self.request("GET", path, "", None)
    }

    /// Reads JSON.
    pub(super) fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.get(path)?;
        serde_json::from_str(&body).map_err(|error| self.strange(error.to_string()))
    }

    /// Changes something, with the token.
    pub(super) fn change(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<String, ClientError> {
        let run_dir = &self.endpoint.run_dir;
        let token = Token::load(run_dir).map_err(|cause| ClientError::Token {
            path: run_dir.join(weft_proto::names::TOKEN_FILE).display().to_string(),
            cause,
        })?;
        self.request(method, path, body, Some(&token))
    }

    fn strange(&self, what: impl Into<String>) -> ClientError {
        ClientError::Strange { address: self.endpoint.http_addr, what: what.into() }
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        body: &str,
        token: Option<&Token>,
    ) -> Result<String, ClientError> {
        let address = self.endpoint.http_addr;
        let answer = exchange(address, method, path, body, token)
            .map_err(|cause| ClientError::Silent { address, cause })?;
        let (code, body) = parse(&answer).map_err(|what| self.strange(what))?;
        if (200..300).contains(&code) {
            return Ok(body);
        }
        let message = match (serde_json::from_str::<ApiError>(&body), body.trim_end()) {
            (Ok(error), _) => error.message,
            (Err(_), "") => format!("the agent answered {code} to {method} {path}"),
            (Err(_), text) => text.to_owned(),
        };
        Err(ClientError::Refused { code, message })
    }
}

fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    token: Option<&Token>,
) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(CONNECT))?;
    stream.set_nodelay(true)?;
    let token = token.map(|t| format!("{TOKEN_HEADER}: {}\r\n", t.reveal())).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Accept: application/json, */*\r\n{token}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
    }
    Ok(answer)
}

/// Status code and body of an answer that ends with its connection.
fn parse(answer: &[u8]) -> Result<(u16, String), String> {
    let text = std::str::from_utf8(answer).map_err(|_| "not text")?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no end of the head")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let code = status
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .ok_or("no HTTP status line")?;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("an encoding that was not asked for".to_owned());
        }
        if name.eq_ignore_ascii_case("content-length") && value.trim().parse() != Ok(body.len()) {
            return Err(format!("{} bytes of {} arrived", body.len(), value.trim()));
        }
    }
    Ok((code, body.to_owned()))
}

/// A text as one segment of a path, or as one value of a form.
pub(super) fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed_or_refused() {
        let good = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        assert_eq!(parse(good), Ok((200, "ok".to_owned())));
        assert_eq!(parse(b"HTTP/1.0 404 x\r\n\r\n"), Ok((404, String::new())));
        for bad in [
            &b""[..],
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"\xff\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encode("node-1.x_y"), "node-1.x_y");
        assert_eq!(encode("a/b c&é"), "a%2Fb%20c%26%C3%A9");
    }

    #[test]
    fn silence_is_told_with_what_to_do() {
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let client = Client::new(Endpoint { http_addr: address, run_dir: "/nonexistent".into() });
        let text = client.get("/v1/status").unwrap_err().to_string();
        assert!(
            text.contains("127.0.0.1:1 does not answer") && text.contains("HTTP_ADDR"),
            "{text}"
        );
        let text = client.change("DELETE", "/peer/x", "").unwrap_err().to_string();
        assert!(text.contains("/nonexistent/token") && text.contains("root"), "{text}");
    }
}
