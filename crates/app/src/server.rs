//! Wiring: a data directory and a configuration become a running server. Used by `serve` and by `demo`.
//!
//! One server per data directory: it holds a lock there for as long as it lives.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use tokio_util::sync::CancellationToken;
use trainyard_core::{archive::ArchiveLimits, ids::ComputeName, run::RetryPolicy};
use trainyard_engine::{
    EngineOptions, Handle, OrderSettings, Patience, Target, TargetContainers,
    container::{ContainerSettings, Login},
    data::Datastores,
    environment::EnvironmentSettings,
    executor::{
        Executor,
        kubernetes::{self, KubernetesExecutor, KubernetesSettings, KubernetesTarget},
        local::{
            LocalExecutor,
            gpus::{self, GpuRule, Gpus},
        },
        slurm::{SlurmExecutor, SlurmSettings, SlurmTarget},
    },
};
use trainyard_server::{
    AppState, Inner, Limits, Metrics, ServerSettings,
    auth::Tokens,
    bootstrap::{self, Identity, Location},
    sealing::Sealer,
    signing::UrlSigner,
    tls::{Authority, ServerCertificate, server_config},
};
use trainyard_store::{Store, StoreOptions};
use url::Url;

use crate::{
    curated,
    settings::{ComputeSection, Engine, RegistrySection, Settings},
};

/// Whether a public address is served although only the generated credentials exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Refuse it.
    Careful,
    /// The operator said so.
    Allowed,
}

/// A server that is ready to serve.
pub struct Server {
    state: AppState,
    listener: TcpListener,
    tls: rustls::ServerConfig,
    /// Where clients reach it.
    pub public_url: Url,
    /// The client file that it wrote.
    pub client_file: PathBuf,
    /// SHA-256 of its CA's certificate, for comparison by eye.
    pub fingerprint: String,
    _lock: File,
}

impl Server {
    /// Opens everything: the lock, the listener, the keys, the store, the engine. Makes what the first start has to make.
    pub async fn open(data_dir: &Path, settings: &Settings, exposure: Exposure) -> Result<Self> {
        let data_dir = prepare_data_dir(data_dir)?;
        let lock = lock(&data_dir)?;
        trainyard_store::backup::refuse_unfinished(&data_dir)?;
        let (listener, address) = bind(&settings.server.listen)?;
        let local_url = Url::parse(&format!("https://{}", reachable(address)))?;
        let public_url = settings.server.public_url.clone().unwrap_or_else(|| local_url.clone());
        let agent_url = settings.server.agent_url.clone().unwrap_or(local_url);
        let authority = Arc::new(Authority::open_or_create(&data_dir).context("the private CA cannot be opened")?);
        let tls = server_config(&authority, &certificate(settings, &public_url, address)).context("the certificate cannot be used")?;
        let store = open_store(&data_dir, settings).await?;
        // Before the first upload is taken: everything that is staged now belongs to uploads that are gone.
        store.blobs().sweep_staging(SystemTime::now()).await?;
        let identity = Identity::open(&data_dir)?;
        let location = Location {
            data_dir: &data_dir,
            public_url: &public_url,
            region: &settings.server.region,
            ca_cert: &data_dir.join("tls/ca.pem"),
        };
        bootstrap::ensure_defaults(&store, identity, location).await.context("the defaults cannot be made")?;
        refuse_exposure(&store, address, exposure).await?;
        let tokens = Tokens::open(&data_dir.join("keys"), identity.tenant_id, &public_url)?;
        let sealer = Arc::new(Sealer::open(&data_dir.join("keys/seal.key"))?);
        let secrets = (tokens.clone(), Arc::clone(&sealer));
        let targets = targets(&data_dir, settings, identity)?;
        let engine = engine((&data_dir, settings), targets, (store.clone(), secrets), (agent_url, authority.ca_pem().to_owned()))?;
        let state = AppState::new(Inner {
            store,
            engine,
            tokens,
            url_signer: UrlSigner::open(&data_dir.join("keys/url.key"))?,
            sealer,
            settings: server_settings(&data_dir, settings, identity, &public_url)?,
            ca_pem: authority.ca_pem().to_owned(),
            metrics: Metrics::default(),
        });
        let client_file = data_dir.join("client.json");
        Ok(Self { state, listener, tls, public_url, client_file, fingerprint: authority.fingerprint(), _lock: lock })
    }

