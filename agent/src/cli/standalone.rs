//! `orlop standalone`: credentials for the embedded API server, and enough of a client to try it without kubectl.
//!
//! Owns: reading manifests, finding where an object belongs. Never: merges (apply replaces an object that is there).

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::token::{self, TokenCommand};
use crate::api::client::{Client, DeleteOptions};
use crate::api::error::ApiError;
use crate::api::kubeconfig;
use crate::api::path::{
    CONFIG_MAPS, ENDPOINT_SLICES, NODES, PODS, Resource, SECRETS, SERVICE_ACCOUNTS, SERVICES,
};

/// Arguments of `orlop standalone`.
#[derive(Debug, Args)]
pub struct StandaloneArgs {
    /// Directory of the node's persistent state; the server's is `standalone` below it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/orlop", env = "ORLOP_ROOT_DIR", global = true)]
    root_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a kubeconfig: the administrator's, or one with which another machine joins as a node
    Kubeconfig {
        /// Name of the node that is to join
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Address of the server as that machine reaches it
        #[arg(long, value_name = "URL")]
        server: Option<String>,
    },
    /// Create the objects of manifests, or replace those that are there
    Apply {
        /// A manifest in YAML or JSON; can be repeated
        #[arg(short, long = "filename", value_name = "FILE", required = true)]
        filename: Vec<PathBuf>,
    },
    /// Delete the objects of manifests
    Delete {
        /// A manifest in YAML or JSON; can be repeated
        #[arg(short, long = "filename", value_name = "FILE", required = true)]
        filename: Vec<PathBuf>,
    },
    /// Make, list and delete the tokens with which machines join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print one object
    Get {
        /// pod, service, node, configmap, secret, ...
        kind: String,
        /// Its name
        name: String,
        /// Its namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// What to print of it
        #[arg(short, long, value_parser = ["json", "clusterip"], default_value = "json")]
        output: String,
    },
}

/// Does what was asked.
pub fn run(args: StandaloneArgs) -> anyhow::Result<()> {
    let dir = args.root_dir.join("standalone");
    let admin = dir.join("admin.kubeconfig");
    match args.command {
        Command::Kubeconfig { node: Some(node), server } => {
            let text = orlop_standalone::node_kubeconfig(&dir, &node)?;
            print!("{}", with_server(&text, server.as_deref()));
            Ok(())
        }
        Command::Kubeconfig { node: None, server } => {
            let text = fs::read_to_string(&admin).with_context(|| {
                format!("read {}: has `orlop run --standalone` run here?", admin.display())
            })?;
            print!("{}", with_server(&text, server.as_deref()));
            Ok(())
        }
        Command::Apply { filename } => with_client(&admin, async |client| apply(client, &filename).await),
        Command::Delete { filename } => with_client(&admin, async |client| delete(client, &filename).await),
        Command::Token(command) => {
            with_client(&admin, async |client| token::run(client, &dir, command).await)
        }
        Command::Get { kind, name, namespace, output } => {
            with_client(&admin, async |client| get(client, &kind, (&namespace, &name), &output).await)
        }
    }
}

fn with_client(
    admin: &std::path::Path,
    work: impl AsyncFnOnce(&Client) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let access = kubeconfig::load(admin)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { work(&Client::new(&access)?).await })
}

