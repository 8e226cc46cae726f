//! Choosing packages: the index of every channel that matters, then the solver.

use std::{collections::BTreeSet, error::Error, sync::Arc};

use rattler_conda_types::{Channel, MatchSpec, PackageName, PackageRecord, ParseMatchSpecOptions, ParseStrictness, RepoDataRecord, Subdir};
use rattler_repodata_gateway::{GatewayError, RepoData, fetch::FetchRepoDataError};
use rattler_solve::{CancellationToken, ChannelPriority, SolveError, SolverImpl as _, SolverTask, resolvo::Solver};
use trainyard_core::environment::{self, LockedConda, Progress};

use crate::{
    Access, CondaError, Watch,
    channel::{Channels, resolve, source},
    error::chain,
    platform::{subdir, virtual_packages},
};

/// How many lines of the solver's explanation are repeated.
const MAX_LINES: usize = 30;
/// How many versions of a package an explanation lists.
const MAX_VERSIONS: usize = 12;

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The packages that must be there.
    pub packages: &'a [environment::MatchSpec],
    /// Where they come from.
    pub channels: &'a Channels,
    /// Where channels with a name are, for packages that name one of their own.
    pub alias: &'a str,
}

/// Chooses packages for this machine, in the order of installation.
///
/// A channel before another one is preferred package by package, as conda's `flexible` priority does it. Dropping the future
/// stops the solver.
pub async fn solve(request: Request<'_>, access: &Access, watch: &Watch) -> Result<Vec<LockedConda>, CondaError> {
    // A channel that is named for one package may bring credentials, too.
    let (specs, sources, credentials) = sources(request)?;
    let access = Access { credentials: [access.credentials.clone(), credentials].concat(), ..access.clone() };
    let solved = choose(specs, sources, &access, watch).await;
    solved.map_err(|error| error.masked(&access.secrets()))
}

type Sources = (Vec<MatchSpec>, Vec<Channel>, Vec<crate::Credential>);

/// The requirements in the solver's types, and every channel that is asked.
fn sources(request: Request<'_>) -> Result<Sources, CondaError> {
    let mut channels = request.channels.clone();
    let mut specs = Vec::new();
    for package in request.packages {
        let mut spec = parse(package)?;
        if let Some(own) = &package.channel {
            let own = resolve(std::slice::from_ref(own), request.alias)?;
            channels.credentials.extend(own.credentials);
            for url in own.urls {
                spec.channel = Some(Arc::new(source(&url)?));
                if !channels.urls.contains(&url) {
                    channels.urls.push(url);
                }
            }
        }
        specs.push(spec);
    }
    if channels.urls.is_empty() {
        return Err(CondaError::Request(
            "no conda channel is named: list one under `channels` of the environment, or under conda_channels in [environments] of the configuration"
                .into(),
        ));
    }
    Ok((specs, channels.sources()?, channels.credentials))
}

fn parse(package: &environment::MatchSpec) -> Result<MatchSpec, CondaError> {
    let text = package.without_channel();
    MatchSpec::from_str(&text, ParseMatchSpecOptions::new(ParseStrictness::Lenient))
        .map_err(|error| CondaError::Request(format!("the conda package `{package}` can not be read: {}", chain(&error))))
}

async fn choose(specs: Vec<MatchSpec>, sources: Vec<Channel>, access: &Access, watch: &Watch) -> Result<Vec<LockedConda>, CondaError> {
    watch(Progress::step("reading channels"));
    let subdir = subdir()?;
    let gateway = access.gateway()?;
    let found = gateway
        .query(sources.iter().cloned(), [subdir, Subdir::NoArch], specs.iter().cloned())
        .recursive(true)
        .channel_notices(false)
        .await
        .map_err(|error| of_gateway(&error, access))?;
    let absent: Vec<MatchSpec> = specs.iter().filter(|spec| !is_there(spec, &found.repodata)).cloned().collect();
    if !absent.is_empty() {
        // The index was narrowed to what matches; what there is instead is asked now.
        let names = absent.iter().filter_map(|spec| spec.name.as_exact().cloned());
        let instead = gateway.query(sources.iter().cloned(), [subdir, Subdir::NoArch], names).channel_notices(false).await;
        let instead = instead.map_err(|error| of_gateway(&error, access))?;
        return Err(explain_absent(&absent, &instead.repodata, &sources));
    }
    watch(Progress::step("solving"));
    let cancel = CancelOnDrop(CancellationToken::new());
    let token = cancel.0.clone();
    let solving = tokio::task::spawn_blocking(move || {
        let repodata = found.repodata;
        let task = SolverTask {
            virtual_packages: virtual_packages().to_vec(),
            specs: specs.clone(),
            channel_priority: ChannelPriority::Flexible,
            cancellation_token: Some(token),
            ..SolverTask::from_iter(repodata.iter())
        };
        let solved = Solver.solve(task).map_err(|error| of_solver(&error))?;
        Ok(PackageRecord::sort_topologically(solved.records).into_iter().map(locked).collect())
    });
    let solved = solving.await;
    drop(cancel);
    solved.map_err(|error| CondaError::Node { what: format!("the solver broke off: {error}"), source: None })?
}

