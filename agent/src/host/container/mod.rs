//! From a PodSpec and an image to an OCI runtime configuration. Pure, given what was looked up before.
//!
//! Owns: the configuration's shape: process, mounts, namespaces, cgroup limits. Never: writes it, starts anything, or
//! applies privileges: capabilities, `no_new_privs` and seccomp go to the supervisor's executor beside it.

pub mod devices;
pub mod env;
pub mod mounts;
pub mod privileges;
pub mod user;

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBuilder, LinuxCpuBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder,
    LinuxResources, LinuxResourcesBuilder, Mount, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    UserBuilder,
};

use super::cgroup::resources::{PERIOD_US, cpu_quota, cpu_shares};
use crate::image::config::ImageConfig;
use crate::pod::spec::{Container, Pod};
use devices::Device;
use user::User;

/// `PATH` where neither image nor pod sets it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything that a container's configuration is made from.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its container.
    pub container: &'a Container,
    /// What the image says.
    pub image: &'a ImageConfig,
    /// The container's variables, resolved.
    pub env: Vec<(String, String)>,
    /// Who it runs as.
    pub user: User,
    /// All mounts, in order.
    pub mounts: Vec<Mount>,
    /// The container's cgroup, from the root of the hierarchies.
    pub cgroup: PathBuf,
    /// Its root file system, mounted by the supervisor.
    pub rootfs: PathBuf,
    /// Devices beyond those that every container has: the node's, for a privileged one.
    pub devices: Vec<Device>,
    /// The hostname, for `HOSTNAME`.
    pub hostname: &'a str,
    /// `podPidsLimit`.
    pub pids_limit: Option<i64>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither pod nor image says what to run.
    #[error("no command specified")]
    NoCommand,
    /// A value that the OCI types refuse.
    #[error("build the runtime configuration: {0}")]
    Oci(#[from] OciSpecError),
}

/// The configuration.
pub fn spec(inputs: &Inputs<'_>) -> Result<Spec, ConfigError> {
    let read_only = inputs.container.security_context.read_only_root_filesystem;
    let root = RootBuilder::default().path(&inputs.rootfs).readonly(read_only).build()?;
    let (masked, read_only_paths) = privileges::hidden_paths(inputs.container);
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(inputs.pod)?)
        .cgroups_path(&inputs.cgroup)
        .resources(resources(inputs)?)
        .masked_paths(masked)
        .readonly_paths(read_only_paths);
    if !inputs.devices.is_empty() {
        linux = linux.devices(linux_devices(&inputs.devices)?);
    }
    let spec = SpecBuilder::default()
        .version("1.1.0")
        .root(root)
        .process(process(inputs)?)
        .mounts(inputs.mounts.clone())
        .linux(linux.build()?)
        .build()?;
    Ok(spec)
}

/// Namespaces of the container's own. Those of the sandbox (network, ipc, uts, a shared pid namespace) are listed
/// without a path: the supervisor knows itself.
fn namespaces(pod: &Pod) -> Result<Vec<oci_spec::runtime::LinuxNamespace>, OciSpecError> {
    let spec = &pod.spec;
    let wanted = [
        (LinuxNamespaceType::Mount, true),
        (LinuxNamespaceType::Cgroup, true),
        (LinuxNamespaceType::Network, !spec.host_network),
        (LinuxNamespaceType::Uts, !spec.host_network),
        (LinuxNamespaceType::Ipc, !spec.host_ipc),
        (LinuxNamespaceType::Pid, !spec.host_pid),
    ];
    let wanted = wanted.into_iter().filter(|(_, own)| *own);
    wanted.map(|(kind, _)| LinuxNamespaceBuilder::default().typ(kind).build()).collect()
}

fn process(inputs: &Inputs<'_>) -> Result<Process, ConfigError> {
    let env = environment(inputs);
    let args = arguments(inputs, &env)?;
    let user = UserBuilder::default()
        .uid(inputs.user.uid)
        .gid(inputs.user.gid)
        .additional_gids(inputs.user.groups.clone())
        .build()?;
    let image_dir = inputs.image.working_dir.as_str();
    let cwd = inputs.container.working_dir.as_deref().unwrap_or(image_dir);
    let process = ProcessBuilder::default()
        .terminal(inputs.container.tty)
        .user(user)
        .args(args)
        .env(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>())
        .cwd(if cwd.is_empty() { Path::new("/") } else { Path::new(cwd) })
        .rlimits(vec![])
        .build()?;
    Ok(process)
}

/// The image's variables, overlaid with the pod's.
fn environment(inputs: &Inputs<'_>) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = vec![
        ("PATH".into(), DEFAULT_PATH.into()),
        ("HOSTNAME".into(), inputs.hostname.to_owned()),
        ("HOME".into(), inputs.user.home.clone()),
    ];
    if inputs.container.tty {
        env.push(("TERM".into(), "xterm".into()));
    }
    let image = inputs.image.env.iter().map(|line| match line.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (line.clone(), String::new()),
    });
    for (name, value) in image.chain(inputs.env.iter().cloned()) {
        match env.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => env.push((name, value)),
        }
    }
    env
}

