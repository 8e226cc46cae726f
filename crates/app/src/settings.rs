//! The configuration: one TOML file, then variables, then flags; later ones win.
//!
//! Every key stands once in [`KEYS`], with its documentation: the check for unknown keys, the variables and `docs/configuration.md` come from
//! that list. A key that is not in it is refused with its line and the nearest known one, because a typing error that is
//! ignored is found weeks later.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};
use trainyard_core::{container::ContainerPolicy, run::RetryPolicy};
use trainyard_engine::{
    container::EngineChoice,
    environment::{EnvironmentSettings, PythonFallback},
};

pub use self::keys::{KEYS, Key};
use crate::curated::CuratedSection;

mod keys;

/// The whole configuration, with defaults filled in.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// `[server]`
    pub server: ServerSection,
    /// `[store]`
    pub store: StoreSection,
    /// `[environments]`
    pub environments: EnvironmentsSection,
    /// `[compute.NAME]`
    pub compute: BTreeMap<String, ComputeSection>,
    /// `[registry.NAME]`, by host.
    pub registry: BTreeMap<String, RegistrySection>,
    /// `[curated.NAME]`
    pub curated: BTreeMap<String, CuratedSection>,
    /// The folder of the configuration file, which paths in it are relative to.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ServerSection {
    /// See [`KEYS`].
    pub listen: String,
    /// See [`KEYS`].
    pub public_url: Option<url::Url>,
    /// See [`KEYS`].
    pub agent_url: Option<url::Url>,
    /// See [`KEYS`].
    pub tls_cert: Option<PathBuf>,
    /// See [`KEYS`].
    pub tls_key: Option<PathBuf>,
    /// See [`KEYS`].
    pub region: String,
    /// See [`KEYS`].
    pub max_upload_bytes: u64,
    /// See [`KEYS`].
    pub max_definition_bytes: u64,
    /// See [`KEYS`].
    pub max_unpacked_bytes: u64,
    /// See [`KEYS`].
    pub max_archive_files: usize,
    /// See [`KEYS`].
    pub max_archive_ratio: u64,
    /// See [`KEYS`].
    pub cancel_grace_seconds: u64,
    /// See [`KEYS`].
    pub heartbeat_limit_seconds: u64,
    /// See [`KEYS`].
    pub silence_limit_seconds: u64,
    /// See [`KEYS`].
    pub spool_limit_bytes: u64,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8443".into(),
            public_url: None,
            agent_url: None,
            tls_cert: None,
            tls_key: None,
            region: "local".into(),
            max_upload_bytes: 300 << 20,
            max_definition_bytes: 1 << 20,
            max_unpacked_bytes: 300 << 20,
            max_archive_files: 20_000,
            max_archive_ratio: 200,
            cancel_grace_seconds: 10,
            heartbeat_limit_seconds: 30,
            silence_limit_seconds: 86_400,
            spool_limit_bytes: 1 << 30,
        }
    }
}

/// `[store]`
#[derive(Clone, Deserialize)]
#[serde(default)]
pub struct StoreSection {
    /// See [`KEYS`].
    pub database: String,
    /// See [`KEYS`].
    pub blobs: String,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self { database: "sqlite".into(), blobs: "file".into() }
    }
}

impl std::fmt::Debug for StoreSection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The database's URL may hold a password.
        let database = self.database.split_once("://").map_or(self.database.as_str(), |(scheme, _)| scheme);
        f.debug_struct("StoreSection").field("database", &database).field("blobs", &self.blobs).finish()
    }
}

/// `[environments]`
#[derive(Clone, Deserialize)]
#[serde(default)]
pub struct EnvironmentsSection {
    /// See [`KEYS`].
    pub cache_dir: Option<PathBuf>,
    /// See [`KEYS`].
    pub python_fallback: PythonFallback,
    /// See [`KEYS`].
    pub conda_channels: Vec<String>,
    /// See [`KEYS`].
    pub conda_channel_alias: String,
    /// See [`KEYS`].
    pub conda_credentials: BTreeMap<String, String>,
    /// See [`KEYS`].
    pub index_url: Option<String>,
    /// See [`KEYS`].
    pub offline: bool,
    /// See [`KEYS`].
    pub max_bytes: u64,
    /// See [`KEYS`].
    pub build_limit_seconds: u64,
}

impl Default for EnvironmentsSection {
    fn default() -> Self {
        let EnvironmentSettings {
            python_fallback,
            conda_channels,
            conda_channel_alias,
            index_url,
            offline,
            max_bytes,
            build_limit_seconds,
            ..
        } = EnvironmentSettings::default();
        Self {
            cache_dir: None,
            python_fallback,
            conda_channels,
            conda_channel_alias,
            conda_credentials: BTreeMap::new(),
            index_url,
            offline,
            max_bytes,
            build_limit_seconds,
        }
    }
}

impl std::fmt::Debug for EnvironmentsSection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The index's URL may hold credentials.
        f.debug_struct("EnvironmentsSection").field("cache_dir", &self.cache_dir).field("offline", &self.offline).finish_non_exhaustive()
    }
}

