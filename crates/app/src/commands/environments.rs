//! `trainyard environments`: what is built, what it is made of, building ahead of runs, and the cache.

mod build;
mod list;
mod transfer;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use trainyard_core::ids::EnvironmentHash;
use trainyard_wire::native::{CacheTotals, DownloadSizes, Environment, EnvironmentList, EnvironmentSummary, Pin, PruneWish, Pruned};

pub use self::{
    build::BuildArgs,
    list::ListArgs,
    transfer::{ExportArgs, ImportArgs},
    verify::VerifyArgs,
};
use crate::{
    client::{ApiError, Client},
    follow::text,
    printer::Printer,
};

/// Arguments of `environments`.
#[derive(clap::Args)]
#[command(after_help = "\
An environment is named by its hash, the beginning of it, or a run that used it.

Exit codes: 0 done; 1 it failed, or the environment could not be built; 2 wrong arguments; 3 no server answers; 4 the server refused.")]
pub struct EnvironmentsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List environments that runs of the workspace used
    List(ListArgs),
    /// Show one: what was asked for, what is installed, how it lies in the cache
    Show {
        /// Its hash, the beginning of it, or a run
        environment: String,
    },
    /// Build one ahead of its runs; prints its hash
    Build(Box<BuildArgs>),
    /// Print what is installed, exactly, so that it can be had again: `submit --lock FILE`
    Lock {
        /// Its hash, the beginning of it, or a run
        environment: String,
        /// Write it to a file
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Keep one in the cache, however long nobody uses it (for Owners of the server)
    Pin {
        /// Its hash, the beginning of it, or a run
        environment: String,
    },
    /// Let one be removed again when room is needed (for Owners of the server)
    Unpin {
        /// Its hash, the beginning of it, or a run
        environment: String,
    },
    /// Remove environments that nobody needs: never one that a run uses or that is pinned (for Owners of the server)
    Prune {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Remove the longest unused ones until the rest takes no more [default: `max_bytes` of the configuration]
        #[arg(long, value_name = "BYTES")]
        max_bytes: Option<u64>,
        /// Remove those that were not used for so many days
        #[arg(long, value_name = "DAYS")]
        unused_days: Option<u64>,
        /// Remove every one that may be removed
        #[arg(long, conflicts_with_all = ["max_bytes", "unused_days"])]
        all: bool,
        /// Remove all downloads that environments are made of, too; else only what is more than `max_bytes` of the configuration
        #[arg(long)]
        downloads: bool,
        /// Remove what `import` brought for builds without network, too
        #[arg(long)]
        imported: bool,
    },
    /// Compare one in the cache with what was recorded when it was built, file by file (for Owners of the server); 1 if it differs
    Verify(VerifyArgs),
    /// Write a built environment, or the downloads that it is made of, into a file, on the server's machine
    Export(ExportArgs),
    /// Put what was exported into the cache, on a machine of another server
    Import(ImportArgs),
}

impl EnvironmentsArgs {
    /// Whether it works on a data directory itself and asks no server.
    pub fn is_offline(&self) -> bool {
        matches!(self.action, Action::Export(_) | Action::Import(_))
    }
}

/// Does what works on a data directory.
pub async fn run_offline(args: EnvironmentsArgs, data_dir: Option<PathBuf>, printer: &Printer) -> Result<ExitCode> {
    match args.action {
        Action::Export(args) => transfer::export(args, data_dir, printer).await,
        Action::Import(args) => transfer::import(args, data_dir, printer).await,
        _ => bail!("this asks a server"),
    }
}

