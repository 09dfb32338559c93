//! Commands that ask the running agent.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use weft_proto::api::{Condition, Health, LeaseInfo, Status};

use super::args::{Output, Part};
use super::client::{Client, ClientError, encode};
use super::out::{Out, colour};
use crate::status::{policy, screen, weave};

/// Between two screens of `--watch`.
const AGAIN: Duration = Duration::from_secs(2);
/// Cursor home, clear to the end.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// What monitors rely on.
fn exit_code(health: Health) -> ExitCode {
    ExitCode::from(match health {
        Health::Ok => 0,
        Health::Degraded => 1,
        Health::Broken => 2,
    })
}

/// `agent status`.
pub(super) fn status(
    client: &Client,
    part: Option<Part>,
    watch: bool,
    output: Output,
) -> std::io::Result<ExitCode> {
    let mut out = Out::default();
    loop {
        let colour = colour();
        let (health, text) = match client.get_json::<Status>("/v1/status") {
            Ok(status) => (status.health, show_status(&status, part, output, colour)),
            Err(error) => (Health::Broken, silent(&error, output)),
        };
        if watch && colour && output == Output::Text {
            out.text(&format!("{CLEAR}{text}"))?;
        } else {
            out.text(&text)?;
        }
        if !watch || out.closed() {
            return Ok(exit_code(health));
        }
        std::thread::sleep(AGAIN);
    }
}

fn show_status(status: &Status, part: Option<Part>, output: Output, colour: bool) -> String {
    if output == Output::Json {
        let value = match part {
            None => json!(status),
            Some(Part::Peers) => json!(status.mesh.members),
            Some(Part::Connections) => json!(status.mesh.connections),
            Some(Part::Ipam) => json!(status.ipam),
            Some(Part::Targets) => json!(status.mesh.targets),
            Some(Part::Policy) => json!(status.policy),
        };
        return format!("{value:#}");
    }
    match part {
        None => screen::render(status, colour),
        Some(Part::Peers) => weave::peers(status),
        Some(Part::Connections) => weave::connections(status),
        Some(Part::Ipam) => weave::ipam(status),
        Some(Part::Targets) => weave::targets(status),
        Some(Part::Policy) => policy::render(status.policy.as_ref()),
    }
}

/// An agent that does not answer is the worst state there is; it is shown in
/// the same place and form as any other.
fn silent(error: &ClientError, output: Output) -> String {
    if output == Output::Text {
        return format!("BROKEN  {error}");
    }
    let condition = Condition {
        health: Health::Broken,
        reason: "AgentSilent".to_owned(),
        message: error.to_string(),
        hint: "start the agent, or set HTTP_ADDR to where it listens".to_owned(),
    };
    format!("{:#}", json!({ "health": Health::Broken, "conditions": [condition] }))
}

/// `agent policy explain`.
pub(super) fn explain(
    client: &Client,
    from: &str,
    to: &str,
    port: &str,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let path = format!(
        "/v1/policy/explain?from={}&to={}&port={}&protocol={}",
        encode(from),
        encode(to),
        encode(port),
        encode(protocol)
    );
    let answer: Value = match client.get_json(&path) {
        Ok(answer) => answer,
        Err(error) => {
            super::out::complain(&error.to_string());
            return Ok(ExitCode::from(2));
        }
    };
    let text = match output {
        Output::Text => answer["text"].as_str().unwrap_or_default().to_owned(),
        Output::Json => format!("{answer:#}"),
    };
    Out::default().text(&text)?;
    Ok(ExitCode::from(u8::from(answer["allowed"] != true)))
}

/// `agent report`: a document for machines either way.
pub(super) fn report(client: &Client) -> anyhow::Result<ExitCode> {
    let report: Value = client.get_json("/report")?;
    Ok(Out::default().text(&format!("{report:#}")).map(|()| ExitCode::SUCCESS)?)
}

/// `agent config --running`.
pub(super) fn config(client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    Ok(super::show_config(&client.get_json("/v1/config")?, output)?)
}

/// `agent ps`.
pub(super) fn ps(client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    let leases: Vec<LeaseInfo> = client.get_json("/v1/attachments")?;
    let text = match output {
        Output::Json => format!("{:#}", json!(leases)),
        Output::Text => lease_table(&leases),
    };
    Ok(Out::default().text(&text).map(|()| ExitCode::SUCCESS)?)
}

