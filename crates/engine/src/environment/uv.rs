//! Getting hold of uv: on PATH, else where it was put before, else installed from its wheel.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::{
    cache::BuilderLock,
    command::{Console, ask, command, run_logged},
    host::{Host, is_executable},
    prepare::PrepareError,
    settings::EnvironmentSettings,
};

/// The release that is installed; environments were tried with it.
const PINNED: &str = "0.13.9";
/// The oldest release that has every option used here: it resolves into `pylock.toml`.
const MINIMUM: (u32, u32, u32) = (0, 7, 0);

/// A uv that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Uv {
    pub(super) path: PathBuf,
    /// E.g. `0.13.9`.
    pub(super) version: String,
}

/// Finds or installs uv.
pub(super) async fn locate(host: &Host, settings: &EnvironmentSettings, console: &mut Console<'_>) -> Result<Uv, PrepareError> {
    for path in host.on_path("uv") {
        match check(host, &path, console.cancel).await? {
            Ok(uv) => return Ok(uv),
            Err(reason) => console.line(&format!("{} is passed over: {reason}", path.display())),
        }
    }
    let own = settings.tools_dir.join(format!("uv-{PINNED}")).join("uv");
    if let Some(uv) = present(host, &own, console.cancel).await? {
        return Ok(uv);
    }
    if settings.offline {
        return Err(PrepareError::Installer(format!(
            "uv is neither on PATH nor at {}, and offline = true forbids fetching it; install uv {} or newer on this node, or put its program there",
            own.display(),
            dotted(MINIMUM)
        )));
    }
    let lock = BuilderLock::acquire(&settings.tools_dir.join("uv.lock"), console).await?;
    if let Some(uv) = present(host, &own, console.cancel).await? {
        return Ok(uv);
    }
    install(host, settings, &lock, console).await?;
    match check(host, &own, console.cancel).await? {
        Ok(uv) => Ok(uv),
        Err(reason) => Err(PrepareError::Installer(format!("uv was installed at {} but can not be used: {reason}", own.display()))),
    }
}

async fn present(host: &Host, path: &Path, cancel: &CancellationToken) -> Result<Option<Uv>, PrepareError> {
    if !is_executable(path) {
        return Ok(None);
    }
    Ok(check(host, path, cancel).await?.ok())
}

