//! uv at work on one interpreter: resolving a list to exact files, and installing exactly those.
//!
//! Also the pip part of a conda environment goes through here ([`Installer::install_into`]).

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use trainyard_core::environment::{LockedPackage, PipList, PipOption, Progress, requirement::normalised_name};

use super::{
    cache::{BuilderLock, Cache},
    command::{Console, Ended, ask, command, run_logged, run_watched},
    downloads::{Kind, note_use},
    host::Host,
    index::{IndexSources, also_find_in},
    measure::site_packages,
    prepare::PrepareError,
    pylock::{Pylock, exact_line},
    usage::InUse,
    uv::Uv,
};

/// How much of the installer's words an error repeats.
const MAX_WORDS: usize = 4000;

/// What a full disk makes programs say.
const DISK_FULL: [&str; 3] = ["No space left on device", "os error 28", "Disk quota exceeded"];

/// uv, the interpreter that it installs for, and what it needs to know.
pub(super) struct Installer<'a> {
    pub(super) host: &'a Host,
    pub(super) cache: &'a Cache,
    pub(super) uv: &'a Uv,
    /// Of the environment; handed to every uv, so that it is held until the last of them is gone.
    pub(super) lock: &'a BuilderLock,
    pub(super) index: &'a IndexSources,
    pub(super) options: &'a [PipOption],
    /// The interpreter that is installed for.
    pub(super) python: PathBuf,
    /// The environment.
    pub(super) folder: PathBuf,
}

/// Where lists lie that uv reads and writes: only their owner looks in, since links in them may carry what the index put there.
const NOTES: &str = ".notes";

/// A file for uv to read or write; removed with its owner.
struct Note(PathBuf);