/// `[compute.NAME]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ComputeSection {
    /// See [`KEYS`].
    pub engine: Engine,
    /// See [`KEYS`].
    pub slots: u32,
    /// See [`KEYS`].
    pub retries: u32,
    /// See [`KEYS`].
    pub user_retries: u32,
    /// See [`KEYS`].
    pub retry_backoff_seconds: u64,
    /// See [`KEYS`].
    pub containers: ContainerPolicy,
    /// See [`KEYS`].
    pub container_engine: EngineChoice,
    /// See [`KEYS`].
    pub container_runtime: Option<String>,
    /// See [`KEYS`].
    pub container_ulimits: Vec<String>,
    /// See [`KEYS`].
    pub container_arguments: Vec<String>,
    /// See [`KEYS`].
    pub container_volumes: Vec<String>,
}

impl Default for ComputeSection {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let rule = RetryPolicy::default();
        Self {
            engine: Engine::Local,
            slots: u32::try_from(cores).unwrap_or(u32::MAX),
            retries: rule.infrastructure,
            user_retries: rule.user_code,
            retry_backoff_seconds: rule.backoff_seconds,
            containers: ContainerPolicy::default(),
            container_engine: EngineChoice::default(),
            container_runtime: None,
            container_ulimits: Vec::new(),
            container_arguments: Vec::new(),
            container_volumes: Vec::new(),
        }
    }
}

/// `[registry.NAME]`
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySection {
    /// See [`KEYS`].
    pub username: String,
    /// See [`KEYS`].
    pub password: String,
}

impl std::fmt::Debug for RegistrySection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistrySection").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What executes the runs of a compute target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Processes on the server's machine.
    Local,
}

impl Settings {
    /// Reads the file (if given), lays the variables over it and checks every key.
    /// `variables` are all variables of the process; those that start with `TRAINYARD_` and hold a double underscore are keys:
    /// `TRAINYARD_SERVER__LISTEN` is `listen` in `[server]`, `TRAINYARD_COMPUTE__GPU__SLOTS` is `slots` in `[compute.gpu]`.
    pub fn load(file: Option<&Path>, variables: impl Iterator<Item = (String, String)>) -> Result<Self> {
        let mut table = match file {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("the configuration file {} cannot be read", path.display()))?;
                check_keys(&text).with_context(|| format!("in the configuration file {}", path.display()))?;
                text.parse::<Table>().with_context(|| format!("the configuration file {} is not TOML", path.display()))?
            }
            None => Table::new(),
        };
        for (name, text) in variables {
            if let Some(path) = name.strip_prefix("TRAINYARD_").filter(|rest| rest.contains("__")) {
                overlay(&mut table, path, &text).with_context(|| format!("in the variable {name}"))?;
            }
        }
        let mut settings: Self = table.try_into().context("the configuration does not fit")?;
        if settings.compute.is_empty() {
            settings.compute = ["cpu-cluster", "local"].map(|name| (name.to_owned(), ComputeSection::default())).into();
        }
        settings.folder = file.and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        if self.server.tls_cert.is_some() != self.server.tls_key.is_some() {
            bail!("`tls_cert` and `tls_key` in [server] go together: one of them is missing");
        }
        if self.server.heartbeat_limit_seconds < 3 {
            bail!("`heartbeat_limit_seconds` in [server] is {}: it must be at least 3", self.server.heartbeat_limit_seconds);
        }
        for name in self.compute.keys() {
            trainyard_core::ids::ComputeName::new(name.as_str()).with_context(|| format!("in [compute.{name}]"))?;
        }
        Ok(())
    }
}

/// Every section; one that ends in `.NAME` stands for many.
const SECTIONS: [&str; 6] = ["server", "store", "environments", "curated.NAME", "registry.NAME", "compute.NAME"];

/// Whether the tables of this section have names.
fn has_names(section: &str) -> bool {
    SECTIONS.iter().any(|known| known.strip_suffix(".NAME") == Some(section))
}

/// The keys of a section, `compute.NAME` for every target.
fn known<'a>(section: &'a str) -> impl Iterator<Item = &'static str> + 'a {
    KEYS.iter().filter(move |key| key.section == section).map(|key| key.name)
}

