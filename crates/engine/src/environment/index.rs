//! Where packages come from: the server's setting, else the variables of uv, else the configuration of pip.
//!
//! uv does not read pip's configuration, but a node that needs a mirror usually says so to pip. Credentials stay in
//! variables of the child process: they are in no argument, no log line and no hash.

use std::path::{Path, PathBuf};

use tokio::process::Command;
use trainyard_core::environment::PipOption;

use super::{host::Host, settings::EnvironmentSettings};

/// Variables of uv that name indexes; replaced as a whole by what [`IndexSources`] decides.
const UV_VARIABLES: [&str; 6] = ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_NO_INDEX"];

/// Files whose presence means that the node has a store of certificates.
const SYSTEM_CERTIFICATES: [&str; 4] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];

/// Where packages come from.
#[derive(Clone, Default)]
pub(super) struct IndexSources {
    default: Option<String>,
    extra: Vec<String>,
    find_links: Vec<String>,
    no_index: bool,
    certificates: Option<PathBuf>,
    offline: bool,
    /// Files that an archive brought to a node without a network. They are what an index had, so they do not enter the hash.
    imported: Option<PathBuf>,
}

impl IndexSources {
    /// What holds on this node with these settings.
    pub(super) fn resolve(host: &Host, settings: &EnvironmentSettings) -> Self {
        let words = |name: &str, separator: fn(char) -> bool| -> Vec<String> {
            host.text(name).map(|text| text.split(separator).filter(|word| !word.is_empty()).map(Into::into).collect()).unwrap_or_default()
        };
        let pip = if uv_is_configured(host) { PipConfiguration::default() } else { PipConfiguration::read(host) };
        let own = settings.index_url.clone();
        let of_uv = host.text("UV_DEFAULT_INDEX").or_else(|| host.text("UV_INDEX_URL")).map(ToOwned::to_owned);
        let mut sources = Self { certificates: pip.certificates, offline: settings.offline, ..Self::default() };
        sources.imported = Some(settings.cache_dir.join("wheels")).filter(|wheels| settings.offline && wheels.is_dir());
        sources.extra = words("UV_INDEX", char::is_whitespace);
        sources.extra.extend(words("UV_EXTRA_INDEX_URL", char::is_whitespace));
        sources.find_links = words("UV_FIND_LINKS", |c| c == ',');
        sources.no_index = host.text("UV_NO_INDEX").is_some_and(is_true) || pip.no_index;
        if own.is_none() {
            sources.extra.extend(pip.extra);
        }
        sources.default = own.or(of_uv).or(pip.index);
        // pip passes over folders that do not exist, uv fails on them.
        sources.find_links.extend(pip.find_links.into_iter().filter(|place| place.contains("://") || Path::new(place).is_dir()));
        sources
    }

    /// For the hash: everything that decides which packages there are, in order.
    pub(super) fn for_hash(&self) -> Vec<String> {
        let mut parts: Vec<String> = self.default.iter().cloned().collect();
        parts.extend(self.extra.iter().map(|url| format!("extra {url}")));
        parts.extend(self.find_links.iter().map(|place| format!("links {place}")));
        parts.extend(self.no_index.then(|| "no index".to_owned()));
        parts
    }

    /// The credentials in it, so that they can be masked.
    pub(super) fn secrets(&self) -> Vec<String> {
        let places = self.default.iter().chain(&self.extra).chain(&self.find_links);
        places.flat_map(|place| credentials(place)).collect()
    }

    /// Sets uv up: these sources, with the options of a pip list on top. As in pip, an `--index-url` of the list replaces
    /// the configured one.
    pub(super) fn apply(&self, command: &mut Command, options: &[PipOption]) {
        let mut default = self.default.clone();
        let mut extra = Vec::new();
        let mut links = Vec::new();
        let mut no_index = self.no_index;
        for option in options {
            match option {
                PipOption::IndexUrl(url) => default = Some(url.clone()),
                PipOption::ExtraIndexUrl(url) => extra.push(url.clone()),
                PipOption::FindLinks(place) => links.push(place.clone()),
                PipOption::NoIndex => no_index = true,
                PipOption::Pre => {
                    command.args(["--prerelease", "allow"]);
                }
                PipOption::NoBinary(name) => {
                    command.args(["--no-binary", name]);
                }
                PipOption::OnlyBinary(name) => {
                    command.args(["--only-binary", name]);
                }
            }
        }
        extra.extend(self.extra.iter().cloned());
        links.extend(self.find_links.iter().cloned());
        links.extend(self.imported.iter().map(|wheels| wheels.display().to_string()));
        for name in UV_VARIABLES {
            command.env_remove(name);
        }
        if let Some(url) = default {
            command.env("UV_DEFAULT_INDEX", url);
        }
        if !extra.is_empty() {
            command.env("UV_INDEX", extra.join(" "));
        }
        if !links.is_empty() {
            command.env("UV_FIND_LINKS", links.join(","));
        }
        if no_index {
            command.arg("--no-index");
        }
        if self.offline {
            command.arg("--offline");
        }
    }