/// Whether it runs and is new enough; the inner error is the reason why not.
async fn check(host: &Host, path: &Path, cancel: &CancellationToken) -> Result<Result<Uv, String>, PrepareError> {
    let mut question = command(host, path);
    question.arg("--version");
    let answer = match ask(question, cancel).await {
        Ok((status, answer)) if status.success() => answer,
        Ok((status, _)) => return Ok(Err(format!("`uv --version` ended with {status}"))),
        Err(error) if error.is_cancelled() => return Err(error),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let Some((version, numbers)) = parse_version(&answer) else {
        return Ok(Err(format!("`uv --version` answered `{}`", answer.trim())));
    };
    if numbers < MINIMUM {
        return Ok(Err(format!("uv {version} is older than {}", dotted(MINIMUM))));
    }
    Ok(Ok(Uv { path: path.to_owned(), version }))
}

/// `uv 0.13.9 (5bd…)` to its version.
fn parse_version(answer: &str) -> Option<(String, (u32, u32, u32))> {
    let version = answer.trim().strip_prefix("uv ")?.split_whitespace().next()?;
    let mut numbers = version.split('.').map(|part| part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse().ok());
    let mut next = || numbers.next().flatten();
    Some((version.to_owned(), (next()?, next()?, next()?)))
}

fn dotted((major, minor, micro): (u32, u32, u32)) -> String {
    format!("{major}.{minor}.{micro}")
}

/// Installs the wheel with the pip of `python3` into a folder aside (which also works where the system's Python is
/// "externally managed"), with a virtual environment's pip where `python3` has none, and moves the program into place.
async fn install(host: &Host, settings: &EnvironmentSettings, lock: &BuilderLock, console: &mut Console<'_>) -> Result<(), PrepareError> {
    let Some(python) = host.on_path("python3").into_iter().chain(host.on_path("python")).next() else {
        return Err(PrepareError::Installer(
            "uv is not on PATH and there is no python3 to install it with; install uv or Python 3 on this node".into(),
        ));
    };
    let tools = &settings.tools_dir;
    let aside = tools.join(".uv-partial");
    remove(&aside).await?;
    console.progress(&trainyard_core::environment::Progress::step("installing uv"));
    console.line(&format!("installing uv {PINNED} from its wheel into {}", tools.display()));
    let target = aside.join("wheel");
    let mut ended = pip_install(host, settings, lock, (&python, &target), console).await?;
    if !ended.0 && ended.1.iter().any(|line| line.contains("No module named pip")) {
        let venv = aside.join("venv");
        let mut make = command(host, &python);
        make.args(["-m", "venv"]).arg(&venv).stdin(lock.as_stdin()?);
        let made = run_logged(make, console).await?;
        ended = (made.status.success(), made.stderr);
        if ended.0 {
            ended = pip_install(host, settings, lock, (&venv.join("bin/python"), &target), console).await?;
        }
    }
    if !ended.0 {
        let words: Vec<String> = ended.1.iter().rev().filter(|line| !line.trim().is_empty()).take(6).cloned().collect();
        let words = words.into_iter().rev().collect::<Vec<_>>().join("\n");
        let _ = remove(&aside).await;
        return Err(PrepareError::Installer(format!(
            "uv is not on PATH and could not be installed with pip; install uv {} or newer on this node, or make the package index reachable:\n{words}",
            dotted(MINIMUM)
        )));
    }
    let folder = tools.join(format!("uv-{PINNED}"));
    remove(&folder).await?;
    let moved = std::fs::create_dir_all(aside.join("done"))
        .and_then(|()| std::fs::rename(target.join("bin/uv"), aside.join("done/uv")))
        .and_then(|()| std::fs::File::open(aside.join("done/uv"))?.sync_all())
        .and_then(|()| std::fs::rename(aside.join("done"), &folder));
    moved.map_err(|error| PrepareError::disk(format!("failed to put uv into {}", folder.display()), error))?;
    remove(&aside).await
}

/// Runs pip of the interpreter `from.0` into the folder `from.1`; gives whether it succeeded, and its words.
async fn pip_install(
    host: &Host,
    settings: &EnvironmentSettings,
    lock: &BuilderLock,
    from: (&Path, &Path),
    console: &mut Console<'_>,
) -> Result<(bool, Vec<String>), PrepareError> {
    let (python, target) = from;
    let mut pip = command(host, python);
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-compile", "--progress-bar", "off", "--target"])
        .arg(target);
    pip.arg(format!("uv=={PINNED}")).stdin(lock.as_stdin()?);
    // Settings of people who use pip by hand, which would contradict `--target`.
    pip.env("PIP_USER", "0").env("PIP_REQUIRE_VIRTUALENV", "0").env("PIP_ROOT_USER_ACTION", "ignore");
    if let Some(index) = &settings.index_url {
        pip.env("PIP_INDEX_URL", index);
    }
    let ended = run_logged(pip, console).await?;
    Ok((ended.status.success(), ended.stderr))
}

async fn remove(folder: &Path) -> Result<(), PrepareError> {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(PrepareError::disk(format!("failed to remove {}", folder.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn the_version_is_read_out_of_uvs_answer() {
        assert_eq!(parse_version("uv 0.13.9 (abc 2026-01-01)\n"), Some(("0.13.9".into(), (0, 13, 9))));
        assert_eq!(parse_version("uv 0.5.0-rc.1"), Some(("0.5.0-rc.1".into(), (0, 5, 0))));
        assert_eq!(parse_version("unveil 1.0"), None);
        assert_eq!(parse_version("uv one"), None);
    }

    #[tokio::test]
    async fn offline_without_uv_says_what_to_do_and_names_what_was_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("uv");
        std::fs::write(&old, "#!/bin/sh\necho 'uv 0.1.2'\n").unwrap();
        std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
        let host = Host::with([(OsString::from("PATH"), dir.path().as_os_str().to_owned())]);
        let settings = EnvironmentSettings {
            cache_dir: dir.path().join("cache"),
            python_fallback: super::super::PythonFallback::Closest,
            index_url: None,
            offline: true,
            conda_channels: Vec::new(),
            tools_dir: dir.path().join("tools"),
            ..EnvironmentSettings::default()
        };
        let cancel = CancellationToken::new();
        let mut log = Vec::new();
        let error = locate(&host, &settings, &mut Console::new(&mut log, &cancel)).await.unwrap_err().to_string();
        assert!(error.contains("offline = true") && error.contains("install uv 0.7.0 or newer"), "{error}");
        assert!(log[0].ends_with("is passed over: uv 0.1.2 is older than 0.7.0"), "{log:?}");
    }
}
