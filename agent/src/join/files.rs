//! The files that a join writes: where they are, each written whole, all of them or none.
//!
//! Owns: their places, their text, and taking back what was written when the join fails. Never: asks the cluster.
//!
//! The kubeconfig comes last: without it the service does not start, so that nothing ever runs on half of a join.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::args::Places;
use super::cluster_info::Cluster;
use super::failure::{Exit, Failure};
use crate::host::files::write_durable;

/// The first line of every text that join writes: `orlop reset` removes such files and no others.
pub const MARK: &str = "# Written by `orlop join`; `orlop reset` removes it.\n";
/// As much as a join writes, generously: a disk without it is full.
const ROOM: usize = 64 << 10;

impl Places {
    /// The node's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.etc_dir.join("kubeconfig")
    }
    /// The token as a kubeconfig, where it is kept.
    pub fn bootstrap_kubeconfig(&self) -> PathBuf {
        self.etc_dir.join("bootstrap-kubeconfig")
    }
    /// KubeletConfiguration.
    pub fn config(&self) -> PathBuf {
        self.etc_dir.join("config.yaml")
    }
    /// Flags for the unit.
    pub fn environment(&self) -> PathBuf {
        self.etc_dir.join("join.env")
    }
    /// The cluster's CA.
    pub fn ca(&self) -> PathBuf {
        self.etc_dir.join("pki/ca.crt")
    }
    /// The node's certificate and its key in one file, so that both are always of one pair.
    pub fn certificate(&self) -> PathBuf {
        self.root_dir.join("pki/client.pem")
    }
    /// The key of a request that is not signed yet: joining again asks with the same one.
    pub fn pending_key(&self) -> PathBuf {
        self.root_dir.join("pki/client.key.pending")
    }
    /// Everything that join writes.
    pub fn all(&self) -> [PathBuf; 7] {
        [
            self.kubeconfig(),
            self.bootstrap_kubeconfig(),
            self.config(),
            self.environment(),
            self.ca(),
            self.certificate(),
            self.pending_key(),
        ]
    }
}

/// Whether a text file is there that join did not write.
pub fn is_foreign(path: &Path) -> bool {
    fs::read(path).is_ok_and(|text| !text.starts_with(MARK.as_bytes()))
}

/// A file as it was before: its contents and permission bits.
type Before = Option<(Vec<u8>, u32)>;

/// What was written so far; taken back when dropped, unless it is kept.
#[derive(Debug, Default)]
pub struct Writes {
    files: Vec<(PathBuf, Before)>,
    dirs: Vec<PathBuf>,
}

