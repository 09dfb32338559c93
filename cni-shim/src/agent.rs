//! What the shim asks of the agent, and what its answers mean to a runtime.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use weft_proto::api::{
    ApiError, AttachRequest, Attachment, GcReply, GcRequest, LeaseInfo, Readiness, TOKEN_HEADER,
};
use weft_proto::attachment::AttachmentKey;
use weft_proto::cni::{CniError, Conf, code};
use weft_proto::names;

use crate::http::{HttpError, Request, Response, Target, exchange, segment};

const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// An agent that is being restarted is back within this.
const RESTART_PATIENCE: Duration = Duration::from_secs(5);
/// DEL does not wait longer: it can do without the agent.
const DEL_PATIENCE: Duration = Duration::from_secs(2);
const CHECK_PATIENCE: Duration = Duration::from_secs(5);
const GC_PATIENCE: Duration = Duration::from_secs(25);
/// What the answer may take beyond the time the agent was given.
const MARGIN: Duration = Duration::from_secs(1);

/// The agent of this node.
#[derive(Debug)]
pub(crate) struct Agent {
    address: String,
    run_dir: PathBuf,
    /// Trace headers of the runtime, passed on.
    trace: Vec<(&'static str, String)>,
}

/// Why the agent did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// No answer from it.
    #[error("the weft agent on this node does not answer at {address} ({error})")]
    Unreachable {
        /// Where it was asked.
        address: String,
        /// What happened.
        error: HttpError,
    },
    /// It answered with an error.
    #[error("{}", .error.message)]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        error: ApiError,
    },
    /// It wants a token that we could not read.
    #[error("the weft agent refused the token of {path}{why}")]
    Token {
        /// Token file.
        path: String,
        /// Why it could not be read, if it could not.
        why: String,
    },
}

impl AgentError {
    fn not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

impl From<AgentError> for CniError {
    fn from(error: AgentError) -> Self {
        let msg = error.to_string();
        match error {
            AgentError::Unreachable { error: HttpError::Address(_), .. } => {
                Self::new(code::INVALID_CONFIG, msg)
                    .details("correct agentAddr in the configuration")
            }
            AgentError::Unreachable { .. } => Self::new(code::TRY_AGAIN, msg).details(
                "is its pod running? kubectl -n kube-system get pods -l name=weft -o wide",
            ),
            AgentError::Token { why, .. } => {
                let code = if why.is_empty() { code::REFUSED } else { code::IO };
                Self::new(code, msg).details(
                    "runDir of the configuration must be RUN_DIR of the agent, as the host sees it",
                )
            }
            AgentError::Refused { status, error } => {
                let again = status == 503 || error.retry_after_ms.is_some();
                Self::new(if again { code::TRY_AGAIN } else { code::REFUSED }, msg)
                    .details(format!("agent: {} (HTTP {status})", error.error))
            }
        }
    }
}

impl Agent {
    /// From configuration and environment.
    pub(crate) fn new(conf: &Conf, get: impl Fn(&str) -> Option<String>) -> Self {
        let from_env = || {
            ["WEAVE_HTTP_ADDR", "HTTP_ADDR"].into_iter().find_map(&get).filter(|a| !a.is_empty())
        };
        let trace =
            [("TRACEPARENT", "traceparent"), ("TRACESTATE", "tracestate"), ("BAGGAGE", "baggage")]
                .into_iter()
                .filter_map(|(var, header)| Some((header, get(var)?)))
                .filter(|(_, value)| is_header_value(value))
                .collect();
        Self {
            address: conf
                .agent_addr
                .clone()
                .or_else(from_env)
                .unwrap_or_else(|| names::HTTP_ADDR.to_owned()),
            run_dir: run_dir(conf),
            trace,
        }
    }

    /// Addresses for an attachment. Waits for an agent that is being restarted,
    /// and lets the agent wait for an address, both within `ADD_PATIENCE`.
    /// `meanwhile` is called once, as soon as the agent works on the request.
    pub(crate) fn attach(
        &self,
        mut request: AttachRequest,
        meanwhile: impl FnOnce(),
    ) -> Result<Attachment, AgentError> {
        let mut meanwhile = Some(meanwhile);
        let start = Instant::now();
        let mut pause = Duration::from_millis(20);
        loop {
            let left = names::ADD_PATIENCE.saturating_sub(start.elapsed());
            let wait = left.saturating_sub(MARGIN * 2);
            request.wait_ms = Some(u64::try_from(wait.as_millis()).unwrap_or(0));
            let answer = self.ask_and("POST", "/v1/attachments", &request, wait + MARGIN, || {
                if let Some(meanwhile) = meanwhile.take() {
                    meanwhile();
                }
            });
            match answer {
                Err(AgentError::Unreachable { error: HttpError::Refused, .. })
                    if start.elapsed() + pause < RESTART_PATIENCE =>
                {
                    sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(500));
                }
                answer => return self.decode(&answer?),
            }
        }
    }

