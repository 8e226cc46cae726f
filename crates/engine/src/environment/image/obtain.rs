//! Getting the image that a definition names: at hand, or pulled once.

use sha2::{Digest as _, Sha256};
use trainyard_core::{
    container::{ContainerSpec, ImageSource, full_reference, is_digest, registry_of, repository},
    environment::{LockedImage, Progress},
};

use super::{
    super::{
        cache::BuilderLock,
        command::{Console, run_logged},
        downloads::{image_lock_file, image_use_file},
        prepare::PrepareError,
        usage::InUse,
    },
    desk::{Desk, engine_words},
    dockerfile,
    inspect::{Image, inspect},
    login::Logins,
};
use crate::container::Kind;

/// The image of `spec`; with `locked`, exactly that one.
pub(super) async fn obtain(
    desk: &Desk<'_>,
    spec: &ContainerSpec,
    locked: Option<&LockedImage>,
    console: &mut Console<'_>,
) -> Result<Image, PrepareError> {
    let image = match (&spec.image, locked) {
        (named, Some(locked)) if !named.means(locked) => {
            return Err(PrepareError::Lock(format!(
                "the lock was made on the image `{}` ({}), and the run is to go into another one: name that image, or leave the lock out",
                locked.reference, locked.digest
            )));
        }
        (_, Some(locked)) => exactly(desk, locked, console).await?,
        (ImageSource::Named { reference }, None) => named(desk, reference, console).await?,
        (ImageSource::Dockerfile { text }, None) => dockerfile::build(desk, text, console).await?,
    };
    console.line(&format!("image: {} ({})", image.reference, image.digest));
    Ok(image)
}

/// By name: what is at hand under it, else what the registry has.
async fn named(desk: &Desk<'_>, reference: &str, console: &mut Console<'_>) -> Result<Image, PrepareError> {
    if desk.client.kind == Kind::Apptainer {
        return image_file(desk, reference, console).await;
    }
    if let Some(image) = at_hand(desk, reference, console).await? {
        return Ok(image);
    }
    let full = full_reference(reference);
    let name = hex::encode(&Sha256::digest(&full)[..16]);
    let lock = BuilderLock::acquire(&desk.cache.root().join("locks").join(format!("pull-{name}.lock")), console).await?;
    if let Some(image) = at_hand(desk, reference, console).await? {
        return Ok(image);
    }
    pull(desk, &full, &lock, console).await?;
    let pulled = inspect(desk, &full, console).await?;
    pulled.ok_or_else(|| PrepareError::Resolver(format!("{} pulled `{full}`, but has no such image", desk.engine())))
}

async fn at_hand(desk: &Desk<'_>, reference: &str, console: &Console<'_>) -> Result<Option<Image>, PrepareError> {
    // A name without a registry may be one of this machine's own images.
    if let Some(image) = inspect(desk, reference, console).await? {
        return Ok(Some(image));
    }
    let full = full_reference(reference);
    if full == reference { Ok(None) } else { inspect(desk, &full, console).await }
}

async fn pull(desk: &Desk<'_>, full: &str, lock: &BuilderLock, console: &mut Console<'_>) -> Result<(), PrepareError> {
    if desk.settings.offline {
        return Err(PrepareError::Resolver(format!(
            "the image `{full}` is not on this machine, and offline = true forbids pulling it; pull it there by hand"
        )));
    }
    console.line(&format!("pulling {full} with {}", desk.engine()));
    console.progress(&Progress::step("pulling image"));
    let logins = Logins::write(desk, registry_of(full).as_slice(), console)?;
    let mut command = desk.command(["pull"]);
    logins.apply(&mut command);
    command.arg(full).stdin(lock.as_stdin()?);
    let ended = run_logged(command, console).await?;
    if ended.status.success() {
        return Ok(());
    }
    let login = match (&desk.containers.login_error, registry_of(full).and_then(|host| desk.containers.login(host))) {
        (Some(error), _) => format!(" ({error})"),
        (None, Some(login)) => format!(" (logged in as `{}`)", login.username),
        (None, None) => String::new(),
    };
    Err(PrepareError::Resolver(format!("the image `{full}` could not be pulled{login}: {}", console.masked(&engine_words(&ended.stderr)))))
}

