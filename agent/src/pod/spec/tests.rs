//! Decoding as an API server and a manifest spell pods.

use std::time::Duration;

use serde_json::json;

use super::*;

#[expect(clippy::needless_pass_by_value, reason = "callers write json!() in place")]
fn decode(spec: serde_json::Value) -> Pod {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", "managedFields": [{"manager": "kubectl"}]},
        "spec": spec,
    });
    Pod::from_value(object).unwrap()
}

fn unsupported(pod: &Pod) -> Vec<(&str, Effect)> {
    pod.unsupported.iter().map(|u| (u.path.as_str(), u.effect)).collect()
}

/// Most of what issue 2 supports, spelled as an API server spells it.
fn full_spec() -> serde_json::Value {
    json!({
        "nodeName": "n1", "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 5,
        "activeDeadlineSeconds": 60, "dnsPolicy": "None", "hostPID": true, "schedulerName": "default-scheduler",
        "dnsConfig": {"nameservers": ["10.0.0.10"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "5"}]},
        "hostAliases": [{"ip": "127.0.0.1", "hostnames": ["a", "b"]}],
        "securityContext": {"fsGroup": 7, "sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}],
            "seccompProfile": {"type": "RuntimeDefault"}, "supplementalGroups": [3, 4]},
        "initContainers": [{"name": "side", "image": "x:1", "restartPolicy": "Always"}],
        "containers": [{
            "name": "app", "image": "r.example/x", "command": ["sh"], "args": ["-c", "true"], "workingDir": "",
            "env": [
                {"name": "A", "value": "$(B)"},
                {"name": "C", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                {"name": "D", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                {"name": "E", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k", "optional": true}}},
                {"name": "F", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ],
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "100m"}},
            "ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": "", "protocol": "TCP"}],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a", "mountPropagation": "HostToContainer"}],
            "securityContext": {"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                "allowPrivilegeEscalation": false, "runAsUser": 1000},
            "lifecycle": {"stopSignal": "SIGUSR1"},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}],
            "imagePullPolicy": "Always",
        }],
        "volumes": [
            {"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "h", "hostPath": {"path": "/srv", "type": ""}},
            {"name": "token", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ]}},
            {"name": "s", "secret": {"secretName": "s", "defaultMode": 256}},
            {"name": "c", "configMap": {"name": "c"}},
            {"name": "d", "downwardAPI": {"items": []}},
        ],
    })
}

#[test]
fn a_whole_spec_of_supported_fields_reports_nothing_and_survives_a_snapshot() {
    let pod = decode(full_spec());
    assert_eq!(unsupported(&pod), []);
    let snapshot = serde_json::to_vec(&pod).unwrap();
    assert_eq!(serde_json::from_slice::<Pod>(&snapshot).unwrap(), pod);
    // The snapshot is a pod in the API's own spelling too.
    assert_eq!(Pod::from_json(&snapshot).unwrap(), pod);
    let app = &pod.spec.containers[0];
    assert_eq!(app.resources.memory_request_bytes(), 64 << 20, "requests follow limits");
    assert_eq!(app.working_dir, None);
    assert!(pod.spec.init_containers[0].is_sidecar());
    assert_eq!(pod.qos_class(), QosClass::Burstable);
}

#[test]
fn absent_fields_get_the_defaults_of_the_api() {
    let pod = decode(json!({
        "hostNetwork": true, "volumes": [{"name": "v"}], "hostname": null,
        "containers": [{"name": "a", "image": "host:5000/a", "env": null, "ports": [{"containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": "http"}}},
            {"name": "b", "image": "b:1"}, {"name": "c", "image": "c@sha256:00"}, {"name": "d", "image": "d:latest"}],
    }));
    let spec = &pod.spec;
    assert_eq!(spec.termination_grace_period, Duration::from_secs(30));
    assert!(spec.host_users && spec.enable_service_links);
    assert_eq!(spec.volumes[0].source, VolumeSource::EmptyDir(EmptyDir::default()));
    assert_eq!(spec.containers[0].ports[0].host_port, 80);
    let policies: Vec<_> = spec.containers.iter().map(|c| c.image_pull_policy).collect();
    use PullPolicy::{Always, IfNotPresent};
    assert_eq!(policies, [Always, IfNotPresent, IfNotPresent, Always]);
    let probe = spec.containers[0].readiness_probe.as_ref().unwrap();
    assert_eq!((probe.period, probe.failure_threshold), (Duration::from_secs(10), 3));
    assert_eq!(pod.qos_class(), QosClass::BestEffort);
}

