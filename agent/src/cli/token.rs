//! `orlop standalone token`: bootstrap tokens of the embedded API server, with `kubeadm token`'s flags.
//!
//! Owns: what a token's secret holds, and the line that joins a machine. Never: checks a token (the server does).

use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Subcommand;
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use crate::api::client::{Client, DeleteOptions};
use crate::api::error::ApiError;
use crate::api::path::SECRETS;
use crate::config::duration;

const NAMESPACE: Option<&str> = Some("kube-system");
const PREFIX: &str = "bootstrap-token-";
const GROUPS: &str = "system:bootstrappers:kubeadm:default-node-token";

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token with which machines can join
    Create {
        /// The token itself, six and sixteen lower case letters and digits: abcdef.0123456789abcdef [default: random]
        token: Option<String>,
        /// How long it is good for, as 30m or 24h; 0 for ever
        #[arg(long, value_name = "DURATION", default_value = "24h")]
        ttl: String,
        /// What it is for, for people
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Groups of those who come with it, separated by commas
        #[arg(long, value_name = "GROUPS", default_value = GROUPS)]
        groups: String,
        /// Print the whole command that joins a machine
        #[arg(long)]
        print_join_command: bool,
    },
    /// List the tokens there are
    List,
    /// Delete tokens, by token or by its first part
    Delete {
        /// Tokens, whole or their first six characters
        #[arg(required = true, value_name = "TOKEN")]
        tokens: Vec<String>,
    },
}

/// Does it. `dir` is where the server keeps its things.
pub async fn run(client: &Client, dir: &Path, command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create { token, ttl, description, groups, print_join_command } => {
            let token = token.map_or_else(random, Ok)?;
            let expires = expiry(&ttl, Timestamp::now())?;
            let secret = secret(&token, expires, description.as_deref(), &groups)?;
            let _: Value = client.create(&SECRETS.collection(NAMESPACE), &secret).await?;
            println!("{}", if print_join_command { join_command(dir, &token)? } else { token });
            Ok(())
        }
        TokenCommand::List => list(client).await,
        TokenCommand::Delete { tokens } => {
            for token in tokens {
                let id = token.split('.').next().unwrap_or_default();
                let path = SECRETS.object(NAMESPACE, &format!("{PREFIX}{id}"));
                match client.delete(&path, &DeleteOptions::default()).await {
                    Ok(()) => println!("bootstrap token \"{id}\" deleted"),
                    Err(ApiError::NotFound(_)) => bail!("there is no bootstrap token \"{id}\""),
                    Err(error) => return Err(error).with_context(|| format!("delete token {id}")),
                }
            }
            Ok(())
        }
    }
}

/// A token that nobody can guess.
fn random() -> anyhow::Result<String> {
    const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let random = SystemRandom::new();
    let mut text = String::with_capacity(23);
    while text.len() < 23 {
        let mut byte = [0];
        random.fill(&mut byte).ok().context("the machine has no randomness")?;
        // The highest values are left out, so that every letter is as likely.
        let usable = ALPHABET.len() * (256 / ALPHABET.len());
        if text.len() == 6 {
            text.push('.');
        } else if usize::from(byte[0]) < usable {
            text.push(char::from(ALPHABET[usize::from(byte[0]) % ALPHABET.len()]));
        }
    }
    Ok(text)
}

fn expiry(ttl: &str, now: Timestamp) -> anyhow::Result<Option<Timestamp>> {
    if ttl == "0" {
        return Ok(None);
    }
    let length = duration::parse(ttl).with_context(|| format!("--ttl {ttl}: not a duration such as 24h"))?;
    if length.is_zero() {
        return Ok(None);
    }
    let seconds = i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
    let end = now.as_second().saturating_add(seconds.max(1));
    Ok(Some(Timestamp::from_second(end).with_context(|| format!("--ttl {ttl} is too long"))?))
}

