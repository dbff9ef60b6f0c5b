//! Layers on disk: what archives may say, and what they may not.

#![allow(clippy::unwrap_used)]

mod image_fixture;

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use image_fixture::{Archive, Scene, gzip, mount_tmpfs, names, noise, skip_without_root, with_own_mounts};
use orlop::image::import::{Options, Source, import};
use orlop::image::layers::{Algorithms, remove_path, unpack};
use proptest::prelude::*;

/// Reads an attribute with the C library, which is what the code under test does not do.
fn xattr(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let shown = std::process::Command::new("getfattr")
        .args(["--absolute-names", "-h", "--only-values", "-n", name.to_str().unwrap()])
        .arg(path)
        .output();
    let shown = shown.expect("getfattr (Debian's attr) is installed");
    shown.status.success().then_some(shown.stdout)
}

fn has_getfattr(test: &str) -> bool {
    let found = Path::new("/usr/bin/getfattr").exists();
    if !found {
        println!("SKIP {test}: needs getfattr (Debian's attr)");
    }
    found
}

#[test]
fn entries_keep_kind_owner_mode_and_time() {
    if skip_without_root("entries_keep_kind_owner_mode_and_time") {
        return;
    }
    let scene = Scene::new();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let archive = Archive::default()
        .directory("./", 0o711)
        .directory("tmp/", 0o1777)
        .file_with_mode("tmp/setuid", b"x", 0o6755)
        .symlink("tmp/absolute", "/etc/passwd")
        .hard_link("tmp/second", "tmp/setuid")
        .device(b'3', "tmp/null")
        .device(b'4', "tmp/disk")
        .device(b'6', "tmp/pipe")
        .pax("path", long.as_bytes())
        .pax("mtime", b"1500000000.25")
        .pax("uid", b"3000000000")
        .file("short", b"long");
    let layer = scene.layer(&archive).unwrap();
    let stat = |name: &str| layer.join(name).symlink_metadata().unwrap();
    assert_eq!(layer.metadata().unwrap().permissions().mode() & 0o7777, 0o711);
    assert_eq!(stat("tmp").permissions().mode() & 0o7777, 0o1777);
    assert_eq!(stat("tmp").mtime(), 1_600_000_000, "filling a directory does not change its time");
    assert_eq!(stat("tmp/setuid").permissions().mode() & 0o7777, 0o6755);
    assert_eq!((stat("tmp/setuid").uid(), stat("tmp/setuid").gid()), (1000, 1001));
    assert_eq!(stat("tmp/setuid").mtime(), 1_600_000_000);
    assert_eq!(stat("tmp/second").ino(), stat("tmp/setuid").ino());
    assert_eq!(fs::read_link(layer.join("tmp/absolute")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(stat("tmp/absolute").uid(), 1000);
    assert!(stat("tmp/null").file_type().is_char_device() && stat("tmp/disk").file_type().is_block_device());
    assert_eq!(stat("tmp/null").rdev(), nix::libc::makedev(1, 3));
    assert_eq!(stat("tmp/null").permissions().mode() & 0o7777, 0o600);
    assert!(stat("tmp/pipe").file_type().is_fifo());
    assert_eq!(fs::read_to_string(layer.join(&long)).unwrap(), "long");
    assert_eq!(
        (stat(&long).mtime(), stat(&long).mtime_nsec(), stat(&long).uid()),
        (1_500_000_000, 250_000_000, 3_000_000_000)
    );
}

#[test]
fn attributes_that_steer_the_host_are_left_out() {
    const TEST: &str = "attributes_that_steer_the_host_are_left_out";
    if skip_without_root(TEST) || !has_getfattr(TEST) {
        return;
    }
    let scene = Scene::new();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let archive = Archive::default()
        .pax("SCHILY.xattr.security.capability", &capability)
        .pax("SCHILY.xattr.user.kept", b"a\nb")
        .pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc")
        .pax("SCHILY.xattr.user.overlay.opaque", b"y")
        .file("ping", b"x")
        .pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc")
        .directory("dir", 0o755);
    let layer = scene.layer(&archive).unwrap();
    assert_eq!(xattr(&layer.join("ping"), c"security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(xattr(&layer.join("ping"), c"user.kept").as_deref(), Some(&b"a\nb"[..]));
    for (file, name) in [
        ("ping", c"trusted.overlay.redirect"),
        ("ping", c"user.overlay.opaque"),
        ("dir", c"trusted.overlay.redirect"),
    ] {
        assert_eq!(xattr(&layer.join(file), name), None, "{file} {name:?}");
    }
}

#[test]
fn whiteouts_become_what_overlayfs_understands() {
    const TEST: &str = "whiteouts_become_what_overlayfs_understands";
    if skip_without_root(TEST) {
        return;
    }
    with_own_mounts(|| {
        let scene = Scene::new();
        let area = scene.dir.path().join("area");
        fs::create_dir(&area).unwrap();
        mount_tmpfs(&area, "16m");
        let store = orlop::image::store::Store::open(&area.join("images")).unwrap();
        let layer = |archive: &Archive| {
            let mut stream = &archive.tar()[..];
            let options = Options { rootfs: true, ..Options::default() };
            import(&store, Source::Stream(&mut stream), &options, &|_| {}).unwrap()[0].layers[0].clone()
        };
        let lower = layer(
            &Archive::default()
                .directory("etc", 0o755)
                .file("etc/gone", b"1")
                .file("etc/stays", b"1")
                .directory("opaque", 0o755)
                .file("opaque/hidden", b"1")
                .directory("replaced", 0o755)
                .file("replaced/hidden", b"1")
                .directory("late", 0o755)
                .file("late/hidden", b"1")
                .file("file", b"old"),
        );
        let upper = layer(
            &Archive::default()
                .directory("etc", 0o755)
                .file("etc/.wh.gone", b"")
                .file("etc/.wh..wh.plnk", b"")
                .directory("opaque", 0o755)
                .file("opaque/.wh..wh..opq", b"")
                .file("opaque/new", b"2")
                // A whiteout before the same name, and one after it.
                .file(".wh.replaced", b"")
                .directory("replaced", 0o755)
                .file("replaced/new", b"2")
                .directory("late", 0o755)
                .file("late/new", b"2")
                .file(".wh.late", b"")
                .file("file", b"new")
                .file(".wh.file", b""),
        );
        let merged = area.join("merged");
        fs::create_dir(&merged).unwrap();
        let options = format!("lowerdir={}:{}", upper.display(), lower.display());
        let flags = nix::mount::MsFlags::MS_RDONLY;
        nix::mount::mount(Some("overlay"), &merged, Some("overlay"), flags, Some(&*options)).unwrap();
        assert_eq!(names(&merged), ["etc", "file", "late", "opaque", "replaced"]);
        assert_eq!(names(&merged.join("etc")), ["stays"]);
        for directory in ["opaque", "replaced", "late"] {
            assert_eq!(names(&merged.join(directory)), ["new"], "{directory}");
        }
        assert_eq!(fs::read_to_string(merged.join("file")).unwrap(), "new");
    });
}

#[test]
fn archives_that_reach_outside_are_refused_and_leave_nothing() {
    if skip_without_root("archives_that_reach_outside_are_refused_and_leave_nothing") {
        return;
    }
    let scene = Scene::new();
    let outside = scene.outside();
    let outside = outside.to_str().unwrap();
    let good = || Archive::default().directory("etc", 0o755).file("etc/ok", b"x");
    let target = format!("{outside}/target");
    for (archive, entry, reason) in [
        (good().file("../escape", b"x"), "../escape", "its name leads out"),
        (good().file("etc/../../escape", b"x"), "etc/../../escape", "its name leads out"),
        (good().directory("..", 0o777), "..", "its name leads out"),
        (good().symlink("../link", "x"), "../link", "its name leads out"),
        (good().hard_link("etc/hard", "../../../etc/passwd"), "etc/hard", "../../../etc/passwd"),
        (good().hard_link("etc/hard", &target), "etc/hard", "is not in the layer"),
        (good().hard_link("etc/hard", "etc"), "etc/hard", "is a directory"),
        (
            good().symlink("evil", outside).file("evil/target", b"x"),
            "evil/target",
            "not a directory of the layer",
        ),
        (
            good().symlink("evil", outside).directory("evil/sub", 0o777),
            "evil/sub",
            "not a directory of the layer",
        ),
        (
            good().symlink("evil", outside).hard_link("etc/hard", "evil/target"),
            "etc/hard",
            "is not in the layer",
        ),
        (good().symlink("loop", "loop").file("loop/x", b"x"), "loop/x", "not a directory of the layer"),
        (good().file("etc/ok/below", b"x"), "etc/ok/below", "not a directory of the layer"),
        (good().file("etc/.wh...", b""), "etc/.wh...", "whiteout of no usable name"),
        (good().file("etc/.wh.", b""), "etc/.wh.", "whiteout of no usable name"),
        (good().symlink(".", "/etc"), ".", "replace the root directory"),
        (good().member(b'X', "odd", "", b"", 0o644), "odd", "not supported"),
    ] {
        let error = scene.layer(&archive).unwrap_err().to_string();
        assert!(error.contains(entry), "{entry}: {error}");
        assert!(error.contains(reason), "{reason}: {error}");
        scene.assert_empty(entry);
    }
}

#[test]
fn links_are_replaced_and_never_written_through() {
    if skip_without_root("links_are_replaced_and_never_written_through") {
        return;
    }
    let scene = Scene::new();
    let target = scene.outside().join("target");
    let target = target.to_str().unwrap();
    let archive = Archive::default()
        .symlink("file", target)
        .file("file", b"inside")
        .symlink("dir", scene.outside().to_str().unwrap())
        .directory("dir", 0o755)
        .file("dir/new", b"inside")
        .symlink("owned", target)
        .hard_link("same-link", "owned")
        .symlink("up", "../../../../..")
        .file("up/clamped", b"inside")
        .directory("full/deep/down", 0o755)
        .file("full/deep/down/file", b"x")
        .file("full", b"replaces a tree");
    let layer = scene.layer(&archive).unwrap();
    scene.assert_outside_untouched("links");
    assert_eq!(fs::read_to_string(layer.join("file")).unwrap(), "inside");
    assert_eq!(names(&layer.join("dir")), ["new"]);
    assert!(layer.join("same-link").symlink_metadata().unwrap().is_symlink());
    assert_eq!(
        fs::read_to_string(layer.join("clamped")).unwrap(),
        "inside",
        "`up` leads no further than the layer's root"
    );
    assert_eq!(fs::read_to_string(layer.join("full")).unwrap(), "replaces a tree");
    assert_eq!(fs::metadata(scene.outside().join("target")).unwrap().uid(), 0);
}

#[test]
fn deep_trees_are_made_replaced_and_removed() {
    if skip_without_root("deep_trees_are_made_replaced_and_removed") {
        return;
    }
    let scene = Scene::new();
    let deep = "d/".repeat(1500);
    let archive = Archive::default().pax("path", format!("top/{deep}file").as_bytes()).file("x", b"1");
    let layer = scene.layer(&archive).unwrap();
    assert!(layer.join("top").join(&deep).join("file").exists());
    let replaced = scene.layer(&archive.clone().file("top", b"flat")).unwrap();
    assert_eq!(names(&replaced), ["top"]);
    for image in scene.store.list().unwrap() {
        scene.store.remove(&image.id).unwrap();
    }
    scene.assert_empty("deep trees");
    // A link makes the tree deeper than any path can say: such a layer is refused, and removed all the same.
    let deeper = archive
        .pax("linkpath", format!("top/{deep}").as_bytes())
        .symlink("link", "x")
        .pax("path", format!("link/{deep}file").as_bytes())
        .file("y", b"2");
    for (archive, reason) in [(deeper.clone().file("../x", b""), "leads out"), (deeper, "name too long")] {
        let error = scene.layer(&archive).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        scene.assert_empty(reason);
    }
}

/// Names made of few parts, so that entries meet each other.
fn any_name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "link", "..", ".", "", ".wh.a", ".wh..wh..opq"]);
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

fn any_entry(outside: &str) -> impl Strategy<Value = (u8, String, String)> {
    let target = prop_oneof![
        any_name(),
        Just(outside.to_owned()),
        Just(format!("{outside}/target")),
        Just("../../../../../../..".to_owned()),
        Just("/".to_owned()),
    ];
    (prop::sample::select(b"0123456".to_vec()), any_name(), target.prop_map(|t| t.chars().take(99).collect()))
}

#[test]
fn no_sequence_of_entries_touches_anything_outside() {
    if skip_without_root("no_sequence_of_entries_touches_anything_outside") {
        return;
    }
    let scene = Scene::new();
    let outside = scene.outside();
    let before = stat_of(&outside);
    let entries = prop::collection::vec(any_entry(outside.to_str().unwrap()), 1..12);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(600)
    });
    runner
        .run(&entries, |entries| {
            let add = |archive: Archive, (kind, name, link): &(u8, String, String)| {
                let content: &[u8] = if *kind == b'0' { b"inside" } else { b"" };
                archive.member(*kind, name, link, content, 0o777)
            };
            let archive = entries.iter().fold(Archive::default(), add);
            let directory = scene.dir.path().join("layer");
            fs::create_dir(&directory).unwrap();
            let unpacked = unpack(&archive.tar()[..], &directory, Algorithms::default());
            remove_path(&directory).unwrap();
            prop_assert_eq!(names(scene.dir.path()), ["images", "outside"], "{:?}", unpacked);
            prop_assert_eq!(names(&outside), ["target"]);
            prop_assert_eq!(stat_of(&outside), before);
            Ok(())
        })
        .unwrap();
    scene.assert_outside_untouched("random entries");
}

