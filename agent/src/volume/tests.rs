//! Volumes against a fake API and a temporary directory; none of this needs root.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::objects::ObjectData;
use super::*;

#[derive(Default)]
struct FakeObjects {
    config_maps: HashMap<String, ObjectData>,
    secrets: HashMap<String, ObjectData>,
}

fn get(map: &HashMap<String, ObjectData>, kind: &str, name: &str) -> Result<Arc<ObjectData>, ObjectError> {
    let found = map.get(name).cloned().map(Arc::new);
    found.ok_or_else(|| ObjectError::NotFound(format!("{kind} \"{name}\" not found")))
}

impl Objects for FakeObjects {
    fn config_map<'a>(
        &'a self,
        _: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<ObjectData>, ObjectError>> {
        async move { get(&self.config_maps, "configmaps", name) }.boxed()
    }
    fn secret<'a>(
        &'a self,
        _: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<ObjectData>, ObjectError>> {
        async move { get(&self.secrets, "secrets", name) }.boxed()
    }
    fn token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: &'a str,
        expiration: Duration,
    ) -> BoxFuture<'a, Result<String, ObjectError>> {
        async move { Ok(format!("{} {audience} {}", pod.name(), expiration.as_secs())) }.boxed()
    }
}

fn object(pairs: &[(&str, &str)]) -> ObjectData {
    let data: BTreeMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
    ObjectData { data, kind: String::new() }
}

struct Scene {
    dir: tempfile::TempDir,
    volumes: Volumes,
}

fn scene(objects: FakeObjects) -> Scene {
    let dir = tempfile::tempdir().expect("tempdir");
    let volumes = Volumes::new(&dir.path().join("run"), &dir.path().join("lib"), Arc::new(objects));
    Scene { dir, volumes }
}

fn pod(volumes: &str) -> Pod {
    let json = format!(
        r#"{{"metadata":{{"name":"p","namespace":"n","uid":"u","labels":{{"app":"web"}}}},
            "spec":{{"containers":[{{"name":"c","image":"i"}}],"volumes":[{volumes}]}}}}"#
    );
    Pod::from_json(json.as_bytes()).expect("pod")
}

fn prepare(scene: &Scene, pod: &Pod) -> Result<(), String> {
    scene.volumes.prepare(pod, &Facts::default()).now_or_never().expect("nothing waits")
}

#[test]
fn the_volume_that_a_server_injects_is_laid_out() {
    let objects = FakeObjects {
        config_maps: HashMap::from([("kube-root-ca.crt".into(), object(&[("ca.crt", "CA")]))]),
        ..FakeObjects::default()
    };
    let scene = scene(objects);
    let pod = pod(r#"{"name":"kube-api-access-x","projected":{"defaultMode":420,"sources":[
            {"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},
            {"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}},
            {"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"apiVersion":"v1","fieldPath":"metadata.namespace"}}]}}]}}"#);
    assert!(!scene.volumes.ready(&pod));
    prepare(&scene, &pod).expect("prepared");
    assert!(scene.volumes.ready(&pod));
    let at = scene.dir.path().join("run/pods/u/volumes/kube-api-access-x");
    let read = |name: &str| fs::read_to_string(at.join(name)).expect("file");
    assert_eq!(
        (read("token"), read("ca.crt"), read("namespace")),
        ("p  3607".into(), "CA".into(), "n".into())
    );
    scene.volumes.remove(pod.uid()).expect("removed");
    assert!(!scene.volumes.present(pod.uid()));
    scene.volumes.remove(pod.uid()).expect("gone already is success");
}

#[test]
fn a_missing_object_is_named_with_its_volume() {
    let scene = scene(FakeObjects::default());
    let error = prepare(&scene, &pod(r#"{"name":"v","configMap":{"name":"nope"}}"#)).expect_err("missing");
    assert_eq!(error, "MountVolume.SetUp failed for volume \"v\" : configmaps \"nope\" not found");
    prepare(&scene, &pod(r#"{"name":"v","secret":{"secretName":"nope","optional":true}}"#))
        .expect("optional");
}

#[test]
fn an_empty_dir_is_open_to_every_user() {
    let scene = scene(FakeObjects::default());
    prepare(&scene, &pod(r#"{"name":"v","emptyDir":{}}"#)).expect("prepared");
    let mode = fs::metadata(scene.dir.path().join("lib/pods/u/volumes/v")).expect("dir").permissions().mode();
    assert_eq!(mode & 0o7777, 0o777);
}

#[test]
fn memory_volumes_take_the_smallest_limit() {
    let scene = scene(FakeObjects::default());
    let pod = pod(
        r#"{"name":"v","emptyDir":{"medium":"Memory","sizeLimit":"1Mi"}},{"name":"w","emptyDir":{"medium":"Memory"}}"#,
    );
    let mounts = scene.volumes.tmpfs(&pod, 5 << 20).expect("made");
    assert_eq!(mounts.iter().map(|m| m.size_bytes).collect::<Vec<_>>(), [Some(1 << 20), Some(5 << 20)]);
    assert!(mounts[0].target.is_dir());
}

#[test]
fn host_paths_are_checked_by_type() {
    let scene = scene(FakeObjects::default());
    let base = scene.dir.path().join("host");
    fs::create_dir(&base).expect("mkdir");
    let volume = |name: &str, kind: &str| {
        pod(&format!(
            r#"{{"name":"v","hostPath":{{"path":"{}","type":"{kind}"}}}}"#,
            base.join(name).display()
        ))
    };
    for (name, kind, fine) in [
        ("no", "", true),
        ("no", "Directory", false),
        ("d", "DirectoryOrCreate", true),
        ("d", "Directory", true),
        ("d", "File", false),
        ("f", "FileOrCreate", true),
        ("f", "File", true),
        ("f", "Socket", false),
        ("f", "CharDevice", false),
        ("f", "BlockDevice", false),
    ] {
        assert_eq!(prepare(&scene, &volume(name, kind)).is_ok(), fine, "{name} {kind}");
    }
}

#[test]
fn an_unknown_kind_is_refused_by_name() {
    let scene = scene(FakeObjects::default());
    let error =
        prepare(&scene, &pod(r#"{"name":"v","nfs":{"server":"s","path":"/"}}"#)).expect_err("unknown");
    assert!(error.contains("nfs"), "{error}");
}