/// Ends a solver whose result nobody waits for any more.
struct CancelOnDrop(CancellationToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Whether there is a package that matches. What the machine itself offers is always there.
fn is_there(spec: &MatchSpec, repodata: &[RepoData]) -> bool {
    let Some(name) = spec.name.as_exact() else { return true };
    let of_machine = name.as_normalized().starts_with("__");
    of_machine || repodata.iter().flat_map(RepoData::iter).any(|record| rattler_conda_types::Matches::matches(spec, record))
}

/// Says of packages that were asked for by name what the channels have of them: shorter and clearer than the solver's words.
fn explain_absent(specs: &[MatchSpec], repodata: &[RepoData], channels: &[Channel]) -> CondaError {
    let sentences = specs.iter().filter_map(|spec| {
        let name = spec.name.as_exact()?;
        let named = repodata.iter().flat_map(RepoData::iter).filter(|record| record.package_record.name == *name);
        let versions: BTreeSet<_> = named.map(|record| record.package_record.version.clone()).collect();
        if versions.is_empty() {
            let channels: Vec<String> = channels.iter().map(Channel::canonical_name).collect();
            return Some(format!("there is no package `{}` in {}", name.as_normalized(), channels.join(", ")));
        }
        let listed: Vec<String> = versions.iter().rev().take(MAX_VERSIONS).map(ToString::to_string).collect();
        let more = if versions.len() > MAX_VERSIONS { ", …" } else { "" };
        Some(format!("no package matches `{}`; the channels have {} {}{more}", plain(spec), name.as_normalized(), listed.join(", ")))
    });
    CondaError::Unsolvable(sentences.collect::<Vec<_>>().join("\n"))
}

/// As people write it.
fn plain(spec: &MatchSpec) -> String {
    let name = spec.name.as_exact().map(PackageName::as_normalized).unwrap_or_default();
    let version = spec.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
    let build = spec.build.as_ref().map(|build| format!(" {build}")).unwrap_or_default();
    format!("{name}{version}{build}")
}

fn locked(record: RepoDataRecord) -> LockedConda {
    let package = record.package_record;
    LockedConda {
        name: package.name.as_normalized().to_owned(),
        version: package.version.to_string(),
        build: package.build.to_string(),
        url: record.url.to_string(),
        sha256: package.sha256.map(hex::encode),
        md5: package.md5.map(hex::encode),
        site_packages: package.python_site_packages_path,
    }
}

fn of_solver(error: &SolveError) -> CondaError {
    let SolveError::Unsolvable(reasons) = error else {
        return CondaError::Unsolvable(format!("the packages can not be chosen: {}", chain(error)));
    };
    let lines: Vec<&str> = reasons.iter().flat_map(|reason| reason.lines()).map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let mut text = format!("the packages can not be installed together:\n{}", lines[..lines.len().min(MAX_LINES)].join("\n"));
    if lines.len() > MAX_LINES {
        text.push_str(&format!("\n… ({} more lines)", lines.len() - MAX_LINES));
    }
    CondaError::Unsolvable(text)
}

fn of_gateway(error: &GatewayError, access: &Access) -> CondaError {
    let text = chain(error);
    let absent = matches!(
        error,
        GatewayError::FetchRepoDataError(FetchRepoDataError::NoCacheAvailable(_))
            | GatewayError::ShardedIndexNotCached(_)
            | GatewayError::ShardNotCached(_)
    );
    if access.offline && (absent || text.contains("offline mode")) {
        return CondaError::Offline(format!(
            "{text}; `offline = true` under [environments] allows only what was downloaded before: prepare the environment once online, or use a file:// channel"
        ));
    }
    if let Some(error) = std::iter::successors(Some(error as &(dyn Error + 'static)), |&reason| reason.source())
        .find_map(|reason| reason.downcast_ref::<std::io::Error>())
        && error.kind() == std::io::ErrorKind::StorageFull
    {
        return CondaError::Node { what: format!("the index of a channel can not be kept: {text}"), source: Some(error.kind().into()) };
    }
    CondaError::Channel(format!("a conda channel can not be read: {text}"))
}
