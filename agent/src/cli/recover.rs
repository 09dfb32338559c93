//! `agent recover`: what it would mean, then, with `--yes`, the deed.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::{Value, json};
use weft_proto::api::{Status, VoterStatus};

use super::args::Output;
use super::client::Client;
use super::out::Out;
use super::remote::changed;
use crate::api::CONSENT;

/// Shows what will happen; does it with `yes`.
pub(super) fn recover(client: &Client, yes: bool, output: Output) -> anyhow::Result<ExitCode> {
    if yes {
        let answer = client.change("POST", &format!("/v1/recover?{CONSENT}=true"), "")?;
        let answer: Value = serde_json::from_str(&answer)?;
        let text = format!(
            "consensus was founded again from this node, at position {}; other nodes follow within \
             seconds.\nBefore a lost voter returns: empty its STATE_DIR, or run `agent cleanup` on it.",
            answer["position"]
        );
        return changed(text, &answer, output);
    }
    let status: Status = client.get_json("/v1/status")?;
    let text = match output {
        Output::Text => explain(&status),
        Output::Json => json!({
            "possible": !status.consensus.quorum,
            "done": false,
            "voters": status.consensus.voters,
            "position": status.consensus.applied,
        })
        .to_string(),
    };
    // Nothing was done: a script must not take it for a recovery.
    Out::default().text(&text)?;
    Ok(ExitCode::FAILURE)
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn names<'a>(voters: impl Iterator<Item = &'a VoterStatus>) -> String {
    let names: Vec<_> = voters.map(|v| clean(v.name.as_deref().unwrap_or(&v.seat))).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn explain(status: &Status) -> String {
    let consensus = &status.consensus;
    if consensus.quorum && !matches!(consensus.role.as_str(), "leader" | "voter") {
        return format!(
            "nothing to recover, by what this node has heard: it has no vote. Whether there is a \
             quorum know the voters, {}: ask `agent status` on one of them",
            names(consensus.voters.iter())
        );
    }
    if consensus.quorum {
        return format!(
            "nothing to recover: the cluster has a quorum (leader {}, voters {})",
            clean(consensus.leader.as_deref().unwrap_or("unknown")),
            names(consensus.voters.iter())
        );
    }
    let lost: Vec<_> = consensus.voters.iter().filter(|v| !v.alive).collect();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "The cluster has no quorum: new blocks of addresses wait, everything else works.\n  \
         voters reachable:   {}\n  voters unreachable: {}",
        names(consensus.voters.iter().filter(|v| v.alive)),
        names(lost.iter().copied()),
    );
    if let Some(why) = &consensus.waiting {
        let _ = writeln!(text, "  reason:             {}", clean(why));
    }
    let ahead = status.mesh.members.iter().filter(|m| m.state != "dead");
    let ahead = ahead.filter(|m| m.ledger_index > consensus.applied).count();
    let _ = writeln!(
        text,
        "\nIf a lost voter can be brought back with its STATE_DIR, do that instead: it costs nothing.\n\
         \nRecovery makes node {} the only voter, with the ledger it knows (position {}{}).\n\
         - Kept: every block and lease in that ledger. Voters are chosen anew from living nodes.\n\
         - Lost: what only the unreachable voters know. If they granted a block after that position,\n  \
           it can be granted again, and pods of two nodes may then hold one address.\n\
         - Run it on one node only, and not while the lost voters still work elsewhere (a cut\n  \
           network): there would be two clusters.\n\
         - Before {} may return: stop the agent there and empty its STATE_DIR (or `agent cleanup`).",
        clean(&status.node.name),
        consensus.applied,
        if ahead > 0 {
            format!("; {ahead} reachable nodes know more and are asked first")
        } else {
            String::new()
        },
        if lost.is_empty() { "a lost voter".to_owned() } else { names(lost.iter().copied()) },
    );
    let _ = write!(text, "\nNothing was done. To do it: agent recover --yes");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    #[test]
    fn says_who_is_lost_and_what_to_do() {
        let mut status = sample::status();
        status.consensus.role = "voter".into();
        assert!(explain(&status).starts_with("nothing to recover: the cluster has a quorum"));
        status.consensus.role = "follower".into();
        let heard = explain(&status);
        assert!(heard.starts_with("nothing to recover, by what this node has heard"), "{heard}");
        assert!(heard.contains("n1, n2, n3"), "{heard}");
        status.consensus.quorum = false;
        for voter in status.consensus.voters.iter_mut().skip(1) {
            voter.alive = false;
        }
        let text = explain(&status);
        for part in ["unreachable: n2, n3", "reachable:   n1", "STATE_DIR", "--yes", "position 42"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
