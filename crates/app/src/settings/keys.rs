//! Every key of the configuration once, with its documentation: the check for unknown keys, the variables and the reference page come from
//! this list.

use anyhow::{Result, bail};
use toml::de::{DeTable, DeValue};

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
    key(
        "compute.NAME",
        "engine",
        "\"local\"",
        "What executes the runs of this target: `local` (processes on the server's machine), `slurm` (jobs; see `deploy/slurm/README.md`) or `kubernetes` (jobs; see `deploy/kubernetes/README.md`).",
    ),
    key(
        "compute.NAME",
        "slots",
        "the number of cores; 1000 with Slurm and 500 with Kubernetes, which have queues of their own",
        "How many runs at once, those in the engine's own queue included. 0 holds every run back.",
    ),
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
    key(
        "datastore.NAME",
        "url",
        "none; needed",
        "Where the datastore `NAME` of definitions is (`docs/data.md`): an absolute path that the nodes see, `http(s)://…`, or `s3://bucket/prefix`. Every workspace has `workspaceblobstore`, a folder in the data directory for runs on the server's machine, unless a section says where it is.",
    ),
    key("datastore.NAME", "read_only", "false", "Whether runs may only read it."),
    key(
        "datastore.NAME",
        "endpoint",
        "Amazon's",
        "S3: the address of the service, e.g. `\"http://minio.example:9000\"`; else `AWS_ENDPOINT_URL` of the server.",
    ),
    key("datastore.NAME", "region", "`AWS_REGION` of the server", "S3: the region."),
    key(
        "datastore.NAME",
        "access_key_id",
        "`AWS_ACCESS_KEY_ID` of the server",
        "S3: the name of the key. Without any, the node's own role is used.",
    ),
    key(
        "datastore.NAME",
        "secret_access_key",
        "`AWS_SECRET_ACCESS_KEY` of the server",
        "S3: the key; never shown. Runs that use the datastore can read it.",
    ),
    key("datastore.NAME", "session_token", "`AWS_SESSION_TOKEN` of the server", "S3: the session of the key; never shown."),
    key(
        "compute.NAME",
        "shared_dir",
        "none; Slurm needs one",
        "Slurm: a folder that this machine and every node see under the same path. Attempts, the program for the nodes and environments are kept in it. Targets may share one, servers may not.",
    ),
    key(
        "compute.NAME",
        "partition",
        "Slurm's own",
        "Slurm: the partition; a definition's `Slurm.Partition` wins, and so on for the next seven.",
    ),
    key("compute.NAME", "account", "Slurm's own", "Slurm: the account (`Slurm.Account`)."),
    key("compute.NAME", "qos", "Slurm's own", "Slurm: the QOS (`Slurm.Qos`)."),
    key("compute.NAME", "time_limit", "Slurm's own", "Slurm: the time limit of a job, as `sbatch --time` takes it (`Slurm.TimeLimit`)."),
    key("compute.NAME", "gres", "none", "Slurm: generic resources, e.g. `\"gpu:1\"` (`Slurm.Gres`)."),
    key(
        "compute.NAME",
        "memory",
        "Slurm's own",
        "Slurm: memory of the node, e.g. `\"16G\"` (`Slurm.Memory`). Kubernetes: memory of the pod, requested and the most that it may use, e.g. `\"16Gi\"` (`Kubernetes.Memory`).",
    ),
    key(
        "compute.NAME",
        "cpus",
        "Slurm's own",
        "Slurm: CPUs of the run (`Slurm.Cpus`). Kubernetes: CPUs that the pod requests, e.g. `4` or `\"500m\"` (`Kubernetes.Cpus`).",
    ),
    key("compute.NAME", "constraint", "none", "Slurm: features that the node must have (`Slurm.Constraint`)."),
    key(
        "compute.NAME",
        "sbatch_arguments",
        "[]",
        "Slurm: further options of `sbatch`, each as `\"--name=value\"`; a definition's `Slurm.Arguments` come after them.",
    ),
    key(
        "compute.NAME",
        "gpus",
        "\"none\"",
        "Local: which NVIDIA GPUs its runs get, each run its own: `all`, or their numbers, `\"0,1\"`. They are counted when the server starts, and `slots` is what they suffice for unless it says less. Once one target gives GPUs away, runs of targets without this key see none. Kubernetes: how many GPUs each pod gets (`Kubernetes.Gpus`).",
    ),
    key("compute.NAME", "gpus_per_run", "1", "Local: how many of them each run gets."),
    key("compute.NAME", "slurm_bin", "where PATH finds them", "Slurm: the folder of `sbatch`, `squeue`, `sacct` and `scancel`."),
    key(
        "compute.NAME",
        "ssh",
        "none",
        "Slurm: run its commands on this login node, as `ssh` takes it (`\"user@login\"`), without a password; the user must own the shared folder.",
    ),
    key(
        "compute.NAME",
        "mpi",
        "\"mpirun\"",
        "Slurm: what starts the processes of MPI runs: the `mpirun` of the environment or of the nodes, or `srun` with a type of `srun --mpi=list` (`\"srun:pmix\"`).",
    ),
    key(
        "compute.NAME",
        "submit_as",
        "none: all jobs are the server's own user's",
        "Slurm: a table `[compute.NAME.submit_as]` that says which application's runs are jobs of which account of the cluster: `ada = \"alice\"`, by the application's name, or by its client id. Runs of an application that is not in it are refused. Needs `sudo`; `deploy/slurm/README.md` says how.",
    ),
    key(
        "compute.NAME",
        "user_dir",
        "`$HOME/.trainyard`",
        "Slurm, with `submit_as`: the folder in which runs keep their files and environments, each account its own; `$HOME` and `$USER` are those of the account. The nodes of a run need not share it.",
    ),
    key(
        "compute.NAME",
        "kubeconfig",
        "`$KUBECONFIG`, `~/.kube/config`, or the service account of the pod that the server runs in",
        "Kubernetes: the file that says where the cluster is and who asks, relative to the folder of this file. Targets with the same cluster, context and namespace share one connection.",
    ),
    key("compute.NAME", "context", "the file's current one", "Kubernetes: the context in that file."),
    key("compute.NAME", "namespace", "that of the context", "Kubernetes: the namespace of Jobs, pods and Secrets. Servers may share one."),
    key(
        "compute.NAME",
        "image",
        "none; Kubernetes needs one",
        "Kubernetes: the image of runs whose definition enables none. It needs a C library that this program runs with.",
    ),
    key(
        "compute.NAME",
        "agent_image",
        "none; Kubernetes needs one",
        "Kubernetes: an image with this program as `/trainyard` (`deploy/container`); it is copied into every pod, beside the run's own image.",
    ),
    key("compute.NAME", "image_pull_secrets", "[]", "Kubernetes: names of Secrets with logins at registries."),
    key(
        "compute.NAME",
        "image_wait_seconds",
        "300",
        "Kubernetes: how long an image that cannot be had, or a container that cannot be made, is waited for before the attempt has failed.",
    ),
    key(
        "compute.NAME",
        "service_account",
        "none",
        "Kubernetes: as whom the code may speak to Kubernetes. Without it, it has no token for that.",
    ),
    key(
        "compute.NAME",
        "node_selector",
        "none",
        "Kubernetes: labels that the node must have, `{ zone = \"a\" }` (`Kubernetes.NodeSelector`).",
    ),
    key(
        "compute.NAME",
        "tolerations",
        "[]",
        "Kubernetes: taints that are put up with, each as `\"key=value:Effect\"`, `\"key:Effect\"` or `\"key\"` (`Kubernetes.Tolerations`).",
    ),
    key("compute.NAME", "priority_class", "the cluster's own", "Kubernetes: the priority class of pods (`Kubernetes.PriorityClass`)."),
    key("compute.NAME", "gpu_resource", "\"nvidia.com/gpu\"", "Kubernetes: what GPUs are called there."),
    key(
        "compute.NAME",
        "volumes",
        "[]",
        "Kubernetes: what the code sees beside its own: `pvc:NAME:/path[:ro]`, `host:/from:/path[:ro]`, `configmap:NAME:/path`, `secret:NAME:/path`, `nfs:SERVER:/from:/path[:ro]`.",
    ),
    key(
        "compute.NAME",
        "cache_volume",
        "none",
        "Kubernetes: where environments are kept, `pvc:NAME` (one that many pods may write), `host:/from` or `nfs:SERVER:/from`. Without it every pod builds its own.",
    ),
    key(
        "compute.NAME",
        "pod_template",
        "none",
        "Kubernetes: a YAML file with `metadata` and `spec` that is laid over every pod, relative to the folder of this file; `deploy/kubernetes/README.md` says how.",
    ),
];

