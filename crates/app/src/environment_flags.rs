//! The flags that say which environment is meant, for every command that takes one: each is a way to write the `Environment` of a definition.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

/// How many files a requirements file may draw in.
const MAX_REQUIREMENT_FILES: usize = 20;

/// Which environment.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Environment")]
pub struct EnvironmentFlags {
    /// The Python version
    #[arg(long, value_name = "VERSION")]
    pub python: Option<String>,
    /// A pip requirement; may be repeated
    #[arg(long, value_name = "REQUIREMENT")]
    pub pip: Vec<String>,
    /// A conda requirement; may be repeated
    #[arg(long, value_name = "REQUIREMENT")]
    pub conda: Vec<String>,
    /// A conda channel, in order of precedence; may be repeated
    #[arg(long, value_name = "CHANNEL")]
    pub channel: Vec<String>,
    /// A conda file (environment.yml)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["python", "pip", "conda", "channel", "requirements"])]
    pub conda_file: Option<PathBuf>,
    /// A file of pip requirements (requirements.txt)
    #[arg(long, value_name = "FILE")]
    pub requirements: Option<PathBuf>,
    /// A container image to go into, with the packages on top of it; without packages its own Python is used
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Use this interpreter as it is and build no environment
    #[arg(long, value_name = "PATH", conflicts_with_all = ["python", "pip", "conda", "channel", "conda_file", "requirements"])]
    pub interpreter: Option<String>,
    /// An environment of the workspace or of the server's configuration, by its name
    #[arg(
        long,
        value_name = "NAME[:VERSION]",
        conflicts_with_all = ["python", "pip", "conda", "channel", "conda_file", "requirements", "image", "interpreter"]
    )]
    pub environment: Option<String>,
    /// Exactly what this lock says, as `trainyard environments lock` prints it
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["python", "pip", "conda", "channel", "conda_file", "requirements", "interpreter", "environment"]
    )]
    pub lock: Option<PathBuf>,
    /// Exactly what this run had
    #[arg(
        long,
        value_name = "RUN",
        conflicts_with_all = ["python", "pip", "conda", "channel", "conda_file", "requirements", "interpreter", "environment", "lock"]
    )]
    pub same_environment_as: Option<String>,
}

impl EnvironmentFlags {
    /// Whether none of them was given.
    pub fn is_empty(&self) -> bool {
        !self.names_python()
            && self.image.is_none()
            && self.environment.is_none()
            && self.lock.is_none()
            && self.same_environment_as.is_none()
    }

    fn names_packages(&self) -> bool {
        let Self { python, pip, conda, channel, conda_file, requirements, .. } = self;
        python.is_some() || !pip.is_empty() || !conda.is_empty() || !channel.is_empty() || conda_file.is_some() || requirements.is_some()
    }

    fn names_python(&self) -> bool {
        self.names_packages() || self.interpreter.is_some()
    }