#[test]
fn what_is_not_supported_is_found_by_path_and_effect() {
    use Effect::{Refuse, Warn};
    let container = |extra: serde_json::Value| {
        let mut c = json!({"name": "a", "image": "a:1"});
        c.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"containers": [c]})
    };
    let pod_level = |field: &str, value: serde_json::Value| json!({"containers": [{"name": "a", "image": "a:1"}], field: value});
    let at = |rest: &str| format!("spec.containers.0.{rest}");
    let cases = [
        (container(json!({"securityContext": {"newFence": true}})), at("securityContext.newFence"), Refuse),
        (container(json!({"newThing": {"a": 1}})), at("newThing"), Warn),
        (
            container(json!({"env": [{"name": "X", "valueFrom": {"fileKeyRef": {"key": "k"}}}]})),
            at("env.0.valueFrom.fileKeyRef"),
            Refuse,
        ),
        (
            container(json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}})),
            at("securityContext.appArmorProfile"),
            Refuse,
        ),
        (
            container(json!({"resources": {"limits": {"ephemeral-storage": "1Gi"}}})),
            at("resources.limits.ephemeral-storage"),
            Warn,
        ),
        (
            container(json!({"resources": {"limits": {"hugepages-2Mi": "4Mi"}}})),
            at("resources.limits.hugepages-2Mi"),
            Refuse,
        ),
        (container(json!({"livenessProbe": {"exec": {"command": ["x"]}}})), at("livenessProbe"), Warn),
        (pod_level("runtimeClassName", json!("gvisor")), "spec.runtimeClassName".into(), Refuse),
        (pod_level("hostUsers", json!(false)), "spec.hostUsers".into(), Refuse),
        (pod_level("newThing", json!(1)), "spec.newThing".into(), Warn),
        (
            pod_level("securityContext", json!({"seLinuxOptions": {"level": "s0"}})),
            "spec.securityContext.seLinuxOptions".into(),
            Warn,
        ),
    ];
    for (spec, path, effect) in cases {
        assert_eq!(unsupported(&decode(spec)), [(path.as_str(), effect)]);
    }
}

#[test]
fn a_volume_of_an_unknown_kind_is_not_taken_for_an_empty_directory() {
    let pod = decode(json!({
        "containers": [{"name": "a", "image": "a:1"}],
        "volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}],
    }));
    assert_eq!(pod.spec.volumes[0].source, VolumeSource::Unsupported { kind: "nfs".into() });
    assert_eq!(unsupported(&pod), [("spec.volumes.0.nfs", Effect::Refuse)]);
    let snapshot = serde_json::to_vec(&pod).unwrap();
    assert_eq!(serde_json::from_slice::<Pod>(&snapshot).unwrap(), pod);
}

#[test]
fn objects_that_are_no_pods_are_refused_by_name() {
    let cases = [
        (json!({"kind": "Service", "metadata": {"name": "x"}}), "a Service is not a Pod"),
        (json!({"kind": "Pod", "metadata": {}, "spec": {}}), "pod without `metadata.name`"),
        (json!({"kind": "Pod", "metadata": {"name": "x"}, "spec": {}}), "pod without `spec.containers`"),
        (
            json!({"kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [{"name": "a", "image": "a",
                "resources": {"limits": {"cpu": "much"}}}]}}),
            "`much` is not a quantity",
        ),
    ];
    for (object, wanted) in cases {
        let error = Pod::from_value(object).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_status_is_read_and_written_in_the_same_words() {
    let status = json!({
        "phase": "Running", "startTime": "2026-01-02T03:04:05Z", "qosClass": "BestEffort",
        "hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.1"}], "podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}],
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"}],
        "containerStatuses": [{
            "name": "a", "ready": true, "started": true, "restartCount": 2, "image": "a:1", "imageID": "sha256:00",
            "containerID": "orlop://c", "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "containerID": "orlop://b"}},
        }, {
            "name": "b", "ready": false, "restartCount": 0, "image": "b:1", "imageID": "",
            "state": {"waiting": {"reason": "ContainerCreating"}}, "lastState": {},
        }],
    });
    let read: PodStatus = serde_json::from_value(status.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), status);
}

#[test]
fn a_pod_asks_for_the_most_that_is_needed_at_one_time() {
    let with_cpu = |name: &str, cpu: &str, restart: Option<&str>| {
        let mut c = json!({"name": name, "image": "x:1", "resources": {"requests": {"cpu": cpu}}});
        if let Some(policy) = restart {
            c["restartPolicy"] = json!(policy);
        }
        c
    };
    let pod = decode(json!({
        "initContainers": [with_cpu("s", "100m", Some("Always")), with_cpu("i", "700m", None)],
        "containers": [with_cpu("a", "200m", None), with_cpu("b", "300m", None)],
    }));
    assert_eq!(pod.total_resources().cpu_request_millis, 800, "sidecar and init container together");
    assert_eq!(pod.total_resources().memory_limit_bytes, None);
}
