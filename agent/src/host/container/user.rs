//! Who a container's process is: uid, gid, further groups, home directory.
//!
//! Owns: reading `/etc/passwd` and `/etc/group` of an image, layer by layer, without following a link out of it; the
//! rules of precedence between PodSpec and image. Never: trusts a path of the image.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use crate::pod::spec::{Container, Pod, SupplementalGroupsPolicy};

/// Larger files of accounts are not read: no image has a reason for one.
const MAX_FILE: u64 = 4 << 20;

/// The process's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups, sorted.
    pub groups: Vec<u32>,
    /// For `HOME`.
    pub home: String,
}

/// The accounts an image knows.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Accounts {
    passwd: Vec<Account>,
    groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Accounts {
    /// Reads them from the layers of an image, lowest first: the topmost file counts, as overlay shows it.
    pub fn of_image(layers: &[PathBuf]) -> Self {
        Self {
            passwd: topmost(layers, "etc/passwd").lines().filter_map(parse_account).collect(),
            groups: topmost(layers, "etc/group").lines().filter_map(parse_group).collect(),
        }
    }
}

fn topmost(layers: &[PathBuf], path: &str) -> String {
    layers.iter().rev().find_map(|layer| read_inside(layer, path)).unwrap_or_default()
}

/// Reads a regular file below `root`; links resolve inside it or not at all.
fn read_inside(root: &Path, path: &str) -> Option<String> {
    let dir = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let fd: OwnedFd = openat2(&dir, path, how).ok()?;
    let file = File::from(fd);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = vec![];
    file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn parse_account(line: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
    Some(Account {
        name: (*name).into(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: (*home).into(),
    })
}

fn parse_group(line: &str) -> Option<Group> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, gid, members, ..] = fields.as_slice() else { return None };
    let members = members.split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect();
    Some(Group { name: (*name).into(), gid: gid.parse().ok()?, members })
}

/// Decides. `image_user` is `USER` of the image config: `uid`, `name`, `uid:gid`, `name:group`.
///
/// # Errors
/// Where the image names an account it does not have.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    image_user: &str,
    accounts: &Accounts,
) -> Result<User, String> {
    let security = container.security_context.within(&pod.spec.security_context);
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image_user, None),
    };
    let (uid, known) = match security.run_as_user {
        Some(uid) => (uid, accounts.passwd.iter().find(|account| account.uid == uid)),
        None => lookup_user(image_name, accounts)?,
    };
    let gid = match (security.run_as_group, security.run_as_user, image_group) {
        (Some(gid), _, _) => gid,
        // The image's group goes with the image's user.
        (None, None, Some(group)) => lookup_group(group, accounts)?,
        (None, _, _) => known.map_or(0, |account| account.gid),
    };
    let mut groups = pod.spec.security_context.supplemental_groups.clone();
    groups.extend(pod.spec.security_context.fs_group);
    groups.push(gid);
    if pod.spec.security_context.supplemental_groups_policy == SupplementalGroupsPolicy::Merge
        && let Some(account) = known
    {
        let member = |group: &&Group| group.members.contains(&account.name);
        groups.extend(accounts.groups.iter().filter(member).map(|group| group.gid));
    }
    groups.sort_unstable();
    groups.dedup();
    let home = known.map(|account| account.home.clone()).filter(|home| !home.is_empty());
    Ok(User { uid, gid, groups, home: home.unwrap_or_else(|| "/".to_owned()) })
}

fn lookup_user<'a>(name: &str, accounts: &'a Accounts) -> Result<(u32, Option<&'a Account>), String> {
    if name.is_empty() {
        return Ok((0, accounts.passwd.iter().find(|account| account.uid == 0)));
    }
    if let Ok(uid) = name.parse() {
        return Ok((uid, accounts.passwd.iter().find(|account| account.uid == uid)));
    }
    let account = accounts.passwd.iter().find(|account| account.name == name);
    let account =
        account.ok_or_else(|| format!("unable to find user {name}: no matching entries in passwd file"))?;
    Ok((account.uid, Some(account)))
}

fn lookup_group(name: &str, accounts: &Accounts) -> Result<u32, String> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    let group = accounts.groups.iter().find(|group| group.name == name);
    group
        .map(|group| group.gid)
        .ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("etc")).expect("mkdir");
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/srv:/bin/false\nbad line\n";
        std::fs::write(dir.path().join("etc/passwd"), passwd).expect("write");
        std::fs::write(dir.path().join("etc/group"), "web:x:34:\nlog:x:4:web,root\n").expect("write");
        Accounts::of_image(&[dir.path().to_owned()])
    }

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> User {
        User { uid, gid, groups: groups.to_vec(), home: home.into() }
    }

    #[test]
    fn the_image_names_the_user() {
        let (pod, container) = (Pod::default(), Container::default());
        let resolve = |name: &str| resolve(&pod, &container, name, &accounts());
        assert_eq!(resolve(""), Ok(user(0, 0, &[0, 4], "/root")));
        assert_eq!(resolve("web"), Ok(user(33, 34, &[4, 34], "/srv")));
        assert_eq!(resolve("33"), Ok(user(33, 34, &[4, 34], "/srv")));
        assert_eq!(resolve("7:log"), Ok(user(7, 4, &[4], "/")));
        assert!(resolve("nobody").expect_err("unknown").contains("unable to find user nobody"));
    }

    #[test]
    fn the_pod_overrules_the_image() {
        let mut pod = Pod::default();
        pod.spec.security_context.run_as_user = Some(1000);
        pod.spec.security_context.fs_group = Some(2000);
        pod.spec.security_context.supplemental_groups = vec![3000];
        let container = Container::default();
        assert_eq!(
            resolve(&pod, &container, "web:log", &accounts()),
            Ok(user(1000, 0, &[0, 2000, 3000], "/"))
        );
    }

    #[test]
    fn strict_groups_are_the_pods_alone() {
        let mut pod = Pod::default();
        pod.spec.security_context.supplemental_groups_policy = SupplementalGroupsPolicy::Strict;
        assert_eq!(resolve(&pod, &Container::default(), "web", &accounts()), Ok(user(33, 34, &[34], "/srv")));
    }

    #[test]
    fn a_link_does_not_lead_out_of_the_image() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("etc")).expect("mkdir");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("etc/passwd")).expect("link");
        assert_eq!(Accounts::of_image(&[dir.path().to_owned()]), Accounts::default());
    }
}
