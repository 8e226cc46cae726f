//! Building one environment with uv, at its final place, under its lock.

use serde::Deserialize;
use tokio::process::Command;
use trainyard_core::{
    environment::{PipList, PythonVersion, requirement::normalised_name},
    ids::EnvironmentHash,
};

use super::{
    cache::{BuilderLock, Cache, Lock, LockedPackage},
    command::{Console, Ended, ask, command, run_logged},
    host::Host,
    index::IndexSources,
    interpreter::Interpreter,
    prepare::PrepareError,
    uv::Uv,
};

/// How much of the installer's words an error repeats.
const MAX_WORDS: usize = 4000;

/// Everything that a build needs.
pub(super) struct Build<'a> {
    pub(super) host: &'a Host,
    pub(super) cache: &'a Cache,
    pub(super) hash: &'a EnvironmentHash,
    pub(super) interpreter: &'a Interpreter,
    pub(super) list: &'a PipList,
    pub(super) index: &'a IndexSources,
    pub(super) uv: &'a Uv,
    /// Held from before the first step until after the last.
    pub(super) lock: &'a BuilderLock,
}

impl Build<'_> {
    /// Builds, and removes what was built if a step fails. If the process dies half-way, the next builder sweeps.
    pub(super) async fn run(&self, console: &mut Console<'_>) -> Result<Lock, PrepareError> {
        self.cache.sweep(self.hash).await?;
        let built = self.steps(console).await;
        if built.is_err()
            && let Err(error) = self.cache.sweep(self.hash).await
        {
            tracing::warn!(hash = %self.hash, %error, "failed to remove an environment whose build failed");
        }
        built
    }

    async fn steps(&self, console: &mut Console<'_>) -> Result<Lock, PrepareError> {
        let folder = self.cache.environment(self.hash);
        let made = std::fs::create_dir_all(self.cache.root_of_environments());
        made.map_err(|error| PrepareError::disk("failed to make the folder of environments", error))?;

        let mut venv = self.uv()?;
        venv.args(["venv", "--no-project", "--prompt", "trainyard", "--python"]).arg(&self.interpreter.path).arg(&folder);
        let ended = run_logged(venv, console).await?;
        if !ended.status.success() {
            let words = last_words(&ended);
            let path = self.interpreter.path.display();
            return Err(PrepareError::Resolver(format!("uv could not make an environment of {path} ({})\n{words}", ended.status)));
        }

        let requirements = folder.join("requirements.txt");
        let text: String = self.list.requirements.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&requirements, text).map_err(|error| PrepareError::disk("failed to write the requirements", error))?;
        if !self.list.requirements.is_empty() {
            let mut install = self.install()?;
            install.arg("-r").arg(&requirements);
            let ended = run_logged(install, console).await?;
            if !ended.status.success() {
                return Err(PrepareError::Resolver(last_words(&ended)));
            }
        }
        self.seed(console).await?;

        let lock = self.lock_list(console).await?;
        self.cache.finish(self.hash, &lock).await?;
        Ok(lock)
    }

    /// Adds what every conda environment has and code relies on: pip, and for older Pythons a setuptools that still has
    /// `pkg_resources`. Nobody asked for it, so failing here (offline, a private index) is no failure of the build.
    async fn seed(&self, console: &mut Console<'_>) -> Result<(), PrepareError> {
        let mut seeds = Vec::new();
        if !self.list.names("pip") {
            seeds.push("pip");
        }
        if self.interpreter.version < PythonVersion::new(3, 12, 0) && !self.list.names("setuptools") {
            seeds.push("setuptools<81");
        }
        // Only what is missing: what the list brought along stays as it is.
        let present = self.installed(console).await?;
        seeds.retain(|seed| !present.iter().any(|package| seed.split('<').next() == Some(package.name.as_str())));
        if seeds.is_empty() {
            return Ok(());
        }
        let mut install = self.install()?;
        install.args(&seeds);
        let ended = run_logged(install, console).await?;
        if !ended.status.success() {
            console.line(&format!("{} could not be added; the environment is used without", seeds.join(" and ")));
        }
        Ok(())
    }

    async fn lock_list(&self, console: &mut Console<'_>) -> Result<Lock, PrepareError> {
        let packages = self.installed(console).await?;
        Ok(Lock { python: self.interpreter.version.to_string(), packages, builder: format!("uv {}", self.uv.version) })
    }

    async fn installed(&self, console: &Console<'_>) -> Result<Vec<LockedPackage>, PrepareError> {
        #[derive(Deserialize)]
        struct Listed {
            name: String,
            version: String,
        }
        let mut list = self.uv()?;
        list.args(["pip", "list", "--format", "json", "--python"]).arg(self.python());
        let (status, answer) = ask(list, console.cancel).await?;
        let listed: Vec<Listed> = match serde_json::from_str(&answer) {
            Ok(listed) if status.success() => listed,
            _ => return Err(PrepareError::Resolver(format!("uv could not list what it installed ({status})"))),
        };
        let mut packages: Vec<LockedPackage> =
            listed.into_iter().map(|package| LockedPackage { name: normalised_name(&package.name), version: package.version }).collect();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(packages)
    }

    fn python(&self) -> std::path::PathBuf {
        self.cache.environment(self.hash).join("bin/python")
    }

    fn install(&self) -> Result<Command, PrepareError> {
        let mut install = self.uv()?;
        install.args(["pip", "install", "--python"]).arg(self.python());
        self.index.apply(&mut install, &self.list.options);
        Ok(install)
    }

    fn uv(&self) -> Result<Command, PrepareError> {
        let mut uv = command(self.host, &self.uv.path);
        uv.stdin(self.lock.as_stdin()?);
        uv.env("UV_PYTHON_DOWNLOADS", "never").env("UV_NO_PROGRESS", "1").env("NO_COLOR", "1");
        if self.host.var("UV_CACHE_DIR").is_none() {
            uv.env("UV_CACHE_DIR", self.cache.packages());
        }
        self.index.apply_policy(&mut uv, self.host);
        Ok(uv)
    }
}