impl Writes {
    /// Makes a directory with its parents. The mode is that of new ones.
    pub fn dir(&mut self, dir: &Path, mode: u32) -> Result<(), Failure> {
        let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
        for dir in missing.into_iter().rev() {
            match fs::DirBuilder::new().mode(mode).create(dir) {
                Ok(()) => self.dirs.push(dir.to_owned()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(unwritten(&format!("create {}", dir.display()), &error)),
            }
        }
        Ok(())
    }

    /// Whether a directory takes as much as a join writes; nothing of it stays.
    pub fn try_room(&self, dir: &Path) -> Result<(), Failure> {
        let probe = dir.join(".orlop-join");
        let tried = write_durable(&probe, &vec![b'#'; ROOM], 0o600);
        let _ = fs::remove_file(&probe);
        tried.map_err(|error| unwritten(&format!("try {}", dir.display()), &error))
    }

    /// Writes a file whole.
    pub fn file(&mut self, path: &Path, contents: &[u8], mode: u32) -> Result<(), Failure> {
        let before = match fs::read(path) {
            Ok(old) => {
                let mode = fs::metadata(path).map_or(0o600, |meta| meta.permissions().mode() & 0o777);
                Some((old, mode))
            }
            Err(_) => None,
        };
        write_durable(path, contents, mode).map_err(|error| unwritten("", &error))?;
        self.files.push((path.to_owned(), before));
        Ok(())
    }

    /// All of it stays.
    pub fn keep(mut self) {
        self.files.clear();
        self.dirs.clear();
    }
}

impl Drop for Writes {
    fn drop(&mut self) {
        for (path, before) in self.files.drain(..).rev() {
            let _ = match before {
                Some((contents, mode)) => write_durable(&path, &contents, mode),
                None => fs::remove_file(&path),
            };
        }
        // A directory that somebody uses meanwhile is not empty, and stays.
        for dir in self.dirs.drain(..).rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// The failure for a file that cannot be written. The error names the file already, or `what` does.
pub fn unwritten(what: &str, error: &io::Error) -> Failure {
    let text = if what.is_empty() { error.to_string() } else { format!("{what}: {error}") };
    let failure = Failure::new(Exit::Write, text);
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            failure.advise("make room on this file system and join again; nothing was left behind")
        }
        io::ErrorKind::ReadOnlyFilesystem => failure.advise(
            "mount it writable, or choose other places with --etc-dir and --root-dir; nothing was left behind",
        ),
        io::ErrorKind::PermissionDenied => failure.advise("run as root: sudo orlop join ..."),
        _ => failure.advise("nothing was left behind"),
    }
}

/// Who a kubeconfig says one is.
#[derive(Debug, Clone, Copy)]
pub enum User<'a> {
    /// By certificate and key in one file.
    Certificate(&'a Path),
    /// By a bearer token.
    Token(&'a str),
}

/// A kubeconfig for one cluster and one user.
pub fn kubeconfig(cluster: &Cluster, name: &str, user: User<'_>) -> String {
    let ca = BASE64.encode(&cluster.ca_pem);
    let user = match user {
        User::Certificate(path) => {
            let path = path.display();
            format!("    client-certificate: \"{path}\"\n    client-key: \"{path}\"\n")
        }
        // Without quotes, one of digits alone would be a number.
        User::Token(token) => format!("    token: \"{token}\"\n"),
    };
    let server = &cluster.server;
    format!(
        "{MARK}apiVersion: v1\nkind: Config\nclusters:\n- name: cluster\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\ncontexts:\n- name: node\n  context:\n    cluster: cluster\n    user: {name}\n\
         current-context: node\nusers:\n- name: {name}\n  user:\n{user}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kubeconfig::{CertificateSource, PemSource, TokenSource, Trust, parse};

    #[test]
    fn a_join_that_fails_leaves_everything_as_it_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let (old, new) = (dir.path().join("old"), dir.path().join("a/b/new"));
        fs::write(&old, "before").expect("written");
        fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).expect("mode");
        let mut writes = Writes::default();
        writes.dir(&dir.path().join("a/b"), 0o700).expect("made");
        writes.try_room(&dir.path().join("a/b")).expect("room");
        writes.file(&old, b"after", 0o600).expect("written");
        writes.file(&new, b"after", 0o600).expect("written");
        assert_eq!(fs::metadata(&new).expect("there").permissions().mode() & 0o777, 0o600);
        drop(writes);
        assert_eq!(fs::read_to_string(&old).expect("there"), "before");
        assert_eq!(fs::metadata(&old).expect("there").permissions().mode() & 0o777, 0o640);
        let left: Vec<_> = fs::read_dir(dir.path()).expect("read").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["old"]);
    }

    #[test]
    fn a_join_that_succeeds_keeps_what_it_wrote() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut writes = Writes::default();
        writes.file(&dir.path().join("f"), MARK.as_bytes(), 0o600).expect("written");
        writes.keep();
        assert!(!is_foreign(&dir.path().join("f")));
        fs::write(dir.path().join("g"), "apiVersion: v1\n").expect("written");
        assert!(is_foreign(&dir.path().join("g")));
        assert!(!is_foreign(&dir.path().join("absent")));
    }

    #[test]
    fn what_cannot_be_written_is_named_with_its_exit_code() {
        let mut writes = Writes::default();
        let failure = writes.file(Path::new("/proc/orlop/x"), b"", 0o600).expect_err("unwritable");
        assert_eq!(failure.exit, Exit::Write);
        assert!(failure.to_string().contains("/proc/orlop/x"), "{failure}");
    }

    #[test]
    fn the_kubeconfig_is_one_that_the_daemon_reads() {
        let cluster = Cluster { server: "https://192.0.2.2:6443".into(), ca_pem: b"CA".to_vec() };
        let pem = PathBuf::from("/var/lib/orlop/pki/client.pem");
        let text = kubeconfig(&cluster, "system:node:n1", User::Certificate(&pem));
        let access = parse(&text, Path::new("/etc/orlop/kubeconfig")).expect("valid");
        assert_eq!(
            (access.server.as_str(), &access.trust),
            ("https://192.0.2.2:6443", &Trust::Bundle(b"CA".to_vec()))
        );
        let file = || PemSource::File(pem.clone());
        assert_eq!(access.certificate, Some(CertificateSource { certificate: file(), key: file() }));
        let text = kubeconfig(&cluster, "bootstrap", User::Token("012345.0123456789012345"));
        let access = parse(&text, Path::new("/etc/orlop/bootstrap-kubeconfig")).expect("valid");
        assert_eq!(access.token, Some(TokenSource::Inline("012345.0123456789012345".into())));
    }
}
