//! What admission plugins do to a new pod: ServiceAccount, DefaultTolerationSeconds, Priority.

use serde_json::{Value, json};

use super::pod::is_mirror;
use crate::object::{self, at, default, items, items_mut, list_mut, text, text_at};
use crate::registry::Registry;
use crate::resource::{Kind, PODS};
use crate::status::{ApiError, ApiResult};
use crate::store::Tx;

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const PREFIX: &str = "kube-api-access-";

/// Runs the plugins.
///
/// # Errors
/// 403, when the service account is not there or the priority class is unknown.
pub fn admit(registry: &Registry, tx: &Tx<'_>, pod: &mut Value) -> ApiResult<()> {
    let _ = registry;
    priority(pod)?;
    tolerations(&mut pod["spec"]);
    if is_mirror(pod) {
        return Ok(());
    }
    service_account(tx, pod)
}

fn priority(pod: &mut Value) -> ApiResult<()> {
    let class = text_at(pod, &["spec", "priorityClassName"]).to_owned();
    let value = match class.as_str() {
        "" => 0,
        "system-cluster-critical" => 2_000_000_000,
        "system-node-critical" => 2_000_001_000,
        other => {
            let why = format!("no PriorityClass with name {other} was found");
            return Err(ApiError::forbidden(PODS, object::name(pod), &why));
        }
    };
    let spec = &mut pod["spec"];
    spec["priority"] = value.into();
    default(spec, "preemptionPolicy", "PreemptLowerPriority");
    Ok(())
}

fn tolerations(spec: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = items(spec, "tolerations").iter().any(|t| {
            let covers_key =
                text(t, "key") == key || text(t, "key").is_empty() && text(t, "operator") == "Exists";
            covers_key && matches!(text(t, "effect"), "" | "NoExecute")
        });
        if !tolerated {
            let toleration =
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            list_mut(spec, "tolerations").push(toleration);
        }
    }
}

fn service_account(tx: &Tx<'_>, pod: &mut Value) -> ApiResult<()> {
    let alias = text_at(pod, &["spec", "serviceAccount"]).to_owned();
    let spec = &mut pod["spec"];
    if !alias.is_empty() {
        default(spec, "serviceAccountName", alias);
    }
    default(spec, "serviceAccountName", "default");
    let account_name = text(spec, "serviceAccountName").to_owned();
    spec["serviceAccount"] = account_name.clone().into();
    let namespace = object::namespace(pod).to_owned();
    let Some(account) = tx.get(Kind::ServiceAccount, &namespace, &account_name)? else {
        let why = format!(
            "error looking up service account {namespace}/{account_name}: serviceaccount \"{account_name}\" not found"
        );
        return Err(ApiError::forbidden(PODS, object::name(pod), &why));
    };
    let account = object::parse(&account);
    let spec = &mut pod["spec"];
    let automount = spec["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(spec);
    }
    if items(spec, "imagePullSecrets").is_empty() && !items(&account, "imagePullSecrets").is_empty() {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    Ok(())
}

fn mount_token(spec: &mut Value) {
    let existing = items(spec, "volumes").iter().map(|v| text(v, "name")).find(|n| n.starts_with(PREFIX));
    let volume = existing.map_or_else(|| format!("{PREFIX}{}", object::name_suffix()), str::to_owned);
    let mut wanted = false;
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            if items(container, "volumeMounts").iter().any(|m| text(m, "mountPath") == TOKEN_PATH) {
                continue;
            }
            wanted = true;
            let mount = json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH});
            list_mut(container, "volumeMounts").push(mount);
        }
    }
    if wanted && !items(spec, "volumes").iter().any(|v| *at(v, &["name"]) == volume) {
        list_mut(spec, "volumes").push(token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_volume_is_mounted_into_every_container_that_has_none_there() {
        let mut spec = json!({"containers": [{"name": "a"},
            {"name": "b", "volumeMounts": [{"name": "mine", "mountPath": TOKEN_PATH}]}]});
        mount_token(&mut spec);
        let volume = spec["volumes"][0]["name"].as_str().unwrap();
        assert!(volume.starts_with(PREFIX) && volume.len() == PREFIX.len() + 5);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        let before = spec.clone();
        mount_token(&mut spec);
        assert_eq!(spec, before);
    }

    #[test]
    fn tolerations_are_added_where_none_covers_them() {
        let mut spec = json!({});
        tolerations(&mut spec);
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
        let mut all = json!({"tolerations": [{"operator": "Exists"}]});
        tolerations(&mut all);
        assert_eq!(all["tolerations"].as_array().unwrap().len(), 1);
    }
}