/// Every section; one that ends in `.NAME` stands for many.
pub(super) const SECTIONS: [&str; 7] =
    ["server", "store", "environments", "curated.NAME", "registry.NAME", "datastore.NAME", "compute.NAME"];

/// Whether the tables of this section have names.
pub(super) fn has_names(section: &str) -> bool {
    SECTIONS.iter().any(|known| known.strip_suffix(".NAME") == Some(section))
}

/// The keys of a section, `compute.NAME` for every target.
pub(super) fn known<'a>(section: &'a str) -> impl Iterator<Item = &'static str> + 'a {
    KEYS.iter().filter(move |key| key.section == section).map(|key| key.name)
}

/// Refuses keys that are not in [`KEYS`], with the line and the nearest known one.
pub(super) fn check_keys(text: &str) -> Result<()> {
    let document = DeTable::parse(text)?;
    let line = |offset: usize| text[..offset.min(text.len())].lines().count().max(1);
    for (section, content) in document.get_ref() {
        let at = line(section.span().end);
        let section = section.get_ref().as_ref();
        let DeValue::Table(content) = content.get_ref() else {
            bail!(
                "line {at}: `{section}` stands outside any section; {}",
                nearest(section, &SECTIONS.map(|section| section.trim_end_matches(".NAME")))
            );
        };
        let tables: Vec<(String, &DeTable<'_>)> = match section {
            _ if has_names(section) => content
                .iter()
                .filter_map(|(name, value)| Some((format!("{section}.{}", name.get_ref()), value.get_ref().as_table()?)))
                .collect(),
            _ if SECTIONS.contains(&section) => vec![(section.to_owned(), content)],
            _ => bail!("line {at}: there is no section [{section}]; {}", nearest(section, &SECTIONS)),
        };
        let schema = if has_names(section) { format!("{section}.NAME") } else { section.to_owned() };
        for (label, table) in tables {
            for (key, _) in table {
                let names: Vec<&str> = known(&schema).collect();
                if !names.contains(&key.get_ref().as_ref()) {
                    bail!(
                        "line {}: there is no key `{}` in [{label}]; {}",
                        line(key.span().end),
                        key.get_ref(),
                        nearest(key.get_ref(), &names)
                    );
                }
            }
        }
    }
    Ok(())
}

/// "did you mean …", or the list when nothing is near.
pub(super) fn nearest(word: &str, known: &[&str]) -> String {
    let best = known.iter().map(|name| (strsim::jaro_winkler(word, name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((likeness, name)) if likeness > 0.75 => format!("did you mean `{name}`?"),
        _ => format!("known: {}", known.join(", ")),
    }
}

/// The reference page, `docs/configuration.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\nOne TOML file, given with `--config FILE`; without the flag, `config.toml` in the data directory if it is there. A variable \
         `TRAINYARD_SECTION__KEY` wins over the file (`TRAINYARD_SERVER__LISTEN`, `TRAINYARD_COMPUTE__GPU__SLOTS`), a flag over both. An unknown key is an error.\n\n\
         Without any `[compute.NAME]` section the server has the targets `cpu-cluster` and `local`, both on its own machine.\n",
    );
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            text.push_str(&format!("\n## `[{section}]`\n\n| key | default | what it does |\n| --- | --- | --- |\n"));
        }
        let default = if key.default.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '"' | '[' | '{')) || key.default == "false" {
            format!("`{}`", key.default)
        } else {
            key.default.to_owned()
        };
        text.push_str(&format!("| `{}` | {default} | {} |\n", key.name, key.doc));
    }
    text
}