/// The pod's command replaces the image's entrypoint and its `CMD`; the pod's args replace only the latter.
fn arguments(inputs: &Inputs<'_>, env: &[(String, String)]) -> Result<Vec<String>, ConfigError> {
    let lookup = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let expanded = |words: &[String]| words.iter().map(|word| env::expand(word, lookup)).collect::<Vec<_>>();
    let container = inputs.container;
    let (head, tail) = match (container.command.is_empty(), container.args.is_empty()) {
        (true, true) => (inputs.image.entrypoint.clone(), inputs.image.cmd.clone()),
        (true, false) => (inputs.image.entrypoint.clone(), expanded(&container.args)),
        (false, _) => (expanded(&container.command), expanded(&container.args)),
    };
    let args: Vec<String> = head.into_iter().chain(tail).collect();
    if args.is_empty() { Err(ConfigError::NoCommand) } else { Ok(args) }
}

fn resources(inputs: &Inputs<'_>) -> Result<LinuxResources, OciSpecError> {
    let wanted = &inputs.container.resources;
    let mut cpu = LinuxCpuBuilder::default().shares(cpu_shares(wanted.cpu_request_millis()));
    if let Some(limit) = wanted.cpu_limit_millis() {
        cpu = cpu.quota(cpu_quota(limit)).period(PERIOD_US);
    }
    let devices = LinuxDeviceCgroupBuilder::default()
        .allow(inputs.container.security_context.privileged)
        .access("rwm")
        .build()?;
    let mut resources = LinuxResourcesBuilder::default().cpu(cpu.build()?).devices(vec![devices]);
    if let Some(limit) = wanted.memory_limit_bytes() {
        let bytes = i64::try_from(limit).unwrap_or(i64::MAX);
        resources = resources.memory(LinuxMemoryBuilder::default().limit(bytes).build()?);
    }
    if let Some(limit) = inputs.pids_limit {
        resources = resources.pids(LinuxPidsBuilder::default().limit(limit).build()?);
    }
    resources.build()
}

fn linux_devices(devices: &[Device]) -> Result<Vec<LinuxDevice>, OciSpecError> {
    devices
        .iter()
        .map(|device| {
            LinuxDeviceBuilder::default()
                .path(&device.path)
                .typ(if device.block { LinuxDeviceType::B } else { LinuxDeviceType::C })
                .major(i64::try_from(device.major).unwrap_or_default())
                .minor(i64::try_from(device.minor).unwrap_or_default())
                .file_mode(device.mode)
                .uid(device.uid)
                .gid(device.gid)
                .build()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs<'a>(pod: &'a Pod, container: &'a Container, image: &'a ImageConfig) -> Inputs<'a> {
        Inputs {
            pod,
            container,
            image,
            env: vec![("A".into(), "1".into())],
            user: User { uid: 7, gid: 8, groups: vec![8, 9], home: "/home".into() },
            mounts: vec![],
            cgroup: "/kubepods/podu/c-0".into(),
            rootfs: "/rootfs".into(),
            devices: vec![],
            hostname: "web",
            pids_limit: None,
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn command_and_args_replace_the_images() {
        let image =
            ImageConfig { entrypoint: words(&["ep"]), cmd: words(&["cmd"]), ..ImageConfig::default() };
        for (command, args, want) in [
            (&[][..], &[][..], &["ep", "cmd"][..]),
            (&[], &["$(A)"], &["ep", "1"]),
            (&["c"], &[], &["c"]),
            (&["c"], &["$$(A)"], &["c", "$(A)"]),
        ] {
            let container = Container { command: words(command), args: words(args), ..Container::default() };
            let pod = Pod::default();
            let spec = spec(&inputs(&pod, &container, &image)).expect("spec");
            let process = spec.process().clone().expect("process");
            assert_eq!(process.args().clone().expect("args"), words(want));
        }
        let (pod, container, empty) = (Pod::default(), Container::default(), ImageConfig::default());
        assert!(matches!(spec(&inputs(&pod, &container, &empty)), Err(ConfigError::NoCommand)));
    }

    #[test]
    fn the_pods_variables_win_over_the_images() {
        let image = ImageConfig {
            env: words(&["A=0", "PATH=/x", "B=2"]),
            cmd: words(&["c"]),
            ..ImageConfig::default()
        };
        let (pod, container) = (Pod::default(), Container::default());
        let spec = spec(&inputs(&pod, &container, &image)).expect("spec");
        let env = spec.process().clone().expect("process").env().clone().expect("env");
        assert_eq!(env, words(&["PATH=/x", "HOSTNAME=web", "HOME=/home", "A=1", "B=2"]));
    }

    #[test]
    fn limits_become_cgroup_values() {
        let json = br#"{"metadata":{"name":"p","namespace":"n","uid":"u"},"spec":{"containers":[{"name":"c","image":"i",
            "resources":{"limits":{"cpu":"500m","memory":"64Mi"}}}]}}"#;
        let pod = Pod::from_json(json).expect("pod");
        let image = ImageConfig { cmd: words(&["c"]), ..ImageConfig::default() };
        let spec = spec(&inputs(&pod, &pod.spec.containers[0], &image)).expect("spec");
        let resources = spec.linux().clone().expect("linux").resources().clone().expect("resources");
        let cpu = resources.cpu().clone().expect("cpu");
        assert_eq!((cpu.shares(), cpu.quota()), (Some(512), Some(50_000)));
        assert_eq!(resources.memory().expect("memory").limit(), Some(64 << 20));
    }

    #[test]
    fn namespaces_of_the_node_are_not_asked_for() {
        let mut pod = Pod::default();
        let kinds = |pod: &Pod| namespaces(pod).expect("built").iter().map(|ns| ns.typ()).collect::<Vec<_>>();
        assert_eq!(kinds(&pod).len(), 6);
        pod.spec.host_network = true;
        pod.spec.host_pid = true;
        pod.spec.host_ipc = true;
        assert_eq!(kinds(&pod), [LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup]);
    }
}
