//! `orlop image …`: the store from the command line, with or without a daemon at work on it.
//!
//! Owns: arguments and output. Progress goes to standard error, as bars on a terminal and as lines elsewhere; results
//! go to standard output. Never: does what [`super::store`], [`super::import`] and [`super::puller`] do.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::bars::Bars;
use super::config::ImageConfig;
use super::import::{ImportError, Options, Source, import};
use super::puller::{PullError, Puller};
use super::reference::Reference;
use super::registry::credentials::InvalidSecret;
use super::registry::{Keyring, RegistryConfig};
use super::store::{Image, Store, StoreError};

/// Work with the images on this node.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Directory of the node's persistent state; images are in `images` below it.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/orlop", env = "ORLOP_ROOT_DIR", global = true)]
    pub root_dir: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// The subcommands of `orlop image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Take in an archive (OCI layout, `docker save`) or a root file system.
    Import(ImportArgs),
    /// Pull an image from its registry.
    Pull(PullArgs),
    /// List images.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Remove images, by name or ID.
    Rm(RmArgs),
}

/// Arguments of `orlop image import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Archive (plain, gzip or zstd), directory with a root file system, or - for standard input.
    pub source: PathBuf,
    /// Name for the image instead of the archive's own; can be repeated.
    #[arg(long = "tag", short = 't', value_name = "NAME")]
    pub tags: Vec<Reference>,
    /// Take the source for a root file system whatever is in it.
    #[arg(long)]
    pub rootfs: bool,
    /// Program of a root file system's image, and its first arguments; repeat for each word.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub entrypoint: Vec<String>,
    /// Arguments of a root file system's image; repeat for each word.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub cmd: Vec<String>,
    /// Environment of a root file system's image; can be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// User of a root file system's image.
    #[arg(long, value_name = "USER[:GROUP]", default_value = "")]
    pub user: String,
    /// Working directory of a root file system's image.
    #[arg(long, value_name = "DIR", default_value = "")]
    pub workdir: String,
}

/// Arguments of `orlop image pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Image to pull.
    pub image: String,
    /// Docker configuration with credentials (`config.json`, or the content of an imagePullSecret).
    #[arg(long, value_name = "FILE")]
    pub auth_file: Option<PathBuf>,
    /// Registry that may be spoken to in plain HTTP, besides loopback: host or host:port; can be repeated.
    #[arg(long, value_name = "HOST")]
    pub plain_http: Vec<String>,
    /// Certificate authority to trust besides the system's; can be repeated.
    #[arg(long, value_name = "FILE")]
    pub registry_ca: Vec<PathBuf>,
    /// Folder with containerd's `<registry>/hosts.toml` files, which name mirrors.
    #[arg(long, value_name = "DIR")]
    pub hosts_dir: Option<PathBuf>,
}

/// Arguments of `orlop image ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Show only images of this name, repository or ID.
    pub image: Option<String>,
    /// Output format.
    #[arg(long, short = 'o', value_enum, default_value = "table")]
    pub output: Output,
    /// Show IDs only.
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

/// Arguments of `orlop image rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names or IDs. A name of several is only taken off its image.
    #[arg(required = true)]
    pub images: Vec<String>,
}

/// Output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns.
    Table,
    /// JSON, in the form of `crictl images -o json`.
    Json,
}

/// Why a subcommand failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The import failed.
    #[error("import: {0}")]
    Import(Box<ImportError>),
    /// The pull failed.
    #[error("pull: {0}")]
    Pull(Box<PullError>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file named on the command line cannot be read.
    #[error("read {path}: {cause}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file of `--auth-file` is of no use.
    #[error("{path}: {cause}")]
    AuthFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: InvalidSecret,
    },
    /// The output cannot be written.
    #[error("write the output: {0}")]
    Output(io::Error),
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Carries out a subcommand.
///
/// # Errors
/// See [`CliError`]; every one names what it is about.
pub async fn run(args: ImageArgs) -> Result<(), CliError> {
    let store = Store::open(&args.root_dir.join("images"))?;
    match args.command {
        ImageCommand::Import(args) => {
            let done = tokio::task::spawn_blocking(move || run_import(&store, &args)).await;
            done.map_err(io::Error::other)?
        }
        ImageCommand::Pull(args) => run_pull(store, args).await,
        ImageCommand::Ls(args) => run_ls(&store, &args),
        ImageCommand::Rm(args) => run_rm(&store, &args),
    }
}