    /// The same for pip, which serves Pythons that uv does not; credentials go through variables here, too.
    pub(super) fn apply_to_pip(&self, command: &mut Command, options: &[PipOption]) {
        let mut default = self.default.clone();
        let (mut extra, mut links) = (self.extra.clone(), self.find_links.clone());
        let mut no_index = self.no_index || self.offline;
        for option in options {
            match option {
                PipOption::IndexUrl(url) => default = Some(url.clone()),
                PipOption::ExtraIndexUrl(url) => extra.push(url.clone()),
                PipOption::FindLinks(place) => links.push(place.clone()),
                PipOption::NoIndex => no_index = true,
                PipOption::Pre => {
                    command.arg("--pre");
                }
                PipOption::NoBinary(name) => {
                    command.args(["--no-binary", name]);
                }
                PipOption::OnlyBinary(name) => {
                    command.args(["--only-binary", name]);
                }
            }
        }
        links.extend(self.imported.iter().map(|wheels| wheels.display().to_string()));
        let words = [("PIP_INDEX_URL", default.into_iter().collect()), ("PIP_EXTRA_INDEX_URL", extra), ("PIP_FIND_LINKS", links)];
        for (name, values) in words {
            if values.is_empty() {
                command.env_remove(name);
            } else {
                command.env(name, values.join(" "));
            }
        }
        if no_index {
            command.arg("--no-index");
        }
        if let Some(bundle) = &self.certificates {
            command.env("PIP_CERT", bundle);
        }
    }

    /// Certificates, and pip's way with several indexes: the best version of all of them. uv's own way (the first index
    /// that knows the name) fails on lists that were written for pip, such as PyTorch's.
    pub(super) fn apply_policy(&self, command: &mut Command, host: &Host) {
        if host.var("UV_INDEX_STRATEGY").is_none() {
            command.env("UV_INDEX_STRATEGY", "unsafe-best-match");
        }
        if let (Some(bundle), None) = (&self.certificates, host.var("SSL_CERT_FILE")) {
            command.env("SSL_CERT_FILE", bundle);
        }
        let decided = ["UV_SYSTEM_CERTS", "UV_NATIVE_TLS"].iter().any(|name| host.var(name).is_some());
        if !decided && SYSTEM_CERTIFICATES.iter().any(|file| Path::new(file).is_file()) {
            // The same switch under its names in newer and older releases.
            command.env("UV_SYSTEM_CERTS", "true").env("UV_NATIVE_TLS", "true");
        }
    }
}

/// Lets uv look into one more folder of files. Through the variable that [`IndexSources::apply`] sets: an argument would take its place.
pub(super) fn also_find_in(command: &mut Command, folder: &Path) {
    let known = command.as_std().get_envs().find(|(name, _)| *name == "UV_FIND_LINKS").and_then(|(_, value)| value);
    let mut links = known.map(ToOwned::to_owned).unwrap_or_default();
    if !links.is_empty() {
        links.push(",");
    }
    links.push(folder);
    command.env("UV_FIND_LINKS", links);
}

fn is_true(value: &str) -> bool {
    matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on" | "t" | "y")
}

/// Whether somebody told uv itself where packages come from; pip's word then does not count.
fn uv_is_configured(host: &Host) -> bool {
    let file = host.config_home().map(|config| config.join("uv/uv.toml"));
    UV_VARIABLES.iter().chain(&["UV_CONFIG_FILE"]).any(|name| host.var(name).is_some())
        || file.is_some_and(|file| file.is_file())
        || Path::new("/etc/uv/uv.toml").is_file()
}