impl Note {
    fn write(path: PathBuf, text: &str) -> Result<Self, PrepareError> {
        fs::write(&path, text).map_err(|error| PrepareError::disk(format!("failed to write {}", path.display()), error))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

/// `uv pip compile` with its files.
struct Compile {
    command: Command,
    resolved: Note,
    _list: Note,
}

impl Drop for Note {
    fn drop(&mut self) {
        // Fails only where the whole folder is gone, or uv has not written the file.
        let _ = fs::remove_file(&self.0);
        // Fails as long as there are others.
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

impl Installer<'_> {
    /// Which files the requirements lead to. `name` tells lists apart.
    pub(super) async fn resolve(&self, name: &str, requirements: &[String], console: &mut Console<'_>) -> Result<Pylock, PrepareError> {
        self.resolve_with(name, requirements, &[], console).await
    }

    /// The same without words, for what nobody asked for; `None` if it can not be had.
    pub(super) async fn resolve_quietly(&self, name: &str, requirements: &[String], cancel: &CancellationToken) -> Option<Pylock> {
        if requirements.is_empty() {
            return Some(Pylock::default());
        }
        let compile = self.compile(name, requirements).ok()?;
        let (status, _) = ask(compile.command, cancel).await.ok()?;
        let text = fs::read_to_string(compile.resolved.path()).ok().filter(|_| status.success())?;
        Pylock::read(text).ok()
    }

    async fn resolve_with(
        &self,
        name: &str,
        requirements: &[String],
        extra: &[&str],
        console: &mut Console<'_>,
    ) -> Result<Pylock, PrepareError> {
        if requirements.is_empty() {
            return Ok(Pylock::default());
        }
        let mut compile = self.compile(name, requirements)?;
        compile.command.args(extra);
        let ended = run_logged(compile.command, console).await?;
        if !ended.status.success() {
            return Err(failure(self.cache, &ended, ""));
        }
        let text = fs::read_to_string(compile.resolved.path());
        let pylock = Pylock::read(text.map_err(|error| PrepareError::disk("failed to read what uv resolved", error))?)?;
        console.line(&format!("resolved {} packages", pylock.packages.len()));
        Ok(pylock)
    }

    fn compile(&self, name: &str, requirements: &[String]) -> Result<Compile, PrepareError> {
        let lines: String = requirements.iter().map(|line| format!("{}\n", without_hashes(line))).collect();
        let list = Note::write(self.notes()?.join(format!("{name}.in")), &lines)?;
        // PEP 751: the part between `pylock.` and `.toml` is a name.
        let resolved = Note(self.notes()?.join(format!("pylock.{name}.toml")));
        let mut command = self.uv()?;
        command.args(["pip", "compile", "--quiet", "--format", "pylock.toml", "--no-header", "--no-annotate", "--python"]);
        command.arg(&self.python).arg("--output-file").arg(resolved.path()).arg(list.path());
        self.index.apply(&mut command, self.options);
        Ok(Compile { command, resolved, _list: list })
    }

    /// Installs what was resolved; where `pinned` demands hashes of a package, those count. Gives what is installed.
    pub(super) async fn install(
        &self,
        resolved: &Pylock,
        pinned: &[(String, Vec<String>)],
        console: &mut Console<'_>,
    ) -> Result<Vec<LockedPackage>, PrepareError> {
        if resolved.packages.is_empty() {
            return Ok(Vec::new());
        }
        if !pinned.is_empty() {
            let mut packages = resolved.packages.clone();
            for (name, hashes) in pinned {
                packages.iter_mut().filter(|package| package.name == *name).for_each(|package| package.hashes.clone_from(hashes));
            }
            return self.install_exactly(&packages, console).await;
        }
        let list = Note::write(self.notes()?.join("pylock.toml"), resolved.text())?;
        let mut install = self.pip_install()?;
        install.arg("-r").arg(list.path());
        self.run_install(install, resolved.packages.len(), console).await?;
        self.with_versions(resolved.packages.clone())
    }

    /// Installs exactly these packages, and nothing that they might ask for. Every file is checked against the hashes where
    /// there are any.
    pub(super) async fn install_exactly(
        &self,
        packages: &[LockedPackage],
        console: &mut Console<'_>,
    ) -> Result<Vec<LockedPackage>, PrepareError> {
        if packages.is_empty() {
            return Ok(Vec::new());
        }
        let lines: String = packages.iter().map(|package| format!("{}\n", exact_line(package))).collect();
        let list = Note::write(self.notes()?.join("exact.txt"), &lines)?;
        let mut install = self.pip_install()?;
        install.arg("--no-deps");
        also_find_in(&mut install, &self.wheels()?);
        if packages.iter().all(|package| !package.hashes.is_empty()) {
            install.arg("--require-hashes");
        }
        install.arg("-r").arg(list.path());
        self.run_install(install, packages.len(), console).await?;
        self.with_versions(packages.to_vec())
    }

    /// Installs a pip list into an environment that has packages of another kind already, and gives what this brought, with hashes
    /// where they can be had. What is there satisfies requirements as in pip.
    pub(super) async fn install_into(&self, list: &PipList, console: &mut Console<'_>) -> Result<Vec<LockedPackage>, PrepareError> {
        if list.requirements.is_empty() {
            return Ok(Vec::new());
        }
        let before = self.installed(console).await?;
        let lines: String = list.requirements.iter().map(|line| format!("{line}\n")).collect();
        let note = Note::write(self.notes()?.join("requirements.txt"), &lines)?;
        let mut install = self.pip_install()?;
        install.arg("-r").arg(note.path());
        self.run_install(install, list.requirements.len(), console).await?;
        let mut brought = self.installed(console).await?;
        brought.retain(|package| !before.contains(package));
        let of_url = |name: &str| list.requirements.iter().find(|line| line.starts_with(&format!("{name} @ "))).cloned();
        let pins: Vec<String> = brought.iter().map(|package| of_url(&package.name).unwrap_or_else(|| exact_line(package))).collect();
        match self.resolve_with("brought", &pins, &["--no-deps"], console).await {
            Ok(resolved) => self.with_versions(resolved.packages),
            Err(PrepareError::Resolver(_)) => {
                console.line("the hashes of the pip packages can not be had; the lock has only their versions");
                Ok(brought)
            }
            Err(error) => Err(error),
        }
    }

    /// The Python packages that the interpreter sees.
    pub(super) async fn installed(&self, console: &Console<'_>) -> Result<Vec<LockedPackage>, PrepareError> {
        #[derive(Deserialize)]
        struct Listed {
            name: String,
            version: String,
        }
        let mut list = self.uv()?;
        list.args(["pip", "list", "--format", "json", "--python"]).arg(&self.python);
        let (status, answer) = ask(list, console.cancel).await?;
        let listed: Vec<Listed> = match serde_json::from_str(&answer) {
            Ok(listed) if status.success() => listed,
            _ => return Err(PrepareError::Installer(format!("uv could not list what it installed ({status})"))),
        };
        let package =
            |listed: Listed| LockedPackage { name: normalised_name(&listed.name), version: listed.version, ..LockedPackage::default() };
        let mut packages: Vec<LockedPackage> = listed.into_iter().map(package).collect();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(packages)
    }

    /// Fills in the versions that only the installed package tells.
    fn with_versions(&self, mut packages: Vec<LockedPackage>) -> Result<Vec<LockedPackage>, PrepareError> {
        if packages.iter().all(|package| !package.version.is_empty()) {
            return Ok(packages);
        }
        let failed = |error| PrepareError::disk("failed to read what was installed", error);
        for place in site_packages(&self.folder).map_err(failed)? {
            for entry in fs::read_dir(place).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
                let Some((name, version)) = name.strip_suffix(".dist-info").and_then(|name| name.rsplit_once('-')) else { continue };
                let name = normalised_name(name);
                packages.iter_mut().filter(|package| package.name == name && package.version.is_empty()).for_each(|package| {
                    version.clone_into(&mut package.version);
                });
            }
        }
        Ok(packages)
    }

    async fn run_install(&self, install: Command, count: usize, console: &mut Console<'_>) -> Result<(), PrepareError> {
        // While somebody installs from the downloads, nobody clears them.
        let _downloads = InUse::share(self.cache.downloads_lock(), console.cancel).await?;
        console.progress(&Progress::counted("installing", 0, u64::try_from(count).unwrap_or(u64::MAX), "packages"));
        let mut words = UvWords::default();
        let ended = run_watched(install, console, |line| words.progress(line)).await?;
        note_use(self.cache, Kind::Pip);
        if ended.status.success() { Ok(()) } else { Err(failure(self.cache, &ended, "")) }
    }

    fn notes(&self) -> Result<PathBuf, PrepareError> {
        let notes = self.folder.join(NOTES);
        match fs::DirBuilder::new().mode(0o700).create(&notes) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(PrepareError::disk(format!("failed to make {}", notes.display()), error))
            }
            _ => Ok(notes),
        }
    }

