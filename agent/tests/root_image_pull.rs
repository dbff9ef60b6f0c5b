//! Pulls from registries that break: connections, content, tokens, redirects.
#![allow(clippy::unwrap_used)]

mod image_fixture;

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use image_fixture::server::{Answer, Server, ranged, well_behaved};
use image_fixture::{
    Archive, Blob, Scene, TestImage, gzip, image, names, noise, skip_without_root, with_config,
};
use orlop::image::digest::Digest;
use orlop::image::manifest::Platform;
use orlop::image::puller::{Progress, PullError, Puller};
use orlop::image::registry::{Keyring, RegistryConfig};
use orlop::image::store::{Image, Store};

const BIG: usize = 3_000_000;

fn test_image() -> TestImage {
    let lower = Archive::default().directory("etc", 0o755).file("etc/a", b"1").tar();
    let upper = Archive::default().directory("usr", 0o755).file("usr/big", &noise(BIG, 7)).tar();
    image(&[lower, upper], gzip)
}

fn puller(scene: &Scene) -> Puller {
    Puller::new(Arc::clone(&scene.store), RegistryConfig::default())
}

async fn pull(scene: &Scene, name: &str) -> Result<Image, PullError> {
    puller(scene).pull(name, &Keyring::default(), Arc::new(|_| {})).await
}

fn partial_sizes(scene: &Scene) -> Vec<u64> {
    let folder = scene.store.root().join("partial");
    names(&folder).iter().map(|name| fs::metadata(folder.join(name)).unwrap().len()).collect()
}

