//! Layers on top of images: a folder of this machine, copied to the same absolute path in an image, once.
//!
//! A layer's tag names the environment in it, the image below and what is installed, in a repository of the cache that the environment is in. So an
//! environment that was removed and solved anew finds no layer of its former self, and layers that nobody has any more go when the next one is made. Apptainer has no layers: the folder is mounted instead.

use std::path::Path;

use sha2::{Digest as _, Sha256};
use trainyard_core::{
    environment::{EnvironmentLock, Progress},
    ids::EnvironmentHash,
};

use super::{
    super::{
        cache::{BuilderLock, Cache},
        command::{Console, run_logged},
        prepare::PrepareError,
    },
    desk::{Desk, engine_words},
    inspect::{Image, inspect},
};

/// Where the environment is, for whoever finds its folder empty.
const LABEL: &str = "trainyard.environment";

/// The repository of a cache's layers: its absolute path is in what they hold.
fn repository(cache: &Cache) -> String {
    let place = hex::encode(&Sha256::digest(cache.root().as_os_str().as_encoded_bytes())[..8]);
    format!("localhost/trainyard/layer-{place}")
}

/// The tag of the layer with the environment `hash`, which holds what `lock` says, on `image`.
pub(super) fn tag(desk: &Desk<'_>, image: &Image, (hash, lock): (&EnvironmentHash, &EnvironmentLock)) -> String {
    format!("{}:{hash}-{}-{}", repository(&desk.cache), image.short_id(), content(lock))
}

/// What is installed, in 16 digits.
fn content(lock: &EnvironmentLock) -> String {
    let listed = serde_json::to_vec(&(&lock.python, &lock.conda, &lock.packages)).unwrap_or_default();
    hex::encode(&Sha256::digest(listed)[..8])
}

/// Puts `folder` on top of `image`, as `tag`, unless that was done before. Gives the image's id.
pub(super) async fn ensure(
    desk: &Desk<'_>,
    image: &Image,
    (folder, tag): (&Path, &str),
    console: &mut Console<'_>,
) -> Result<String, PrepareError> {
    if let Some(layered) = inspect(desk, tag, console).await? {
        return Ok(layered.id);
    }
    let name = hex::encode(&Sha256::digest(tag)[..16]);
    let lock = BuilderLock::acquire(&desk.cache.root().join("locks").join(format!("layer-{name}.lock")), console).await?;
    if let Some(layered) = inspect(desk, tag, console).await? {
        return Ok(layered.id);
    }
    sweep(desk, console).await?;
    console.line(&format!("adding {} to the image as {tag}", folder.display()));
    console.progress(&Progress::step("adding packages to the image"));
    // By a name: some builders take an id for the name of a registry's image.
    let base = format!("localhost/trainyard/base:{}", image.short_id());
    let tagged = desk.call(["tag", &image.id, &base], console).await?;
    if !tagged.ok {
        return Err(PrepareError::Resolver(format!("the image could not be named: {}", tagged.err.trim())));
    }
    let file = desk.scratch.join("Dockerfile.layer");
    let written = std::fs::write(&file, dockerfile(&base, folder)?);
    written.map_err(|error| PrepareError::disk("the Dockerfile of the layer cannot be written", error))?;
    let mut command = desk.command(["build", "--network=none", "--tag", tag]);
    command.arg("--file").arg(&file).arg(folder).stdin(lock.as_stdin()?);
    let ended = run_logged(command, console).await?;
    // Only a name: the image itself stays.
    desk.call(["rmi", &base], console).await?;
    if !ended.status.success() {
        return Err(PrepareError::Resolver(format!("the packages could not be added to the image: {}", engine_words(&ended.stderr))));
    }
    let layered = inspect(desk, tag, console).await?.map(|image| image.id);
    layered.ok_or_else(|| PrepareError::Resolver(format!("{} built the layer, but has no image `{tag}`", desk.engine())))
}

fn dockerfile(base: &str, folder: &Path) -> Result<String, PrepareError> {
    let target = folder.to_str().filter(|path| !path.contains(['\n', '\0']));
    let target = target.ok_or_else(|| PrepareError::Settings(format!("the path `{}` cannot be used in an image", folder.display())))?;
    let copy = serde_json::to_string(&[".", &format!("{target}/")]).unwrap_or_default();
    Ok(format!("FROM {base}\nLABEL {LABEL}={:?}\nCOPY {copy}\n", folder.file_name().unwrap_or_default()))
}

/// Removes the layers of this cache whose environments were removed, or were built anew with something else in them. One that a container uses stays until the next time.
async fn sweep(desk: &Desk<'_>, console: &Console<'_>) -> Result<(), PrepareError> {
    let filter = format!("reference={}", repository(&desk.cache));
    let answer = desk.call(["images", "--filter", &filter, "--format", "{{.Repository}}:{{.Tag}}"], console).await?;
    for tag in answer.out.lines().map(str::trim).filter(|_| answer.ok) {
        let Some((_, name)) = tag.rsplit_once(':') else { continue };
        let Some(hash) = name.split('-').next().and_then(|hash| hash.parse::<EnvironmentHash>().ok()) else { continue };
        // One that is being built has a folder and no list yet.
        let is_another = |lock: EnvironmentLock| name.rsplit_once('-').is_none_or(|(_, installed)| installed != content(&lock));
        if !desk.cache.environment(&hash).exists() || desk.cache.lock_of(&hash).is_some_and(is_another) {
            let removed = desk.call(["rmi", tag], console).await?;
            tracing::info!(tag, removed = removed.ok, "the environment of this layer is gone");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_known_by_what_is_installed_in_it() {
        let lock = |version: &str| -> EnvironmentLock {
            let package = serde_json::json!({ "name": "six", "version": version });
            serde_json::from_value(serde_json::json!({ "python": "3.11.2", "builder": "uv", "packages": [package] })).unwrap()
        };
        let again: EnvironmentLock = serde_json::from_str(&serde_json::to_string(&lock("1")).unwrap()).unwrap();
        assert_eq!(content(&lock("1")), content(&again));
        assert_eq!(content(&lock("1")), content(&EnvironmentLock { builder: "uv in Docker".into(), ..lock("1") }));
        assert_ne!(content(&lock("1")), content(&lock("2")));
    }

    #[test]
    fn the_folder_is_copied_to_its_own_path_whatever_is_in_it() {
        let text = dockerfile("localhost/b:1", Path::new("/c ä/envs/ab\"c")).unwrap();
        assert_eq!(text, "FROM localhost/b:1\nLABEL trainyard.environment=\"ab\\\"c\"\nCOPY [\".\",\"/c ä/envs/ab\\\"c/\"]\n");
    }
}