fn run_import(store: &Store, args: &ImportArgs) -> Result<(), CliError> {
    let options = Options {
        tags: args.tags.clone(),
        rootfs: args.rootfs,
        config: ImageConfig {
            entrypoint: args.entrypoint.clone(),
            cmd: args.cmd.clone(),
            env: args.env.clone(),
            user: args.user.clone(),
            working_dir: args.workdir.clone(),
            ..ImageConfig::default()
        },
    };
    let what = args.source.display().to_string();
    let bars = Bars::for_import(&what);
    let progress = |event| bars.import(&event);
    let mut stdin = io::stdin();
    let source =
        if args.source == Path::new("-") { Source::Stream(&mut stdin) } else { Source::Path(&args.source) };
    let images = import(store, source, &options, &progress);
    bars.finish();
    for image in images.map_err(|error| CliError::Import(Box::new(error)))? {
        print_image(&image)?;
    }
    Ok(())
}

async fn run_pull(store: Store, args: PullArgs) -> Result<(), CliError> {
    let mut keyring = Keyring::default();
    if let Some(path) = args.auth_file {
        let json = read(&path)?;
        keyring.add_docker_config_json(&json).map_err(|cause| CliError::AuthFile { path, cause })?;
    }
    let authorities = args.registry_ca.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let puller = Puller::new(
        Arc::new(store),
        RegistryConfig { plain_http: args.plain_http, authorities, hosts_folder: args.hosts_dir },
    );
    let bars = Arc::new(Bars::for_pull(&args.image));
    let sink = Arc::clone(&bars);
    let pulled = puller.pull(&args.image, &keyring, Arc::new(move |event| sink.pull(event))).await;
    bars.finish();
    pulled.map_err(|error| CliError::Pull(Box::new(error)))?;
    let name = args.image.parse::<Reference>().map_or(args.image, |reference| reference.to_string());
    Ok(writeln!(io::stdout().lock(), "{name}")?)
}

fn run_ls(store: &Store, args: &LsArgs) -> Result<(), CliError> {
    let mut images = store.list()?;
    if let Some(wanted) = &args.image {
        let id = store.resolve(wanted)?.map(|image| image.id);
        let repository = wanted.parse::<Reference>().ok().map(|r| r.name());
        images.retain(|image| {
            Some(&image.id) == id.as_ref()
                || rows(image).iter().any(|(name, _)| Some(name) == repository.as_ref())
        });
    }
    let mut out = io::stdout().lock();
    match (args.quiet, args.output) {
        (true, _) => images.iter().try_for_each(|image| writeln!(out, "{}", image.id))?,
        (false, Output::Json) => {
            let list: Vec<_> = images.iter().map(as_json).collect();
            writeln!(out, "{:#}", json!({ "images": list }))?;
        }
        (false, Output::Table) => write!(out, "{}", table(&images))?,
    }
    Ok(())
}

