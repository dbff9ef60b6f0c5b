//! Whether the proxy keeps up, and what it tells those who ask.
//!
//! Owns: the meaning of kube-proxy's `/healthz`, `/livez` and of health check node ports: who is healthy when, and the
//! bodies of the answers. Serving them over HTTP is somebody else's.
//! Never: reads a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::objects::{Family, rfc3339};
use crate::proxy::HealthCheck;

/// An update may wait this long before the proxy counts as stuck; kube-proxy's twice `syncPeriod`.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(60);

/// When updates came and when they were programmed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    started: SystemTime,
    /// The oldest update that is not programmed yet.
    queued: Option<SystemTime>,
    updated: Option<SystemTime>,
    families: Vec<Family>,
    node_eligible: bool,
}

/// An answer over HTTP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// 200 or 503.
    pub status: u16,
    /// Headers beside `Content-Type: application/json`.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: String,
}

impl Health {
    /// Nothing was asked for and nothing done yet.
    pub fn new(families: &[Family], now: SystemTime) -> Self {
        Self { started: now, queued: None, updated: None, families: families.to_vec(), node_eligible: true }
    }

    /// An event came that has to be programmed.
    pub fn queued(&mut self, now: SystemTime) {
        self.queued.get_or_insert(now);
    }

    /// A sync succeeded.
    pub const fn updated(&mut self, now: SystemTime) {
        self.queued = None;
        self.updated = Some(now);
    }

    /// Whether load balancers may still send traffic here; see [`Node::eligible`](crate::objects::Node::eligible).
    pub const fn set_node_eligible(&mut self, eligible: bool) {
        self.node_eligible = eligible;
    }

    /// Healthy is who has programmed everything, or whose oldest update is not overdue.
    pub fn is_healthy(&self, now: SystemTime) -> bool {
        let waiting_since = match (self.queued, self.updated) {
            (Some(queued), _) => queued,
            (None, Some(_)) => return true,
            (None, None) => self.started,
        };
        now.duration_since(waiting_since).unwrap_or_default() < HEALTH_TIMEOUT
    }

    /// `/healthz`: also unhealthy while the node is being removed, so that load balancers turn away.
    pub fn healthz(&self, now: SystemTime) -> Answer {
        self.answer(now, self.is_healthy(now) && self.node_eligible, true)
    }

    /// `/livez`: unhealthy only when a restart could help.
    pub fn livez(&self, now: SystemTime) -> Answer {
        self.answer(now, self.is_healthy(now), false)
    }

    fn answer(&self, now: SystemTime, healthy: bool, with_node: bool) -> Answer {
        let family_name = |family: &Family| match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let updated = self.updated.unwrap_or(now);
        let last_updated = if healthy { now } else { updated };
        let status: serde_json::Map<String, serde_json::Value> = self
            .families
            .iter()
            .map(|family| {
                let one = json!({ "lastUpdated": time(updated), "healthy": self.is_healthy(now) });
                (family_name(family).to_owned(), one)
            })
            .collect();
        let mut body = json!({
            "lastUpdated": time(last_updated), "currentTime": time(now), "healthy": healthy, "status": status,
        });
        if with_node {
            body["nodeEligible"] = json!(self.node_eligible);
        }
        Answer { status: if healthy { 200 } else { 503 }, headers: nosniff(), body: body.to_string() }
    }
}

impl HealthCheck {
    /// What a load balancer is told: to send traffic here only if there are endpoints and the proxy keeps up.
    pub fn answer(&self, proxy_healthy: bool) -> Answer {
        let (namespace, name) = self.service.as_str().split_once('/').unwrap_or_default();
        let body = json!({
            "service": { "namespace": namespace, "name": name },
            "localEndpoints": self.local_endpoints, "serviceProxyHealthy": proxy_healthy,
        });
        let mut headers = nosniff();
        headers.push(("X-Load-Balancing-Endpoint-Weight", self.local_endpoints.to_string()));
        let status = if proxy_healthy && self.local_endpoints > 0 { 200 } else { 503 };
        Answer { status, headers, body: body.to_string() }
    }
}

fn nosniff() -> Vec<(&'static str, String)> {
    vec![("X-Content-Type-Options", "nosniff".to_owned())]
}

fn time(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::ObjectName;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn an_update_that_waits_too_long_makes_unhealthy_until_it_is_done() {
        let mut health = Health::new(&Family::ALL, at(0));
        assert!(health.is_healthy(at(59)), "the first lists may take a while");
        assert!(!health.is_healthy(at(60)));
        health.updated(at(70));
        assert!(health.is_healthy(at(10_000)), "without updates nothing is overdue");
        health.queued(at(20_000));
        health.queued(at(20_050));
        assert!(health.is_healthy(at(20_059)));
        assert!(!health.is_healthy(at(20_060)), "the oldest update counts");
        assert_eq!((health.healthz(at(20_060)).status, health.livez(at(20_060)).status), (503, 503));
        health.updated(at(20_061));
        assert_eq!(health.healthz(at(30_000)).status, 200);
    }

    #[test]
    fn a_node_that_goes_is_not_ready_for_traffic_but_alive() {
        let mut health = Health::new(&[Family::V4], at(0));
        health.updated(at(1));
        health.set_node_eligible(false);
        assert_eq!((health.healthz(at(2)).status, health.livez(at(2)).status), (503, 200));
        let body: serde_json::Value = serde_json::from_str(&health.healthz(at(2)).body).unwrap();
        assert_eq!(body["nodeEligible"], false);
        assert_eq!(body["lastUpdated"], "1970-01-01T00:00:01Z");
        assert_eq!(body["status"]["IPv4"]["healthy"], true);
        assert_eq!(body["status"].get("IPv6"), None);
    }

    #[test]
    fn a_load_balancer_hears_of_local_endpoints() {
        let port = std::num::NonZeroU16::new(32000).unwrap();
        let check =
            |local_endpoints| HealthCheck { service: ObjectName::new("ns", "web"), port, local_endpoints };
        assert_eq!(check(2).answer(true).status, 200);
        assert_eq!((check(0).answer(true).status, check(2).answer(false).status), (503, 503));
        let answer = check(2).answer(true);
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(body["service"], json!({ "namespace": "ns", "name": "web" }));
        assert_eq!((&body["localEndpoints"], &body["serviceProxyHealthy"]), (&json!(2), &json!(true)));
        assert!(answer.headers.contains(&("X-Load-Balancing-Endpoint-Weight", "2".to_owned())));
    }
}
