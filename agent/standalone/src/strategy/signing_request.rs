//! Certificate signing requests: who asks is the server's word, the rest of the request never changes, and a decision
//! stays.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::is_dns_subdomain;
use crate::object::{self, items, list_mut, map_mut, text};
use crate::pki::CertificateRequest;
use crate::status::Cause;

/// Every usage that may be asked for.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// The shortest `expirationSeconds`.
const SHORTEST: i64 = 600;

/// Writes down who asks. What the client says about it does not count.
pub fn stamp(user: &Value, request: &mut Value) {
    let spec = map_mut(request, "spec");
    for key in ["username", "uid", "groups", "extra"] {
        match user.get(key) {
            Some(value) => spec.insert(key.into(), value.clone()),
            None => spec.remove(key),
        };
    }
}

/// A new request has no status.
pub fn create(request: &mut Value, causes: &mut Vec<Cause>) {
    object::remove(request, "status");
    map_mut(request, "status");
    let spec = map_mut(request, "spec");
    let spec = &Value::Object(spec.clone());
    if let Err(why) = parse(spec) {
        causes.push(Cause::invalid("spec.request", &text(spec, "request").into(), &why));
    }
    let usages = items(spec, "usages");
    if usages.is_empty() {
        causes.push(Cause::required("spec.usages", ""));
    }
    for (i, usage) in usages.iter().enumerate() {
        if !usage.as_str().is_some_and(|u| USAGES.contains(&u)) {
            causes.push(Cause::not_supported(format!("spec.usages[{i}]"), usage, &USAGES));
        } else if usages[..i].contains(usage) {
            causes.push(Cause::duplicate(format!("spec.usages[{i}]"), usage));
        }
    }
    signer_name(text(spec, "signerName"), causes);
    let seconds = &spec["expirationSeconds"];
    if seconds.as_i64().is_some_and(|s| s < SHORTEST) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        causes.push(Cause::invalid("spec.expirationSeconds", seconds, detail));
    }
}

/// The request inside.
///
/// # Errors
/// A sentence, when there is none that can be read.
pub fn parse(spec: &Value) -> Result<CertificateRequest, String> {
    let pem = STANDARD.decode(text(spec, "request").replace(['\n', '\r'], ""));
    CertificateRequest::parse(&pem.map_err(|e| e.to_string())?)
}

fn signer_name(name: &str, causes: &mut Vec<Cause>) {
    if name.is_empty() {
        causes.push(Cause::required("spec.signerName", ""));
        return;
    }
    let fine = name.split_once('/').is_some_and(|(domain, path)| {
        is_dns_subdomain(domain)
            && domain.contains('.')
            && !path.is_empty()
            && path.split('.').all(is_dns_subdomain)
    });
    if !fine {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        causes.push(Cause::invalid("spec.signerName", &name.into(), detail));
    }
}

/// Nothing of the request itself changes.
pub fn update(old: &Value, new: &mut Value) {
    new["spec"] = old["spec"].clone();
}

/// The signer's part: the certificate, once, and that it failed. The decision is not its.
pub fn update_status(old: &Value, new: &mut Value, causes: &mut Vec<Cause>) {
    map_mut(new, "status");
    for kind in ["Approved", "Denied"] {
        keep_condition(old, new, kind);
    }
    date_conditions(old, new);
    let (before, given) = (text(&old["status"], "certificate"), text(&new["status"], "certificate"));
    if !before.is_empty() && before != given {
        let detail = "updates may not change the certificate once it is set";
        causes.push(Cause::forbidden("status.certificate", detail));
    }
    check_conditions(new, causes);
}

/// The approver's part: the decision, once.
pub fn update_approval(old: &Value, new: &mut Value, causes: &mut Vec<Cause>) {
    let conditions = items(&new["status"], "conditions").to_vec();
    new["status"] = old["status"].clone();
    *list_mut(&mut new["status"], "conditions") = conditions;
    keep_condition(old, new, "Failed");
    for kind in ["Approved", "Denied"] {
        let has = |o: &Value| items(&o["status"], "conditions").iter().any(|c| text(c, "type") == kind);
        if has(old) && !has(new) {
            let detail = format!("updates may not remove a condition of type \"{kind}\"");
            causes.push(Cause::forbidden("status.conditions", &detail));
        }
    }
    date_conditions(old, new);
    check_conditions(new, causes);
}

