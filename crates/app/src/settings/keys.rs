//! Every key of the configuration once, with its documentation: the check for unknown keys, the variables and the reference page come
//! from this list.

/// A key of the configuration file.
pub struct Key {
    /// The section; `compute.NAME` stands for every compute target, `curated.NAME` for every named environment.
    pub section: &'static str,
    /// The key.
    pub name: &'static str,
    /// The default, as it would be written.
    pub default: &'static str,
    /// What it does.
    pub doc: &'static str,
}

const fn key(section: &'static str, name: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key { section, name, default, doc }
}

/// Every key there is.
pub const KEYS: &[Key] = &[
    key(
        "server",
        "listen",
        "\"127.0.0.1:8443\"",
        "Address and port; port 0 takes a free one. A public address is refused while only the generated credentials exist.",
    ),
    key(
        "server",
        "public_url",
        "the listen address",
        "Where clients reach the server, when that is not the listen address. Its host name is added to the certificate.",
    ),
    key(
        "server",
        "agent_url",
        "the listen address",
        "Where agents reach the server, when that is not the listen address: through a proxy, or from other machines. Its host name is added to the certificate.",
    ),
    key(
        "server",
        "tls_cert",
        "none",
        "PEM file with the certificate chain for `public_url`. Without it the server uses a certificate of its own private CA.",
    ),
    key("server", "tls_key", "none", "PEM file with the private key of `tls_cert`."),
    key("server", "region", "\"local\"", "The region that workspaces made from now on say they are in."),
    key("server", "max_upload_bytes", "314572800", "The largest project zip."),
    key("server", "max_definition_bytes", "1048576", "The largest run definition."),
    key("server", "max_unpacked_bytes", "314572800", "The largest content of a project zip, in all."),
    key("server", "max_archive_files", "20000", "The most files in a project zip."),
    key("server", "max_archive_ratio", "200", "The most that a file in a project zip may shrink by compression."),
    key("server", "cancel_grace_seconds", "10", "Time between TERM and KILL when a run is stopped."),
    key(
        "server",
        "heartbeat_limit_seconds",
        "30",
        "A run whose agent is silent for longer is `NotResponding`; agents speak three times as often. At least 3.",
    ),
    key(
        "server",
        "silence_limit_seconds",
        "86400",
        "An attempt that is silent for longer is given up behind a fence (cause: node lost) even if its executor cannot say that it is gone. 0: never.",
    ),
    key(
        "server",
        "spool_limit_bytes",
        "1073741824",
        "How much of a log an agent keeps for a server that it cannot reach; beyond, the middle is cut out, which the log and the run say. Outputs are never cut.",
    ),
    key("store", "database", "\"sqlite\"", "`sqlite` (a file in the data directory) or `postgres://user:password@host/database`."),
    key(
        "store",
        "blobs",
        "\"file\"",
        "`file` (a folder in the data directory) or `s3://bucket/prefix`, with credentials in the usual AWS variables.",
    ),
    key("environments", "cache_dir", "the data directory's `environments`", "Where environments are built and kept."),
    key(
        "environments",
        "python_fallback",
        "\"closest\"",
        "What happens when the Python asked for cannot be had: `closest` uses the closest one with a warning, `fail` fails the run.",
    ),
    key(
        "environments",
        "conda_channels",
        "[]",
        "Conda channels, for definitions that name none: names, `https://` or `file://` URLs (credentials in them are never shown) or absolute paths, the preferred one first. Conda packages come from them, and a Python that a node lacks.",
    ),
    key(
        "environments",
        "conda_channel_alias",
        "\"https://conda.anaconda.org\"",
        "Where conda channels with a name are: `conda-forge` means `conda-forge` below it. For mirrors.",
    ),
    key(
        "environments",
        "conda_credentials",
        "{}",
        "What hosts of conda channels are shown, by host or `*.domain`: `{ \"conda.example.com\" = \"user:password\" }`, `\"bearer TOKEN\"`, or a token of conda. Never shown.",
    ),
    key(
        "environments",
        "index_url",
        "the package index that `uv` uses by itself",
        "Package index for pip requirements; may hold credentials, which are never shown.",
    ),
    key("environments", "offline", "false", "Build from caches only."),
    key(
        "environments",
        "max_bytes",
        "53687091200",
        "How many bytes environments may take, and as many again the downloads they are made of. Beyond that the ones that were not used for the longest time are removed, never one that a run uses or that is pinned. 0: no limit.",
    ),
    key(
        "environments",
        "build_limit_seconds",
        "3600",
        "After how many seconds a build that is not done is ended; waiting for another builder does not count. 0: never.",
    ),
    key(
        "curated.NAME",
        "file",
        "none",
        "A conda file (`environment.yml`), relative to the folder of this file. It is read when the server starts. Definitions may name the environment `NAME` instead of describing it (write `[curated.\"AzureML-sklearn-1.0\"]` for a name with a dot).",
    ),
    key("curated.NAME", "python", "any", "The Python version, instead of a file."),
    key("curated.NAME", "conda", "[]", "conda requirements, instead of a file."),
    key("curated.NAME", "channels", "`conda_channels`", "conda channels, instead of a file."),
    key("curated.NAME", "pip", "[]", "pip requirements, instead of a file."),
    key(
        "curated.NAME",
        "image",
        "none",
        "A container image that runs go into; the packages are put on top of it. Without packages its own Python runs the script.",
    ),
    key("curated.NAME", "version", "\"1\"", "Its version: change it with the content, so that runs tell the two apart."),
    key("compute.NAME", "engine", "\"local\"", "What executes the runs of this target: `local`."),
    key("compute.NAME", "slots", "the number of cores", "How many runs at once. 0 holds every run back."),
    key(
        "compute.NAME",
        "retries",
        "2",
        "How often a run is tried again after a failure of machines or of the server; a definition's `Retries.Infrastructure` wins.",
    ),
    key("compute.NAME", "user_retries", "0", "The same after a failure of the user's code; a definition's `Retries.UserCode` wins."),
    key(
        "compute.NAME",
        "retry_backoff_seconds",
        "10",
        "Wait before the first retry; each further one waits twice as long, up to ten minutes. A definition's `Retries.BackoffSeconds` wins.",
    ),
    key(
        "compute.NAME",
        "containers",
        "\"when-asked\"",
        "Whether runs go into containers: `required` (always, also where the definition only names an image; a definition without an image is refused), `when-asked` (where the definition enables it) or `never` (such a definition is refused).",
    ),
    key(
        "compute.NAME",
        "container_engine",
        "\"auto\"",
        "What runs containers: `podman`, `docker`, `apptainer`, or `auto`, the first of them that answers on the machine.",
    ),
    key(
        "compute.NAME",
        "container_runtime",
        "the engine's own",
        "The OCI runtime of the engine, e.g. `runc` on machines with old control groups.",
    ),
    key(
        "compute.NAME",
        "container_ulimits",
        "[]",
        "`--ulimit` of every container, e.g. `[\"nofile=1024:1024\", \"nproc=1000:1000\"]` where the machine's own limits are lower than the engine's defaults.",
    ),
    key("compute.NAME", "container_arguments", "[]", "More arguments of the engine's `run`, before those of the definition."),
    key(
        "compute.NAME",
        "container_volumes",
        "[]",
        "What containers see of the machine unless the definition says `SharedVolumes: false`: `/path/on/the/machine:/path/inside[:ro]`.",
    ),
    key(
        "registry.NAME",
        "username",
        "none",
        "User at the container registry whose host is the name: `[registry.\"registry.example:5000\"]`.",
    ),
    key("registry.NAME", "password", "none", "Password or token of that user; never shown."),
];
