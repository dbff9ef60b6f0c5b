//! A pod's `resolv.conf` and names. Pure; the rules are kubelet's (`pkg/kubelet/network/dns/dns.go`).
//!
//! Owns: dnsPolicy, dnsConfig, the limits on them, hostname and FQDN. Never: reads the node's `resolv.conf` itself.

use std::net::IpAddr;

use crate::pod::action::Warning;
use crate::pod::spec::{DnsPolicy, Pod};

/// Kubelet's reason for what had to be left out of a `resolv.conf`.
pub const FORMING: &str = "DNSConfigForming";

/// At most this many name servers work in glibc.
const MAX_NAMESERVERS: usize = 3;
/// At most this many search domains.
const MAX_SEARCHES: usize = 32;
/// At most this many characters in the search line.
const MAX_SEARCH_CHARS: usize = 2048;
/// The longest hostname that Linux takes, less the one for its end.
const MAX_HOSTNAME: usize = 63;
/// The longest FQDN that fits the kernel's hostname field.
const MAX_FQDN: usize = 64;

/// What the cluster contributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterDns {
    /// `clusterDNS`.
    pub servers: Vec<IpAddr>,
    /// `clusterDomain`.
    pub domain: String,
}

/// What the node contributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeDns {
    /// The cluster's part.
    pub cluster: ClusterDns,
    /// The node's own `resolv.conf` (`resolvConf`).
    pub node: Resolver,
}

/// The content of a `resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolver {
    /// `nameserver` lines; text, since a scope id may follow the address.
    pub nameservers: Vec<String>,
    /// The last `search` line.
    pub searches: Vec<String>,
    /// The `options` lines.
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads a `resolv.conf`; lines that make no sense are skipped, as the resolver skips them.
    pub fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_owned)),
                Some("search") => {
                    resolver.searches = words.map(|word| trim_dot(word).to_owned()).collect();
                }
                Some("options") => resolver.options.extend(words.map(str::to_owned)),
                Some(_) | None => {}
            }
        }
        resolver
    }

    /// The file.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

fn trim_dot(domain: &str) -> &str {
    if domain == "." { domain } else { domain.trim_end_matches('.') }
}

/// A pod's resolver, and what is otherwise than asked for.
pub fn resolver(pod: &Pod, node: &NodeDns) -> (Resolver, Vec<Warning>) {
    let policy = match (pod.spec.dns_policy, pod.spec.host_network) {
        (DnsPolicy::ClusterFirst, true) => DnsPolicy::Default,
        (policy, _) => policy,
    };
    let mut warnings = vec![];
    let mut resolver = match policy {
        DnsPolicy::None => Resolver::default(),
        DnsPolicy::Default => node.node.clone(),
        // Without a cluster DNS kubelet falls back to the node's.
        DnsPolicy::ClusterFirst | DnsPolicy::ClusterFirstWithHostNet if node.cluster.servers.is_empty() => {
            warnings.push(Warning {
                reason: "MissingClusterDNS",
                message: format!(
                    "pod: \"{pod}\". The node does not have clusterDNS configured and cannot create Pod using \
                     \"{policy:?}\" policy. Falling back to \"Default\" policy."
                ),
            });
            node.node.clone()
        }
        DnsPolicy::ClusterFirst | DnsPolicy::ClusterFirstWithHostNet => cluster_resolver(pod, node),
    };
    let config = &pod.spec.dns_config;
    append_new(&mut resolver.nameservers, config.nameservers.iter().map(IpAddr::to_string));
    append_new(&mut resolver.searches, config.searches.iter().map(|domain| trim_dot(domain).to_owned()));
    for option in &config.options {
        let prefix = format!("{}:", option.name);
        resolver.options.retain(|other| *other != option.name && !other.starts_with(&prefix));
        resolver.options.push(match &option.value {
            Some(value) => format!("{prefix}{value}"),
            None => option.name.clone(),
        });
    }
    let cut = limit(&mut resolver).into_iter();
    warnings.extend(cut.map(|message| Warning { reason: FORMING, message }));
    (resolver, warnings)
}

fn cluster_resolver(pod: &Pod, node: &NodeDns) -> Resolver {
    let domain = &node.cluster.domain;
    let mut searches = vec![];
    if !domain.is_empty() {
        searches = vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
    }
    append_new(&mut searches, node.node.searches.iter().cloned());
    Resolver {
        nameservers: node.cluster.servers.iter().map(IpAddr::to_string).collect(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn append_new(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

fn limit(resolver: &mut Resolver) -> Vec<String> {
    let mut cut = vec![];
    if resolver.nameservers.len() > MAX_NAMESERVERS {
        resolver.nameservers.truncate(MAX_NAMESERVERS);
        cut.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            resolver.nameservers.join(" ")
        ));
    }
    let mut chars = 0;
    let fitting = resolver.searches.iter().take(MAX_SEARCHES).take_while(|domain| {
        chars += domain.len() + usize::from(chars > 0);
        chars <= MAX_SEARCH_CHARS
    });
    let fitting = fitting.count();
    if fitting < resolver.searches.len() {
        resolver.searches.truncate(fitting);
        cut.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            resolver.searches.join(" ")
        ));
    }
    cut
}

/// A pod's hostname and domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNames {
    /// What `hostname` prints.
    pub hostname: String,
    /// `<subdomain>.<namespace>.svc.<cluster domain>`; empty without a subdomain.
    pub domain: String,
}

