//! Certificates for nodes: approves and signs requests for `kubernetes.io/kube-apiserver-client-kubelet` and
//! `kubernetes.io/kubelet-serving`, and deletes old requests.
//!
//! The first as kube-controller-manager does. The second has no approver there; here a node gets what names itself. A
//! request that may yet become right (its node's addresses are not reported) waits and is looked at again.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::auth::{self, Attributes, Decision, User};
use crate::object::{self, items, list_mut, map_mut, text, text_at};
use crate::pki::{CertificateRequest, Pki, Validity};
use crate::registry::{DeleteOptions, Registry, Target, WriteOptions};
use crate::resource::{Kind, SIGNING_REQUESTS};
use crate::server::{Approval, Signing};
use crate::status::ApiResult;
use crate::strategy::{Part, parse_signing_request};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";
/// How long requests are kept that were decided, and that were not (`csrcleaner`).
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// What signs, and how.
pub struct Signer {
    /// The CA.
    pub pki: Arc<Pki>,
    /// The settings.
    pub settings: Signing,
}

/// Why a request is not approved by itself.
#[derive(Debug, PartialEq, Eq)]
enum Objection {
    /// It is nothing that this approver knows; others may.
    Foreign(&'static str),
    /// Who asks may not have it.
    Forbidden,
    /// It names something that is not the node's, as far as is known now.
    Stranger(String),
}

impl Signer {
    /// Looks at one request: approves it, or signs it if it is approved.
    ///
    /// # Errors
    /// When the store fails.
    pub fn sync(&self, registry: &Registry, name: &str) -> ApiResult<()> {
        let Some(request) = registry.find(Kind::SigningRequest, "", name)? else { return Ok(()) };
        let has = |kind| items(&request["status"], "conditions").iter().any(|c| text(c, "type") == kind);
        if has("Denied") || has("Failed") || !text_at(&request, &["status", "certificate"]).is_empty() {
            return Ok(());
        }
        if has("Approved") { self.sign(registry, &request) } else { self.decide(registry, &request) }
    }

    /// Looks again at what a node asked for and did not get, since the node changed.
    ///
    /// # Errors
    /// When the store fails.
    pub fn node_changed(&self, registry: &Registry, node: &str) -> ApiResult<()> {
        let user = format!("system:node:{node}");
        for (_, bytes) in registry.store.list(Kind::SigningRequest, None, None, usize::MAX)?.items {
            let request = object::parse(&bytes);
            if text_at(&request, &["spec", "username"]) == user {
                self.sync(registry, object::name(&request))?;
            }
        }
        Ok(())
    }

    fn decide(&self, registry: &Registry, request: &Value) -> ApiResult<()> {
        let name = object::name(request);
        match self.settings.approval {
            Approval::Never => Ok(()),
            Approval::Deny => {
                let condition = ("Denied", "SettingDenies", "This server denies every request.");
                set_condition(registry, name, Part::Approval, condition)
            }
            Approval::Automatic => match examine(registry, request) {
                Ok(message) => {
                    let condition = ("Approved", "AutoApproved", message);
                    set_condition(registry, name, Part::Approval, condition)
                }
                Err(objection) => {
                    tracing::info!(name, ?objection, "signing request is not approved");
                    Ok(())
                }
            },
        }
    }

