//! `orlop proxy`: services alone, and a look at what is programmed.
//!
//! Owns: the arguments. Never: computes an answer (the process that programs the services does).

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use orlop_netproxy::Query;
use orlop_netproxy::netlink::Netlink;

use crate::services::alone;
use crate::services::control::{Reply, Request, SOCKET, ask};

/// The tables kube-proxy makes in nftables mode.
const KUBE_PROXY: &str = "kube-proxy";

/// Arguments of `orlop proxy`.
#[derive(Debug, Args)]
pub struct ProxyArgs {
    #[command(subcommand)]
    command: Command,
}

/// Where to ask.
#[derive(Debug, Args)]
struct Asking {
    /// Live state of the node, as `orlop run` has it
    #[arg(long, value_name = "DIR", default_value = crate::config::RUN_DIR, env = "ORLOP_RUN_DIR")]
    run_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Program services without running pods: a kube-proxy for a node with another kubelet
    Run(Box<alone::RunArgs>),
    /// Count what is programmed
    Status(Asking),
    /// Say which service an address belongs to, which endpoints it has, and what happens to a packet
    Explain {
        /// Where the packet goes: ADDRESS:PORT, or ADDRESS:PORT/PROTOCOL with tcp, udp or sctp
        #[arg(value_parser = checked)]
        to: String,
        /// Where it comes from [default: this node]
        #[arg(long, value_name = "ADDRESS")]
        from: Option<IpAddr>,
        /// The interface it comes in by, where pods are told by that
        #[arg(long, value_name = "NAME")]
        interface: Option<String>,
        #[command(flatten)]
        asking: Asking,
    },
    /// Compare every rule and element in the kernel with what should be there; exit code 1 if they differ
    Verify(Asking),
    /// Remove what kube-proxy's nftables mode left behind. Ours stays
    Cleanup,
}

fn checked(text: &str) -> Result<String, String> {
    text.parse::<Query>().map(|_| text.to_owned())
}

/// Does what was asked.
pub fn run(args: ProxyArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Run(args) => alone::main(&args),
        Command::Status(asking) => put(&asking, &Request::Status),
        Command::Explain { to, from, interface, asking } => {
            put(&asking, &Request::Explain { to, from, interface })
        }
        Command::Verify(asking) => put(&asking, &Request::Verify),
        Command::Cleanup => cleanup(),
    }
}

fn put(asking: &Asking, request: &Request) -> anyhow::Result<()> {
    match ask(&asking.run_dir.join(SOCKET), request)? {
        Reply::Fine(text) => {
            println!("{}", text.trim_end());
            Ok(())
        }
        Reply::Differs(text) => {
            println!("{}", text.trim_end());
            bail!("the kernel differs from what it should have")
        }
        Reply::Failed(text) => bail!("{text}"),
    }
}

fn cleanup() -> anyhow::Result<()> {
    let mut netlink = Netlink::open().context("open nf_tables over netlink")?;
    let removed = netlink.remove_table(KUBE_PROXY)?;
    if removed.is_empty() {
        println!("kube-proxy has left no nftables table here");
    }
    for family in removed {
        println!("removed table {family} {KUBE_PROXY}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_checked_before_anybody_is_asked() {
        assert_eq!(checked("10.96.0.1:80/udp"), Ok("10.96.0.1:80/udp".to_owned()));
        assert!(checked("10.96.0.1").is_err());
    }
}
