//! Pods: what happens at create and what an update may change.

use serde_json::{Value, json};

use super::{meta, pod_admission, pod_defaults, pod_spec_checks};
use crate::object::{self, at, items, text};
use crate::quantity;
use crate::registry::Registry;
use crate::status::{ApiResult, Cause};
use crate::store::Tx;

/// Defaults, admission, status and checks of a new pod.
///
/// # Errors
/// 403, when its service account is not there or its priority class is unknown.
pub fn create(registry: &Registry, tx: &Tx<'_>, pod: &mut Value, causes: &mut Vec<Cause>) -> ApiResult<()> {
    object::map_mut(pod, "spec");
    pod_defaults::fill(&mut pod["spec"]);
    pod_admission::admit(registry, tx, pod)?;
    pod["metadata"]["generation"] = 1.into();
    pod["status"] = json!({"phase": "Pending", "qosClass": qos_class(&pod["spec"])});
    pod_spec_checks::check(pod, causes);
    Ok(())
}

/// An update of the spec: images, deadlines, more tolerations, and nothing else.
pub fn update(old: &Value, new: &mut Value, causes: &mut Vec<Cause>) {
    object::map_mut(new, "spec");
    pod_defaults::fill(&mut new["spec"]);
    if old["spec"] == new["spec"] {
        return;
    }
    pod_spec_checks::check(new, causes);
    let mut allowed = new["spec"].clone();
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> = items(&old["spec"], list).iter().map(|c| c["image"].clone()).collect();
        for (container, image) in object::items_mut(&mut allowed, list).iter_mut().zip(images) {
            container["image"] = image;
        }
    }
    allow(old, &mut allowed, "activeDeadlineSeconds", |_| true);
    allow(old, &mut allowed, "terminationGracePeriodSeconds", |before| {
        before.as_i64().is_some_and(|s| s < 0)
    });
    let added = items(&new["spec"], "tolerations");
    if items(&old["spec"], "tolerations").iter().all(|t| added.contains(t)) {
        allow(old, &mut allowed, "tolerations", |_| true);
    }
    if allowed == old["spec"] {
        object::bump_generation(new);
        return;
    }
    let detail = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
                  `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
                  `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    let changed = changed_fields(&old["spec"], &allowed).join(", ");
    causes.push(Cause::forbidden("spec", &format!("{detail}\n changed: {changed}")));
}

fn changed_fields(old: &Value, new: &Value) -> Vec<String> {
    let (Some(a), Some(b)) = (old.as_object(), new.as_object()) else { return Vec::new() };
    let mut names: Vec<&String> = a.keys().chain(b.keys()).filter(|k| a.get(*k) != b.get(*k)).collect();
    names.sort();
    names.dedup();
    names.into_iter().map(|n| format!("spec.{n}")).collect()
}

fn allow(old: &Value, allowed: &mut Value, key: &str, when: impl Fn(&Value) -> bool) {
    let before = at(old, &["spec", key]);
    if !when(before) {
        return;
    }
    if before.is_null() {
        object::remove(allowed, key);
    } else {
        allowed[key] = before.clone();
    }
}

/// A status update keeps what only the server decides.
pub fn update_status(old: &Value, new: &mut Value, causes: &mut Vec<Cause>) {
    check_transitions(old, new, causes);
    let status = object::map_mut(new, "status");
    if let Some(class) = old["status"].get("qosClass") {
        status.insert("qosClass".into(), class.clone());
    }
    if let Some(nominated) = old["status"].get("nominatedNodeName")
        && !status.contains_key("nominatedNodeName")
    {
        status.insert("nominatedNodeName".into(), nominated.clone());
    }
    match at(old, &["metadata", "ownerReferences"]) {
        Value::Null => object::metadata(new).remove("ownerReferences"),
        owners => object::metadata(new).insert("ownerReferences".into(), owners.clone()),
    };
}