    /// Serves until `shutdown` is cancelled: requests in progress end, the engine stops after its pass, agents and the code they run go on.
    pub async fn run(self, shutdown: CancellationToken) -> Result<()> {
        let Self { state, listener, tls, .. } = self;
        let engine = state.engine.clone();
        let store = state.store.clone();
        // The engine first: long polls of agents and followers end when it does, and so the listener has nothing to wait for.
        let stopper = shutdown.clone();
        let stop_engine = tokio::spawn(async move {
            stopper.cancelled().await;
            engine.shutdown().await;
        });
        // An agent that the rows do not know yet would be told to give up.
        tokio::select! {
            () = state.engine.adopted() => {}
            () = shutdown.cancelled() => {}
        }
        let served = trainyard_server::serve(state, listener, tls, shutdown.clone()).await;
        shutdown.cancel();
        stop_engine.await?;
        store.close().await;
        served.context("the server ended early")
    }
}

/// Makes the folder, readable by its owner only, and gives its absolute path.
pub(crate) fn prepare_data_dir(data_dir: &Path) -> Result<PathBuf> {
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
    builder.create(data_dir).with_context(|| format!("the data directory {} cannot be made", data_dir.display()))?;
    data_dir.canonicalize().with_context(|| format!("the data directory {} cannot be opened", data_dir.display()))
}

/// A server that was killed while it started an agent leaves the lock to the new process for an instant, until that becomes the agent.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("server.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("{} cannot be opened", path.display()))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::WouldBlock) => bail!("another server uses the data directory {}; stop it first", data_dir.display()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("{} cannot be locked", path.display())),
        }
    }
}

fn bind(listen: &str) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(listen).with_context(|| {
        format!("the address {listen} cannot be listened on; choose another with --listen, e.g. 127.0.0.1:0 for a free port")
    })?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The address that processes on this machine reach the listener at.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from(([127, 0, 0, 1], address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port())),
        _ => address,
    }
}

fn certificate(settings: &Settings, public_url: &Url, address: SocketAddr) -> ServerCertificate {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), reachable(address).ip().to_string()];
    let urls = [Some(public_url), settings.server.agent_url.as_ref()].into_iter().flatten();
    names.extend(urls.filter_map(|url| url.host_str()).map(|host| host.trim_matches(['[', ']']).to_owned()));
    names.sort();
    names.dedup();
    match (&settings.server.tls_cert, &settings.server.tls_key) {
        (Some(cert), Some(key)) => ServerCertificate::Files { cert: cert.clone(), key: key.clone(), local: names },
        _ => ServerCertificate::Own { names },
    }
}

async fn open_store(data_dir: &Path, settings: &Settings) -> Result<Store> {
    let options =
        StoreOptions { database: settings.store.database.clone(), blobs: settings.store.blobs.clone(), data_dir: data_dir.to_owned() };
    Store::open(&options).await.context("the store cannot be opened")
}

/// With nothing but the credentials of the first start, a public address is as safe as that one file.
async fn refuse_exposure(store: &Store, address: SocketAddr, exposure: Exposure) -> Result<()> {
    if address.ip().is_loopback() || exposure == Exposure::Allowed || !bootstrap::has_only_generated_credentials(store).await? {
        return Ok(());
    }
    bail!(
        "{address} is a public address, and the only credentials are the generated ones\n\
         hint: start on 127.0.0.1 first and make an application with `trainyard app create`, or say --allow-generated-credentials"
    )
}

type Secrets = (Tokens, Arc<Sealer>);

fn engine(
    (data_dir, settings): (&Path, &Settings),
    targets: Vec<Target>,
    (store, (tokens, seal)): (Store, Secrets),
    (agent_url, ca_pem): (Url, String),
) -> Result<Handle> {
    warn_unreachable(&targets, &agent_url);
    let orders = OrderSettings {
        endpoint: agent_url.as_str().trim_end_matches('/').to_owned(),
        ca_pem,
        environments: environments(data_dir, settings)?,
        archive_limits: archive_limits(settings),
        grace: Duration::from_secs(settings.server.cancel_grace_seconds),
        spool_limit_bytes: settings.server.spool_limit_bytes,
        datastores: Arc::new(datastores(data_dir, settings)?),
    };
    let patience = Patience {
        heartbeat_limit: Duration::from_secs(settings.server.heartbeat_limit_seconds),
        silence_limit: Some(settings.server.silence_limit_seconds).filter(|limit| *limit > 0).map(Duration::from_secs),
    };
    Ok(Handle::start(EngineOptions { store, targets, orders, tokens: Arc::new(tokens), seal, patience }))
}