/// Refuses keys that are not in [`KEYS`], with the line and the nearest known one.
fn check_keys(text: &str) -> Result<()> {
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
fn nearest(word: &str, known: &[&str]) -> String {
    let best = known.iter().map(|name| (strsim::jaro_winkler(word, name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((likeness, name)) if likeness > 0.75 => format!("did you mean `{name}`?"),
        _ => format!("known: {}", known.join(", ")),
    }
}

/// Lays one variable over the table: `SERVER__LISTEN`, `COMPUTE__GPU__SLOTS`. Dashes in names of targets are written as they are in the file
/// where the shell allows it, else as single underscores.
fn overlay(table: &mut Table, path: &str, text: &str) -> Result<()> {
    let parts: Vec<String> = path.split("__").map(str::to_lowercase).collect();
    let (section, key, schema) = match parts.as_slice() {
        [section, key] => (vec![section.clone()], key.clone(), section.clone()),
        [section, name, key] if section == "compute" => {
            (vec![section.clone(), configured_name(table, name)], key.clone(), "compute.NAME".to_owned())
        }
        _ => bail!("expected TRAINYARD_SECTION__KEY or TRAINYARD_COMPUTE__NAME__KEY"),
    };
    let names: Vec<&str> = known(&schema).collect();
    if names.is_empty() {
        bail!("there is no section `{schema}`; {}", nearest(&schema, &SECTIONS.map(|section| section.trim_end_matches(".NAME"))));
    }
    if !names.contains(&key.as_str()) {
        bail!("there is no key `{key}` in `{schema}`; {}", nearest(&key, &names));
    }
    let mut at = table;
    for part in section {
        let next = at.entry(part.clone()).or_insert_with(|| Value::Table(Table::new()));
        at = next.as_table_mut().with_context(|| format!("`{part}` is not a section"))?;
    }
    at.insert(key, parsed(text));
    Ok(())
}

/// The name of a target as the file spells it, if it has one that differs only in `-` and `_`.
fn configured_name(table: &Table, name: &str) -> String {
    let same = |candidate: &&String| candidate.to_lowercase().replace('-', "_") == name.replace('-', "_");
    let targets = table.get("compute").and_then(Value::as_table);
    targets.and_then(|targets| targets.keys().find(same)).cloned().unwrap_or_else(|| name.replace('_', "-"))
}

/// A variable's text as a TOML value where it is one (numbers, booleans, lists, tables), else as a string.
fn parsed(text: &str) -> Value {
    let attempt = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    match attempt {
        Some(value @ (Value::Integer(_) | Value::Boolean(_) | Value::Array(_) | Value::Table(_))) => value,
        _ => Value::String(text.to_owned()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Settings::load(Some(file.path()), variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn message(result: Result<Settings>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn an_empty_configuration_has_the_two_default_targets() {
        let settings = load("", &[]).unwrap();
        assert_eq!(settings.compute.keys().collect::<Vec<_>>(), ["cpu-cluster", "local"]);
        assert_eq!(settings.server.listen, "127.0.0.1:8443");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
        let text = message(load("[server]\nlisten = \"127.0.0.1:1\"\nlisen = 1\n", &[]));
        assert!(text.contains("line 3: there is no key `lisen` in [server]; did you mean `listen`?"), "{text}");
        let text = message(load("[sever]\nlisten = \"x\"\n", &[]));
        assert!(text.contains("there is no section [sever]; did you mean `server`?"), "{text}");
        let text = message(load("[compute.gpu]\nslot = 3\n", &[]));
        assert!(text.contains("line 2: there is no key `slot` in [compute.gpu]; did you mean `slots`?"), "{text}");
    }

    #[test]
    fn variables_win_over_the_file_and_are_checked_like_it() {
        let file = "[server]\nlisten = \"127.0.0.1:1\"\n[compute.cpu-cluster]\nslots = 1\n";
        let settings = load(file, &[("TRAINYARD_SERVER__LISTEN", "127.0.0.1:2"), ("TRAINYARD_COMPUTE__CPU_CLUSTER__SLOTS", "7")]).unwrap();
        assert_eq!(settings.server.listen, "127.0.0.1:2");
        assert_eq!(settings.compute["cpu-cluster"].slots, 7);
        assert_eq!(settings.compute.len(), 1);
        let text = message(load("", &[("TRAINYARD_SERVER__LISTE", "x")]));
        assert!(text.contains("TRAINYARD_SERVER__LISTE") && text.contains("did you mean `listen`?"), "{text}");
    }

    #[test]
    fn named_environments_are_read_and_their_keys_are_checked() {
        let file = "[curated.\"AzureML-sklearn-1.0\"]\npip = [\"scikit-learn==1.0\"]\n[curated.torch]\nfile = \"torch.yml\"\n";
        let settings = load(file, &[]).unwrap();
        assert_eq!(settings.curated["AzureML-sklearn-1.0"].pip, ["scikit-learn==1.0"]);
        assert_eq!(settings.curated["torch"].file.as_deref(), Some(Path::new("torch.yml")));
        assert!(settings.folder.is_absolute(), "paths are relative to the file's folder");
        let text = message(load("[curated.torch]\npips = []\n", &[]));
        assert!(text.contains("line 2: there is no key `pips` in [curated.torch]; did you mean `pip`?"), "{text}");
        let text = message(load("[curate.torch]\npip = []\n", &[]));
        assert!(text.contains("there is no section [curate]; did you mean `curated.NAME`?"), "{text}");
    }

    #[test]
    fn a_wrong_type_names_the_key() {
        let text = message(load("[compute.gpu]\nslots = \"many\"\n", &[]));
        assert!(text.contains("slots"), "{text}");
        let text = message(load("[compute.gpu]\nengine = \"slum\"\n", &[]));
        assert!(text.contains("slum") && text.contains("local"), "{text}");
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let settings =
            load("[store]\ndatabase = \"postgres://u:hunter2@h/d\"\n[environments]\nindex_url = \"https://u:hunter2@h/\"\n", &[]).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn the_reference_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            reference(),
            "run: cargo run -- doctor --configuration-reference > docs/configuration.md"
        );
    }
}