/// uv's own message: from the last `error:` on, or the last lines.
fn last_words(ended: &Ended) -> String {
    let lines: Vec<&str> = ended.stderr.iter().map(|line| line.trim_end()).filter(|line| !line.is_empty()).collect();
    let begins = |line: &&str| line.starts_with("error:") || line.trim_start().starts_with('×');
    let from = lines.iter().rposition(begins).unwrap_or(lines.len().saturating_sub(15));
    let words = lines[from..].join("\n");
    match words.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => format!("{} … (the build log has the rest)", &words[..end]),
        None if words.is_empty() => format!("uv ended with {} and said nothing", ended.status),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn ended(lines: &[&str]) -> Ended {
        Ended { status: std::process::ExitStatus::from_raw(256), stderr: lines.iter().map(|&line| line.into()).collect() }
    }

    #[test]
    fn the_error_is_the_installers_own_message() {
        let conflict =
            ["Using Python 3.11.7", "error: No solution found when resolving dependencies", "  cause: Because you require a and b", ""];
        assert_eq!(
            last_words(&ended(&conflict)),
            "error: No solution found when resolving dependencies\n  cause: Because you require a and b"
        );
        let older = ["Resolved", "  × No solution found when resolving dependencies:", "  ╰─▶ Because you require a"];
        assert_eq!(last_words(&ended(&older)), "  × No solution found when resolving dependencies:\n  ╰─▶ Because you require a");
        assert_eq!(last_words(&ended(&["one", "two"])), "one\ntwo");
        assert!(last_words(&ended(&[])).contains("said nothing"));
        assert!(last_words(&ended(&[&format!("error: {}", "ä".repeat(9000))])).ends_with("(the build log has the rest)"));
    }
}