    fn sign(&self, registry: &Registry, request: &Value) -> ApiResult<()> {
        let (name, spec) = (object::name(request), &request["spec"]);
        let signed = inspect(spec).map_err(|why| format!("{why:?}")).and_then(|(asked, _)| {
            let usages: Vec<String> =
                items(spec, "usages").iter().filter_map(|u| u.as_str().map(str::to_owned)).collect();
            let asked_for = spec["expirationSeconds"].as_u64().map(std::time::Duration::from_secs);
            let length = asked_for.map_or(self.settings.duration, |d| d.min(self.settings.duration));
            let validity = Validity::starting(SystemTime::now(), length);
            self.pki.sign(&asked, &usages, validity).map_err(|e| e.to_string())
        });
        match signed {
            Ok(pem) => {
                tracing::info!(name, user = text(spec, "username"), "signed a certificate");
                change(registry, name, Part::Status, |new| {
                    map_mut(new, "status").insert("certificate".into(), STANDARD.encode(&pem).into());
                })
            }
            Err(_) if !matches!(text(spec, "signerName"), CLIENT | SERVING) => Ok(()),
            Err(why) => {
                let condition = ("Failed", "SignerValidationFailure", why.as_str());
                set_condition(registry, name, Part::Status, condition)
            }
        }
    }
}

/// Deletes requests that are old.
pub fn sweep(registry: &Registry) {
    let Ok(page) = registry.store.list(Kind::SigningRequest, None, None, usize::MAX) else { return };
    let now = Timestamp::now();
    for (_, bytes) in page.items {
        let request = object::parse(&bytes);
        if is_old(&request, now) {
            let gone =
                registry.delete(SIGNING_REQUESTS, "", object::name(&request), &DeleteOptions::default());
            if let Err(error) = gone {
                tracing::debug!(%error, "expire signing request");
            }
        }
    }
}

fn is_old(request: &Value, now: Timestamp) -> bool {
    let decided = items(&request["status"], "conditions")
        .iter()
        .filter_map(|c| object::parse_time(text(c, "lastUpdateTime")))
        .max();
    let made = object::parse_time(text_at(request, &["metadata", "creationTimestamp"]));
    match (decided, made) {
        (Some(at), _) => now.duration_since(at) > DECIDED,
        (None, made) => made.is_some_and(|at| now.duration_since(at) > PENDING),
    }
}

fn change(registry: &Registry, name: &str, part: Part, edit: impl FnOnce(&mut Value)) -> ApiResult<()> {
    let target = Target { api: SIGNING_REQUESTS, namespace: "", name, part };
    let done = registry.update(target, WriteOptions::default(), |now: &Value| {
        let mut new = now.clone();
        edit(&mut new);
        Ok(new)
    });
    done.map(|_| ())
}

fn set_condition(
    registry: &Registry,
    name: &str,
    part: Part,
    (kind, reason, message): (&str, &str, &str),
) -> ApiResult<()> {
    tracing::info!(name, kind, reason, "signing request");
    change(registry, name, part, |new| {
        map_mut(new, "status");
        let condition = json!({"type": kind, "status": "True", "reason": reason, "message": message});
        list_mut(&mut new["status"], "conditions").push(condition);
    })
}

/// Whether a request is approved by itself; why, as the condition's message says it.
fn examine(registry: &Registry, request: &Value) -> Result<&'static str, Objection> {
    let spec = &request["spec"];
    let (asked, node) = inspect(spec)?;
    let user = User {
        name: text(spec, "username").to_owned(),
        groups: items(spec, "groups").iter().filter_map(|g| g.as_str().map(str::to_owned)).collect(),
        ..User::default()
    };
    let itself = user.node() == Some(node.as_str());
    if text(spec, "signerName") == SERVING {
        if !itself {
            return Err(Objection::Forbidden);
        }
        let known = registry.find(Kind::Node, "", &node).ok().flatten().unwrap_or_default();
        own_names(&asked, &node, &known)?;
        return Ok("Approved: a node asks for the names and addresses that it reports.");
    }
    let may = |subresource: &str| {
        let attributes = Attributes {
            verb: "create".into(),
            group: "certificates.k8s.io".into(),
            resource: "certificatesigningrequests".into(),
            subresource: subresource.into(),
            ..Attributes::default()
        };
        auth::authorize(registry, &user, &attributes) == Decision::Allow
    };
    if itself && may("selfnodeclient") {
        return Ok("Auto approving self kubelet client certificate after SubjectAccessReview.");
    }
    if may("nodeclient") {
        return Ok("Auto approving kubelet client certificate after SubjectAccessReview.");
    }
    Err(Objection::Forbidden)
}

