//! The body of a status PATCH. Owns: how a status becomes a strategic merge patch. Never: sends.
//!
//! A strategic merge keeps what it does not mention, so everything this node owns is mentioned: a field that is
//! empty now is `null`, a list of addresses is replaced and not merged by address, and a condition's old reason does not
//! outlive its new status. Conditions of others are not mentioned and stay (they are merged by `type`).

use serde_json::{Map, Value, json};

use crate::pod::spec::Pod;
use crate::pod::status::{Condition, PodStatus};

/// Fields of `status` that are this node's alone and may become empty again.
const OURS: [&str; 7] = [
    "message",
    "reason",
    "podIP",
    "podIPs",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
];
/// Lists that the API would merge by `ip`.
const ADDRESSES: [&str; 2] = ["podIPs", "hostIPs"];

/// The patch that makes the API's status say what `status` says. The UID in it is a precondition.
///
/// A status carries the conditions of others as they were read. Those that stand so both in what was read and in what was
/// `sent` last are left out: written back, they could undo what their owners said meanwhile.
pub fn patch(pod: &Pod, status: &PodStatus, sent: Option<&PodStatus>) -> Result<Value, serde_json::Error> {
    let known = |c: &Condition| {
        pod.status.conditions.contains(c) && sent.is_none_or(|sent| sent.conditions.contains(c))
    };
    let news: Vec<&Condition> = status.conditions.iter().filter(|c| !known(c)).collect();
    let conditions = serde_json::to_value(news)?;
    let mut status = match serde_json::to_value(status)? {
        Value::Object(fields) => fields,
        other => return Ok(json!({ "metadata": { "uid": pod.uid() }, "status": other })),
    };
    for field in OURS {
        status.entry(field).or_insert(Value::Null);
    }
    for field in ADDRESSES {
        if let Some(Value::Array(list)) = status.get_mut(field) {
            list.insert(0, json!({ "$patch": "replace" }));
        }
    }
    status.insert("conditions".to_owned(), conditions);
    if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
        conditions.iter_mut().filter_map(Value::as_object_mut).for_each(clear_condition);
        if conditions.is_empty() {
            status.remove("conditions");
        }
    }
    Ok(json!({ "metadata": { "uid": pod.uid() }, "status": status }))
}

fn clear_condition(condition: &mut Map<String, Value>) {
    for field in ["reason", "message", "lastProbeTime"] {
        condition.entry(field).or_insert(Value::Null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::status::{ConditionStatus, IpEntry};

    #[test]
    fn what_is_empty_now_is_cleared_and_addresses_are_replaced() {
        let mut pod = Pod::default();
        pod.metadata.uid = "u1".into();
        let ip = "10.0.0.5".parse().expect("an address");
        let status = PodStatus {
            pod_ip: Some(ip),
            pod_ips: vec![IpEntry { ip }],
            conditions: vec![Condition {
                kind: "Ready".into(),
                status: ConditionStatus::True,
                ..Condition::default()
            }],
            ..PodStatus::default()
        };
        let wanted = json!({
            "metadata": {"uid": "u1"},
            "status": {
                "phase": "Pending",
                "podIP": "10.0.0.5",
                "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.5"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null, "lastProbeTime": null}],
                "message": null,
                "reason": null,
                "initContainerStatuses": null,
                "containerStatuses": null,
                "ephemeralContainerStatuses": null,
            }
        });
        assert_eq!(patch(&pod, &status, None).expect("JSON"), wanted);
    }

    #[test]
    fn conditions_of_others_are_not_written_back() {
        let condition = |kind: &str, status| Condition { kind: kind.into(), status, ..Condition::default() };
        let with = |conditions: Vec<Condition>| PodStatus { conditions, ..PodStatus::default() };
        let gate = condition("example.com/gate", ConditionStatus::True);
        let (ready, unready) =
            (condition("Ready", ConditionStatus::True), condition("Ready", ConditionStatus::False));
        let pod = Pod { status: with(vec![gate.clone(), ready.clone()]), ..Pod::default() };
        let kinds = |status: &PodStatus, sent: Option<&PodStatus>| -> Vec<String> {
            let patch = patch(&pod, status, sent).expect("JSON");
            let list = patch["status"]["conditions"].as_array().cloned().unwrap_or_default();
            list.iter().filter_map(|c| c["type"].as_str()).map(str::to_owned).collect()
        };
        let sent = with(vec![gate.clone(), unready.clone()]);
        let again = with(vec![gate.clone(), ready]);
        assert_eq!(kinds(&again, Some(&sent)), ["Ready"], "what was read is older than what was sent");
        assert_eq!(kinds(&again, None), Vec::<String>::new());
        assert_eq!(kinds(&with(vec![gate, unready]), None), ["Ready"]);
    }

    #[test]
    fn a_pod_that_lost_its_address_says_so() {
        let patch = patch(&Pod::default(), &PodStatus::default(), None).expect("JSON");
        assert_eq!((&patch["status"]["podIP"], &patch["status"]["podIPs"]), (&Value::Null, &Value::Null));
    }
}