    /// Fails when a file that was given beside the flags cannot go together with them.
    pub fn check(&self, file: &Path) -> Result<()> {
        let Self { python, pip, conda, channel, conda_file, requirements, image: _, interpreter, environment, lock, same_environment_as } =
            self;
        let packages = [
            (python.is_some(), "--python"),
            (!pip.is_empty(), "--pip"),
            (!conda.is_empty(), "--conda"),
            (!channel.is_empty(), "--channel"),
            (requirements.is_some(), "a list of requirements"),
        ];
        let others = [
            (interpreter.is_some(), "--interpreter"),
            (environment.is_some(), "--environment"),
            (same_environment_as.is_some(), "--same-environment-as"),
            (conda_file.is_some(), "a conda file"),
            (lock.is_some(), "a lock"),
        ];
        let given = |list: &[(bool, &'static str)]| list.iter().filter(|(given, _)| *given).map(|(_, name)| *name).collect::<Vec<_>>();
        let (packages, others) = (given(&packages), given(&others));
        if others.len() > 1 || (!others.is_empty() && !packages.is_empty()) {
            bail!("{}: {} cannot go together", file.display(), [others, packages].concat().join(" and "));
        }
        Ok(())
    }

    /// Writes them into the `Environment` of a configuration, over what stands there. What they do not speak of stays.
    pub fn lay_over(&self, configuration: &mut Value) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let environment = member(configuration, "Environment")?;
        if let Some(name) = &self.environment {
            let (name, version) = name.rsplit_once(':').map_or((name.as_str(), None), |(name, version)| (name, Some(version)));
            *environment = json!({ "Name": name, "Version": version });
            return Ok(());
        }
        if self.names_python() {
            *member(environment, "Python")? = self.python_section()?;
            remove(environment, &["Lock", "SameAsRun", "Name", "Version", "AssetId"]);
        }
        if self.lock.is_some() || self.same_environment_as.is_some() {
            // The lock says all that these would say.
            remove(environment, &["Python", "Lock", "SameAsRun", "Name", "Version", "AssetId"]);
        }
        if let Some(path) = &self.lock {
            let lock: Value = serde_json::from_str(&read(path)?).with_context(|| format!("the lock {} is not JSON", path.display()))?;
            *member(environment, "Lock")? = lock;
        }
        if let Some(run) = &self.same_environment_as {
            *member(environment, "SameAsRun")? = json!(run);
        }
        if let Some(image) = &self.image {
            let docker = member(environment, "Docker")?;
            *member(docker, "Enabled")? = json!(true);
            *member(docker, "BaseImage")? = json!(image);
            if !self.names_python() && self.lock.is_none() && self.same_environment_as.is_none() {
                *member(environment, "Python")? = json!({ "InterpreterPath": "python", "UserManagedDependencies": true });
            }
        }
        Ok(())
    }

    /// `Environment.Python`.
    fn python_section(&self) -> Result<Value> {
        if let Some(interpreter) = &self.interpreter {
            return Ok(json!({ "InterpreterPath": interpreter, "UserManagedDependencies": true }));
        }
        let dependencies = match &self.conda_file {
            Some(path) => crate::conda_file::read(&read(path)?).with_context(|| format!("{} is not a conda file", path.display()))?,
            None => self.dependencies()?,
        };
        Ok(json!({ "InterpreterPath": "python", "UserManagedDependencies": false, "CondaDependencies": dependencies }))
    }

    /// A conda file as JSON, made of the flags.
    fn dependencies(&self) -> Result<Value> {
        let mut dependencies: Vec<Value> = self.python.iter().map(|version| json!(format!("python={version}"))).collect();
        dependencies.extend(self.conda.iter().map(|requirement| json!(requirement)));
        let mut pip = self.pip.clone();
        if let Some(path) = &self.requirements {
            requirements(path, &mut BTreeSet::new(), &mut pip)?;
        }
        if !pip.is_empty() {
            dependencies.push(json!({ "pip": pip }));
        }
        let mut document = json!({ "dependencies": dependencies });
        if !self.channel.is_empty() {
            document["channels"] = json!(self.channel);
        }
        Ok(document)
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// The requirements of a file, in order, with those of the files that it draws in (`-r`). What they mean is for the server to say.
fn requirements(path: &Path, seen: &mut BTreeSet<PathBuf>, list: &mut Vec<String>) -> Result<()> {
    let text = read(path)?;
    if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.to_owned())) {
        bail!("{} draws itself in", path.display());
    }
    if seen.len() > MAX_REQUIREMENT_FILES {
        bail!("{} draws in more than {MAX_REQUIREMENT_FILES} files", path.display());
    }
    // A backslash at the end of a line goes on in the next one.
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let other = ["-r ", "--requirement ", "--requirement="].iter().find_map(|option| line.strip_prefix(option));
        match other {
            Some(other) => requirements(&path.parent().unwrap_or(Path::new("")).join(other.trim()), seen, list)?,
            None => list.push(line.split_whitespace().collect::<Vec<_>>().join(" ")),
        }
    }
    Ok(())
}

