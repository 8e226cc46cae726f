//! What an engine knows about an image.

use std::collections::BTreeMap;

use serde::Deserialize;
use trainyard_core::{
    container::{full_reference, registry_of, repository},
    environment::LockedImage,
};

use super::{
    super::{command::Console, prepare::PrepareError, usage::InUse},
    desk::Desk,
};

/// An image that is at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// What the engine calls it for certain: its id, or a file.
    pub(super) id: String,
    /// As it was named.
    pub(super) reference: String,
    /// `sha256:…` of its manifest if it came from a registry, else of its configuration or file.
    pub(super) digest: String,
    /// Every digest that names it.
    pub(super) digests: Vec<String>,
    /// The variables that it sets.
    pub(super) variables: BTreeMap<String, String>,
    /// E.g. `amd64`; empty where the engine does not say.
    pub(super) architecture: String,
    /// Keeps it from being removed, where it is a file of the cache.
    pub(super) in_use: Option<InUse>,
}

impl Image {
    /// For a lock.
    pub(super) fn locked(&self) -> LockedImage {
        LockedImage { reference: self.reference.clone(), digest: self.digest.clone() }
    }

    /// For names: a piece of the id that tells images apart.
    pub(super) fn short_id(&self) -> String {
        self.digest.trim_start_matches("sha256:").chars().take(16).collect()
    }
}

/// Looks at an image of Podman or Docker; `None`: there is none of that name.
pub(super) async fn inspect(desk: &Desk<'_>, reference: &str, console: &Console<'_>) -> Result<Option<Image>, PrepareError> {
    let answer = desk.call(["image", "inspect", reference], console).await?;
    Ok(if answer.ok { read(&answer.out, reference) } else { None })
}

fn read(answer: &str, reference: &str) -> Option<Image> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inspected {
        id: String,
        #[serde(default)]
        repo_digests: Option<Vec<String>>,
        #[serde(default)]
        config: Option<Config>,
        #[serde(default)]
        architecture: String,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Config {
        #[serde(default)]
        env: Option<Vec<String>>,
    }
    let Inspected { id, repo_digests, config, architecture } = serde_json::from_str::<Vec<Inspected>>(answer).ok()?.pop()?;
    let id = id.trim_start_matches("sha256:").to_owned();
    let own = format!("sha256:{id}");
    let repo_digests = repo_digests.unwrap_or_default();
    let repository = repository(&full_reference(reference)).to_owned();
    let of_registry = repo_digests
        .iter()
        .filter_map(|entry| entry.split_once('@'))
        // Podman writes `docker.io/library/python`, Docker `python`.
        .find(|(name, _)| self::repository(&full_reference(name)) == repository && registry_of(name) != Some("localhost"))
        .map(|(_, digest)| digest.to_owned());
    let mut digests: Vec<String> = repo_digests.iter().filter_map(|entry| Some(entry.split_once('@')?.1.to_owned())).collect();
    digests.push(own.clone());
    let variables = config.unwrap_or_default().env.unwrap_or_default();
    Some(Image {
        reference: reference.to_owned(),
        digest: of_registry.unwrap_or(own),
        digests,
        variables: variables.iter().filter_map(|entry| entry.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect(),
        architecture,
        id,
        in_use: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_registry_where_the_image_came_from_one() {
        let answer = r#"[{"Id":"sha256:aa11","RepoDigests":["docker.io/library/python@sha256:ff","localhost/mine@sha256:ee"],
            "Architecture":"amd64","Config":{"Env":["PATH=/usr/bin","A=b=c"]}}]"#;
        let image = read(answer, "python:3.11").unwrap();
        assert_eq!((image.id.as_str(), image.digest.as_str(), image.architecture.as_str()), ("aa11", "sha256:ff", "amd64"));
        assert_eq!(image.variables["A"], "b=c");
        let docker = answer.replace("docker.io/library/", "");
        assert_eq!(read(&docker, "python:3.11").unwrap().digest, "sha256:ff", "Docker leaves its own registry out");
        assert_eq!(read(&docker, "docker.io/library/python:3.11").unwrap().digest, "sha256:ff");
        assert_eq!(read(&docker, "quay.io/library/python:3.11").unwrap().digest, "sha256:aa11");
        let local = read(answer, "localhost/mine:latest").unwrap();
        assert_eq!(local.digest, "sha256:aa11", "a name of this machine only means nothing elsewhere");
        assert!(local.digests.contains(&"sha256:ee".to_owned()));
    }

    #[test]
    fn an_image_without_anything_is_read() {
        let image = read(r#"[{"Id":"aa","RepoDigests":null,"Config":{"Env":null}}]"#, "x").unwrap();
        assert_eq!((image.digest.as_str(), image.variables.len()), ("sha256:aa", 0));
        assert_eq!(read("[]", "x"), None);
        assert_eq!(read("garbage", "x"), None);
    }
}
