//! Building one environment with uv, at its final place, under its lock.
//!
//! What is asked for is resolved first, to exact files with their hashes, and then exactly that is installed: what the lock says is
//! what was put there, and not what a later question to the index happened to give.

use trainyard_core::{
    environment::{EnvironmentLock, LockedPackage, PipList, Progress, PythonVersion},
    ids::EnvironmentHash,
};

use super::{
    cache::{BuilderLock, Cache},
    command::{Console, run_logged},
    host::Host,
    index::IndexSources,
    installer::{Installer, failure},
    interpreter::Interpreter,
    prepare::PrepareError,
    uv::Uv,
};

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
    /// Builds; what was built goes if a step fails. If the process dies half-way, the next builder sweeps.
    pub(super) async fn run(&self, console: &mut Console<'_>) -> Result<EnvironmentLock, PrepareError> {
        let place = self.cache.place(self.hash).await?;
        self.make(console).await?;
        let packages = self.packages(console).await?;
        let lock = self.lock_of(packages);
        console.progress(&Progress::step("writing to the disk"));
        place.finish(&lock).await?;
        Ok(lock)
    }

    /// Builds exactly these packages.
    pub(super) async fn run_exactly(&self, packages: &[LockedPackage], console: &mut Console<'_>) -> Result<EnvironmentLock, PrepareError> {
        let place = self.cache.place(self.hash).await?;
        self.make(console).await?;
        let installed = self.installer().install_exactly(packages, console).await?;
        let lock = self.lock_of(installed);
        console.progress(&Progress::step("writing to the disk"));
        place.finish(&lock).await?;
        Ok(lock)
    }

    fn installer(&self) -> Installer<'_> {
        let folder = self.cache.environment(self.hash);
        let Self { host, cache, uv, lock, index, list, .. } = *self;
        Installer { host, cache, uv, lock, index, options: &list.options, python: folder.join("bin/python"), folder }
    }

    /// Makes the virtual environment, with nothing in it.
    async fn make(&self, console: &mut Console<'_>) -> Result<(), PrepareError> {
        console.progress(&Progress::step("making the virtual environment"));
        let mut venv = self.installer().uv()?;
        let folder = self.cache.environment(self.hash);
        venv.args(["venv", "--no-project", "--prompt", "trainyard", "--python"]).arg(&self.interpreter.path).arg(folder);
        let ended = run_logged(venv, console).await?;
        if ended.status.success() {
            return Ok(());
        }
        let path = self.interpreter.path.display();
        Err(failure(self.cache, &ended, &format!("uv could not make an environment of {path} ({})\n", ended.status)))
    }

    /// Resolves and installs the list and the seeds.
    async fn packages(&self, console: &mut Console<'_>) -> Result<Vec<LockedPackage>, PrepareError> {
        let installer = self.installer();
        console.progress(&Progress::step("solving"));
        let (seeds, cancel) = (self.seeds(), console.cancel);
        let (asked, found) = tokio::join!(
            installer.resolve("requirements", &self.list.requirements, console),
            installer.resolve_quietly("seeds", &seeds, cancel)
        );
        let (asked, mut all) = asked.map(|asked| (asked.clone(), asked))?;
        match found {
            Some(found) => all.add(found),
            None => console.line(&format!("{} can not be had; the environment is used without", seeds.join(" and "))),
        }
        let pinned = pinned_hashes(&self.list.requirements);
        match installer.install(&all, &pinned, console).await {
            // A file that was resolved and can not be had after all, as it happens offline. Nobody asked for the seeds.
            Err(PrepareError::Resolver(words)) if seeds.iter().any(|seed| words.contains(name_of(seed))) => {
                console.line(&format!("{} could not be added; the environment is used without", seeds.join(" and ")));
                installer.install(&asked, &pinned, console).await
            }
            outcome => outcome,
        }
    }

    /// What every conda environment has and code relies on: pip, and for older Pythons a setuptools that still has `pkg_resources`.
    /// What the list brings along stays as it is.
    fn seeds(&self) -> Vec<String> {
        let mut seeds = vec!["pip".to_owned()];
        if self.interpreter.version < PythonVersion::new(3, 12, 0) {
            seeds.push("setuptools<81".to_owned());
        }
        seeds.retain(|seed| !self.list.names(name_of(seed)));
        seeds
    }

    fn lock_of(&self, packages: Vec<LockedPackage>) -> EnvironmentLock {
        EnvironmentLock {
            python: self.interpreter.version.to_string(),
            packages,
            builder: format!("uv {}", self.uv.version),
            platform: self.interpreter.platform.clone(),
            pip_options: self.list.options.iter().map(ToString::to_string).collect(),
            ..EnvironmentLock::default()
        }
    }
}

fn name_of(requirement: &str) -> &str {
    requirement.split(['<', '=', '>', ' ', '[', '!', '~', ';', '@']).next().unwrap_or_default()
}

/// The hashes that the list itself demands, by package.
fn pinned_hashes(requirements: &[String]) -> Vec<(String, Vec<String>)> {
    let hashed = requirements.iter().filter(|line| line.contains(" --hash="));
    hashed
        .map(|line| {
            let hashes = line.split_whitespace().filter_map(|word| word.strip_prefix("--hash=")).map(ToOwned::to_owned).collect();
            (name_of(line).to_owned(), hashes)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_in_the_list_are_found_by_package() {
        let list = ["six==1.16.0 --hash=sha256:aa --hash=sha256:bb".to_owned(), "numpy>=2".to_owned(), "pandas[x] --hash=md5:c".to_owned()];
        let found = pinned_hashes(&list);
        assert_eq!(found[0], ("six".to_owned(), vec!["sha256:aa".to_owned(), "sha256:bb".to_owned()]));
        assert_eq!(found[1], ("pandas".to_owned(), vec!["md5:c".to_owned()]));
        assert_eq!(found.len(), 2);
    }
}
