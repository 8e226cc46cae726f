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
use toml::{Table, Value};
use trainyard_engine::data::Datastores;

use self::keys::{SECTIONS, check_keys, known, nearest};
pub use self::{
    keys::{KEYS, Key, reference},
    kubernetes::KubernetesKeys,
    sections::{ComputeSection, DatastoreSection, Engine, EnvironmentsSection, RegistrySection, ServerSection, StoreSection},
};
use crate::curated::CuratedSection;

mod keys;
mod kubernetes;
mod sections;

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
    /// `[datastore.NAME]`
    pub datastore: BTreeMap<String, DatastoreSection>,
    /// `[registry.NAME]`, by host.
    pub registry: BTreeMap<String, RegistrySection>,
    /// `[curated.NAME]`
    pub curated: BTreeMap<String, CuratedSection>,
    /// The folder of the configuration file, which paths in it are relative to.
    #[serde(skip)]
    pub folder: PathBuf,
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
        for (name, section) in &self.compute {
            trainyard_core::ids::ComputeName::new(name.as_str()).with_context(|| format!("in [compute.{name}]"))?;
            section.check().with_context(|| format!("in [compute.{name}]"))?;
        }
        for (name, section) in &self.datastore {
            let one = [(name.clone(), section.datastore(|_| None))].into();
            Datastores::new(one, PathBuf::new()).map(drop).with_context(|| format!("in [datastore.{name}]"))?;
        }
        Ok(())
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
        assert_eq!(settings.compute["cpu-cluster"].slots(), 7);
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
    fn a_slurm_target_needs_a_shared_folder_and_a_local_one_has_no_use_for_it() {
        let settings = load("[compute.gpu]\nengine = \"slurm\"\nshared_dir = \"/shared\"\npartition = \"gpu\"\ncpus = 4\n", &[]).unwrap();
        let gpu = &settings.compute["gpu"];
        assert_eq!(
            (gpu.slots(), gpu.slurm_wish().options()),
            (sections::SLURM_SLOTS, vec!["--partition=gpu".into(), "--cpus-per-task=4".into()])
        );
        for (text, part) in [
            ("engine = \"slurm\"\n", "`shared_dir` is missing"),
            ("engine = \"slurm\"\nshared_dir = \"shared\"\n", "must be an absolute path"),
            ("engine = \"slurm\"\nshared_dir = \"/s\"\nssh = \"-oProxyCommand=x\"\n", "`ssh` must be"),
            ("engine = \"slurm\"\nshared_dir = \"/s\"\nsbatch_arguments = [\"--array=1-2\"]\n", "Arguments[0]"),
            ("partition = \"gpu\"\n", "for Slurm only"),
            ("submit_as = { ada = \"alice\" }\n", "for Slurm only"),
            ("engine = \"slurm\"\nshared_dir = \"/s\"\nuser_dir = \"/x\"\n", "there is no `submit_as`"),
            ("engine = \"slurm\"\nshared_dir = \"/s\"\nuser_dir = \"x\"\nsubmit_as = { ada = \"alice\" }\n", "user_dir: `x`"),
        ] {
            let text = message(load(&format!("[compute.gpu]\n{text}"), &[]));
            assert!(text.contains("[compute.gpu]") && text.contains(part), "{text}");
        }
    }

    #[test]
    fn the_accounts_of_a_target_are_names_and_none_is_root() {
        let target = "[compute.gpu]\nengine = \"slurm\"\nshared_dir = \"/s\"\n[compute.gpu.submit_as]\n";
        let settings = load(&format!("{target}ada = \"alice\"\n"), &[]).unwrap();
        assert!(settings.compute["gpu"].slurm_target().unwrap().user_dir.is_some());
        let text = message(load(&format!("{target}ada = \"root\"\n"), &[]));
        assert!(text.contains("`root`") && text.contains("compute.gpu.submit_as.ada"), "{text}");
    }

    #[test]
    fn a_kubernetes_target_needs_two_images_and_says_what_cannot_be_meant() {
        let images = "engine = \"kubernetes\"\nimage = \"python:3.11\"\nagent_image = \"trainyard\"\n";
        let text = format!(
            "[compute.gpu]\n{images}cpus = 0.5\nmemory = \"2Gi\"\ngpus = 2\nnode_selector = {{ zone = \"a\" }}\nvolumes = [\"pvc:data:/data\"]\n"
        );
        let settings = load(&text, &[]).unwrap();
        let target = settings.compute["gpu"].kubernetes_target(Path::new("/etc")).unwrap();
        assert_eq!((target.wish.cpus.as_deref(), target.wish.memory.as_deref(), target.wish.gpus), (Some("0.5"), Some("2Gi"), Some(2)));
        assert_eq!((settings.compute["gpu"].slots(), target.gpu_resource.as_str()), (kubernetes::KUBERNETES_SLOTS, "nvidia.com/gpu"));
        for (text, part) in [
            ("engine = \"kubernetes\"\nimage = \"a\"\n".to_owned(), "`agent_image` is missing"),
            (format!("{images}partition = \"gpu\"\n"), "for Slurm only"),
            (format!("{images}memory = \"lots\"\n"), "Memory: `lots`"),
            (format!("{images}gpus = \"all\"\n"), "say how many each run gets"),
            (format!("{images}volumes = [\"data:/data\"]\n"), "is no volume"),
            ("namespace = \"ml\"\n".to_owned(), "for Kubernetes only"),
            ("engine = \"slurm\"\nshared_dir = \"/s\"\ncpus = 0.5\n".to_owned(), "must be a whole number"),
        ] {
            let text = message(load(&format!("[compute.gpu]\n{text}"), &[]));
            assert!(text.contains("[compute.gpu]") && text.contains(part), "{text}");
        }
    }

    #[test]
    fn datastores_are_read_and_checked_and_their_keys_do_not_show() {
        let file = "[datastore.images]\nurl = \"s3://bucket/images\"\naccess_key_id = \"k\"\nsecret_access_key = \"hunter2\"\nread_only = true\n\
                    [datastore.web]\nurl = \"https://u:hunter2@h/x\"\n";
        let settings = load(file, &[]).unwrap();
        assert_eq!(settings.datastore.keys().collect::<Vec<_>>(), ["images", "web"]);
        assert!(!format!("{settings:?}").contains("hunter2"));
        for (text, part) in [
            ("url = \"data\"\n", "`url` is `data`: expected an absolute path"),
            ("url = \"s3://b\"\naccess_key_id = \"k\"\n", "go together"),
            ("url = \"/x\"\nreadonly = true\n", "did you mean `read_only`?"),
            ("read_only = true\n", "missing field `url`"),
        ] {
            let text = message(load(&format!("[datastore.d]\n{text}"), &[]));
            assert!(text.contains(part), "{text}");
        }
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
