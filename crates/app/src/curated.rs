//! `[curated.NAME]`: environments that the configuration gives a name, as the server keeps them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use trainyard_core::environment::parse_conda;
use trainyard_server::curated::CuratedEnvironment;
use trainyard_wire::{azureml::environments::EnvironmentDefinition, json::FromJson as _};

/// `[curated.NAME]`; see [`crate::settings::KEYS`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CuratedSection {
    /// A conda file; relative to the configuration's folder.
    pub file: Option<PathBuf>,
    /// The Python version.
    pub python: Option<String>,
    /// conda requirements.
    pub conda: Vec<String>,
    /// conda channels.
    pub channels: Vec<String>,
    /// pip requirements.
    pub pip: Vec<String>,
    /// A container image.
    pub image: Option<String>,
    /// The one version.
    pub version: Option<String>,
}

/// The environments of all sections, found readable; files are read from `folder`.
pub fn environments(sections: &BTreeMap<String, CuratedSection>, folder: &Path) -> Result<Vec<CuratedEnvironment>> {
    let read = |(name, section): (&String, &CuratedSection)| {
        environment(name, section, folder).with_context(|| format!("in [curated.\"{name}\"]"))
    };
    sections.iter().map(read).collect()
}

fn environment(name: &str, section: &CuratedSection, folder: &Path) -> Result<CuratedEnvironment> {
    if name.is_empty() || name.len() > 255 || name.trim() != name || name.chars().any(char::is_control) {
        bail!("`{name}` is not a name for an environment: expected 1 to 255 characters without space at the ends");
    }
    let version = section.version.clone().unwrap_or_else(|| "1".to_owned());
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
    if version.is_empty() || !version.chars().all(fits) {
        bail!("`version` is `{version}`: expected letters, digits, `.`, `-`, `_` and `+`");
    }
    let dependencies = dependencies(section, folder)?;
    parse_conda(&dependencies, "the conda specification")?;
    let mut document = json!({ "python": { "condaDependencies": dependencies } });
    if let Some(image) = section.image.as_deref().map(str::trim).filter(|image| !image.is_empty()) {
        // Nothing but an image: its own Python runs the script.
        let bare = section.file.is_none() && section.python.is_none() && section.conda.is_empty() && section.pip.is_empty();
        if bare {
            document["python"] = json!({ "userManagedDependencies": true });
        }
        document["docker"] = json!({ "enabled": true, "baseImage": image });
    }
    let definition = EnvironmentDefinition::from_json("", document).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(CuratedEnvironment { name: name.to_owned(), version, definition })
}

/// The conda specification as JSON.
fn dependencies(section: &CuratedSection, folder: &Path) -> Result<Value> {
    let CuratedSection { file, python, conda, channels, pip, .. } = section;
    let Some(file) = file else {
        let mut dependencies: Vec<Value> = python.iter().map(|version| json!(format!("python={version}"))).collect();
        dependencies.extend(conda.iter().map(|requirement| json!(requirement)));
        if !pip.is_empty() {
            dependencies.push(json!({ "pip": pip }));
        }
        return Ok(json!({ "channels": channels, "dependencies": dependencies }));
    };
    if python.is_some() || !conda.is_empty() || !channels.is_empty() || !pip.is_empty() {
        bail!("`file` and `python`, `conda`, `channels`, `pip` say the same thing: give the file or the others");
    }
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("`file`: {} cannot be read", path.display()))?;
    crate::conda_file::read(&text).with_context(|| format!("`file`: {} is not a conda file", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(section: CuratedSection, folder: &Path) -> Result<Vec<CuratedEnvironment>> {
        environments(&BTreeMap::from([("AzureML-Test".to_owned(), section)]), folder)
    }

    #[test]
    fn keys_and_a_file_say_the_same() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("environment.yml"),
            "channels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip:\n    - six==1.16.0\n",
        )
        .unwrap();
        let keys = CuratedSection {
            python: Some("3.11".into()),
            channels: vec!["conda-forge".into()],
            pip: vec!["six==1.16.0".into()],
            ..CuratedSection::default()
        };
        let file = CuratedSection { file: Some("environment.yml".into()), ..CuratedSection::default() };
        let (keys, file) = (read(keys, folder.path()).unwrap(), read(file, folder.path()).unwrap());
        assert_eq!(keys, file);
        assert_eq!((keys[0].name.as_str(), keys[0].version.as_str()), ("AzureML-Test", "1"));
    }

    #[test]
    fn an_image_alone_brings_its_own_python() {
        let section = CuratedSection { image: Some("registry.example/team/image:1".into()), ..CuratedSection::default() };
        let made = read(section, Path::new("/")).unwrap().remove(0).definition;
        assert!(made.python.unwrap().user_managed_dependencies && made.docker.unwrap().enabled);
        let section = CuratedSection { image: Some("image".into()), pip: vec!["six".into()], ..CuratedSection::default() };
        assert!(!read(section, Path::new("/")).unwrap().remove(0).definition.python.unwrap().user_managed_dependencies);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_section() {
        let table = [
            (CuratedSection { pip: vec!["six>>1".into()], ..CuratedSection::default() }, "six>>1"),
            (CuratedSection { version: Some("a b".into()), ..CuratedSection::default() }, "`version`"),
            (CuratedSection { file: Some("none.yml".into()), ..CuratedSection::default() }, "cannot be read"),
            (CuratedSection { file: Some("none.yml".into()), python: Some("3".into()), ..CuratedSection::default() }, "say the same thing"),
            (
                CuratedSection { pip: vec!["--index-url https://u:hunter2@x.example/simple".into()], ..CuratedSection::default() },
                "credentials",
            ),
        ];
        for (section, words) in table {
            let text = format!("{:#}", read(section, Path::new("/nowhere")).unwrap_err());
            assert!(text.contains("[curated.\"AzureML-Test\"]") && text.contains(words), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