fn run_rm(store: &Store, args: &RmArgs) -> Result<(), CliError> {
    let mut failed = None;
    for name in &args.images {
        match remove(store, name) {
            Ok(line) => writeln!(io::stdout().lock(), "{line}")?,
            // The others are still to be removed; all but the last error go to the terminal here.
            Err(error) => {
                if let Some(before) = failed.replace(error) {
                    writeln!(io::stderr().lock(), "error: {before}")?;
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

fn remove(store: &Store, name: &str) -> Result<String, CliError> {
    let image = store.resolve(name)?.ok_or_else(|| StoreError::NotFound(name.to_owned()))?;
    let reference: Option<Reference> = name.parse().ok();
    let tag = reference.filter(|r| r.repo_tag().is_some_and(|tag| image.repo_tags.contains(&tag)));
    if let Some(tag) = tag
        && image.repo_tags.len() > 1
    {
        store.untag(&tag)?;
        return Ok(format!("Untagged: {tag}"));
    }
    let freed = store.remove(&image.id)?;
    Ok(format!("Deleted: {} ({} freed)", image.id, human_size(freed)))
}

fn print_image(image: &Image) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if image.repo_tags.is_empty() {
        return writeln!(out, "{}", image.repo_digests.first().unwrap_or(&image.id.to_string()));
    }
    image.repo_tags.iter().try_for_each(|tag| writeln!(out, "{tag}"))
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path).map_err(|cause| CliError::Read { path: path.to_owned(), cause })
}

/// One row for each name: repository and tag.
fn rows(image: &Image) -> Vec<(String, String)> {
    let split = |tag: &String| {
        let (name, tag) = tag.rsplit_once(':').unwrap_or((tag, "<none>"));
        (name.to_owned(), tag.to_owned())
    };
    if !image.repo_tags.is_empty() {
        return image.repo_tags.iter().map(split).collect();
    }
    let name = image.repo_digests.first().and_then(|d| d.split('@').next()).unwrap_or("<none>");
    vec![(name.to_owned(), "<none>".to_owned())]
}

/// The columns of `crictl images`.
fn table(images: &[Image]) -> String {
    let mut lines = vec![["IMAGE".to_owned(), "TAG".to_owned(), "IMAGE ID".to_owned(), "SIZE".to_owned()]];
    for image in images {
        for (name, tag) in rows(image) {
            lines.push([
                name,
                tag,
                image.id.short().to_owned() + &image.id.hex()[12..13],
                human_size(image.size),
            ]);
        }
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let line = |[name, tag, id, size]: &[String; 4]| {
        format!("{name:<0$}   {tag:<1$}   {id:<2$}   {size}\n", widths[0], widths[1], widths[2])
    };
    lines.iter().map(line).collect()
}

fn as_json(image: &Image) -> serde_json::Value {
    let uid = image.config.user.split(':').next().and_then(|user| user.parse::<i64>().ok());
    let username = if uid.is_none() { &*image.config.user } else { "" };
    let last_used = image.last_used.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    json!({
        "id": image.id,
        "repoTags": image.repo_tags,
        "repoDigests": image.repo_digests,
        "size": image.size.to_string(),
        "uid": uid.map(|uid| json!({ "value": uid.to_string() })),
        "username": username,
        "pinned": false,
        "lastUsedSeconds": last_used,
    })
}

/// Decimal units with three digits, as `crictl` prints them: `4.27MB`.
pub(super) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut unit, mut divisor) = (0, 1u64);
    while bytes / divisor >= 1000 && unit + 1 < UNITS.len() {
        divisor *= 1000;
        unit += 1;
    }
    let hundredths = u128::from(bytes) * 100 / u128::from(divisor);
    let (whole, fraction) = (hundredths / 100, hundredths % 100);
    match (unit, whole) {
        (0, _) | (_, 100..) => format!("{whole}{}", UNITS[unit]),
        (_, 10..=99) => format!("{whole}.{}{}", fraction / 10, UNITS[unit]),
        (..) => format!("{whole}.{fraction:02}{}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::digest::Digest;
    use super::*;

    fn image(tags: &[&str], size: u64) -> Image {
        Image {
            id: Digest::of(b"x"),
            repo_tags: tags.iter().map(|&t| t.to_owned()).collect(),
            repo_digests: vec![format!("docker.io/library/x@{}", Digest::of(b"m"))],
            size,
            config: ImageConfig { user: "1000:5".into(), ..ImageConfig::default() },
            layers: vec![PathBuf::from("/l")],
            last_used: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn table_has_a_row_for_each_name() {
        let images = [image(&["docker.io/library/x:1", "localhost:5000/y:two"], 4_271_234), image(&[], 12)];
        assert_eq!(
            table(&images),
            "IMAGE                 TAG      IMAGE ID        SIZE\n\
             docker.io/library/x   1        2d711642b726b   4.27MB\n\
             localhost:5000/y      two      2d711642b726b   4.27MB\n\
             docker.io/library/x   <none>   2d711642b726b   12B\n"
        );
    }

    #[test]
    fn json_has_the_fields_of_the_cri() {
        let json = as_json(&image(&["x:1"], 7));
        assert_eq!(json["size"], "7");
        assert_eq!(json["uid"]["value"], "1000");
        assert_eq!(json["repoTags"][0], "x:1");
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in
            [(0, "0B"), (999, "999B"), (1000, "1.00kB"), (12_345, "12.3kB"), (123_456_789, "123MB")]
        {
            assert_eq!(human_size(bytes), text);
        }
    }
}
