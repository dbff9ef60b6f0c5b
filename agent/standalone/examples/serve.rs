//! Runs the embedded API server alone: `serve <data-dir> <address>`. Ends with SIGTERM or SIGINT.

use orlop_standalone::{Config, Server};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: serve <data-dir> <address>")?;
    let listen = args.next().ok_or("usage: serve <data-dir> <address>")?.parse()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let server = Server::start(Config { listen, ..Config::new(dir) }).await?;
    println!("{} {}", server.url(), server.admin_kubeconfig().display());
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    server.shutdown().await;
    Ok(())
}