/// Does what asks a server.
pub async fn run(args: EnvironmentsArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    match args.action {
        Action::List(args) => list::run(&args, client, printer).await?,
        Action::Show { environment } => show(&environment, client, printer).await?,
        Action::Build(args) => return build::run(*args, client, printer).await,
        Action::Lock { environment, output } => lock(&environment, output, client, printer).await?,
        Action::Pin { environment } => pin(Method::PUT, &environment, client, printer).await?,
        Action::Unpin { environment } => pin(Method::DELETE, &environment, client, printer).await?,
        Action::Verify(args) => return verify::run(&args, client, printer).await,
        Action::Prune { dry_run, max_bytes, unused_days, all, downloads, imported } => {
            let max_bytes = if all { Some(0) } else { max_bytes };
            let unused_seconds = unused_days.map(|days| days.saturating_mul(86_400));
            prune(PruneWish { dry_run, max_bytes, unused_seconds, downloads, imported }, client, printer).await?;
        }
        Action::Export(_) | Action::Import(_) => bail!("this works on a data directory"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(word: &str, client: &Client, printer: &Printer) -> Result<()> {
    let environment = find(client, word).await?;
    printer.data(&environment, page)
}

fn page(environment: &Environment) -> String {
    let mut page = String::new();
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            page.push_str(&format!("{name:<12} {value}\n"));
        }
    };
    let lock = &environment.lock;
    fact("hash", &environment.hash);
    fact("kind", environment.spec.as_object().and_then(|spec| spec.keys().next()).map_or("", String::as_str));
    fact("made of", &made_of(lock));
    fact("built by", &text(lock, "builder"));
    fact("platform", &text(lock, "platform"));
    fact("image", &text(&lock["image"], "reference"));
    fact("", &text(&lock["image"], "digest"));
    fact("created", &environment.created);
    match &environment.cached {
        Some(cached) => {
            fact("cached", &indicatif::HumanBytes(cached.bytes).to_string());
            fact("last used", &cached.last_used);
            fact("", if cached.in_use { "a run uses it" } else { "" });
            fact("", if cached.pinned { "it is pinned" } else { "" });
        }
        None => fact("cached", "no"),
    }
    for package in lock["conda"].as_array().into_iter().flatten() {
        fact("conda", &format!("{}={}={}", text(package, "name"), text(package, "version"), text(package, "build")));
    }
    for package in lock["packages"].as_array().into_iter().flatten() {
        let url = text(package, "url");
        let origin = if url.is_empty() { String::new() } else { format!(" @ {url}") };
        fact("pip", &format!("{}=={}{origin}", text(package, "name"), text(package, "version")));
    }
    page
}

/// What a lock holds, in a few words.
pub(super) fn made_of(lock: &Value) -> String {
    let count = |name: &str| lock[name].as_array().map_or(0, Vec::len);
    let mut parts = vec![format!("{} packages", count("packages"))];
    if count("conda") > 0 {
        parts.push(format!("{} conda packages", count("conda")));
    }
    let python = text(lock, "python");
    if !python.is_empty() {
        parts.push(format!("Python {python}"));
    }
    parts.join(", ")
}

async fn lock(word: &str, output: Option<PathBuf>, client: &Client, printer: &Printer) -> Result<()> {
    let environment = find(client, word).await?;
    if environment.lock.is_null() {
        bail!("nothing is known of what is installed in environment {}", environment.hash);
    }
    let document = serde_json::to_string_pretty(&environment.lock)?;
    let Some(path) = output else { return crate::printer::line(&document) };
    std::fs::write(&path, document + "\n").with_context(|| format!("{} cannot be written", path.display()))?;
    printer.note(&format!("the lock of {} is in {}", environment.hash, path.display()));
    Ok(())
}

async fn pin(method: Method, word: &str, client: &Client, printer: &Printer) -> Result<()> {
    let hash = match EnvironmentHash::new(word) {
        Ok(hash) => hash.to_string(),
        Err(_) => find(client, word).await?.hash,
    };
    let request = client.request(method, &format!("/api/v1/environments/{hash}/pin")).await?;
    let pin: Pin = client.send(request).await?.json().await.context("the answer cannot be read")?;
    printer.data(&pin, |pin| format!("{} {}", pin.hash, if pin.pinned { "is pinned" } else { "is not pinned" }))
}

async fn prune(wish: PruneWish, client: &Client, printer: &Printer) -> Result<()> {
    let pruned: Pruned = client.send_json(Method::POST, "/api/v1/environments/prune", &wish).await?;
    printer.data(&pruned, |pruned| {
        let mut lines = pruned.removed.clone();
        let verb = if pruned.dry_run { "would be removed" } else { "removed" };
        let size = |bytes: u64| indicatif::HumanBytes(bytes).to_string();
        lines.push(format!(
            "{} environments ({}) {verb}; {} ({}) stay",
            pruned.removed.len(),
            size(pruned.freed_bytes),
            pruned.kept,
            size(pruned.kept_bytes)
        ));
        if pruned.downloads_bytes > 0 {
            lines.push(format!("downloads ({}) {verb}", size(pruned.downloads_bytes)));
        }
        lines.push(format!("downloads that stay: {}", downloads(&pruned.downloads_kept)));
        lines.join("\n")
    })
}

/// Sizes by kind, those that there are.
fn downloads(sizes: &DownloadSizes) -> String {
    let DownloadSizes { pip, conda, indexes, images, imported } = *sizes;
    let kinds =
        [(pip, "pip"), (conda, "conda packages"), (indexes, "indexes of channels"), (images, "image files"), (imported, "imported")];
    let shown: Vec<String> =
        kinds.iter().filter(|(bytes, _)| *bytes > 0).map(|(bytes, kind)| format!("{} {kind}", indicatif::HumanBytes(*bytes))).collect();
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

/// The environment that a word names: a hash, the beginning of one, or a run that used it.
async fn find(client: &Client, word: &str) -> Result<Environment> {
    if let Ok(hash) = EnvironmentHash::new(word) {
        return by_hash(client, hash.as_str()).await;
    }
    if let Some(hash) = hash_of_run(client, word).await? {
        return by_hash(client, &hash).await;
    }
    let is_beginning = word.len() >= 6 && word.chars().all(|c| c.is_ascii_hexdigit());
    if !is_beginning {
        bail!("there is no run `{word}`, and it is not the beginning of an environment's hash (6 to 32 hexadecimal digits)");
    }
    let word = word.to_lowercase();
    let found: Vec<EnvironmentSummary> =
        all(client, Scope::Workspace).await?.into_iter().filter(|one| one.hash.starts_with(&word)).collect();
    match found.as_slice() {
        [one] => by_hash(client, &one.hash).await,
        [] => bail!(
            "no run of the workspace used an environment whose hash begins with {word}\nhint: `trainyard environments list` lists them"
        ),
        many => {
            let hashes: Vec<&str> = many.iter().map(|one| one.hash.as_str()).collect();
            bail!("{word} is the beginning of {} hashes: {}", many.len(), hashes.join(", "))
        }
    }
}

/// The environment with a hash: of the workspace, or for an Owner of the server any.
async fn by_hash(client: &Client, hash: &str) -> Result<Environment> {
    match client.get(&client.native(&format!("/environments/{hash}"))).await {
        Err(error) if has_status(&error, StatusCode::NOT_FOUND) => match client.get(&format!("/api/v1/environments/{hash}")).await {
            Err(other) if has_status(&other, StatusCode::FORBIDDEN) => Err(error),
            found => found,
        },
        found => found,
    }
}

/// The hash of the environment that a run used; `None`: there is no such run.
async fn hash_of_run(client: &Client, run: &str) -> Result<Option<String>> {
    let found: Result<Value> = client.get(&client.azure("history/v1.0", &format!("/runs/{run}"))).await;
    match found {
        Ok(run) => {
            let hash = run["properties"]["trainyard.environment"].as_str().map(str::to_owned);
            hash.map(Some).with_context(|| {
                let (id, status) = (text(&run, "runId"), text(&run, "status"));
                format!("run {id} ({status}) has built no environment: it uses an interpreter as it is, or its environment is not ready")
            })
        }
        Err(error) if has_status(&error, StatusCode::NOT_FOUND) || has_status(&error, StatusCode::BAD_REQUEST) => Ok(None),
        Err(error) => Err(error),
    }
}

fn has_status(error: &anyhow::Error, status: StatusCode) -> bool {
    error.downcast_ref::<ApiError>().is_some_and(|error| error.status == status)
}

/// Whose environments.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Those that runs of the workspace used.
    Workspace,
    /// All of the server.
    Server,
}

/// Every environment.
async fn all(client: &Client, scope: Scope) -> Result<Vec<EnvironmentSummary>> {
    Ok(all_with_totals(client, scope).await?.0)
}

/// Every environment, and for Owners of the server what the whole cache takes.
async fn all_with_totals(client: &Client, scope: Scope) -> Result<(Vec<EnvironmentSummary>, Option<CacheTotals>)> {
    let base = match scope {
        Scope::Workspace => client.native("/environments"),
        Scope::Server => "/api/v1/environments".to_owned(),
    };
    let (mut found, mut path, mut totals) = (Vec::new(), base.clone(), None);
    loop {
        let page: EnvironmentList = client.get(&path).await?;
        found.extend(page.value);
        totals = totals.or(page.cache);
        let Some(token) = page.continuation_token else { return Ok((found, totals)) };
        path = format!("{base}?continuationToken={}", percent_encoding::utf8_percent_encode(&token, percent_encoding::NON_ALPHANUMERIC));
    }
}

/// What a command that built an environment prints for programs.
fn built(run: &str, hash: Option<&str>) -> Value {
    json!({ "runId": run, "hash": hash })
}

#[cfg(test)]
mod tests {
    use trainyard_wire::native::CachedEnvironment;

    use super::*;

    #[test]
    fn a_page_shows_everything_that_is_known() {
        let environment = Environment {
            hash: "0123456789abcdef0123456789abcdef".into(),
            spec: json!({ "conda": {} }),
            lock: json!({
                "python": "3.11.7", "builder": "uv 0.9.1", "platform": "linux-x86_64",
                "packages": [{ "name": "six", "version": "1.16.0" }, { "name": "ours", "version": "2", "url": "git+https://git.example/ours@ab" }],
                "conda": [{ "name": "zlib", "version": "1.3", "build": "h_0", "url": "https://c.example/z" }],
            }),
            created: "2026-01-01T00:00:00Z".into(),
            cached: Some(CachedEnvironment { bytes: 5 << 20, last_used: "2026-01-02T00:00:00Z".into(), pinned: true, in_use: false }),
        };
        insta::assert_snapshot!(page(&environment), @r"
        hash         0123456789abcdef0123456789abcdef
        kind         conda
        made of      2 packages, 1 conda packages, Python 3.11.7
        built by     uv 0.9.1
        platform     linux-x86_64
        created      2026-01-01T00:00:00Z
        cached       5.00 MiB
        last used    2026-01-02T00:00:00Z
                     it is pinned
        conda        zlib=1.3=h_0
        pip          six==1.16.0
        pip          ours==2 @ git+https://git.example/ours@ab
        ");
    }
}