/// How containers are run on a target, with the registries' logins of the configuration.
fn containers(section: &ComputeSection, settings: &Settings) -> TargetContainers {
    let login = |(host, login): (&String, &RegistrySection)| Login {
        host: host.clone(),
        username: login.username.clone(),
        password: login.password.clone(),
    };
    TargetContainers {
        policy: section.containers,
        settings: ContainerSettings {
            engine: section.container_engine,
            runtime: section.container_runtime.clone(),
            ulimits: section.container_ulimits.clone(),
            arguments: section.container_arguments.clone(),
            volumes: section.container_volumes.clone(),
            logins: settings.registry.iter().map(login).collect(),
            login_error: None,
        },
    }
}

/// The compute targets of the configuration. Those on the same cluster share what drives it.
fn targets(data_dir: &Path, settings: &Settings, identity: Identity) -> Result<Vec<Target>> {
    let binary = std::env::current_exe().context("the path of this program is unknown")?;
    let kubernetes = kubernetes_executors(settings, identity)?;
    let gpus = gpus(settings)?;
    let local = Arc::new(LocalExecutor::new(data_dir.join("attempts"), binary.clone())?.with_gpus(Gpus::new(gpus.clone())));
    let mut clusters: BTreeMap<SlurmSettings, BTreeMap<ComputeName, SlurmTarget>> = BTreeMap::new();
    for (name, section) in &settings.compute {
        if let Some(cluster) = section.slurm() {
            clusters
                .entry(cluster)
                .or_default()
                .insert(ComputeName::new(name.as_str())?, section.slurm_target().with_context(|| format!("in [compute.{name}]"))?);
        }
    }
    let mut executors = BTreeMap::new();
    for (cluster, wishes) in clusters {
        executors.insert(cluster.clone(), Arc::new(SlurmExecutor::new(&cluster, wishes, binary.clone())?));
    }
    let target = |(name, section): (&String, &ComputeSection)| {
        let cluster = section.slurm();
        let shared = cluster.as_ref().and_then(|cluster| Some((executors.get(cluster)?, cluster)));
        let (engine, executor, environments): (_, Arc<dyn Executor>, _) = match shared {
            None if section.engine == Engine::Kubernetes => {
                let executor = kubernetes[&section.kubernetes(&settings.folder)].clone();
                ("kubernetes", executor, Some(pod_environments(data_dir, settings)?))
            }
            Some((slurm, cluster)) => ("slurm", slurm.clone(), Some(shared_environments(data_dir, settings, &cluster.shared_dir)?)),
            None => ("local", local.clone(), None),
        };
        Ok(Target {
            name: ComputeName::new(name.as_str())?,
            // A slot without GPUs would never be filled.
            slots: gpus
                .get(name)
                .map_or_else(|| section.slots(), |rule| section.slots.map_or(rule.slots(), |slots| slots.min(rule.slots()))),
            engine,
            executor,
            environments,
            retries: RetryPolicy {
                infrastructure: section.retries,
                user_code: section.user_retries,
                backoff_seconds: section.retry_backoff_seconds,
            },
            containers: containers(section, settings),
            mpi: section.mpi.clone(),
            submit_as: section.submit_as.clone(),
        })
    };
    settings.compute.iter().map(target).collect()
}

/// What drives each cluster of the configuration. Those of targets in the same namespace are one.
fn kubernetes_executors(settings: &Settings, identity: Identity) -> Result<BTreeMap<KubernetesSettings, Arc<KubernetesExecutor>>> {
    let mut clusters: BTreeMap<KubernetesSettings, BTreeMap<ComputeName, KubernetesTarget>> = BTreeMap::new();
    for (name, section) in settings.compute.iter().filter(|(_, section)| section.engine == Engine::Kubernetes) {
        let target = section.kubernetes_target(&settings.folder).with_context(|| format!("in [compute.{name}]"))?;
        clusters.entry(section.kubernetes(&settings.folder)).or_default().insert(ComputeName::new(name.as_str())?, target);
    }
    let executor = |(cluster, targets): (KubernetesSettings, _)| {
        let executor = KubernetesExecutor::new(&cluster, identity.tenant_id.0, targets);
        (cluster, Arc::new(executor))
    };
    Ok(clusters.into_iter().map(executor).collect())
}

