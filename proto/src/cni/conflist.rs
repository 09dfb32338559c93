//! The configuration the agent installs for the container runtime.

use serde_json::json;

use crate::names;

/// What may differ between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflistOptions {
    /// Where the agent listens.
    pub agent_addr: String,
    /// Run directory, as the host sees it.
    pub run_dir: String,
    /// `HAIRPIN_MODE`, if the operator set it.
    pub hairpin: Option<bool>,
    /// True where another runtime on the node shares the network: GC then does nothing.
    pub disable_gc: bool,
}

impl Default for ConflistOptions {
    fn default() -> Self {
        Self {
            agent_addr: names::HTTP_ADDR.to_owned(),
            run_dir: names::RUN_DIR.to_owned(),
            hairpin: None,
            disable_gc: false,
        }
    }
}

/// Text of the conflist. `cniVersion` is what old libraries read, `cniVersions`
/// lets newer ones choose 1.1.0 and with it STATUS and GC.
pub fn conflist(options: &ConflistOptions) -> String {
    let mut plugin = json!({
        "type": "weft",
        "capabilities": { "portMappings": true, "bandwidth": true },
    });
    if options.agent_addr != names::HTTP_ADDR {
        plugin["agentAddr"] = json!(options.agent_addr);
    }
    if options.run_dir != names::RUN_DIR {
        plugin["runDir"] = json!(options.run_dir);
    }
    if let Some(hairpin) = options.hairpin {
        plugin["hairpinMode"] = json!(hairpin);
    }
    let mut list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "weft",
        "plugins": [plugin],
    });
    if options.disable_gc {
        list["disableGC"] = json!(true);
    }
    let mut text = format!("{list:#}");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::Conf;

    #[test]
    fn defaults_are_left_out() {
        let value: serde_json::Value =
            serde_json::from_str(&conflist(&ConflistOptions::default())).unwrap();
        assert_eq!(
            value,
            json!({
                "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "weft",
                "plugins": [{"type": "weft", "capabilities": {"portMappings": true, "bandwidth": true}}],
            })
        );
    }

    #[test]
    fn the_plugin_reads_it_back() {
        let options = ConflistOptions {
            agent_addr: "127.0.0.1:7784".into(),
            run_dir: "/run/other".into(),
            hairpin: Some(true),
            disable_gc: true,
        };
        let list: serde_json::Value = serde_json::from_str(&conflist(&options)).unwrap();
        // As a runtime does: the plugin's object with name and version put in.
        let mut plugin = list["plugins"][0].clone();
        plugin["name"] = list["name"].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        let conf = Conf::parse(plugin.to_string().as_bytes()).unwrap();
        assert_eq!(conf.agent_addr.as_deref(), Some("127.0.0.1:7784"));
        assert_eq!(conf.run_dir.as_deref(), Some("/run/other"));
        assert_eq!(conf.hairpin, Some(true));
    }
}
