//! Metrics with kube-proxy's names and meanings.
//!
//! Owns: the counters, gauges and histograms of the subsystem `kubeproxy`. Who runs the proxy records what a sync did
//! and how long it took.
//! Never: reads a clock; serves anything.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::explain::Status;
use crate::objects::Family;
use crate::proxy::{Changes, Error, SyncReport};

/// Label of what exists once for each family.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByFamily {
    ip_family: &'static str,
}

/// Label of frontends without local endpoints.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByPolicy {
    traffic_policy: &'static str,
    ip_family: &'static str,
}

/// Label of answers to health checks.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByCode {
    code: u16,
}

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;
type Times = Labelled<ByFamily, Histogram, fn() -> Histogram>;

/// The metrics.
#[derive(Clone)]
pub struct Metrics {
    families: Vec<Family>,
    sync: Times,
    sync_full: Times,
    sync_partial: Times,
    programming: Times,
    last_sync: Labelled<ByFamily, Seconds>,
    last_queued: Labelled<ByFamily, Seconds>,
    sync_failures: Labelled<ByFamily, Counter>,
    cleanup_failures: Labelled<ByFamily, Counter>,
    no_local_endpoints: Labelled<ByPolicy, Gauge>,
    endpoint_changes: Labelled<ByFamily, Counter>,
    endpoint_changes_pending: Labelled<ByFamily, Gauge>,
    service_changes: Labelled<ByFamily, Counter>,
    service_changes_pending: Labelled<ByFamily, Gauge>,
    healthz: Labelled<ByCode, Counter>,
    livez: Labelled<ByCode, Counter>,
    conntrack_deleted: Labelled<ByFamily, Counter>,
    conntrack_time: Times,
    problems: Gauge,
    quarantined: Gauge,
}

/// From 50 microseconds to about 25 seconds: a change takes tens of microseconds here, where kube-proxy's buckets begin
/// at a millisecond.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 20))
}

/// kube-proxy's buckets for `network_programming_duration_seconds` reach five minutes.
fn programming_times() -> Histogram {
    Histogram::new([0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0])
}

const fn of(family: Family) -> ByFamily {
    ByFamily { ip_family: name(family) }
}

const fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn set_to(counter: &Counter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Metrics {
    /// Makes them and registers them with the prefix `kubeproxy_`.
    pub fn register(registry: &mut Registry, families: &[Family]) -> Self {
        let timed = || Times::new_with_constructor(times);
        let metrics = Self {
            families: families.to_vec(),
            sync: timed(),
            sync_full: timed(),
            sync_partial: timed(),
            programming: Times::new_with_constructor(programming_times),
            last_sync: Labelled::default(),
            last_queued: Labelled::default(),
            sync_failures: Labelled::default(),
            cleanup_failures: Labelled::default(),
            no_local_endpoints: Labelled::default(),
            endpoint_changes: Labelled::default(),
            endpoint_changes_pending: Labelled::default(),
            service_changes: Labelled::default(),
            service_changes_pending: Labelled::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
            conntrack_deleted: Labelled::default(),
            conntrack_time: timed(),
            problems: Gauge::default(),
            quarantined: Gauge::default(),
        };
        metrics.register_all(registry.sub_registry_with_prefix("kubeproxy"));
        metrics
    }

    fn register_all(&self, to: &mut Registry) {
        to.register("sync_proxy_rules_duration_seconds", "Latency of a sync", self.sync.clone());
        to.register(
            "sync_full_proxy_rules_duration_seconds",
            "Latency of a full sync",
            self.sync_full.clone(),
        );
        to.register(
            "sync_partial_proxy_rules_duration_seconds",
            "Latency of an update",
            self.sync_partial.clone(),
        );
        to.register(
            "network_programming_duration_seconds",
            "From the change of an endpoint to its rules",
            self.programming.clone(),
        );
        to.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When rules were last synced",
            self.last_sync.clone(),
        );
        to.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a sync was last asked for",
            self.last_queued.clone(),
        );
        // The registry appends `_total` to counters.
        to.register(
            "sync_proxy_rules_nftables_sync_failures",
            "Syncs that were refused",
            self.sync_failures.clone(),
        );
        to.register(
            "sync_proxy_rules_nftables_cleanup_failures",
            "Clean-ups that were refused",
            self.cleanup_failures.clone(),
        );
        to.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Frontends for which only local endpoints count, and there are none",
            self.no_local_endpoints.clone(),
        );
        to.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of endpoints",
            self.endpoint_changes.clone(),
        );
        to.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of endpoints not yet programmed",
            self.endpoint_changes_pending.clone(),
        );
        to.register("sync_proxy_rules_service_changes", "Changes of services", self.service_changes.clone());
        to.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of services not yet programmed",
            self.service_changes_pending.clone(),
        );
        to.register("proxy_healthz", "Answers to /healthz", self.healthz.clone());
        to.register("proxy_livez", "Answers to /livez", self.livez.clone());
        to.register(
            "conntrack_reconciler_deleted_entries",
            "Stale connection tracking entries removed",
            self.conntrack_deleted.clone(),
        );
        to.register(
            "conntrack_reconciler_sync_duration_seconds",
            "Latency of a sync that looked at connection tracking",
            self.conntrack_time.clone(),
        );
        to.register("unusable_object_fields", "Parts of objects left out", self.problems.clone());
        to.register("quarantined_services", "Services the kernel refuses", self.quarantined.clone());
    }

    /// A sync was asked for.
    pub fn record_queued(&self, now: SystemTime) {
        for family in &self.families {
            self.last_queued.get_or_create(&of(*family)).set(seconds(now));
        }
    }

    /// A sync was done, or refused.
    pub fn record_sync(&self, outcome: &Result<SyncReport, Error>, took: Duration, now: SystemTime) {
        for family in &self.families {
            let label = of(*family);
            match outcome {
                Err(_) => {
                    self.sync_failures.get_or_create(&label).inc();
                }
                Ok(report) if report.waiting => {}
                Ok(report) => {
                    let full = report.replaced.contains(family) || report.adopted.contains(family);
                    let kind = if full { &self.sync_full } else { &self.sync_partial };
                    for histogram in [&self.sync, kind] {
                        histogram.get_or_create(&label).observe(took.as_secs_f64());
                    }
                    if report.flows_removed > 0 || full {
                        self.conntrack_time.get_or_create(&label).observe(took.as_secs_f64());
                    }
                    self.last_sync.get_or_create(&label).set(seconds(now));
                }
            }
        }
        let Ok(report) = outcome else { return };
        for (family, removed) in &report.flows_removed_by_family {
            self.conntrack_deleted.get_or_create(&of(*family)).inc_by(*removed as u64);
        }
        for (family, latency) in &report.latencies {
            self.programming.get_or_create(&of(*family)).observe(latency.as_secs_f64());
        }
    }

    /// Our tables could not be removed.
    pub fn record_cleanup_failure(&self) {
        for family in &self.families {
            self.cleanup_failures.get_or_create(&of(*family)).inc();
        }
    }

    /// How things stand; called when metrics are asked for.
    pub fn record_status(&self, status: &Status, changes: Changes) {
        for family in &self.families {
            let label = of(*family);
            set_to(&self.service_changes.get_or_create(&label), changes.services);
            set_to(&self.endpoint_changes.get_or_create(&label), changes.endpoints);
            self.service_changes_pending.get_or_create(&label).set(count(changes.services_pending));
            self.endpoint_changes_pending.get_or_create(&label).set(count(changes.endpoints_pending));
            for (traffic_policy, by_family) in
                [("internal", &status.without_local_internal), ("external", &status.without_local_external)]
            {
                let label = ByPolicy { traffic_policy, ip_family: name(*family) };
                let frontends = by_family.get(family).copied().unwrap_or_default();
                self.no_local_endpoints.get_or_create(&label).set(count(frontends));
            }
        }
        self.problems.set(i64::try_from(status.problems).unwrap_or(i64::MAX));
        self.quarantined.set(count(status.quarantined));
    }

    /// `/healthz` was answered.
    pub fn record_healthz(&self, code: u16) {
        self.healthz.get_or_create(&ByCode { code }).inc();
    }

    /// `/livez` was answered.
    pub fn record_livez(&self, code: u16) {
        self.livez.get_or_create(&ByCode { code }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_kube_proxys() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, &Family::ALL);
        let now = UNIX_EPOCH + Duration::from_secs(100);
        let report = SyncReport {
            flows_removed: 3,
            flows_removed_by_family: vec![(Family::V4, 3)],
            latencies: vec![(Family::V4, Duration::from_millis(20))],
            replaced: vec![Family::V4],
            ..SyncReport::default()
        };
        metrics.record_queued(now);
        metrics.record_sync(&Ok(report), Duration::from_millis(5), now);
        let status = Status { without_local_external: [(Family::V6, 4)].into(), ..Status::default() };
        let changes = Changes { services: 7, endpoints: 9, services_pending: 1, endpoints_pending: 2 };
        metrics.record_status(&status, changes);
        metrics.record_status(&status, changes);
        metrics.record_healthz(200);
        metrics.record_livez(503);
        metrics.record_cleanup_failure();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
            "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} 100.0",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 100.0",
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv6\"} 4",
            "kubeproxy_sync_proxy_rules_service_changes_total{ip_family=\"IPv4\"} 7",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total{ip_family=\"IPv4\"} 9",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family=\"IPv4\"} 2",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_livez_total{code=\"503\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 3",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