/// The user and password of a URL, as they are written there.
fn credentials(url: &str) -> Vec<String> {
    let Some((_, rest)) = url.split_once("://") else { return Vec::new() };
    let authority = rest.split('/').next().unwrap_or(rest);
    let Some((userinfo, _)) = authority.rsplit_once('@') else { return Vec::new() };
    let secret = match userinfo.split_once(':') {
        Some((user, "")) => user,
        Some((_, password)) => password,
        None => userinfo,
    };
    // One or two letters would tear holes into every other word.
    if secret.len() < 3 { Vec::new() } else { vec![secret.to_owned()] }
}

/// What pip is told on this node: variables over the user's file over the machine's.
#[derive(Debug, Default, PartialEq, Eq)]
struct PipConfiguration {
    index: Option<String>,
    extra: Vec<String>,
    find_links: Vec<String>,
    no_index: bool,
    certificates: Option<PathBuf>,
}

impl PipConfiguration {
    fn read(host: &Host) -> Self {
        let mut configuration = Self::default();
        for file in Self::files(host) {
            if let Ok(text) = std::fs::read_to_string(&file) {
                configuration.take_file(&text);
            }
        }
        for key in ["index-url", "extra-index-url", "find-links", "no-index", "cert"] {
            let name = format!("PIP_{}", key.to_ascii_uppercase().replace('-', "_"));
            if let Some(value) = host.text(&name) {
                configuration.take(key, value);
            }
        }
        configuration
    }

    /// In the order of reading; later files override earlier ones.
    fn files(host: &Host) -> Vec<PathBuf> {
        let named = host.var("PIP_CONFIG_FILE").map(PathBuf::from);
        if named.as_deref() == Some(Path::new("/dev/null")) {
            return Vec::new();
        }
        let mut files = vec![PathBuf::from("/etc/xdg/pip/pip.conf"), PathBuf::from("/etc/pip.conf")];
        files.extend(host.home().map(|home| home.join(".pip/pip.conf")));
        files.extend(host.config_home().map(|config| config.join("pip/pip.conf")));
        files.extend(named);
        files
    }