    /// Frees an attachment; an unknown one is free already.
    pub(crate) fn detach(&self, key: &AttachmentKey) -> Result<(), AgentError> {
        match self.ask("DELETE", &path(key), &(), DEL_PATIENCE) {
            Err(error) if !error.not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// The lease of an attachment, if there is one.
    pub(crate) fn attachment(&self, key: &AttachmentKey) -> Result<Option<LeaseInfo>, AgentError> {
        match self.ask("GET", &path(key), &(), CHECK_PATIENCE) {
            Err(error) if error.not_found() => Ok(None),
            answer => self.decode(&answer?).map(Some),
        }
    }

    /// Can ADD be served? Within what STATUS may take.
    pub(crate) fn ready(&self) -> Result<Readiness, AgentError> {
        // Some of the 200 ms is for starting and ending the process.
        let patience = names::STATUS_PATIENCE.saturating_sub(Duration::from_millis(40));
        let response = self.send("GET", "/v1/ready", &[], patience, || {})?;
        // Ready or not, whatever the status says, the body tells.
        serde_json::from_slice(&response.body).map_err(|_| self.unclear(&response))
    }

    /// Keeps only these attachments.
    pub(crate) fn gc(&self, keep: Vec<AttachmentKey>) -> Result<GcReply, AgentError> {
        self.decode(&self.ask("POST", "/v1/gc", &GcRequest { keep }, GC_PATIENCE)?)
    }

    fn ask(
        &self,
        method: &str,
        path: &str,
        body: &impl serde::Serialize,
        patience: Duration,
    ) -> Result<Response, AgentError> {
        self.ask_and(method, path, body, patience, || {})
    }

    fn ask_and(
        &self,
        method: &str,
        path: &str,
        body: &impl serde::Serialize,
        patience: Duration,
        meanwhile: impl FnOnce(),
    ) -> Result<Response, AgentError> {
        let body = if method == "POST" {
            serde_json::to_vec(body).unwrap_or_default()
        } else {
            Vec::new()
        };
        let response = self.send(method, path, &body, patience, meanwhile)?;
        match response.status {
            200..=299 => Ok(response),
            401 | 403 => {
                let path = self.run_dir.join(names::TOKEN_FILE);
                let why = match self.token() {
                    Ok(_) => String::new(),
                    Err(error) => format!(", which cannot be read: {error}"),
                };
                Err(AgentError::Token { path: path.display().to_string(), why })
            }
            _ => Err(self.unclear(&response)),
        }
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        patience: Duration,
        meanwhile: impl FnOnce(),
    ) -> Result<Response, AgentError> {
        let mut headers = self.trace.clone();
        // Without a token file the agent probably never ran; its silence tells that better.
        if method != "GET"
            && let Ok(token) = self.token()
        {
            headers.push((TOKEN_HEADER, token));
        }
        let request = Request { method, path, headers: &headers, body };
        let socket = self.run_dir.join(names::SOCKET_FILE);
        let target = Target { socket: &socket, address: &self.address };
        exchange(target, &request, CONNECT_PATIENCE, patience, meanwhile)
            .map_err(|error| AgentError::Unreachable { address: self.address.clone(), error })
    }

    fn token(&self) -> std::io::Result<String> {
        let token = fs::read_to_string(self.run_dir.join(names::TOKEN_FILE))?.trim().to_owned();
        if is_header_value(&token) {
            return Ok(token);
        }
        Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "it holds no token"))
    }

    fn decode<T: DeserializeOwned>(&self, response: &Response) -> Result<T, AgentError> {
        serde_json::from_slice(&response.body).map_err(|_| AgentError::Unreachable {
            address: self.address.clone(),
            error: HttpError::Malformed("it is not the JSON expected; is this weft's agent?"),
        })
    }

    /// An answer that is an error, or not understood.
    fn unclear(&self, response: &Response) -> AgentError {
        let error = serde_json::from_slice(&response.body).unwrap_or_else(|_| ApiError {
            error: "unclear".to_owned(),
            message: format!(
                "the agent at {} answered HTTP {}: {}",
                self.address,
                response.status,
                String::from_utf8_lossy(&response.body)
                    .trim()
                    .chars()
                    .take(200)
                    .collect::<String>()
            ),
            retry_after_ms: None,
        });
        AgentError::Refused { status: response.status, error }
    }
}

/// Run directory of the configuration, or the usual one.
pub(crate) fn run_dir(conf: &Conf) -> PathBuf {
    PathBuf::from(conf.run_dir.as_deref().unwrap_or(names::RUN_DIR))
}

fn path(key: &AttachmentKey) -> String {
    format!("/v1/attachments/{}/{}", segment(&key.container_id), segment(&key.ifname))
}

fn is_header_value(text: &str) -> bool {
    !text.is_empty() && text.len() <= 8192 && text.bytes().all(|b| (0x20..0x7f).contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, retry_after_ms: Option<u64>) -> CniError {
        let error = ApiError { error: "x".into(), message: "a sentence".into(), retry_after_ms };
        AgentError::Refused { status, error }.into()
    }

    #[test]
    fn codes() {
        assert_eq!(refused(503, None).code, code::TRY_AGAIN);
        assert_eq!(refused(500, Some(10)).code, code::TRY_AGAIN);
        assert_eq!(refused(409, None).code, code::REFUSED);
        assert_eq!(refused(503, None).msg, "a sentence");
        let token =
            |why: &str| CniError::from(AgentError::Token { path: "/x".into(), why: why.into() });
        assert_eq!(token("").code, code::REFUSED);
        assert_eq!(token(", no").code, code::IO);
        let down = AgentError::Unreachable { address: "a".into(), error: HttpError::Refused };
        assert_eq!(CniError::from(down).code, code::TRY_AGAIN);
    }

    #[test]
    fn header_values_cannot_add_headers() {
        assert!(is_header_value("00-abc-01"));
        assert!(!is_header_value("a\r\nx-weft-token: b") && !is_header_value(""));
    }
}
