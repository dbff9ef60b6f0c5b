//! What another kubelet or kube-proxy left on this machine, or still does on it.
//!
//! Owns: looking for them. Never: removes anything; each finding names the command that does.

use std::fs;
use std::path::Path;

use orlop_netproxy::Backend as _;
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::objects::Family;

use super::Finding;

/// Where the stock node keeps its kubeconfig and its pods.
const KUBELET_CONF: &str = "/etc/kubernetes/kubelet.conf";
const KUBELET_PODS: &str = "/var/lib/kubelet/pods";
const KUBE_PROXY: &str = "kube-proxy";
/// The tables of iptables (which has them in nf_tables) that kube-proxy writes to in its older mode.
const IPTABLES: [&str; 3] = ["nat", "filter", "mangle"];
/// The name of the finding about them.
const RULES: &str = "KubeProxyRules";

/// Every trace.
pub fn findings() -> Vec<Finding> {
    vec![
        program(
            "kubelet",
            "Kubelet",
            "systemctl disable --now kubelet, and `kubeadm reset` if it was a node before",
        ),
        program(
            KUBE_PROXY,
            "KubeProxy",
            "take this node out of kube-proxy's DaemonSet, or systemctl disable --now kube-proxy",
        ),
        file(KUBELET_CONF),
        pods(),
        rules(),
    ]
}

fn program(program: &str, name: &'static str, advice: &'static str) -> Finding {
    let running = fs::read_dir("/proc").into_iter().flatten().flatten().find(|process| {
        fs::read_to_string(process.path().join("comm")).is_ok_and(|comm| comm.trim_end() == program)
    });
    match running {
        None => Finding::ok(name, format!("no {program} runs here")),
        Some(process) => {
            let pid = process.file_name().to_string_lossy().into_owned();
            let detail = format!(
                "{program} runs here (process {pid}): two agents on one machine fight over every pod"
            );
            Finding::fail(name, detail, advice)
        }
    }
}

fn file(path: &'static str) -> Finding {
    let name = format!("FileAvailable-{}", path.replace('/', "-"));
    if Path::new(path).exists() {
        let detail = format!("{path} is there: this machine was a node of another kubelet");
        Finding::warn(name, detail, "kubeadm reset, or remove it")
    } else {
        Finding::ok(name, "not there")
    }
}

fn pods() -> Finding {
    let name = "DirAvailable--var-lib-kubelet-pods";
    match fs::read_dir(KUBELET_PODS).into_iter().flatten().flatten().count() {
        0 => Finding::ok(name, "empty"),
        n => {
            let detail = format!("{KUBELET_PODS} holds volumes of {n} pods of another kubelet");
            Finding::warn(name, detail, "kubeadm reset; volumes that are mounted there stay so until then")
        }
    }
}

/// What kube-proxy programmed outlives it, and would go on translating addresses.
fn rules() -> Finding {
    let found = Netlink::open().map(|mut netlink| {
        // A table that cannot be read is none of kube-proxy's.
        let mut chains = |table: &str| -> Vec<String> {
            let tables = Family::ALL.into_iter().filter_map(|family| netlink.inspect(table, family).ok()?);
            tables.flat_map(|table| table.chains.into_keys()).collect()
        };
        let own = !chains(KUBE_PROXY).is_empty();
        let older = |table: &&str| chains(table).iter().any(|chain| is_kube_proxys(chain));
        (own, IPTABLES.into_iter().filter(older).collect::<Vec<_>>())
    });
    match found {
        Ok((own, iptables)) => left_rules(own, &iptables),
        Err(error) => Finding::warn(RULES, format!("cannot be looked for: {error}"), "run as root"),
    }
}

/// The chains of kube-proxy in iptables mode, and those of kubelet's for it.
fn is_kube_proxys(chain: &str) -> bool {
    chain.starts_with("KUBE-")
}

fn left_rules(own: bool, iptables: &[&str]) -> Finding {
    match (own, iptables) {
        (false, []) => Finding::ok(RULES, "none of kube-proxy's"),
        (true, []) => Finding::warn(
            RULES,
            "kube-proxy has left nftables tables, which still translate service addresses",
            "orlop proxy cleanup",
        ),
        (_, tables) => Finding::warn(
            RULES,
            format!(
                "kube-proxy has left iptables chains (KUBE-... in {}), which still translate service addresses",
                tables.join(", ")
            ),
            "reboot; or iptables-save | grep -v KUBE- | iptables-restore, the same with ip6tables, and orlop proxy cleanup",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_program_that_runs_is_found_by_its_name() {
        let own = fs::read_to_string("/proc/self/comm").expect("a name");
        let finding = program(own.trim_end(), "Kubelet", "end it");
        assert_eq!((finding.level, finding.advice.as_str()), (Level::Fail, "end it"));
        assert_eq!(program("no such program", "Kubelet", "").level, Level::Ok);
    }

    #[test]
    fn rules_of_kube_proxy_are_named_by_what_removes_them() {
        assert_eq!(left_rules(false, &[]).level, Level::Ok);
        assert_eq!(left_rules(true, &[]).advice, "orlop proxy cleanup");
        let older = left_rules(true, &["nat", "filter"]);
        assert!(
            older.detail.contains("in nat, filter") && older.advice.contains("iptables-save"),
            "{older:?}"
        );
        assert!(is_kube_proxys("KUBE-SERVICES") && !is_kube_proxys("PREROUTING"));
    }

    #[test]
    fn files_have_kubeadms_names() {
        assert_eq!(file(KUBELET_CONF).name, "FileAvailable--etc-kubernetes-kubelet.conf");
    }
}
