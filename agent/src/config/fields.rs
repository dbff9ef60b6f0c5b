//! Every field of KubeletConfiguration v1beta1, as of Kubernetes 1.36, and what this node makes of it.
//!
//! Owns: the one table, from which come warnings, refusals, `orlop config` and its page of documentation. Never: holds the
//! values of a node (that is `document`), applies them (that is `Config`).
//!
//! The tests hold this table and the decoder (`kubelet`) together: what is called obeyed is decoded, and the defaults here
//! are those of `Config`.

use Class::{NotNeeded, Obeyed, Refused, Warned};

/// What this node makes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It does what it says.
    Obeyed,
    /// It steers a mechanism that this node does not have or need: nothing is lost, nothing is said.
    NotNeeded,
    /// It has no effect yet; one warning names it.
    Warned,
    /// Ignoring it would be unsafe: the node does not start.
    Refused,
}

impl Class {
    /// In the words of the documentation.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Obeyed => "obeyed",
            Class::NotNeeded => "not needed",
            Class::Warned => "warned about",
            Class::Refused => "refused",
        }
    }
}

/// A field.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name, or the names on the way to it, separated by dots.
    pub path: &'static str,
    /// What this node makes of it.
    pub class: Class,
    /// Its default as JSON; empty where it has none.
    pub default: &'static str,
    /// Whether 0 and "" are values of their own, and do not mean the default.
    pub zero_counts: bool,
    /// What it does, or why not.
    pub says: &'static str,
}

/// Zero means "not set".
const fn f(class: Class, path: &'static str, default: &'static str, says: &'static str) -> Field {
    Field { path, class, default, zero_counts: false, says }
}

/// Zero is a value.
const fn z(class: Class, path: &'static str, default: &'static str, says: &'static str) -> Field {
    Field { path, class, default, zero_counts: true, says }
}