fn secret(
    token: &str,
    expires: Option<Timestamp>,
    description: Option<&str>,
    groups: &str,
) -> anyhow::Result<Value> {
    let (id, secret) = token.split_once('.').unwrap_or_default();
    let fine = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    if !fine(id, 6) || !fine(secret, 16) {
        bail!("the token does not look like abcdef.0123456789abcdef");
    }
    let mut data = json!({
        "token-id": id, "token-secret": secret, "auth-extra-groups": groups,
        "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
    });
    if let Some(at) = expires {
        data["expiration"] = at.to_string().into();
    }
    if let Some(text) = description {
        data["description"] = text.into();
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("{PREFIX}{id}")}, "stringData": data,
    }))
}

fn join_command(dir: &Path, token: &str) -> anyhow::Result<String> {
    let file = dir.join("url");
    let url = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let endpoint = url.trim().trim_start_matches("https://");
    let hash = orlop_standalone::ca_hash(dir)?;
    Ok(format!("orlop join {endpoint} --token {token} --discovery-token-ca-cert-hash {hash}"))
}

async fn list(client: &Client) -> anyhow::Result<()> {
    let all: Value = client.get(&SECRETS.collection(NAMESPACE)).await?;
    let secrets = all["items"].as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<[String; 5]> = secrets
        .iter()
        .filter(|s| s["type"] == "bootstrap.kubernetes.io/token")
        .map(|s| row(s, Timestamp::now()))
        .collect();
    for [token, ttl, expires, description, groups] in
        std::iter::once(["TOKEN", "TTL", "EXPIRES", "DESCRIPTION", "EXTRA GROUPS"].map(str::to_owned))
            .chain(rows)
    {
        println!("{token:<25} {ttl:<10} {expires:<22} {description:<30} {groups}");
    }
    Ok(())
}

fn row(secret: &Value, now: Timestamp) -> [String; 5] {
    let data = |key: &str| {
        let bytes = BASE64.decode(secret["data"][key].as_str().unwrap_or_default()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let expires = data("expiration");
    let left = expires.parse::<Timestamp>().map(|at| at.duration_since(now).as_secs().max(0));
    let ttl = match left {
        Ok(s) if s >= 3600 => format!("{}h", s / 3600),
        Ok(s) if s >= 60 => format!("{}m", s / 60),
        Ok(s) => format!("{s}s"),
        Err(_) => "<forever>".to_owned(),
    };
    let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
    [
        format!("{}.{}", data("token-id"), data("token-secret")),
        ttl,
        or(expires, "<never>"),
        or(data("description"), "<none>"),
        data("auth-extra-groups"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_token_is_one() {
        let token = random().expect("random");
        assert!(secret(&token, None, None, GROUPS).is_ok(), "{token}");
        assert_ne!(token, random().expect("random"));
        assert!(secret("abcdef", None, None, GROUPS).is_err());
        assert!(secret("ABCDEF.0123456789abcdef", None, None, GROUPS).is_err());
    }

    #[test]
    fn a_token_lives_as_long_as_it_should() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let end = |ttl| expiry(ttl, now).map(|e| e.map(|t| t.to_string())).map_err(|e| e.to_string());
        assert_eq!(end("24h"), Ok(Some("2026-01-02T00:00:00Z".into())));
        assert_eq!(end("1h30m"), Ok(Some("2026-01-01T01:30:00Z".into())));
        assert_eq!((end("0"), end("0s")), (Ok(None), Ok(None)));
        assert!(end("soon").expect_err("no duration").contains("--ttl soon"));
    }

    #[test]
    fn a_row_says_how_long_a_token_is_good() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let encode = |t: &str| BASE64.encode(t);
        let mut secret = json!({"data": {"token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "expiration": encode("2026-01-01T02:10:00Z"), "auth-extra-groups": encode("g")}});
        assert_eq!(
            row(&secret, now),
            ["abcdef.0123456789abcdef", "2h", "2026-01-01T02:10:00Z", "<none>", "g"]
        );
        secret["data"]["expiration"] = Value::Null;
        assert_eq!(row(&secret, now)[1..3], ["<forever>", "<never>"]);
    }
}
