//! One plugin, one verb: what it is told and how it is reached.
//!
//! Owns: the configuration a plugin sees: its own, with the network's name and version, the capability arguments it
//! declares, and the previous result.

use serde_json::{Map, Value};

use crate::exec::{self, ExecError};
use crate::plugin::{KIND, Request, Verb, environment};
use crate::spec::{NetworkList, PluginConf};

use super::attachment::Attachment;
use super::{Runtime, RuntimeError};

/// A call to make.
pub(super) struct Call<'a> {
    pub(super) verb: Verb,
    pub(super) network: &'a NetworkList,
    pub(super) plugin: &'a PluginConf,
    pub(super) attachment: Option<&'a Attachment>,
    pub(super) previous: Option<Value>,
}

impl Call<'_> {
    /// The configuration as the plugin gets it.
    fn conf(&self) -> Value {
        let mut conf = self.plugin.raw.clone();
        conf.insert("name".to_owned(), self.network.name.clone().into());
        conf.insert("cniVersion".to_owned(), self.network.version.as_str().into());
        let arguments = self.attachment.map(|a| a.capabilities.arguments()).unwrap_or_default();
        let wanted = |name: &String| self.plugin.capabilities.get(name).copied().unwrap_or(false);
        let declared: Map<String, Value> = arguments.into_iter().filter(|(name, _)| wanted(name)).collect();
        if !declared.is_empty() {
            conf.insert("runtimeConfig".to_owned(), Value::Object(declared));
        }
        if let Some(previous) = &self.previous {
            conf.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(conf)
    }
}

impl Runtime {
    /// Calls a plugin; what it prints, or `Null`.
    pub(super) fn call(&self, call: &Call<'_>) -> Result<Value, RuntimeError> {
        let attachment = call.attachment;
        let netns = attachment.map(|a| a.netns.clone()).filter(|p| !p.as_os_str().is_empty());
        let request = Request {
            verb: call.verb,
            container: attachment.map(|a| a.container_id.clone()).unwrap_or_default(),
            netns,
            ifname: attachment.map(|a| a.ifname.clone()).unwrap_or_default(),
            args: attachment.map(|a| a.args.clone()).unwrap_or_default(),
            path: self.config.bin_dirs.clone(),
            conf: call.conf(),
        };
        let kind = &call.plugin.kind;
        let outcome = if kind == KIND {
            self.plugin.call(&request).map(Option::unwrap_or_default).map_err(ExecError::Said)
        } else {
            self.execute(kind, &request)
        };
        outcome.map_err(|source| RuntimeError::Plugin {
            plugin: kind.clone(),
            verb: call.verb.as_str(),
            source,
        })
    }

    fn execute(&self, kind: &str, request: &Request) -> Result<Value, ExecError> {
        let program = exec::find(kind, &self.config.bin_dirs)?;
        let input = serde_json::to_vec(&request.conf).expect("a JSON value always serializes");
        exec::run(&program, &environment(request, request.verb), &input, self.config.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Capabilities, PortMapping};
    use serde_json::json;

    #[test]
    fn a_plugin_gets_the_capabilities_it_declares_and_no_others() {
        let network = NetworkList::from_value(json!({
            "cniVersion": "1.0.0", "name": "n",
            "plugins": [{"type": "x", "own": 1, "capabilities": {"portMappings": true, "mac": false}}],
        }))
        .unwrap();
        let port = PortMapping { host_port: 80, container_port: 8080, protocol: "tcp".into(), host_ip: None };
        let capabilities = Capabilities {
            port_mappings: vec![port],
            mac: "02:00:00:00:00:01".into(),
            ..Capabilities::default()
        };
        let attachment = Attachment { capabilities, ..Attachment::default() };
        let call = Call {
            verb: Verb::Add,
            network: &network,
            plugin: &network.plugins[0],
            attachment: Some(&attachment),
            previous: Some(json!({"ips": []})),
        };
        let expected = json!({
            "type": "x", "own": 1, "capabilities": {"portMappings": true, "mac": false},
            "name": "n", "cniVersion": "1.0.0",
            "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]},
            "prevResult": {"ips": []},
        });
        assert_eq!(call.conf(), expected);
    }
}