/// The member of that name in any case, made if it is not there.
pub fn member<'a>(value: &'a mut Value, name: &str) -> Result<&'a mut Value> {
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    let object = value.as_object_mut().with_context(|| format!("what should hold `{name}` is not an object"))?;
    let key = object.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned().unwrap_or_else(|| name.to_owned());
    Ok(object.entry(key).or_insert_with(|| Value::Object(Map::new())))
}

/// Takes members out, whatever their case.
fn remove(value: &mut Value, names: &[&str]) {
    if let Some(object) = value.as_object_mut() {
        object.retain(|key, _| !names.iter().any(|name| key.eq_ignore_ascii_case(name)));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: EnvironmentFlags,
    }

    fn flags(line: &[&str]) -> EnvironmentFlags {
        Line::parse_from(std::iter::once("x").chain(line.iter().copied())).flags
    }

    fn laid(line: &[&str], mut configuration: Value) -> Value {
        flags(line).lay_over(&mut configuration).unwrap();
        configuration
    }

    #[test]
    fn packages_make_a_conda_specification() {
        let made = laid(&["--python", "3.11", "--conda", "zlib=1.3", "--channel", "conda-forge", "--pip", "six"], json!({}));
        assert_eq!(
            made["Environment"]["Python"]["CondaDependencies"],
            json!({ "channels": ["conda-forge"], "dependencies": ["python=3.11", "zlib=1.3", { "pip": ["six"] }] })
        );
    }

    #[test]
    fn a_lock_and_a_run_take_the_place_of_packages_and_leave_the_container() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"python": "3.11"}"#).unwrap();
        let before = json!({ "environment": { "python": { "a": 1 }, "docker": { "baseImage": "i" }, "name": "n" } });
        let made = laid(&["--lock", file.path().to_str().unwrap()], before.clone());
        assert_eq!(made, json!({ "environment": { "docker": { "baseImage": "i" }, "Lock": { "python": "3.11" } } }));
        let made = laid(&["--same-environment-as", "run1"], before);
        assert_eq!(made, json!({ "environment": { "docker": { "baseImage": "i" }, "SameAsRun": "run1" } }));
    }

    #[test]
    fn a_name_is_all_that_is_left() {
        let before = json!({ "Environment": { "Python": { "a": 1 } }, "Target": "x" });
        let made = laid(&["--environment", "train:3"], before.clone());
        assert_eq!(made, json!({ "Environment": { "Name": "train", "Version": "3" }, "Target": "x" }));
        assert_eq!(laid(&["--environment", "train"], before)["Environment"], json!({ "Name": "train", "Version": null }));
    }

    #[test]
    fn an_image_without_packages_has_its_own_python() {
        let made = laid(&["--image", "team/image:1"], json!({}));
        assert_eq!(made["Environment"]["Docker"], json!({ "Enabled": true, "BaseImage": "team/image:1" }));
        assert_eq!(made["Environment"]["Python"]["UserManagedDependencies"], true);
        assert_eq!(laid(&["--image", "i", "--pip", "six"], json!({}))["Environment"]["Python"]["UserManagedDependencies"], false);
    }

    #[test]
    fn a_requirements_file_is_read_with_those_it_draws_in() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("requirements.txt", "# ours\nsix==1.16.0 \\\n  --hash=sha256:ab\n\n-r more.txt\n--pre\n");
        write("more.txt", "attrs\n");
        let path = folder.path().join("requirements.txt");
        let made = laid(&["--requirements", path.to_str().unwrap(), "--pip", "numpy"], json!({}));
        let pip = &made["Environment"]["Python"]["CondaDependencies"]["dependencies"][0]["pip"];
        assert_eq!(*pip, json!(["numpy", "six==1.16.0 --hash=sha256:ab", "attrs", "--pre"]));
        write("more.txt", "-r requirements.txt\n");
        let error = flags(&["--requirements", path.to_str().unwrap()]).lay_over(&mut json!({})).unwrap_err();
        assert!(error.to_string().contains("draws itself in"), "{error}");
    }

    #[test]
    fn without_flags_nothing_changes() {
        assert_eq!(laid(&[], json!({ "Script": "a" })), json!({ "Script": "a" }));
    }
}