    /// The folder of files that archives brought; uv wants it to be there.
    fn wheels(&self) -> Result<PathBuf, PrepareError> {
        let wheels = self.cache.wheels();
        fs::create_dir_all(&wheels).map_err(|error| PrepareError::disk("failed to make the folder of imported files", error))?;
        Ok(wheels)
    }

    fn pip_install(&self) -> Result<Command, PrepareError> {
        let mut install = self.uv()?;
        install.args(["pip", "install", "--python"]).arg(&self.python);
        self.index.apply(&mut install, self.options);
        Ok(install)
    }

    /// uv with what holds for all of its commands.
    pub(super) fn uv(&self) -> Result<Command, PrepareError> {
        let mut uv = command(self.host, &self.uv.path);
        uv.stdin(self.lock.as_stdin()?);
        uv.env("UV_PYTHON_DOWNLOADS", "never").env("UV_NO_PROGRESS", "1").env("NO_COLOR", "1").env("UV_PREVIEW_FEATURES", "pylock");
        if self.host.var("UV_CACHE_DIR").is_none() {
            uv.env("UV_CACHE_DIR", self.cache.packages());
        }
        // Links that are names only would lead nowhere once downloads are removed to make room.
        if self.host.text("UV_LINK_MODE") == Some("symlink") {
            uv.env("UV_LINK_MODE", "copy");
        }
        self.index.apply_policy(&mut uv, self.host);
        Ok(uv)
    }
}

/// The requirement without the hashes that it demands: they are checked when it is installed.
fn without_hashes(line: &str) -> &str {
    line.find(" --hash=").map_or(line, |at| &line[..at])
}

/// What uv's words say about how far it is.
#[derive(Default)]
struct UvWords {
    announced: u64,
    arrived: u64,
}

impl UvWords {
    fn progress(&mut self, line: &str) -> Option<Progress> {
        let words = line.trim_start();
        if words.starts_with("Downloading ") || words.starts_with("Building ") {
            self.announced += 1;
        } else if words.starts_with("Downloaded ") || words.starts_with("Built ") {
            self.arrived += 1;
        } else if words.starts_with("Prepared ") {
            return Some(Progress::step("installing"));
        } else {
            return None;
        }
        let what = if words.starts_with("Buil") { "building" } else { "downloading" };
        Some(Progress::counted(what, self.arrived, self.announced, "packages"))
    }
}

/// What a failed step of uv means: the disk's fault, or what uv says.
pub(super) fn failure(cache: &Cache, ended: &Ended, before: &str) -> PrepareError {
    let words = last_words(ended);
    if DISK_FULL.iter().any(|sign| words.contains(sign)) {
        let what = format!(
            "the disk that holds {} is full; free space on it, lower max_bytes or name another cache_dir under [environments]. {words}",
            cache.root().display()
        );
        return PrepareError::disk(what, io::ErrorKind::StorageFull.into());
    }
    PrepareError::Resolver(format!("{before}{words}"))
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

    #[test]
    fn a_full_disk_is_the_machines_fault_and_named() {
        let cache = Cache::at(Path::new("/data/environments")).unwrap();
        let words = ["error: Failed to install: numpy", "  Caused by: failed to write: No space left on device (os error 28)"];
        let error = failure(&cache, &ended(&words), "");
        assert!(error.is_machines() && error.to_string().contains("the disk that holds /data/environments is full"), "{error}");
        assert!(!failure(&cache, &ended(&["error: no such package"]), "").is_machines());
    }

    #[test]
    fn uvs_words_tell_how_far_it_is() {
        let mut words = UvWords::default();
        let mut told = |line: &str| words.progress(line).map(|progress| progress.to_string());
        assert_eq!(told("Downloading numpy (16.1MiB)").as_deref(), Some("downloading 0 of 1 packages"));
        assert_eq!(told("Downloading scipy (33.7MiB)").as_deref(), Some("downloading 0 of 2 packages"));
        assert_eq!(told(" Downloaded numpy").as_deref(), Some("downloading 1 of 2 packages"));
        assert_eq!(told("Prepared 10 packages in 6.34s").as_deref(), Some("installing"));
        assert_eq!(told(" + numpy==2.4.6"), None);
    }
}
