//! The command line. Owns: the commands, their help, exit codes. Never: does the work (each command's body lives with
//! what it is about, or in its own file here).

mod check;
mod config;
mod exec;
pub mod manual;
mod proxy;
mod ps;
mod standalone;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// A whole Kubernetes node in one small daemon.
///
/// `orlop run` is the node: it runs the pods that an API server binds to it, connects them, and programs the services.
/// The other commands look at this node and work without any API server.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be the node: run pods, connect them, program services, report to the API server
    Run(Box<crate::config::flags::RunArgs>),
    /// Join this machine to a cluster as a node, as kubeadm does
    #[command(after_help = crate::join::failure::exit_codes())]
    Join(Box<crate::join::args::JoinArgs>),
    /// Undo a join: end the service and the pods, and remove everything of orlop's from this machine
    Reset(crate::join::args::ResetArgs),
    /// List the pods and containers on this node
    Ps(ps::PsArgs),
    /// Print the output of a container
    Logs(crate::logs::cli::LogsArgs),
    /// Run a program in a running container
    Exec(exec::ExecArgs),
    /// Say what this machine lacks to be a node, and what to do about it
    Check(check::CheckArgs),
    /// Print the configuration in force and where each value comes from, or what each field does
    #[command(mut_arg("kubeconfig", |_| config::kubeconfig()))]
    Config(Box<config::ConfigArgs>),
    /// Import, pull, list and remove images
    Image(crate::image::cli::ImageArgs),
    /// Program services alone, or look at how they are programmed
    Proxy(proxy::ProxyArgs),
    /// Credentials for the embedded API server of `orlop run --standalone`
    Standalone(standalone::StandaloneArgs),
    /// Print the version
    Version,
}

/// Where the node keeps its things; the same flags as `orlop run`.
#[derive(Debug, Clone, Args)]
pub struct Dirs {
    /// Live state of pods
    #[arg(long, value_name = "DIR", default_value = "/run/orlop", env = "ORLOP_RUN_DIR")]
    pub run_dir: PathBuf,
    /// Images, volumes, writable layers
    #[arg(long, value_name = "DIR", default_value = "/var/lib/orlop", env = "ORLOP_ROOT_DIR")]
    pub root_dir: PathBuf,
}

/// Parses the command line and does what it says. Exit code 0 is success, 1 a failure that was printed, 2 wrong usage.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => crate::daemon::main(&args),
        Command::Join(args) => return crate::join::main(&args),
        Command::Reset(args) => return crate::join::reset::main(&args),
        Command::Ps(args) => ps::run(&args),
        Command::Logs(args) => crate::logs::cli::run(&args),
        Command::Exec(args) => return exec::main(&args),
        Command::Check(args) => return check::main(&args),
        Command::Config(args) => config::run(*args),
        Command::Image(args) => image(args),
        Command::Proxy(args) => proxy::run(args),
        Command::Standalone(args) => standalone::run(args),
        Command::Version => {
            println!("orlop {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn image(args: crate::image::cli::ImageArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(crate::image::cli::run(args))?;
    Ok(())
}
