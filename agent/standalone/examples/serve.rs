//! Runs the embedded API server alone: `serve <data-dir> <address> [automatic|never|deny]`. The last says what becomes of
//! nodes' requests for certificates. Ends with SIGTERM or SIGINT.

use orlop_standalone::{Approval, Config, Server, Signing};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: serve <data-dir> <address>")?;
    let listen = args.next().ok_or("usage: serve <data-dir> <address>")?.parse()?;
    let approval = match args.next().as_deref() {
        None | Some("automatic") => Approval::Automatic,
        Some("never") => Approval::Never,
        Some("deny") => Approval::Deny,
        Some(other) => return Err(format!("no such approval: {other}").into()),
    };
    let signing = Signing { approval, ..Signing::default() };
    let mut terminate = signal(SignalKind::terminate())?;
    let server = Server::start(Config { listen, signing, ..Config::new(dir) }).await?;
    println!("{} {}", server.url(), server.admin_kubeconfig().display());
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    server.shutdown().await;
    Ok(())
}