/// What an escaped entry would change: of the folder and of the file in it.
fn stat_of(outside: &Path) -> [(u32, u32, i64, u64, u64); 2] {
    [outside.to_owned(), outside.join("target")].map(|path| {
        let metadata = path.symlink_metadata().unwrap();
        (metadata.mode(), metadata.uid(), metadata.mtime_nsec(), metadata.nlink(), metadata.size())
    })
}

#[test]
fn broken_archives_are_named_and_leave_nothing() {
    if skip_without_root("broken_archives_are_named_and_leave_nothing") {
        return;
    }
    let scene = Scene::new();
    let tar = Archive::default().file("a", &noise(3000, 1)).tar();
    let mut checksum = tar.clone();
    checksum[0] ^= 1;
    let huge =
        Archive::default().member(b'L', "././@LongLink", "", &[b'a'; 2 << 20], 0o644).file("b", b"").tar();
    let gz = gzip(&tar);
    for (bytes, reason) in [
        (&tar[..2000], "ends in the middle"),
        (&tar[..700], "ends in the middle"),
        (&checksum[..], "checksum"),
        (&huge[..], "an extension header of 2097152 bytes"),
        (&gz[..gz.len() / 2], ""),
        (&gzip(&tar[..2000])[..], "ends in the middle"),
        (&noise(100_000, 2)[..], "checksum"),
        (b"", "empty"),
        (&[0; 1024][..], "empty"),
        (&zstd::stream::encode_all(&tar[..], 1).unwrap()[..1000], ""),
    ] {
        let options = Options { rootfs: true, ..Options::default() };
        let error = scene.import_with(bytes, &options).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(error.contains("standard input"), "{error}");
        scene.assert_empty(reason);
    }
}