    /// An INI file; a value goes on in the following indented lines.
    fn take_file(&mut self, text: &str) {
        let mut in_section = false;
        let mut entry: Option<(String, String)> = None;
        let mut entries = Vec::new();
        for line in text.lines() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with(char::is_whitespace) {
                if let Some((_, value)) = &mut entry {
                    value.push('\n');
                    value.push_str(trimmed);
                }
                continue;
            }
            entries.extend(entry.take());
            if let Some(section) = trimmed.strip_prefix('[') {
                in_section = matches!(section.trim_end_matches(']').trim(), "global" | "install");
            } else if in_section && let Some((key, value)) = trimmed.split_once(['=', ':']) {
                entry = Some((key.trim().to_ascii_lowercase().replace('_', "-"), value.trim().to_owned()));
            }
        }
        entries.extend(entry);
        for (key, value) in entries {
            self.take(&key, &value);
        }
    }

    fn take(&mut self, key: &str, value: &str) {
        let words = || value.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
        match key {
            "index-url" => self.index = words().into_iter().next(),
            "extra-index-url" => self.extra = words(),
            "find-links" => self.find_links = words(),
            "no-index" => self.no_index = is_true(value),
            "cert" => self.certificates = words().into_iter().next().map(PathBuf::from),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn host(variables: &[(&str, &str)]) -> Host {
        Host::with(variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
    }

    fn settings(index_url: Option<&str>) -> EnvironmentSettings {
        EnvironmentSettings {
            cache_dir: "/c".into(),
            python_fallback: super::super::PythonFallback::Closest,
            index_url: index_url.map(Into::into),
            offline: false,
            conda_channels: Vec::new(),
            tools_dir: "/t".into(),
            ..EnvironmentSettings::default()
        }
    }

    fn uv_sees(sources: &IndexSources, options: &[PipOption]) -> (Vec<String>, Vec<(String, String)>) {
        let mut command = Command::new("uv");
        sources.apply(&mut command, options);
        let std = command.as_std();
        let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        let variables = std.get_envs().filter_map(|(name, value)| Some((text(name), text(value?)))).collect();
        (std.get_args().map(text).collect(), variables)
    }

    #[test]
    fn pips_files_and_variables_are_understood() {
        let mut configuration = PipConfiguration::default();
        configuration.take_file(
            "# machine\n[global]\nindex-url = https://mirror.example/simple\nextra_index_url =\n    https://a.example\n    https://b.example\n; no\n[list]\nindex-url = https://wrong.example\n[install]\nno-index: false\ncert = /etc/ca.pem\n",
        );
        assert_eq!(configuration.index.as_deref(), Some("https://mirror.example/simple"));
        assert_eq!(configuration.extra, ["https://a.example", "https://b.example"]);
        assert!(!configuration.no_index);
        assert_eq!(configuration.certificates.as_deref(), Some(Path::new("/etc/ca.pem")));
    }

    #[test]
    fn the_servers_index_comes_before_uvs_and_uvs_before_pips() {
        let all = [("PIP_CONFIG_FILE", "/dev/null"), ("PIP_INDEX_URL", "https://pip.example"), ("UV_DEFAULT_INDEX", "https://uv.example")];
        let default = |variables: &[(&str, &str)], own| IndexSources::resolve(&host(variables), &settings(own)).default;
        assert_eq!(default(&all, Some("https://own.example")).as_deref(), Some("https://own.example"));
        assert_eq!(default(&all, None).as_deref(), Some("https://uv.example"));
        assert_eq!(default(&all[..2], None).as_deref(), Some("https://pip.example"));
        assert_eq!(default(&all[..1], None), None);
    }

    #[test]
    fn folders_of_links_that_do_not_exist_are_passed_over_as_pip_does() {
        let folder = tempfile::tempdir().unwrap();
        let value = format!("/does/not/exist {} https://links.example", folder.path().display());
        let sources = IndexSources::resolve(&host(&[("PIP_CONFIG_FILE", "/dev/null"), ("PIP_FIND_LINKS", &value)]), &settings(None));
        assert_eq!(sources.find_links, [folder.path().to_str().unwrap(), "https://links.example"]);
    }

    #[test]
    fn credentials_go_through_variables_only_and_can_be_masked() {
        let sources = IndexSources::resolve(&host(&[]), &settings(Some("https://user:s3cret@own.example/simple")));
        let options = [PipOption::ExtraIndexUrl("https://extra.example".into()), PipOption::Pre, PipOption::NoBinary("six".into())];
        let (arguments, variables) = uv_sees(&sources, &options);
        assert_eq!(arguments, ["--prerelease", "allow", "--no-binary", "six"]);
        assert!(variables.contains(&("UV_DEFAULT_INDEX".into(), "https://user:s3cret@own.example/simple".into())));
        assert!(variables.contains(&("UV_INDEX".into(), "https://extra.example".into())));
        assert_eq!(sources.secrets(), ["s3cret"]);
        assert!(!format!("{:?}", settings(Some("https://user:s3cret@own.example"))).contains("s3cret"));
    }

    #[test]
    fn one_more_folder_of_files_does_not_replace_those_of_the_list() {
        let sources = IndexSources::resolve(&host(&[("PIP_CONFIG_FILE", "/dev/null")]), &settings(None));
        let mut command = Command::new("uv");
        sources.apply(&mut command, &[PipOption::FindLinks("https://links.example".into())]);
        also_find_in(&mut command, Path::new("/c/wheels"));
        let links = command.as_std().get_envs().find(|(name, _)| *name == "UV_FIND_LINKS").and_then(|(_, value)| value?.to_str());
        assert!(links.is_some_and(|links| links.starts_with("https://links.example,") && links.ends_with("/c/wheels")), "{links:?}");
    }

    #[test]
    fn pip_itself_is_told_the_same_through_its_own_variables() {
        let own = settings(Some("https://user:s3cret@own.example/simple"));
        let sources = IndexSources::resolve(&host(&[]), &own);
        let mut command = Command::new("pip");
        sources.apply_to_pip(&mut command, &[PipOption::ExtraIndexUrl("https://extra.example".into()), PipOption::Pre, PipOption::NoIndex]);
        let arguments: Vec<_> = command.as_std().get_args().collect();
        assert_eq!(arguments, ["--pre", "--no-index"]);
        let value = |name: &str| command.as_std().get_envs().find(|(key, _)| *key == name).and_then(|(_, value)| value?.to_str());
        assert_eq!(value("PIP_INDEX_URL"), Some("https://user:s3cret@own.example/simple"));
        assert_eq!((value("PIP_EXTRA_INDEX_URL"), value("PIP_FIND_LINKS")), (Some("https://extra.example"), None));
    }

    #[test]
    fn the_list_replaces_the_configured_index_as_in_pip() {
        let sources = IndexSources::resolve(&host(&[]), &settings(Some("https://own.example")));
        let (_, variables) = uv_sees(&sources, &[PipOption::IndexUrl("https://list.example".into())]);
        assert!(variables.contains(&("UV_DEFAULT_INDEX".into(), "https://list.example".into())));
    }
}