/// By digest.
async fn exactly(desk: &Desk<'_>, locked: &LockedImage, console: &mut Console<'_>) -> Result<Image, PrepareError> {
    if !is_digest(&locked.digest) {
        return Err(PrepareError::Specification(format!("the lock names the image `{}` without a digest", locked.reference)));
    }
    let by_digest = format!("{}@{}", repository(&full_reference(&locked.reference)), locked.digest);
    let id = locked.digest.trim_start_matches("sha256:");
    let mut others = Vec::new();
    for name in [by_digest.as_str(), id, locked.reference.as_str()] {
        if let Some(image) = inspect(desk, name, console).await? {
            if image.digests.contains(&locked.digest) {
                return Ok(Image { reference: locked.reference.clone(), digest: locked.digest.clone(), ..image });
            }
            others.push(image.digest);
        }
    }
    match named(desk, &by_digest, console).await {
        Ok(image) => Ok(Image { reference: locked.reference.clone(), digest: locked.digest.clone(), ..image }),
        Err(error) if error.is_cancelled() => Err(error),
        Err(error) => {
            let here = others.first().map(|digest| format!("; what is here under that name is {digest}")).unwrap_or_default();
            Err(PrepareError::Resolver(format!(
                "the lock asks for the image `{}` with the digest {}{here}: {error}",
                locked.reference, locked.digest
            )))
        }
    }
}

/// Apptainer's way: an image is a file, one that the definition names or one that is made from a registry's.
async fn image_file(desk: &Desk<'_>, reference: &str, console: &mut Console<'_>) -> Result<Image, PrepareError> {
    let of_file = |path: &std::path::Path, digest: String, in_use: Option<InUse>| Image {
        id: path.to_string_lossy().into_owned(),
        reference: reference.to_owned(),
        digests: vec![digest.clone()],
        digest,
        variables: std::collections::BTreeMap::new(),
        architecture: String::new(),
        in_use,
    };
    if reference.starts_with('/') {
        let path = std::path::PathBuf::from(reference);
        let digest = file_digest(path.clone()).await?;
        return Ok(of_file(&path, digest, None));
    }
    let full = full_reference(reference);
    let name = hex::encode(&Sha256::digest(&full)[..16]);
    let file = desk.cache.images().join(format!("{name}.sif"));
    // From before it is looked at until its container is gone nobody removes it.
    let in_use = InUse::share(image_use_file(&desk.cache, &name), console.cancel).await?;
    if let Some(digest) = desk.cache.recall::<String>("images", &name).filter(|_| file.is_file()) {
        return Ok(of_file(&file, digest, in_use));
    }
    let lock = BuilderLock::acquire(&image_lock_file(&desk.cache, &name), console).await?;
    if !file.is_file() {
        let partial = file.with_extension("partial");
        let made = std::fs::create_dir_all(desk.cache.images());
        made.map_err(|error| PrepareError::disk("the folder of images cannot be made", error))?;
        pull_file(desk, &full, (&partial, &lock), console).await?;
        std::fs::rename(&partial, &file).map_err(|error| PrepareError::disk("the image cannot be put into its place", error))?;
    }
    let digest = file_digest(file.clone()).await?;
    desk.cache.note("images", &name, &digest);
    Ok(of_file(&file, digest, in_use))
}

async fn pull_file(
    desk: &Desk<'_>,
    full: &str,
    (file, lock): (&std::path::Path, &BuilderLock),
    console: &mut Console<'_>,
) -> Result<(), PrepareError> {
    if desk.settings.offline {
        return Err(PrepareError::Resolver(format!("the image `{full}` is not on this machine, and offline = true forbids pulling it")));
    }
    console.line(&format!("pulling {full} with {}", desk.engine()));
    console.progress(&Progress::step("pulling image"));
    let logins = Logins::write(desk, registry_of(full).as_slice(), console)?;
    let mut command = desk.command(["pull", "--force"]);
    logins.apply(&mut command);
    command.arg(file).arg(format!("docker://{full}")).stdin(lock.as_stdin()?);
    let ended = run_logged(command, console).await?;
    if ended.status.success() {
        return Ok(());
    }
    Err(PrepareError::Resolver(format!("the image `{full}` could not be pulled: {}", console.masked(&engine_words(&ended.stderr)))))
}

async fn file_digest(path: std::path::PathBuf) -> Result<String, PrepareError> {
    let shown = path.display().to_string();
    let digest = move || -> std::io::Result<String> {
        let mut hash = Sha256::new();
        let mut file = std::fs::File::open(path)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match std::io::Read::read(&mut file, &mut buffer)? {
                0 => return Ok(format!("sha256:{}", hex::encode(hash.finalize()))),
                read => hash.update(&buffer[..read]),
            }
        }
    };
    let done = tokio::task::spawn_blocking(digest).await.map_err(std::io::Error::other).flatten();
    done.map_err(|error| PrepareError::disk(format!("the image `{shown}` cannot be read"), error))
}
