//! Requests and limits as cgroup values. Pure arithmetic, the same as kubelet's (`pkg/kubelet/cm/helpers_linux.go`).
//!
//! Owns: the conversions and the limits of a pod's cgroup. Never: writes a file.

use crate::pod::spec::QosClass;

/// The shortest quota that the kernel takes, in microseconds.
const MIN_QUOTA_US: i64 = 1000;
/// The default CFS period, in microseconds.
pub const PERIOD_US: u64 = 100_000;
/// The fewest shares that the kernel takes.
const MIN_SHARES: u64 = 2;

/// CPU shares (version 1, 2 to 262144) for a request in millicores.
pub fn cpu_shares(millicores: u64) -> u64 {
    (millicores * 1024 / 1000).clamp(MIN_SHARES, 262_144)
}

/// CFS quota in microseconds for each [`PERIOD_US`], for a limit in millicores. 0 means no limit.
pub fn cpu_quota(millicores: u64) -> i64 {
    if millicores == 0 {
        return 0;
    }
    let quota = millicores.saturating_mul(PERIOD_US) / 1000;
    i64::try_from(quota).unwrap_or(i64::MAX).max(MIN_QUOTA_US)
}

/// `cpu.weight` (version 2, 1 to 10000) for CPU shares, by the curve that maps 1024 shares to weight 100: the quadratic
/// in log2 that runc and crun agreed on (opencontainers/cgroups#20).
pub fn cpu_weight(shares: u64) -> u64 {
    if shares <= MIN_SHARES {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent)).ceil() as u64
}

/// kubelet's `oom_score_adj` of a container.
///
/// `memory_request` and `capacity` are in bytes. See `pkg/kubelet/qos/policy.go`.
pub fn oom_score_adj(qos: QosClass, node_critical: bool, memory_request: u64, capacity: u64) -> i32 {
    if node_critical {
        return -997;
    }
    match qos {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let share = u128::from(memory_request) * 1000 / u128::from(capacity.max(1));
            let score = 1000 - i32::try_from(share).unwrap_or(1000);
            score.clamp(3, 999)
        }
    }
}

/// The limits of a pod's cgroup. `None` leaves the kernel's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodLimits {
    /// Sum of the containers' CPU requests, in millicores.
    pub cpu_request: u64,
    /// Sum of the CPU limits, in millicores, if every container has one.
    pub cpu_limit: Option<u64>,
    /// Sum of the memory limits, in bytes, if every container has one.
    pub memory_limit: Option<u64>,
    /// `podPidsLimit`.
    pub pids: Option<u64>,
}

impl PodLimits {
    /// Files and values for version 2.
    pub fn v2(&self) -> Vec<(&'static str, String)> {
        let mut files = vec![("cpu.weight", cpu_weight(cpu_shares(self.cpu_request)).to_string())];
        if let Some(limit) = self.cpu_limit {
            files.push(("cpu.max", format!("{} {PERIOD_US}", cpu_quota(limit))));
        }
        if let Some(bytes) = self.memory_limit {
            files.push(("memory.max", bytes.to_string()));
        }
        if let Some(pids) = self.pids {
            files.push(("pids.max", pids.to_string()));
        }
        files
    }

    /// Controllers, files and values for version 1.
    pub fn v1(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut files = vec![("cpu", "cpu.shares", cpu_shares(self.cpu_request).to_string())];
        if let Some(limit) = self.cpu_limit {
            files.push(("cpu", "cpu.cfs_period_us", PERIOD_US.to_string()));
            files.push(("cpu", "cpu.cfs_quota_us", cpu_quota(limit).to_string()));
        }
        if let Some(bytes) = self.memory_limit {
            files.push(("memory", "memory.limit_in_bytes", bytes.to_string()));
        }
        if let Some(pids) = self.pids {
            files.push(("pids", "pids.max", pids.to_string()));
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_become_shares_and_weights() {
        for (millicores, shares, weight) in
            [(0, 2, 1), (1, 2, 1), (100, 102, 17), (1000, 1024, 100), (2000, 2048, 174)]
        {
            assert_eq!(cpu_shares(millicores), shares, "{millicores}m");
            assert_eq!(cpu_weight(shares), weight, "{shares} shares");
        }
        assert_eq!(cpu_weight(262_144), 10_000);
    }

    #[test]
    fn a_quota_is_never_below_what_the_kernel_takes() {
        assert_eq!(cpu_quota(0), 0);
        assert_eq!(cpu_quota(1), 1000);
        assert_eq!(cpu_quota(500), 50_000);
        assert_eq!(cpu_quota(2500), 250_000);
    }

    #[test]
    fn oom_scores_follow_the_class() {
        let gib = 1 << 30;
        assert_eq!(oom_score_adj(QosClass::Guaranteed, false, 0, gib), -997);
        assert_eq!(oom_score_adj(QosClass::BestEffort, false, 0, gib), 1000);
        assert_eq!(oom_score_adj(QosClass::BestEffort, true, 0, gib), -997);
        assert_eq!(oom_score_adj(QosClass::Burstable, false, gib / 2, gib), 500);
        assert_eq!(oom_score_adj(QosClass::Burstable, false, 0, gib), 999);
        assert_eq!(oom_score_adj(QosClass::Burstable, false, gib, gib), 3);
    }

    #[test]
    fn only_what_is_limited_is_written() {
        let limits = PodLimits { cpu_request: 100, memory_limit: Some(64 << 20), ..PodLimits::default() };
        assert_eq!(limits.v2(), [("cpu.weight", "17".into()), ("memory.max", "67108864".into())]);
    }
}