/// The request inside and the node it is for, if it is what one of the two signers signs.
fn inspect(spec: &Value) -> Result<(CertificateRequest, String), Objection> {
    let asked = parse_signing_request(spec).map_err(|_| Objection::Foreign("the request cannot be read"))?;
    let node = asked.common_name().strip_prefix("system:node:").unwrap_or_default().to_owned();
    if asked.organization() != "system:nodes" || node.is_empty() {
        return Err(Objection::Foreign("the subject is no node"));
    }
    if asked.names_others() || asked.wants_authority() {
        return Err(Objection::Foreign("it asks for more than a node's certificate"));
    }
    let named = asked.names().next().is_some() || asked.addresses().next().is_some();
    let (purpose, fits) = match text(spec, "signerName") {
        CLIENT => ("client auth", !named),
        SERVING => ("server auth", named),
        _ => return Err(Objection::Foreign("another signer signs it")),
    };
    if !fits {
        return Err(Objection::Foreign("a server has alternative names, and a client has none"));
    }
    let mut usages: Vec<&str> = items(spec, "usages").iter().filter_map(Value::as_str).collect();
    usages.retain(|u| *u != "key encipherment");
    usages.sort_unstable();
    let mut wanted = ["digital signature", purpose];
    wanted.sort_unstable();
    if usages != wanted {
        return Err(Objection::Foreign("its usages are not those of a node's certificate"));
    }
    Ok((asked, node))
}

/// Whether a serving certificate names only what the node is called, or says it is reached under.
fn own_names(asked: &CertificateRequest, name: &str, node: &Value) -> Result<(), Objection> {
    let reported: Vec<&str> =
        items(&node["status"], "addresses").iter().map(|a| text(a, "address")).collect();
    let foreign = asked.names().find(|n| *n != name && !reported.contains(n)).map(str::to_owned);
    let known: Vec<IpAddr> = reported.iter().filter_map(|a| a.parse().ok()).collect();
    let foreign = foreign.or_else(|| asked.addresses().find(|a| !known.contains(a)).map(|a| a.to_string()));
    foreign.map_or(Ok(()), |f| Err(Objection::Stranger(f)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(common_name: &str, names: &[&str]) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap())
    }

    fn spec(signer: &str, purpose: &str, names: &[&str]) -> Value {
        json!({"signerName": signer, "usages": ["key encipherment", purpose, "digital signature"],
            "request": asked("system:node:n1", names)})
    }

    #[test]
    fn only_certificates_of_nodes_are_signed() {
        assert_eq!(inspect(&spec(CLIENT, "client auth", &[])).unwrap().1, "n1");
        assert_eq!(inspect(&spec(SERVING, "server auth", &["n1", "10.0.0.1"])).unwrap().1, "n1");
        for wrong in [
            spec(CLIENT, "server auth", &[]),
            spec(CLIENT, "client auth", &["n1"]),
            spec(SERVING, "server auth", &[]),
            spec(SERVING, "client auth", &["n1"]),
            spec("kubernetes.io/legacy-unknown", "client auth", &[]),
        ] {
            assert!(matches!(inspect(&wrong), Err(Objection::Foreign(_))), "{wrong}");
        }
        let mut stranger = spec(CLIENT, "client auth", &[]);
        stranger["request"] = asked("jane", &[]).into();
        assert!(inspect(&stranger).is_err());
    }

    #[test]
    fn a_node_serves_under_what_it_reports() {
        let node = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "InternalIP", "address": "fd00::1"}, {"type": "Hostname", "address": "host"}]}});
        let verdict = |names: &[&str]| {
            let (asked, name) = inspect(&spec(SERVING, "server auth", names)).unwrap();
            own_names(&asked, &name, &node)
        };
        assert_eq!(verdict(&["n1", "host", "10.0.0.1", "fd00:0::1"]), Ok(()));
        assert_eq!(verdict(&["n1", "10.0.0.2"]), Err(Objection::Stranger("10.0.0.2".into())));
        assert_eq!(verdict(&["kubernetes.default"]), Err(Objection::Stranger("kubernetes.default".into())));
    }

    #[test]
    fn decided_requests_are_kept_an_hour_and_others_a_day() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let request = |made: &str, decided: &str| {
            let conditions = if decided.is_empty() {
                json!([])
            } else {
                json!([{"type": "Approved", "lastUpdateTime": decided}])
            };
            json!({"metadata": {"creationTimestamp": made}, "status": {"conditions": conditions}})
        };
        for (made, decided, old) in [
            ("2026-01-01T22:00:00Z", "", false),
            ("2025-12-31T22:00:00Z", "", true),
            ("2026-01-01T22:00:00Z", "2026-01-01T23:30:00Z", false),
            ("2026-01-01T22:00:00Z", "2026-01-01T22:30:00Z", true),
        ] {
            assert_eq!(is_old(&request(made, decided), now), old, "{made} {decided}");
        }
    }
}