/// The field of this path.
pub fn of(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

/// Whether a path leads to fields further in.
pub fn is_parent(path: &str) -> bool {
    FIELDS.iter().any(|field| field.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// All of them, by name.
#[rustfmt::skip]
pub const FIELDS: &[Field] = &[
    f(Obeyed, "address", r#""0.0.0.0""#, "Address of the node's server."),
    f(Obeyed, "allowedUnsafeSysctls", "", "Sysctls, and prefixes with * at the end, that pods may set beside the safe ones; only those of a namespace of the pod."),
    f(Obeyed, "authentication.anonymous.enabled", "false", "Requests without credentials are those of system:anonymous."),
    f(Obeyed, "authentication.webhook.cacheTTL", r#""2m""#, "How long the API server's word on a bearer token is believed."),
    f(Obeyed, "authentication.webhook.enabled", "true", "Bearer tokens are asked about at the API server."),
    f(Obeyed, "authentication.x509.clientCAFile", "", "Whose client certificates are believed; if not set, those of the CA in the kubeconfig."),
    f(Obeyed, "authorization.mode", r#""Webhook""#, "Webhook asks the API server; AlwaysAllow lets whoever is authenticated do everything."),
    f(Obeyed, "authorization.webhook.cacheAuthorizedTTL", r#""5m""#, "How long a yes is believed."),
    f(Obeyed, "authorization.webhook.cacheUnauthorizedTTL", r#""30s""#, "How long a no is believed."),
    f(Obeyed, "cgroupDriver", "", "systemd puts pods below orlop-pods.service in kubepods.slice, where that unit runs; cgroupfs below kubepods at the root. If not set, systemd where the unit runs. Drain the node before changing it."),
    f(Obeyed, "cgroupRoot", "", "Pods go below kubepods in this cgroup, whatever the driver."),
    f(Obeyed, "cgroupsPerQOS", "true", "Groups for each class of service; false is refused."),
    f(Obeyed, "clusterDNS", "", "Name servers for pods."),
    f(Obeyed, "clusterDomain", "", "Search domain for pods."),
    f(NotNeeded, "configMapAndSecretChangeDetectionStrategy", r#""Watch""#, "Objects of volumes are read as pods need them."),
    z(Obeyed, "containerLogMaxFiles", "5", "Log files kept of a container, the current one included."),
    f(Obeyed, "containerLogMaxSize", r#""10Mi""#, "Size at which a log file is rotated."),
    z(NotNeeded, "containerLogMaxWorkers", "1", "Each pod's supervisor rotates its own logs while it writes them."),
    z(NotNeeded, "containerLogMonitorInterval", r#""10s""#, "As above: nothing looks at logs in intervals."),
    f(NotNeeded, "containerRuntimeEndpoint", "", "This node is its own container runtime."),
    f(NotNeeded, "contentType", r#""application/json""#, "The API server is spoken to in JSON."),
    z(Warned, "cpuCFSQuota", "true", "CPU limits are always enforced."),
    z(Warned, "cpuCFSQuotaPeriod", r#""100ms""#, "The period is always 100 ms."),
    f(Warned, "cpuManagerPolicy", r#""none""#, "No container gets CPUs for itself."),
    f(Warned, "cpuManagerPolicyOptions", "", "As cpuManagerPolicy."),
    f(NotNeeded, "cpuManagerReconcilePeriod", r#""10s""#, "As cpuManagerPolicy."),
    z(Obeyed, "crashLoopBackOff.maxContainerRestartPeriod", r#""5m""#, "Longest delay before a container is restarted; 1s to 300s."),
    f(NotNeeded, "enableContentionProfiling", "false", "Profiles of a Go program."),
    z(NotNeeded, "enableControllerAttachDetach", "true", "No volume is attached by this node."),
    z(NotNeeded, "enableDebugFlagsHandler", "true", "Not served."),
    z(Refused, "enableDebuggingHandlers", "true", "false: logs on the node's port cannot be switched off; close them by authorization, or the whole server by enableServer."),
    z(NotNeeded, "enableProfilingHandler", "true", "Not served."),
    z(Obeyed, "enableServer", "true", "Whether there is a server on the node's port."),
    z(NotNeeded, "enableSystemLogHandler", "true", "Not served."),
    z(Warned, "enableSystemLogQuery", "false", "Not served; read the journal on the node."),
    f(Warned, "enforceNodeAllocatable", r#"["pods"]"#, "Pods are taken by their requests; no limit on all of them together is set. systemctl set-property kubepods.slice MemoryMax=... sets one."),
    z(NotNeeded, "eventBurst", "100", "Events are merged and limited as in kubelet's defaults."),
    z(NotNeeded, "eventRecordQPS", "50", "As eventBurst."),
    f(Warned, "evictionHard", r#"{"imagefs.available":"15%","imagefs.inodesFree":"5%","memory.available":"100Mi","nodefs.available":"10%","nodefs.inodesFree":"5%"}"#, "Counts against what the node offers; no pod is evicted yet."),
    f(Warned, "evictionMaxPodGracePeriod", "0", "No pod is evicted yet."),
    f(Warned, "evictionMinimumReclaim", "", "No pod is evicted yet."),
    f(NotNeeded, "evictionPressureTransitionPeriod", r#""5m""#, "No pod is evicted yet, which is said where a threshold is set."),
    f(Warned, "evictionSoft", "", "No pod is evicted yet."),
    f(Warned, "evictionSoftGracePeriod", "", "No pod is evicted yet."),
    z(Obeyed, "failCgroupV1", "false", "true: do not start where only cgroup version 1 is mounted. This node runs on either version."),
    z(Obeyed, "failSwapOn", "", "true: do not start while swap is on. If not set, swap is warned about."),
    f(Warned, "featureGates", "", "Gates are those of kubelet's code; what this node has is on."),
    f(NotNeeded, "fileCheckFrequency", r#""20s""#, "Files are watched, not looked at in intervals."),
    f(NotNeeded, "hairpinMode", r#""hairpin-veth""#, "A pod reaches itself through its service."),
    f(Obeyed, "healthzBindAddress", r#""127.0.0.1""#, "Address of /healthz in plain HTTP."),
    z(Obeyed, "healthzPort", "10248", "Its port; 0 for none."),
    f(NotNeeded, "httpCheckFrequency", r#""20s""#, "As staticPodURL."),
    z(Obeyed, "imageGCHighThresholdPercent", "85", "Share of the disk from which on unused images are removed."),
    z(Obeyed, "imageGCLowThresholdPercent", "80", "Share down to which they are."),
    f(Obeyed, "imageMaximumGCAge", r#""0s""#, "Unused images older than this are removed; 0 for never."),
    f(Obeyed, "imageMinimumGCAge", r#""2m""#, "Younger images stay."),
    f(Refused, "imagePullCredentialsVerificationPolicy", r#""NeverVerify""#, "Whoever may run pods here may use the images that are here; other policies are not kept, so the node does not promise them."),
    f(NotNeeded, "imageServiceEndpoint", "", "This node is its own image service."),
    z(NotNeeded, "iptablesDropBit", "15", "No iptables rule is made."),
    z(NotNeeded, "iptablesMasqueradeBit", "14", "No iptables rule is made."),
    f(NotNeeded, "kernelMemcgNotification", "false", "As evictionHard."),
    f(NotNeeded, "kubeAPIBurst", "100", "What is sent is merged, not slowed down."),
    z(NotNeeded, "kubeAPIQPS", "50", "As kubeAPIBurst."),
    f(NotNeeded, "kubeletCgroups", "", "systemd places the daemon."),
    f(Obeyed, "kubeReserved", "", "Kept from pods, by resource."),
    f(Warned, "kubeReservedCgroup", "", "No limit is set on the daemon's own cgroup; the unit file can."),
    z(Warned, "localStorageCapacityIsolation", "true", "Limits on local storage are not enforced yet."),
    f(NotNeeded, "logging.flushFrequency", r#""5s""#, "Log lines are written at once."),
    f(Warned, "logging.format", r#""text""#, "The journal gets fields, everybody else text."),
    f(NotNeeded, "logging.options", "", "Buffers of kubelet's log formats."),
    f(Obeyed, "logging.verbosity", "0", "As --v, which wins."),
    f(Warned, "logging.vmodule", "", "Verbosity is one for all."),
    f(NotNeeded, "makeIPTablesUtilChains", "true", "No iptables rule is made."),
    f(NotNeeded, "maxOpenFiles", "1000000", "LimitNOFILE of the unit says it."),
    z(Warned, "maxParallelImagePulls", "", "Different images are pulled side by side, the same one once."),
    f(Obeyed, "maxPods", "110", "Pods this node takes."),
    f(Warned, "memoryManagerPolicy", r#""None""#, "No container gets memory nodes for itself."),
    f(Warned, "memoryReservationPolicy", r#""None""#, "No memory is locked for pods."),
    f(Warned, "memorySwap.swapBehavior", r#""NoSwap""#, "Pods get no share of the swap of their own."),
    z(NotNeeded, "memoryThrottlingFactor", "0.9", "Of the gate MemoryQoS, which this node does not have."),
    z(Obeyed, "mergeDefaultEvictionSettings", "false", "Thresholds that evictionHard leaves out keep their defaults."),
    f(Obeyed, "nodeLeaseDurationSeconds", "40", "How long a Lease holds; it is renewed four times as often."),
    z(Obeyed, "nodeStatusMaxImages", "50", "Images that the status lists; -1 for all."),
    f(Obeyed, "nodeStatusReportFrequency", r#""5m""#, "The status is posted when it changes, and at least so often."),
    f(NotNeeded, "nodeStatusUpdateFrequency", r#""10s""#, "Changes are noticed when they happen."),
    z(NotNeeded, "oomScoreAdj", "-999", "OOMScoreAdjust of the unit says it."),
    f(Obeyed, "podCIDR", "", "Addresses for pods where the API server gives none; one network of each family."),
    f(Obeyed, "podLogsDir", r#""/var/log/pods""#, "Where containers' output goes."),
    z(Obeyed, "podPidsLimit", "-1", "Processes a pod may have; -1 for no limit."),
    f(Obeyed, "podsPerCore", "0", "Pods for each core, if that is fewer than maxPods; 0 for no such limit."),
    f(Obeyed, "port", "10250", "Port of the node's server."),
    f(Warned, "preloadedImagesVerificationAllowlist", "", "As imagePullCredentialsVerificationPolicy."),
    f(Obeyed, "protectKernelDefaults", "false", "true: do not start where the kernel's settings differ from those in the package's sysctl file. They are never changed by the daemon."),
    f(Obeyed, "providerID", "", "spec.providerID to register with; --provider-id wins."),
    f(Warned, "qosReserved", "", "Nothing is kept for the Guaranteed class."),
    f(Obeyed, "readOnlyPort", "0", "Port without authentication; 0 for none."),
    z(Obeyed, "registerNode", "true", "Whether to create the Node."),
    f(Obeyed, "registerWithTaints", "", "Taints to create it with; --register-with-taints wins."),
    f(NotNeeded, "registryBurst", "10", "Pulls are not limited by rate."),
    z(NotNeeded, "registryPullQPS", "5", "Pulls are not limited by rate."),
    f(Warned, "reservedMemory", "", "As memoryManagerPolicy."),
    f(Warned, "reservedSystemCPUs", "", "No CPU is kept from pods; systemReserved counts."),
    z(Obeyed, "resolvConf", r#""/etc/resolv.conf""#, "The node's resolver file, for pods that use it; empty for none."),
    z(Obeyed, "rotateCertificates", "true", "Whether the client certificate is renewed before it ends; the default differs from kubelet's false."),
    f(Refused, "runOnce", "false", "A node does not end by itself."),
    f(Obeyed, "runtimeRequestTimeout", r#""2m""#, "A CNI plugin that takes longer is killed."),
    z(Obeyed, "seccompDefault", "false", "RuntimeDefault for pods that name no seccomp profile."),
    z(Warned, "serializeImagePulls", "false", "Different images are pulled side by side, the same one once."),
    f(Obeyed, "serverTLSBootstrap", "false", "The serving certificate is asked of the cluster, and self-signed until it is signed; tlsCertFile comes first."),
    f(NotNeeded, "showHiddenMetricsForVersion", "", "There are no hidden metrics."),
    f(Warned, "shutdownGracePeriod", r#""0s""#, "At shutdown orlop-pods.service gives containers 20 s."),
    f(Warned, "shutdownGracePeriodByPodPriority", "", "As shutdownGracePeriod."),
    f(Warned, "shutdownGracePeriodCriticalPods", r#""0s""#, "As shutdownGracePeriod."),
    z(Warned, "singleProcessOOMKill", "", "The kernel kills single processes."),
    f(Warned, "staticPodPath", "", "Static pods are not run yet."),
    f(Warned, "staticPodURL", "", "Static pods are not run yet."),
    f(Warned, "staticPodURLHeader", "", "As staticPodURL."),
    f(NotNeeded, "streamingConnectionIdleTimeout", r#""4h""#, "Has no effect in kubelet either."),
    f(NotNeeded, "syncFrequency", r#""1m""#, "Pods are looked at when something happens."),
    f(Warned, "systemCgroups", "", "systemd places the system's processes."),
    f(Obeyed, "systemReserved", "", "Kept from pods, by resource."),
    f(Warned, "systemReservedCgroup", "", "No limit is set on the system's cgroup."),
    f(Obeyed, "tlsCertFile", "", "Serving certificate; together with tlsPrivateKeyFile."),
    f(Obeyed, "tlsCipherSuites", "", "Refused unless the list has every TLS 1.2 suite this node offers: the six of ECDHE with AES-GCM or ChaCha20."),
    f(Refused, "tlsCurvePreferences", "", "The key exchanges offered cannot be chosen."),
    f(Obeyed, "tlsMinVersion", r#""VersionTLS12""#, "1.2 is the least this node speaks; VersionTLS13 is refused."),
    f(Obeyed, "tlsPrivateKeyFile", "", "Its key."),
    f(Warned, "topologyManagerPolicy", r#""none""#, "Nothing is aligned to NUMA nodes."),
    f(Warned, "topologyManagerPolicyOptions", "", "As topologyManagerPolicy."),
    f(NotNeeded, "topologyManagerScope", r#""container""#, "As topologyManagerPolicy."),
    f(Warned, "tracing", "", "No traces are sent."),
    z(Warned, "userNamespaces.idsPerPod", "65536", "Pods have no user namespaces yet."),
    f(NotNeeded, "volumePluginDir", "", "No Flexvolume plugin is called."),
    f(NotNeeded, "volumeStatsAggPeriod", r#""1m""#, "The use of volumes is not summed up in intervals."),
];