/// The kubeconfig with another address of the server.
fn with_server(text: &str, server: Option<&str>) -> String {
    let Some(server) = server else { return text.to_owned() };
    let lines = text.lines().map(|line| match line.split_once("server:") {
        Some((before, _)) => format!("{before}server: {server}\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// The objects of a file, in order.
fn objects(file: &PathBuf) -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let all: Vec<Value> = serde_saphyr::from_multiple(&text)
        .with_context(|| format!("{} is not a manifest", file.display()))?;
    Ok(all.into_iter().filter(|object| !object.is_null()).collect())
}

fn resource(kind: &str) -> anyhow::Result<(Resource, bool)> {
    Ok(match kind.to_lowercase().trim_end_matches('s') {
        "pod" | "po" => (PODS, true),
        "service" | "svc" => (SERVICES, true),
        "configmap" | "cm" => (CONFIG_MAPS, true),
        "secret" => (SECRETS, true),
        "serviceaccount" | "sa" => (SERVICE_ACCOUNTS, true),
        "endpointslice" => (ENDPOINT_SLICES, true),
        "node" | "no" => (NODES, false),
        "namespace" | "n" => (Resource { prefix: "/api/v1", plural: "namespaces" }, false),
        _ => bail!("kind {kind:?} is not served by the embedded API server"),
    })
}

/// Where an object belongs: resource, namespace, name.
fn place(object: &Value) -> anyhow::Result<(Resource, Option<String>, String)> {
    let kind = object["kind"].as_str().context("an object without kind")?;
    let (resource, namespaced) = resource(kind)?;
    let name =
        object["metadata"]["name"].as_str().with_context(|| format!("a {kind} without metadata.name"))?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    Ok((resource, namespaced.then_some(namespace), name.to_owned()))
}

async fn apply(client: &Client, files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        for object in objects(file)? {
            let (resource, namespace, name) = place(&object).with_context(|| file.display().to_string())?;
            let collection = resource.collection(namespace.as_deref());
            let what = format!("{}/{name}", resource.plural.trim_end_matches('s'));
            match client.create::<_, Value>(&collection, &object).await {
                Ok(_) => println!("{what} created"),
                Err(ApiError::AlreadyExists(_)) => {
                    let path = resource.object(namespace.as_deref(), &name);
                    let there: Value = client.get(&path).await?;
                    let mut object = object;
                    object["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"].clone();
                    client.replace::<_, Value>(&path, &object, crate::api::client::CALL_TIMEOUT).await?;
                    println!("{what} configured");
                }
                Err(error) => return Err(error).context(what),
            }
        }
    }
    Ok(())
}

async fn delete(client: &Client, files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        for object in objects(file)? {
            let (resource, namespace, name) = place(&object).with_context(|| file.display().to_string())?;
            let path = resource.object(namespace.as_deref(), &name);
            let what = format!("{}/{name}", resource.plural.trim_end_matches('s'));
            match client.delete(&path, &DeleteOptions { grace_seconds: None, uid: None }).await {
                Ok(()) => println!("{what} deleted"),
                Err(ApiError::NotFound(_)) => println!("{what} was not there"),
                Err(error) => return Err(error).context(what),
            }
        }
    }
    Ok(())
}

async fn get(
    client: &Client,
    kind: &str,
    (namespace, name): (&str, &str),
    output: &str,
) -> anyhow::Result<()> {
    let (resource, namespaced) = resource(kind)?;
    let object: Value = client.get(&resource.object(namespaced.then_some(namespace), name)).await?;
    if output == "clusterip" {
        let address = object["spec"]["clusterIP"].as_str();
        println!("{}", address.with_context(|| format!("{kind} {name} has no clusterIP"))?);
    } else {
        println!("{}", serde_json::to_string_pretty(&object)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_belongs_where_its_kind_says() {
        let object = serde_json::json!({"kind": "Pod", "metadata": {"name": "p", "namespace": "n"}});
        let (resource, namespace, name) = place(&object).expect("placed");
        assert_eq!(resource.object(namespace.as_deref(), &name), "/api/v1/namespaces/n/pods/p");
        let error = place(&serde_json::json!({"kind": "Deployment", "metadata": {"name": "d"}}))
            .expect_err("unknown");
        assert!(error.to_string().contains("\"Deployment\""));
    }

    #[test]
    fn the_servers_address_can_be_replaced() {
        assert_eq!(with_server("a:\n  server: https://x\n", Some("https://y")), "a:\n  server: https://y\n");
        assert_eq!(with_server("server: x\n", None), "server: x\n");
    }
}