/// The names a pod goes by.
///
/// # Errors
/// Where `setHostnameAsFQDN` asks for a name that does not fit the kernel's field.
pub fn names(pod: &Pod, cluster_domain: &str) -> Result<PodNames, String> {
    let spec = &pod.spec;
    if let Some(name) = &spec.hostname_override {
        return Ok(PodNames { hostname: name.clone(), domain: String::new() });
    }
    let hostname = match &spec.hostname {
        Some(name) if !name.is_empty() => name.clone(),
        Some(_) | None => cut_hostname(pod.name()),
    };
    let domain = match &spec.subdomain {
        Some(sub) if !sub.is_empty() => format!("{sub}.{}.svc.{cluster_domain}", pod.namespace()),
        Some(_) | None => String::new(),
    };
    if spec.set_hostname_as_fqdn && !domain.is_empty() {
        let fqdn = format!("{hostname}.{domain}");
        if fqdn.len() > MAX_FQDN {
            return Err(format!(
                "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {fqdn} is too long ({} characters \
                 is the max, {} characters requested)",
                MAX_FQDN,
                fqdn.len()
            ));
        }
        return Ok(PodNames { hostname: fqdn, domain });
    }
    Ok(PodNames { hostname, domain })
}

/// Pod names may be longer than hostnames; what is left may not end in a dash or dot.
fn cut_hostname(name: &str) -> String {
    let end = name.len().min(MAX_HOSTNAME);
    name[..name.floor_char_boundary(end)].trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::{DnsOption, Metadata};

    fn node() -> NodeDns {
        NodeDns {
            cluster: ClusterDns {
                servers: vec!["10.96.0.10".parse().expect("address")],
                domain: "cluster.local".into(),
            },
            node: Resolver::parse("# comment\nnameserver 9.9.9.9\nsearch example.org.\noptions edns0\n"),
        }
    }

    fn pod() -> Pod {
        Pod {
            metadata: Metadata { name: "web".into(), namespace: "shop".into(), ..Metadata::default() },
            ..Pod::default()
        }
    }

    #[test]
    fn cluster_first_asks_the_cluster_and_searches_its_domains() {
        let (resolver, cut) = resolver(&pod(), &node());
        assert_eq!(
            resolver.render(),
            "search shop.svc.cluster.local svc.cluster.local cluster.local example.org\n\
             nameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert!(cut.is_empty());
    }

    #[test]
    fn on_the_nodes_network_cluster_first_acts_as_default() {
        let mut pod = pod();
        pod.spec.host_network = true;
        assert_eq!(resolver(&pod, &node()).0, node().node);
        pod.spec.dns_policy = DnsPolicy::ClusterFirstWithHostNet;
        assert_eq!(resolver(&pod, &node()).0.nameservers, ["10.96.0.10"]);
    }

    #[test]
    fn dns_config_adds_and_replaces() {
        let mut pod = pod();
        pod.spec.dns_policy = DnsPolicy::None;
        pod.spec.dns_config.nameservers = vec!["1.1.1.1".parse().expect("address"); 2];
        pod.spec.dns_config.searches = vec!["a.b.".into()];
        pod.spec.dns_config.options = vec![DnsOption { name: "ndots".into(), value: Some("2".into()) }];
        assert_eq!(resolver(&pod, &node()).0.render(), "search a.b\nnameserver 1.1.1.1\noptions ndots:2\n");
        pod.spec.dns_policy = DnsPolicy::ClusterFirst;
        assert_eq!(resolver(&pod, &node()).0.options, ["ndots:2"]);
    }

    #[test]
    fn what_does_not_fit_is_cut_and_said() {
        let mut pod = pod();
        pod.spec.dns_config.nameservers =
            ["1.0.0.1", "1.0.0.2", "1.0.0.3"].map(|a| a.parse().expect("address")).to_vec();
        pod.spec.dns_config.searches = (0..40).map(|n| format!("d{n}.example")).collect();
        let (resolver, cut) = resolver(&pod, &node());
        assert_eq!(resolver.nameservers.len(), 3);
        assert_eq!(resolver.searches.len(), 32);
        assert_eq!(cut.len(), 2);
        assert!(cut.iter().all(|warning| warning.reason == "DNSConfigForming"), "{cut:?}");
        assert!(cut[0].message.ends_with("line is: 10.96.0.10 1.0.0.1 1.0.0.2"), "{cut:?}");
    }

    #[test]
    fn a_cluster_without_a_name_server_leaves_the_nodes_and_says_so() {
        let node = NodeDns { cluster: ClusterDns::default(), ..node() };
        let (resolver, warnings) = resolver(&pod(), &node);
        assert_eq!(resolver, node.node);
        assert_eq!(warnings[0].reason, "MissingClusterDNS");
    }

    #[test]
    fn hostnames_are_cut_to_what_linux_takes() {
        let mut pod = pod();
        pod.metadata.name = format!("{}-x", "a".repeat(62)).into();
        assert_eq!(names(&pod, "cluster.local").expect("fits").hostname, "a".repeat(62));
    }

    #[test]
    fn the_fqdn_may_be_the_hostname_where_it_fits() {
        let mut pod = pod();
        pod.spec.subdomain = Some("sub".into());
        pod.spec.set_hostname_as_fqdn = true;
        assert_eq!(names(&pod, "cluster.local").expect("fits").hostname, "web.sub.shop.svc.cluster.local");
        pod.spec.hostname = Some("h".repeat(60));
        assert!(names(&pod, "cluster.local").expect_err("too long").contains("is too long"));
    }
}