fn lease_table(leases: &[LeaseInfo]) -> String {
    let clean = |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut rows = vec![["CONTAINER", "IFNAME", "ADDRESSES", "POD", "DEVICE"].map(str::to_owned)];
    for lease in leases {
        let addresses: Vec<_> = lease.addresses.iter().map(ToString::to_string).collect();
        let id: String = lease.key.container_id.chars().take(12).collect();
        // Ids with a meaning (`weave:expose`) are not cut.
        let drawn = lease.key.container_id.bytes().all(|b| b.is_ascii_hexdigit());
        let id = if drawn { &id } else { &lease.key.container_id };
        let ifname = if lease.key.ifname.is_empty() { "-" } else { &lease.key.ifname };
        rows.push([
            clean(id),
            clean(ifname),
            addresses.join(","),
            clean(lease.pod.as_deref().unwrap_or("-")),
            clean(if lease.host_ifname.is_empty() { "-" } else { &lease.host_ifname }),
        ]);
    }
    screen::columns(&rows)
}

pub(super) fn changed(text: String, value: &Value, output: Output) -> anyhow::Result<ExitCode> {
    let text = match output {
        Output::Text => text,
        Output::Json => value.to_string(),
    };
    Ok(Out::default().text(&text).map(|()| ExitCode::SUCCESS)?)
}

/// `agent rmpeer`.
pub(super) fn rmpeer(
    client: &Client,
    name: &str,
    force: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/peers/{}{}", encode(name), if force { "?force=true" } else { "" });
    let answer: Value = serde_json::from_str(&client.change("DELETE", &path, "")?)?;
    let text = format!(
        "{name} is removed; its {} addresses can be reused once they have rested (QUARANTINE)",
        answer["addresses"]
    );
    changed(text, &answer, output)
}

/// `agent connect` and `agent forget`.
pub(super) fn targets(
    client: &Client,
    route: &str,
    targets: &[String],
    replace: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut form: Vec<_> = targets.iter().map(|t| format!("peer={}", encode(t))).collect();
    if replace {
        form.push("replace=true".to_owned());
    }
    client.change("POST", route, &form.join("&"))?;
    changed(String::new(), &json!({ "targets": targets }), output)
}

/// `agent grow`.
pub(super) fn grow(client: &Client, range: &str, output: Output) -> anyhow::Result<ExitCode> {
    let body = json!({ "range": range });
    client.change("POST", "/v1/ranges", &body.to_string())?;
    changed(format!("{range} is part of the pod network now"), &body, output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    #[test]
    fn exit_codes() {
        for (health, code) in [(Health::Ok, 0), (Health::Degraded, 1), (Health::Broken, 2)] {
            assert_eq!(exit_code(health), ExitCode::from(code));
        }
    }

    #[test]
    fn every_part_in_both_forms() {
        let status = sample::status();
        for part in [
            None,
            Some(Part::Peers),
            Some(Part::Connections),
            Some(Part::Ipam),
            Some(Part::Targets),
            Some(Part::Policy),
        ] {
            let json = show_status(&status, part, Output::Json, true);
            assert!(serde_json::from_str::<Value>(&json).is_ok());
            let text = show_status(&status, part, Output::Text, false);
            assert!(!text.is_empty() && !text.contains('\u{1b}'), "{part:?}");
        }
        assert!(show_status(&status, None, Output::Text, true).contains('\u{1b}'));
    }

    #[test]
    fn leases_as_a_table() {
        let leases: Vec<LeaseInfo> = serde_json::from_value(json!([
            { "container_id": "0123456789abcdef", "ifname": "eth0", "addresses": ["10.32.0.5"],
              "pod": "default/web", "since_ms": 1, "host_ifname": "weftabc" },
            { "container_id": "weave:expose", "ifname": "", "addresses": ["10.32.0.1"], "since_ms": 1 },
        ]))
        .unwrap();
        assert_eq!(
            lease_table(&leases),
            "  CONTAINER     IFNAME  ADDRESSES  POD          DEVICE
  0123456789ab  eth0    10.32.0.5  default/web  weftabc
  weave:expose  -       10.32.0.1  -            -
"
        );
    }
}