/// A container that ended and is not to be restarted stays ended.
fn check_transitions(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let policy = text(&old["spec"], "restartPolicy");
    if policy == "Always" {
        return;
    }
    let sidecar = |name: &str| {
        items(&old["spec"], "initContainers")
            .iter()
            .any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
    };
    for (list, skip_sidecars) in [("containerStatuses", false), ("initContainerStatuses", true)] {
        for before in items(&old["status"], list) {
            let name = text(before, "name");
            let ended = at(before, &["state", "terminated"]);
            if ended.is_null()
                || policy == "OnFailure" && ended["exitCode"] != 0
                || skip_sidecars && sidecar(name)
            {
                continue;
            }
            let now = items(&new["status"], list).iter().position(|s| text(s, "name") == name);
            if let Some(i) =
                now.filter(|&i| at(&items(&new["status"], list)[i], &["state", "terminated"]).is_null())
            {
                let field = format!("status.{list}[{i}].state");
                causes.push(Cause::forbidden(field, "may not be transitioned to non-terminated state"));
            }
        }
    }
}

/// The quality of service class of a pod spec: Guaranteed, Burstable or BestEffort.
pub fn qos_class(spec: &Value) -> &'static str {
    let containers = items(spec, "containers").iter().chain(items(spec, "initContainers"));
    let (mut any, mut guaranteed) = (false, true);
    let mut judge = |resources: &Value| {
        for name in ["cpu", "memory"] {
            let value = |side: &str| quantity::parse(text(&resources[side], name)).filter(|q| *q > 0);
            let (request, limit) = (value("requests"), value("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    };
    if spec["resources"].is_object() {
        judge(&spec["resources"]);
    } else {
        for container in containers {
            judge(&container["resources"]);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Whether the pod was made by a node from a file.
pub fn is_mirror(pod: &Value) -> bool {
    meta::is_mirror(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(image: &str) -> Value {
        let mut pod = json!({"metadata": {"name": "a", "namespace": "default", "generation": 1},
            "spec": {"containers": [{"name": "a", "image": image}]}});
        pod_defaults::fill(&mut pod["spec"]);
        pod
    }

    #[test]
    fn an_update_may_change_images_and_little_else() {
        let mut causes = Vec::new();
        let mut new = pod("y:1");
        update(&pod("x:1"), &mut new, &mut causes);
        assert_eq!(causes, []);
        assert_eq!(new["metadata"]["generation"], 2);
        new = pod("x:1");
        new["spec"]["hostNetwork"] = true.into();
        update(&pod("x:1"), &mut new, &mut causes);
        assert!(
            causes[0]
                .message
                .starts_with("Forbidden: pod updates may not change fields other than `spec.containers")
        );
        assert!(causes[0].message.ends_with("changed: spec.hostNetwork"), "{}", causes[0].message);
    }

    #[test]
    fn a_container_that_ended_for_good_does_not_run_again() {
        let pod = |policy: &str, state: Value| json!({"spec": {"restartPolicy": policy}, "status": {"containerStatuses": [{"name": "a", "state": state}]}});
        let failed = json!({"terminated": {"exitCode": 1}});
        for (policy, fine) in [("Always", true), ("OnFailure", true), ("Never", false)] {
            let mut causes = Vec::new();
            let mut new = pod(policy, json!({"running": {}}));
            update_status(&pod(policy, failed.clone()), &mut new, &mut causes);
            assert_eq!(causes.is_empty(), fine, "{policy}");
        }
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let spec = |r: Value| json!({"containers": [{"name": "a", "resources": r}]});
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&spec(json!({}))), "BestEffort");
        assert_eq!(qos_class(&spec(json!({"requests": {"cpu": "1"}}))), "Burstable");
        assert_eq!(qos_class(&spec(json!({"requests": both, "limits": both}))), "Guaranteed");
        assert_eq!(qos_class(&spec(json!({"limits": {"cpu": "1"}}))), "Burstable");
    }
}