/// Where pods build and find environments: in a folder of their own, or in the volume that is put there.
fn pod_environments(data_dir: &Path, settings: &Settings) -> Result<EnvironmentSettings> {
    let cache = Path::new(kubernetes::CACHE);
    Ok(EnvironmentSettings { cache_dir: cache.join("environments"), tools_dir: cache.join("tools"), ..environments(data_dir, settings)? })
}

/// What each target gives away of this machine's GPUs. They are only looked for where a target wants some.
fn gpus(settings: &Settings) -> Result<BTreeMap<String, GpuRule>> {
    let mut present = None;
    let mut rules = BTreeMap::new();
    for (name, section) in &settings.compute {
        let about = || format!("in [compute.{name}]");
        if section.engine != Engine::Local || section.named_gpus().with_context(about)?.is_none() {
            continue;
        }
        let present = match &present {
            Some(present) => present,
            None => present.insert(gpus::discover().with_context(about)?),
        };
        if let Some(rule) = section.gpu_rule(present).with_context(about)? {
            tracing::info!(target = name, devices = ?rule.devices, slots = rule.slots(), "GPUs of a compute target");
            rules.insert(name.clone(), rule);
        }
    }
    Ok(rules)
}

/// Agents on other machines do not reach a loopback address. On a cluster that is this machine they do, so it is no error.
fn warn_unreachable(targets: &[Target], agent_url: &Url) {
    let loopback = match agent_url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => true,
    };
    for target in targets.iter().filter(|target| loopback && target.engine != "local") {
        tracing::warn!(target = %target.name, %agent_url, "agents on other machines cannot reach this server; set `agent_url` in [server]");
    }
}

/// Where nodes that share a folder with this machine build and find environments.
fn shared_environments(data_dir: &Path, settings: &Settings, shared_dir: &Path) -> Result<EnvironmentSettings> {
    let own = environments(data_dir, settings)?;
    let cache_dir = if settings.environments.cache_dir.is_some() { own.cache_dir.clone() } else { shared_dir.join("environments") };
    Ok(EnvironmentSettings { cache_dir, tools_dir: shared_dir.join("tools"), ..own })
}

/// How environments are built and kept by a server with this configuration.
pub(crate) fn environments(data_dir: &Path, settings: &Settings) -> Result<EnvironmentSettings> {
    let section = &settings.environments;
    let cache_dir = section.cache_dir.clone().unwrap_or_else(|| data_dir.join("environments"));
    Ok(EnvironmentSettings {
        cache_dir: std::path::absolute(cache_dir).context("the cache of environments has no path")?,
        python_fallback: section.python_fallback,
        index_url: section.index_url.clone(),
        offline: section.offline,
        conda_channels: section.conda_channels.clone(),
        conda_channel_alias: section.conda_channel_alias.clone(),
        conda_credentials: section.conda_credentials.clone(),
        tools_dir: data_dir.join("tools"),
        max_bytes: section.max_bytes,
        build_limit_seconds: section.build_limit_seconds,
    })
}

/// Where the data of runs is.
fn datastores(data_dir: &Path, settings: &Settings) -> Result<Datastores> {
    let variable = |name: &str| std::env::var(name).ok();
    let configured = settings.datastore.iter().map(|(name, section)| (name.clone(), section.datastore(variable))).collect();
    Ok(Datastores::new(configured, data_dir.join("datastore"))?)
}

fn archive_limits(settings: &Settings) -> ArchiveLimits {
    let section = &settings.server;
    ArchiveLimits {
        max_unpacked_bytes: section.max_unpacked_bytes,
        max_files: section.max_archive_files,
        max_ratio: section.max_archive_ratio,
    }
}

fn server_settings(data_dir: &Path, settings: &Settings, identity: Identity, public_url: &Url) -> Result<ServerSettings> {
    let section = &settings.server;
    Ok(ServerSettings {
        public_url: public_url.clone(),
        tenant: identity.tenant_id,
        region: section.region.clone(),
        limits: Limits {
            max_upload_bytes: section.max_upload_bytes,
            max_definition_bytes: section.max_definition_bytes,
            archive: archive_limits(settings),
            ..Limits::default()
        },
        url_signing_ttl: Duration::from_secs(8 * 3600),
        environments: environments(data_dir, settings)?,
        curated: curated::environments(&settings.curated, &settings.folder)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_a_dying_process_lets_go_of_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let next = std::thread::spawn({
            let dir = dir.path().to_owned();
            move || lock(&dir).is_ok()
        });
        drop(held);
        assert!(next.join().unwrap());
    }
}