fn keep_condition(old: &Value, new: &mut Value, kind: &str) {
    let before: Vec<Value> =
        items(&old["status"], "conditions").iter().filter(|c| text(c, "type") == kind).cloned().collect();
    let list = list_mut(&mut new["status"], "conditions");
    list.retain(|c| text(c, "type") != kind);
    list.extend(before);
    if list.is_empty() {
        object::remove(&mut new["status"], "conditions");
    }
}

fn date_conditions(old: &Value, new: &mut Value) {
    let now = object::now();
    let before = items(&old["status"], "conditions").to_vec();
    for condition in object::items_mut(&mut new["status"], "conditions") {
        if before.contains(condition) {
            continue;
        }
        object::default(condition, "status", "True");
        object::default(condition, "lastUpdateTime", now.as_str());
        object::default(condition, "lastTransitionTime", now.as_str());
    }
}

fn check_conditions(request: &Value, causes: &mut Vec<Cause>) {
    let conditions = items(&request["status"], "conditions");
    for (i, condition) in conditions.iter().enumerate() {
        if text(condition, "type").is_empty() {
            causes.push(Cause::required(format!("status.conditions[{i}].type"), ""));
        }
    }
    let has = |kind| conditions.iter().any(|c| text(c, "type") == kind);
    if has("Approved") && has("Denied") {
        let detail = "Approved and Denied conditions are mutually exclusive";
        causes.push(Cause::invalid("status.conditions", &"Approved, Denied".into(), detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request() -> Value {
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        json!({"metadata": {"name": "r"}, "spec": {"request": STANDARD.encode(pem), "usages": ["client auth"],
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet"}})
    }

    #[test]
    fn what_is_wrong_with_a_request_is_named() {
        let wrong = |path: &str, value: Value| {
            let mut r = request();
            r["spec"][path] = value;
            let mut causes = Vec::new();
            create(&mut r, &mut causes);
            causes.into_iter().map(|c| c.field).collect::<Vec<_>>()
        };
        assert_eq!(wrong("uid", Value::Null), Vec::<String>::new());
        assert_eq!(wrong("request", "anVuaw==".into()), ["spec.request"]);
        assert_eq!(wrong("usages", json!([])), ["spec.usages"]);
        assert_eq!(
            wrong("usages", json!(["client auth", "x", "client auth"])),
            ["spec.usages[1]", "spec.usages[2]"]
        );
        for name in ["", "kubelet", "k/x", "a.b/"] {
            assert_eq!(wrong("signerName", name.into()), ["spec.signerName"], "{name}");
        }
        assert_eq!(wrong("expirationSeconds", 599.into()), ["spec.expirationSeconds"]);
        assert_eq!(wrong("expirationSeconds", 600.into()), Vec::<String>::new());
    }

    #[test]
    fn who_asks_is_what_the_server_saw() {
        let mut r = json!({"spec": {"username": "admin", "groups": ["system:masters"], "uid": "1"}});
        stamp(&json!({"username": "u", "groups": ["g"]}), &mut r);
        assert_eq!(r["spec"], json!({"username": "u", "groups": ["g"]}));
    }

    #[test]
    fn a_decision_is_made_once_and_only_by_the_approval() {
        let pending = json!({"spec": {}, "status": {}});
        let mut sneaky =
            json!({"spec": {}, "status": {"conditions": [{"type": "Approved", "status": "True"}]}});
        let mut causes = Vec::new();
        update_status(&pending, &mut sneaky, &mut causes);
        assert_eq!((&sneaky["status"], causes.len()), (&json!({}), 0));

        let mut approved =
            json!({"spec": {}, "status": {"conditions": [{"type": "Approved"}], "certificate": "eA=="}});
        update_approval(&pending, &mut approved, &mut causes);
        assert_eq!(approved["status"]["conditions"][0]["status"], "True");
        assert!(approved["status"]["certificate"].is_null() && causes.is_empty());

        update_approval(&approved, &mut pending.clone(), &mut causes);
        assert_eq!(causes[0].field, "status.conditions");
        causes.clear();
        let mut both =
            json!({"spec": {}, "status": {"conditions": [{"type": "Approved"}, {"type": "Denied"}]}});
        update_approval(&approved, &mut both, &mut causes);
        assert_eq!(causes[0].reason, "FieldValueInvalid");
    }

    #[test]
    fn a_certificate_is_set_once() {
        let issued = json!({"spec": {}, "status": {"certificate": "eA=="}});
        let mut causes = Vec::new();
        update_status(&issued, &mut issued.clone(), &mut causes);
        assert!(causes.is_empty());
        update_status(&issued, &mut json!({"spec": {}, "status": {"certificate": "eQ=="}}), &mut causes);
        assert_eq!(causes[0].field, "status.certificate");
    }
}
