//! A pod's `/etc/hosts`. Pure; the text is kubelet's (`pkg/kubelet/kubelet_pods.go`).
//!
//! Owns: the lines. Never: reads the node's own file (it comes as an argument).

use std::net::IpAddr;

use super::dns::PodNames;
use crate::pod::spec::HostAlias;

/// The file for a pod with addresses of its own.
pub fn managed(addresses: &[IpAddr], names: &PodNames, aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let short = names.hostname.split('.').next().unwrap_or_default();
    for address in addresses {
        if names.domain.is_empty() {
            text.push_str(&format!("{address}\t{}\n", names.hostname));
        } else {
            text.push_str(&format!("{address}\t{short}.{}\t{short}\n", names.domain));
        }
    }
    text + &alias_lines(aliases)
}

/// The file for a pod on the node's network: the node's own, and the aliases.
pub fn of_node(node_file: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node_file}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let lines: String =
        aliases.iter().map(|alias| format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t"))).collect();
    format!("\n# Entries added by HostAliases.\n{lines}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(domain: &str) -> PodNames {
        PodNames { hostname: "web".into(), domain: domain.into() }
    }

    #[test]
    fn the_pods_address_has_its_name() {
        let text = managed(&["10.0.0.5".parse().expect("address")], &names(""), &[]);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("fe00::2\tip6-allrouters\n10.0.0.5\tweb\n"));
    }

    #[test]
    fn a_subdomain_gives_the_long_name_too() {
        let text = managed(&["10.0.0.5".parse().expect("address")], &names("sub.ns.svc.cluster.local"), &[]);
        assert!(text.ends_with("10.0.0.5\tweb.sub.ns.svc.cluster.local\tweb\n"));
    }

    #[test]
    fn aliases_come_last() {
        let alias =
            HostAlias { ip: "1.2.3.4".parse().expect("address"), hostnames: vec!["a".into(), "b".into()] };
        let text = of_node("127.0.0.1 localhost\n", &[alias]);
        assert!(text.ends_with("localhost\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
    }
}