#[test]
fn sparse_files_keep_their_holes() {
    const TEST: &str = "sparse_files_keep_their_holes";
    if skip_without_root(TEST) {
        return;
    }
    let scene = Scene::new();
    let source = scene.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let file = fs::File::create(source.join("sparse")).unwrap();
    for i in 0..20u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[b'a' + i as u8; 4096], i * (1 << 20)).unwrap();
    }
    file.set_len(30 << 20).unwrap();
    for format in ["gnu", "pax"] {
        let archive = scene.dir.path().join(format!("{format}.tar"));
        let tar = std::process::Command::new("tar")
            .args(["--sparse", &format!("--format={format}"), "-cf"])
            .arg(&archive)
            .args(["-C", source.to_str().unwrap(), "sparse"])
            .status();
        assert!(tar.unwrap().success());
        assert!(fs::metadata(&archive).unwrap().len() < 1 << 20, "{format}: the archive itself is sparse");
        let images = import(&scene.store, Source::Path(&archive), &Options::default(), &|_| {}).unwrap();
        let unpacked = images[0].layers[0].join("sparse");
        assert!(fs::read(&unpacked).unwrap() == fs::read(source.join("sparse")).unwrap(), "{format}");
        assert!(
            fs::metadata(&unpacked).unwrap().blocks() * 512 < 1 << 20,
            "{format}: its holes take no room"
        );
    }
}

