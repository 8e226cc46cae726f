//! `trainyard environments build`: a run in the experiment `environments` that prepares an environment and does nothing in it, so that the
//! queue, the log, the cancel and the crash-safety of a build are those of every run, on every compute target.

use std::{
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::built;
use crate::{
    client::Client,
    commands::submit::{self, Submission},
    environment_flags::{EnvironmentFlags, member},
    follow::{self, text},
    printer::Printer,
};

/// The experiment of these runs.
const EXPERIMENT: &str = "environments";

/// Arguments of `environments build`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  trainyard environments build environment.yml
  trainyard environments build requirements.txt --python 3.11 --target gpu
  trainyard environments build --pip numpy --pip 'pandas>=2'
  trainyard environments build lock.json

The build goes on when this command is interrupted; `trainyard cancel RUN` ends it.

Exit codes: 0 it is built (the hash is on standard output); 1 the build failed; 2 wrong arguments; 3 no server answers; 4 the server refused.")]
pub struct BuildArgs {
    /// A conda file (.yml), a list of requirements (.txt), a run definition or a lock (.json)
    file: Option<PathBuf>,
    /// The compute target whose machine it is built on [default: the definition's, else cpu-cluster]
    #[arg(long)]
    target: Option<String>,
    /// Do not wait for the end; prints the run
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    environment: EnvironmentFlags,
}

/// Builds.
pub(super) async fn run(args: BuildArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    let definition = definition(&args)?;
    let submission = Submission { experiment: EXPERIMENT, run_id: None, definition, archive: placeholder()? };
    let run = submit::send(client, printer, submission).await?;
    if args.detach {
        printer.data(&built(&run, None), |_| run.clone())?;
        printer.note(&format!("follow it with: trainyard logs -f --build {run}"));
        return Ok(ExitCode::SUCCESS);
    }
    printer.note(&format!("run {run} builds it; `trainyard cancel {run}` ends that"));
    let end = follow::build(client, &run, printer).await?;
    let hash = end.run["properties"]["trainyard.environment"].as_str();
    match hash {
        Some(hash) if end.is_completed() => printer.data(&built(&run, Some(hash)), |_| hash.to_owned())?,
        None if end.is_completed() => {
            printer.data(&built(&run, None), |_| String::new())?;
            printer.note("nothing had to be built: the environment is an interpreter as it is");
        }
        _ => submit::tell_end(printer, &run, &end.run),
    }
    if end.is_completed() {
        for warning in end.run["warnings"].as_array().into_iter().flatten() {
            printer.note(&format!("warning: {}", text(warning, "message")));
        }
    }
    Ok(if end.is_completed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The definition of the run that builds.
fn definition(args: &BuildArgs) -> Result<Value> {
    if args.file.is_none() && args.environment.is_empty() {
        bail!("which environment? Give a file (environment.yml, requirements.txt, definition.json, a lock), or flags such as --pip");
    }
    let mut configuration = json!({ "Command": "true", "Target": "cpu-cluster", "History": { "OutputCollection": false } });
    let mut flags = args.environment.clone();
    if let Some(path) = &args.file {
        match kind(path)? {
            File::Conda => flags.conda_file = Some(path.clone()),
            File::Requirements => flags.requirements = Some(path.clone()),
            File::Lock => flags.lock = Some(path.clone()),
            File::Definition(mut document) => {
                let asked = member(&mut document, "Configuration")?;
                *member(&mut configuration, "Environment")? = member(asked, "Environment")?.take();
                if let Some(target) = member(asked, "Target")?.as_str() {
                    configuration["Target"] = json!(target);
                }
            }
        }
        flags.check(path)?;
    }
    flags.lay_over(&mut configuration)?;
    if let Some(target) = &args.target {
        configuration["Target"] = json!(target);
    }
    Ok(json!({ "Configuration": configuration }))
}

/// What a file is.
enum File {
    Conda,
    Requirements,
    Definition(Value),
    Lock,
}

fn kind(path: &Path) -> Result<File> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "yml" | "yaml" => Ok(File::Conda),
        "txt" | "in" => Ok(File::Requirements),
        "json" => {
            let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
            let document: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
            let has = |name: &str| document.as_object().is_some_and(|object| object.keys().any(|key| key.eq_ignore_ascii_case(name)));
            if has("configuration") {
                Ok(File::Definition(document))
            } else if has("packages") {
                Ok(File::Lock)
            } else {
                bail!("{} is neither a run definition (with `Configuration`) nor a lock (with `packages`)", path.display())
            }
        }
        _ => bail!("{} is none of: a conda file (.yml), requirements (.txt), a run definition or a lock (.json)", path.display()),
    }
}

/// A submission carries code; a build has none but this.
fn placeholder() -> Result<std::fs::File> {
    let mut zip = zip::ZipWriter::new(submit::unnamed_file()?);
    zip.start_file("README.txt", crate::project::stored())?;
    zip.write_all(b"This run builds an environment; there is no code.\n")?;
    let mut file = zip.finish()?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BuildArgs,
    }

    fn made(line: &[&str]) -> Result<Value> {
        definition(&Line::parse_from(std::iter::once("build").chain(line.iter().copied())).args)
    }

    #[test]
    fn every_kind_of_file_becomes_its_environment() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let environment = |line: &[&str]| made(line).unwrap()["Configuration"]["Environment"].clone();
        let conda = write("environment.yml", "dependencies:\n  - python=3.11\n");
        assert_eq!(environment(&[&conda])["Python"]["CondaDependencies"]["dependencies"], json!(["python=3.11"]));
        let list = write("requirements.txt", "six\n");
        assert_eq!(
            environment(&[&list, "--python", "3.11"])["Python"]["CondaDependencies"]["dependencies"],
            json!(["python=3.11", { "pip": ["six"] }])
        );
        let lock = write("lock.json", r#"{"python": "3.11.7", "packages": []}"#);
        assert_eq!(environment(&[&lock]), json!({ "Lock": { "python": "3.11.7", "packages": [] } }));
        let definition =
            write("definition.json", r#"{"configuration": {"script": "a.py", "target": "gpu", "environment": {"name": "n"}}}"#);
        let whole = made(&[&definition]).unwrap();
        assert_eq!(whole["Configuration"]["Environment"], json!({ "name": "n" }));
        assert_eq!((&whole["Configuration"]["Target"], &whole["Configuration"]["Command"]), (&json!("gpu"), &json!("true")));
        assert!(whole["Configuration"].get("Script").is_none());
    }

    #[test]
    fn what_contradicts_itself_or_is_missing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let conda = folder.path().join("environment.yml");
        std::fs::write(&conda, "dependencies: []\n").unwrap();
        let message = |line: &[&str]| format!("{:#}", made(line).unwrap_err());
        assert!(message(&[]).contains("which environment?"));
        assert!(
            message(&[conda.to_str().unwrap(), "--pip", "six"]).contains("--pip"),
            "{}",
            message(&[conda.to_str().unwrap(), "--pip", "six"])
        );
        assert!(message(&["x.tar"]).contains("none of"));
        assert!(message(&["no-such.json"]).contains("cannot be read"));
    }
}