fn check(image: &Image) {
    assert_eq!(fs::read_to_string(image.layers[0].join("etc/a")).unwrap(), "1");
    assert!(fs::read(image.layers[1].join("usr/big")).unwrap() == noise(BIG, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_connection_goes_on_where_it_stopped() {
    if skip_without_root("a_dropped_connection_goes_on_where_it_stopped") {
        return;
    }
    for honours_ranges in [true, false] {
        let (image, scene) = (test_image(), Scene::new());
        let big = image.layers[1].clone();
        let path = big.digest().to_string();
        let server = Server::start(move |asked| {
            let answer = well_behaved(&image, asked);
            match asked.header("range") {
                _ if !asked.path.ends_with(&path) => answer,
                None => answer.cut_after(1_000_000),
                Some("bytes=1000000-") if honours_ranges => answer.cut_after(1_000_000),
                Some(_) if honours_ranges => answer,
                Some(_) => Answer::new(200, big.bytes.clone()),
            }
        });
        let pulled = pull(&scene, &server.image("x:1")).await.unwrap();
        check(&pulled);
        assert_eq!(partial_sizes(&scene), [0; 0]);
        let asked = server.asked_for(&test_image().layers[1].digest().to_string());
        let ranges: Vec<_> = asked.iter().map(|a| a.header("range").map(str::to_owned)).collect();
        let wanted = [None, Some("bytes=1000000-"), Some("bytes=2000000-")];
        let count = if honours_ranges { 3 } else { 2 };
        assert_eq!(ranges, wanted[..count].iter().map(|r| r.map(str::to_owned)).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_goes_on_in_the_next_process() {
    if skip_without_root("a_pull_goes_on_in_the_next_process") {
        return;
    }
    let (image, scene) = (test_image(), Scene::new());
    let path = image.layers[1].digest().to_string();
    let refuse = Arc::new(AtomicUsize::new(1));
    let refusing = Arc::clone(&refuse);
    let server = Server::start(move |asked| {
        let answer = well_behaved(&image, asked);
        if asked.path.ends_with(&path) && refusing.load(Ordering::SeqCst) == 1 {
            return match asked.header("range") {
                None => answer.cut_after(1_500_000),
                // Not transient: the pull ends here.
                Some(_) => Answer::new(403, "go away"),
            };
        }
        answer
    });
    let error = pull(&scene, &server.image("x:1")).await.unwrap_err();
    assert!(error.to_string().contains("go away"), "{error}");
    assert_eq!(partial_sizes(&scene), [1_500_000]);
    assert_eq!(names(&scene.store.root().join("tmp")), Vec::<String>::new());
    assert_eq!(scene.store.list().unwrap(), []);
    refuse.store(0, Ordering::SeqCst);
    let store = Arc::new(Store::open(scene.store.root()).unwrap());
    let next = Puller::new(store, RegistryConfig::default());
    check(&next.pull(&server.image("x:1"), &Keyring::default(), Arc::new(|_| {})).await.unwrap());
    let asked = server.asked_for(&test_image().layers[1].digest().to_string());
    assert_eq!(asked.last().unwrap().header("range"), Some("bytes=1500000-"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_remainder_is_fetched_again() {
    if skip_without_root("a_damaged_remainder_is_fetched_again") {
        return;
    }
    let (image, scene) = (test_image(), Scene::new());
    let served = image.clone();
    let server = Server::start(move |asked| well_behaved(&served, asked));
    let big = image.layers[1].clone();
    for remainder in
        [vec![0; 1_000_000], big.bytes[..big.bytes.len() - 1].to_vec(), vec![1; big.bytes.len() + 5]]
    {
        let work = scene.store.begin().unwrap();
        let partial = scene.store.partial(&big.digest(), &work).unwrap();
        partial.file().write_all_at(&remainder, 0).unwrap();
        drop((partial, work));
        let pulled = pull(&scene, &server.image("x:1")).await.unwrap();
        check(&pulled);
        scene.store.remove(&pulled.id).unwrap();
        scene.assert_empty("a damaged remainder");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_content_is_refused_and_leaves_nothing() {
    if skip_without_root("wrong_content_is_refused_and_leaves_nothing") {
        return;
    }
    let good = test_image();
    let big = good.layers[1].digest();
    let flip = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let longer = [&good.layers[1].bytes[..], b"more"].concat();
    // The last bytes of a gzip stream are its length: changed, unpacking fails; changed behind the stream's end, only the
    // digest does.
    let plain = image(&[Archive::default().file("f", b"x").tar()], <[u8]>::to_vec);
    let plain_changed = flip(&plain.layers[0].bytes, plain.layers[0].bytes.len() - 1);
    let escaping = image(&[Archive::default().file("../../x", b"x").tar()], gzip);
    let mut other_diff = good.clone();
    other_diff = with_config(
        serde_json::json!({"architecture": Platform::host().architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"1"), Digest::of(b"2")]}})
        .to_string()
        .into_bytes(),
        other_diff.layers,
    );
    let chart = {
        let mut chart = good.clone();
        chart.config.media_type = "application/vnd.cncf.helm.config.v1+json";
        let manifest =
            serde_json::json!({"schemaVersion": 2, "config": chart.config.descriptor(), "layers": []});
        chart.manifest.bytes = manifest.to_string().into_bytes();
        chart
    };
    let config = good.config.digest();
    for (served, digest, bytes, reason) in [
        (&good, &big, flip(&good.layers[1].bytes, 1_000_000), big.to_string()),
        (
            &good,
            &big,
            good.layers[1].bytes[..BIG / 2].to_vec(),
            format!("{big}: the connection broke: it ended after"),
        ),
        (&good, &big, longer, format!("{big}: ")),
        (&good, &big, vec![0; good.layers[1].bytes.len()], big.to_string()),
        (&good, &config, b"{}".to_vec(), "image configuration: digest is".into()),
        (&plain, &plain.layers[0].digest(), plain_changed, "digest is".into()),
        (&escaping, &big, Vec::new(), "\"../../x\": its name leads out".into()),
        (&other_diff, &big, good.layers[1].bytes.clone(), "unpacked: digest is".into()),
        (&chart, &big, Vec::new(), "artifact of type \"application/vnd.cncf.helm.config.v1+json\"".into()),
    ] {
        let (served, path) = (served.clone(), digest.to_string());
        let server = Server::start(move |asked| {
            if asked.path.contains("/blobs/") && asked.path.ends_with(&path) {
                return ranged(bytes.get(..).unwrap_or_default(), &without_bad_range(asked, bytes.len()));
            }
            well_behaved(&served, asked)
        });
        let scene = Scene::new();
        let error = pull(&scene, &server.image("x:1")).await.unwrap_err().to_string();
        assert!(error.contains(&reason), "{reason}: {error}");
        assert_eq!(scene.store.list().unwrap(), [], "{reason}");
        assert_eq!(names(&scene.store.root().join("tmp")), Vec::<String>::new(), "{reason}");
        scene.assert_outside_untouched(&reason);
        let partial = names(&scene.store.root().join("partial"));
        let faulty = |name: &String| error.contains(name.trim_start_matches("sha256-"));
        assert!(
            reason.contains("the connection broke") || !partial.iter().any(faulty),
            "{reason}: {partial:?}"
        );
    }
}

/// A range that starts at the end of what there is gets an empty answer, as a registry with a truncated file gives it.
fn without_bad_range(asked: &image_fixture::server::Asked, length: usize) -> image_fixture::server::Asked {
    let mut asked = asked.clone();
    if asked.header("range").is_some_and(|r| r == format!("bytes={length}-")) {
        asked.headers.insert("range".into(), format!("bytes={}-", length - 1));
    }
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_of_another_digest_is_refused() {
    if skip_without_root("a_manifest_of_another_digest_is_refused") {
        return;
    }
    let image = test_image();
    let server = Server::start(move |asked| match asked.path.contains("/manifests/") {
        true if asked.method == "HEAD" => Answer::new(200, ""),
        true => Answer::new(200, image.manifest.bytes.clone()),
        false => well_behaved(&image, asked),
    });
    let scene = Scene::new();
    let other = Digest::of(b"other");
    let error = pull(&scene, &server.image(&format!("x@{other}"))).await.unwrap_err();
    assert!(error.to_string().contains(&format!("not {other}")), "{error}");
    scene.assert_empty("a manifest of another digest");
    assert!(pull(&scene, &server.image("x:1")).await.is_ok(), "without a stated digest the tag is enough");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pulls_at_the_same_time_fetch_a_layer_once() {
    if skip_without_root("pulls_at_the_same_time_fetch_a_layer_once") {
        return;
    }
    let (image, scene) = (test_image(), Scene::new());
    let served = image.clone();
    let server = Server::start(move |asked| well_behaved(&served, asked));
    let puller = puller(&scene);
    let keyring = Keyring::default();
    let (a, b) = (server.image("x:1"), server.image("y:1"));
    let pulls = [&a, &a, &b, &b].map(|name| puller.pull(name, &keyring, Arc::new(|_| {})));
    for pulled in futures_util::future::join_all(pulls).await {
        check(&pulled.unwrap());
    }
    for layer in &image.layers {
        assert_eq!(server.asked_for(&layer.digest().to_string()).len(), 1);
    }
    assert_eq!(scene.store.list().unwrap().len(), 1);
    let before = server.asked().len();
    puller.pull(&a, &keyring, Arc::new(|_| {})).await.unwrap();
    let asked = server.asked();
    assert!(
        asked[before..].iter().all(|a| a.method == "HEAD" || a.path == "/v2/"),
        "an image that is here is not fetched"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_pull_leaves_only_what_the_next_one_needs() {
    if skip_without_root("a_cancelled_pull_leaves_only_what_the_next_one_needs") {
        return;
    }
    let (image, scene) = (test_image(), Scene::new());
    let big = image.layers[1].digest();
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let path = big.to_string();
    let server = Server::start(move |asked| {
        let answer = well_behaved(&image, asked);
        match asked.header("range") {
            None if asked.path.ends_with(&path) => answer.cut_after(1_000_000),
            Some(_) if asked.path.ends_with(&path) => {
                // Holds the rest back until the test has cancelled the pull.
                let _ = wait.lock().unwrap().recv();
                answer
            }
            _ => answer,
        }
    });
    let puller = Arc::new(puller(&scene));
    let (started, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let progress = move |event| {
        if let Progress::Arrived(_, 1_000_000) = event {
            let _ = started.send(());
        }
    };
    let (name, task) = (server.image("x:1"), Arc::clone(&puller));
    let pulling =
        tokio::spawn(async move { task.pull(&name, &Keyring::default(), Arc::new(progress)).await });
    begun.recv().await.unwrap();
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled());
    drop(release);
    check(&puller.pull(&server.image("x:1"), &Keyring::default(), Arc::new(|_| {})).await.unwrap());
    let asked = server.asked_for(&big.to_string());
    assert_eq!(asked.last().unwrap().header("range"), Some("bytes=1000000-"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_fetched_with_the_secret_and_kept_from_other_hosts() {
    if skip_without_root("tokens_are_fetched_with_the_secret_and_kept_from_other_hosts") {
        return;
    }
    let image = test_image();
    let served = image.clone();
    let storage = Server::start(move |asked| {
        let digest = asked.path.trim_start_matches("/store/").to_owned();
        let blob = served.blobs().find(|b: &&Blob| b.digest().to_string() == digest).unwrap();
        ranged(&blob.bytes, asked)
    });
    let storage_address = storage.address;
    // `localhost` and 127.0.0.1 are different hosts to a client, whatever they resolve to.
    let registry_port = Arc::new(AtomicUsize::new(0));
    let port = Arc::clone(&registry_port);
    let server = Server::start(move |asked| {
        let port = port.load(Ordering::SeqCst);
        if asked.path.starts_with("/token") {
            return match asked.header("authorization") {
                Some("Basic cHVsbGVyOnNlY3JldA==") => {
                    Answer::new(200, r#"{"token":"t0ken","expires_in":300}"#)
                }
                Some(_) => Answer::new(401, r#"{"errors":[{"message":"bad password"}]}"#),
                None => Answer::new(200, r#"{"access_token":"anonymous"}"#),
            };
        }
        match asked.header("authorization") {
            _ if asked.path == "/v2/" => Answer::new(401, ""),
            Some("Bearer t0ken") if asked.path.contains("/blobs/") => {
                let digest = asked.path.rsplit('/').next().unwrap();
                Answer::new(307, "").header("Location", format!("http://{storage_address}/store/{digest}"))
            }
            Some("Bearer t0ken") => well_behaved(&image, asked),
            Some("Bearer anonymous") => {
                Answer::new(403, r#"{"errors":[{"code":"DENIED","message":"members only"}]}"#)
            }
            _ => Answer::new(401, "").header(
                "WWW-Authenticate",
                format!(
                    r#"Bearer realm="http://127.0.0.1:{port}/token",service="reg",scope="repository:x:pull""#
                ),
            ),
        }
    });
    registry_port.store(server.address.port().into(), Ordering::SeqCst);
    let scene = Scene::new();
    let puller = puller(&scene);
    let name = server.image("x:1");

    let error = puller.pull(&name, &Keyring::default(), Arc::new(|_| {})).await.unwrap_err();
    assert!(error.to_string().contains("members only"), "{error}");
    assert_eq!(error.reason(), "ErrImagePull");

    let keyring = |password: &str, more: bool| {
        let mut keyring = Keyring::default();
        let mut auths =
            serde_json::json!({ server.address.to_string(): { "username": "puller", "password": password } });
        if more {
            auths[format!("http://{}/x", server.address)] =
                serde_json::json!({ "username": "puller", "password": "stale" });
        }
        keyring.add_docker_config_json(serde_json::json!({ "auths": auths }).to_string().as_bytes()).unwrap();
        keyring
    };
    let error = puller.pull(&name, &keyring("wrong", false), Arc::new(|_| {})).await.unwrap_err();
    assert!(error.to_string().contains("bad password"), "{error}");
    scene.assert_empty("a wrong password");

    let pulled = puller.pull(&name, &keyring("secret", true), Arc::new(|_| {})).await;
    check(&pulled.unwrap());
    let token_requests = server.asked_for("/token");
    assert!(
        token_requests.iter().all(|a| a.path.contains("service=reg&") || a.path.ends_with("service=reg"))
    );
    assert!(
        token_requests.iter().all(|a| a.path.contains("scope=repository%3Ax%3Apull")),
        "{token_requests:?}"
    );
    assert_eq!(storage.asked().len(), 3, "configuration and two layers");
    assert!(
        storage.asked().iter().all(|a| a.header("authorization").is_none()),
        "the token stays with the registry"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_are_asked_first_and_get_no_credentials() {
    if skip_without_root("mirrors_are_asked_first_and_get_no_credentials") {
        return;
    }
    let scene = Scene::new();
    let image = test_image();
    let empty = Server::start(|_| Answer::new(404, ""));
    let served = image.clone();
    // Knows layers under a path of its own; what a tag means it is not to say.
    let storage = Server::start(move |asked| {
        if asked.path.contains("/manifests/1") {
            return Answer::new(500, "a mirror that may not resolve was asked to");
        }
        well_behaved(&served, &without_query(asked))
    });
    let served = image.clone();
    let registry = Server::start(move |asked| match asked.header("authorization") {
        None => Answer::new(401, "").header("WWW-Authenticate", "Basic realm=x"),
        Some(_) => well_behaved(&served, asked),
    });
    let folder = scene.dir.path().join("certs.d/reg.example");
    fs::create_dir_all(&folder).unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}/prefix\"]\ncapabilities = [\"pull\"]\n\
         override_path = true\n",
        registry.address, empty.address, storage.address
    );
    fs::write(folder.join("hosts.toml"), hosts).unwrap();
    let config =
        RegistryConfig { hosts_folder: Some(scene.dir.path().join("certs.d")), ..RegistryConfig::default() };
    let puller = Puller::new(Arc::clone(&scene.store), config);
    let mut keyring = Keyring::default();
    keyring.add_docker_config_json(br#"{"auths":{"reg.example":{"username":"u","password":"p"}}}"#).unwrap();
    let pulled = puller.pull("reg.example/team/x:1", &keyring, Arc::new(|_| {})).await.unwrap();
    check(&pulled);
    assert_eq!(pulled.repo_tags, ["reg.example/team/x:1"]);
    for mirror in [&empty, &storage] {
        assert!(mirror.asked().iter().all(|a| a.header("authorization").is_none()));
        assert!(mirror.asked().iter().all(|a| a.path.ends_with("?ns=reg.example")));
    }
    assert!(storage.asked().iter().all(|a| a.path.starts_with("/prefix/team/x/blobs/")));
    assert_eq!(storage.asked().len(), 3);
    assert!(
        registry.asked().iter().all(|a| a.path.starts_with("/v2/team/x/manifests/1")),
        "{:?}",
        registry.asked()
    );
}

fn without_query(asked: &image_fixture::server::Asked) -> image_fixture::server::Asked {
    let path = asked.path.split('?').next().unwrap().to_owned();
    image_fixture::server::Asked { path, ..asked.clone() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_had_is_named() {
    if skip_without_root("what_cannot_be_had_is_named") {
        return;
    }
    let scene = Scene::new();
    let silent = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let server = Server::start(|asked| match asked.path.as_str() {
        "/v2/" => Answer::new(200, "{}"),
        path if path.contains("/redirect/") => Answer::new(307, "").header("Location", "http://192.0.2.1/x"),
        path if path.contains("/busy/") => Answer::new(429, r#"{"errors":[{"message":"slow down"}]}"#),
        path if path.contains("/broken/") => Answer::new(500, "oops"),
        path if path.contains("/html/") => Answer::new(200, "<html>"),
        _ => Answer::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
    });
    for (name, reason, part) in [
        ("Bad Name".to_owned(), "InvalidImageName", "Bad Name"),
        (format!("{silent}/x:1"), "RegistryUnavailable", "refused"),
        (server.image("none:1"), "ErrImagePull", "none:1: not found"),
        (server.image("redirect/x:1"), "ErrImagePull", "plain HTTP is allowed only"),
        (server.image("busy/x:1"), "ErrImagePull", "slow down"),
        (server.image("broken/x:1"), "RegistryUnavailable", "oops"),
        (server.image("html/x:1"), "ErrImagePull", "malformed manifest"),
        ("nonexistent.invalid/x:1".to_owned(), "RegistryUnavailable", "nonexistent.invalid"),
    ] {
        let error = pull(&scene, &name).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    scene.assert_empty("what cannot be had");
}
