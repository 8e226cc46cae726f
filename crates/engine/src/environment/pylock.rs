//! What uv resolved: the `pylock.toml` (PEP 751) that it writes and installs, and what of it goes into our lock.
//!
//! The document names the files for one interpreter on one platform with their hashes, and where they are; installing it asks no
//! index again. It may hold whatever the index puts into its links, so it stays in the folder of the build and is removed;
//! what goes into the lock has no credentials.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use trainyard_core::environment::{
    LockedPackage,
    requirement::{hide_userinfo, normalised_name},
};

use super::prepare::PrepareError;

/// Where a package begins in the text.
const SECTION: &str = "[[packages]]";

/// A resolved list.
#[derive(Clone, Debug, Default)]
pub(super) struct Pylock {
    text: String,
    /// The packages, by name. The version of one that comes from a repository is empty until it is installed.
    pub(super) packages: Vec<LockedPackage>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    #[serde(default)]
    version: String,
    sdist: Option<File>,
    #[serde(default)]
    wheels: Vec<File>,
    archive: Option<File>,
    vcs: Option<Repository>,
}

#[derive(Deserialize)]
struct File {
    url: Option<String>,
    path: Option<String>,
    #[serde(default)]
    hashes: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Repository {
    #[serde(rename = "type")]
    kind: String,
    url: String,
    commit_id: String,
    subdirectory: Option<String>,
}

impl Pylock {
    /// Reads what uv wrote.
    pub(super) fn read(text: String) -> Result<Self, PrepareError> {
        // The parser repeats the line it fails at, which may hold a link with credentials: only where it is is told.
        let document: Document = toml::from_str(&text).map_err(|error| {
            PrepareError::Installer(format!("what uv resolved can not be read ({:?}): {}", error.span(), error.message()))
        })?;
        let mut packages: Vec<LockedPackage> = document.packages.into_iter().map(locked).collect();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { text, packages })
    }

    /// Adds the packages of `other` that are not named here.
    pub(super) fn add(&mut self, other: Self) {
        if self.packages.is_empty() {
            *self = other;
            return;
        }
        let known: BTreeSet<String> = self.packages.iter().map(|package| package.name.clone()).collect();
        for section in other.text.split(SECTION).skip(1) {
            let of_section = Self::read(format!("{SECTION}{section}")).map(|section| section.packages).unwrap_or_default();
            let Some(package) = of_section.into_iter().next() else { continue };
            if !known.contains(&package.name) {
                self.text.push_str(&format!("\n{SECTION}{section}"));
                self.packages.push(package);
            }
        }
        self.packages.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// The document, for uv.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

fn locked(package: Package) -> LockedPackage {
    let direct = package.archive.as_ref().and_then(|file| file.url.clone().or_else(|| file.path.clone()));
    let url = direct.map(|url| without_credentials(&url)).or_else(|| package.vcs.as_ref().map(of_repository));
    let files = package.wheels.iter().chain(&package.sdist).chain(&package.archive);
    let hashes: BTreeSet<String> =
        files.flat_map(|file| file.hashes.iter().map(|(algorithm, digest)| format!("{algorithm}:{}", digest.to_lowercase()))).collect();
    LockedPackage { name: normalised_name(&package.name), version: package.version, url, hashes: hashes.into_iter().collect() }
}

/// As pip writes it, with the commit.
fn of_repository(repository: &Repository) -> String {
    let Repository { kind, url, commit_id, subdirectory } = repository;
    let subdirectory = subdirectory.as_ref().map(|folder| format!("#subdirectory={folder}")).unwrap_or_default();
    format!("{kind}+{}@{commit_id}{subdirectory}", without_credentials(url))
}

/// The URL without user and password, except for the user of ssh, which is no secret.
fn without_credentials(url: &str) -> String {
    let hidden = hide_userinfo(url);
    if url.starts_with("ssh://")
        && let Some((user, _)) = url["ssh://".len()..].split_once('@')
        && !user.contains([':', '/'])
    {
        return url.to_owned();
    }
    hidden.replacen("***@", "", 1)
}

/// A line of a requirements file that stands for exactly this package.
pub(super) fn exact_line(package: &LockedPackage) -> String {
    let mut line = match &package.url {
        Some(url) => format!("{} @ {url}", package.name),
        None => format!("{}=={}", package.name, package.version),
    };
    for hash in &package.hashes {
        line.push_str(" --hash=");
        line.push_str(hash);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"lock-version = "1.0"
created-by = "uv"
requires-python = ">=3.11.7"

[[packages]]
name = "Six"
version = "1.16.0"
sdist = { url = "https://u:s3cret@f.example/six-1.16.0.tar.gz", upload-time = 2021-05-05T14:18:18Z, hashes = { sha256 = "1E61" } }
wheels = [{ url = "https://f.example/six-1.16.0-py2.py3-none-any.whl", hashes = { sha256 = "8abb" } }]

[[packages]]
name = "idna"
version = "3.7"
archive = { url = "https://u:s3cret@f.example/idna-3.7-py3-none-any.whl", hashes = { sha256 = "82fe" } }

[[packages]]
name = "own"
vcs = { type = "git", url = "https://u:s3cret@g.example/own.git", requested-revision = "main", commit-id = "abc123" }
"#;

    #[test]
    fn the_lock_has_versions_hashes_and_commits_and_no_credentials() {
        let resolved = Pylock::read(TEXT.into()).unwrap();
        let lines: Vec<String> = resolved.packages.iter().map(exact_line).collect();
        assert_eq!(
            lines,
            [
                "idna @ https://f.example/idna-3.7-py3-none-any.whl --hash=sha256:82fe",
                "own @ git+https://g.example/own.git@abc123",
                "six==1.16.0 --hash=sha256:1e61 --hash=sha256:8abb",
            ]
        );
    }

    #[test]
    fn what_is_added_does_not_replace_what_is_there() {
        let mut resolved = Pylock::read(TEXT.into()).unwrap();
        let seeds = "lock-version = \"1.0\"\n\n[[packages]]\nname = \"pip\"\nversion = \"26.0\"\n\n[[packages]]\nname = \"six\"\nversion = \"2.0\"\n";
        resolved.add(Pylock::read(seeds.into()).unwrap());
        let again = Pylock::read(resolved.text().to_owned()).unwrap();
        assert_eq!(again.packages, resolved.packages);
        let versions: Vec<&str> = again.packages.iter().map(|package| package.version.as_str()).collect();
        assert_eq!(versions, ["3.7", "", "26.0", "1.16.0"]);
    }

    #[test]
    fn a_list_without_packages_becomes_what_is_added() {
        let mut nothing = Pylock::default();
        nothing.add(Pylock::read(TEXT.into()).unwrap());
        assert_eq!(nothing.text(), TEXT);
    }

    #[test]
    fn the_user_of_ssh_stays_and_what_is_no_document_is_refused_without_its_words() {
        assert_eq!(without_credentials("ssh://git@g.example/x.git"), "ssh://git@g.example/x.git");
        assert_eq!(without_credentials("ssh://git:s3cret@g.example/x.git"), "ssh://g.example/x.git");
        let error = Pylock::read("[[packages]]\nname = https://u:s3cret@h\n".into()).unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
    }
}