#[test]
fn a_directory_is_packed_as_it_is() {
    if skip_without_root("a_directory_is_packed_as_it_is") {
        return;
    }
    let scene = Scene::new();
    let source = scene.dir.path().join("source");
    fs::create_dir_all(source.join("bin")).unwrap();
    fs::write(source.join("bin/tool"), "x").unwrap();
    fs::set_permissions(source.join("bin/tool"), fs::Permissions::from_mode(0o4750)).unwrap();
    std::os::unix::fs::symlink("/outside/../tool", source.join("bin/link")).unwrap();
    let pipe = CString::new(source.join("pipe").as_os_str().as_bytes()).unwrap();
    nix::unistd::mkfifo(pipe.as_c_str(), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let options = Options { tags: vec!["localhost/x:1".parse().unwrap()], ..Options::default() };
    let pack = || import(&scene.store, Source::Path(&source), &options, &|_| {}).unwrap().remove(0);
    let (first, second) = (pack(), pack());
    assert_eq!(first.id, second.id, "the same files give the same image");
    let layer = &first.layers[0];
    assert_eq!(names(layer), ["bin", "pipe"]);
    assert_eq!(layer.join("bin/tool").metadata().unwrap().permissions().mode() & 0o7777, 0o4750);
    assert_eq!(fs::read_link(layer.join("bin/link")).unwrap(), Path::new("/outside/../tool"));
    assert_eq!(first.repo_tags, ["localhost/x:1"]);
}
