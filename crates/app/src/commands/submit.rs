//! `trainyard submit PATH`: a folder or zip, with a definition file or with flags, over the same `startrun` as every other client.

use std::{
    io::{Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use reqwest::{
    Body, Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use crate::{
    client::Client,
    environment_flags::{EnvironmentFlags, member},
    follow::{self, text},
    printer::{self, Printer},
    project::Project,
};

/// Arguments of `submit`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  trainyard submit ./project --definition definition.json
  trainyard submit ./project --script train.py --pip numpy --pip 'pandas>=2' --follow -- --epochs 3
  trainyard submit ./project --script train.py --conda-file environment.yml
  trainyard submit ./project --script train.py --same-environment-as RUN")]
pub struct SubmitArgs {
    /// A folder, or a zip made of one
    path: PathBuf,
    /// The experiment
    #[arg(long, short, default_value = "default")]
    experiment: String,
    /// A run definition; the flags below change it
    #[arg(long, short, value_name = "FILE")]
    definition: Option<PathBuf>,
    /// The script, relative to the folder
    #[arg(long)]
    script: Option<String>,
    /// The compute target [default: cpu-cluster]
    #[arg(long)]
    target: Option<String>,
    #[command(flatten)]
    environment: EnvironmentFlags,
    /// A variable of the run; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Stop the run after this many seconds
    #[arg(long, value_name = "SECONDS")]
    max_seconds: Option<u64>,
    /// Try again this often when the code fails
    #[arg(long, value_name = "NUMBER")]
    user_retries: Option<u32>,
    /// Try again this often when a machine or the server fails [default: the target's, 2 unless configured]
    #[arg(long, value_name = "NUMBER")]
    retries: Option<u32>,
    /// Higher goes first
    #[arg(long)]
    priority: Option<i64>,
    /// The name shown in lists
    #[arg(long)]
    name: Option<String>,
    /// The run's id: submitting the same thing twice with one id makes one run
    #[arg(long, value_name = "ID")]
    run_id: Option<String>,
    /// Follow the log; the exit code says whether the run completed
    #[arg(long, short)]
    follow: bool,
    /// Wait for the end without the log; the exit code says whether the run completed
    #[arg(long, conflicts_with = "follow")]
    wait: bool,
    /// Arguments of the script
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// Submits, and follows or waits if told to.
pub async fn run(args: SubmitArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    let definition = definition(&args)?;
    let archive = archive(&args.path, printer)?;
    let submission = Submission { experiment: &args.experiment, run_id: args.run_id.as_deref(), definition, archive };
    let run = send(client, printer, submission).await?;
    if !args.follow {
        printer.data(&json!({ "runId": run, "experiment": args.experiment }), |_| run.clone())?;
    }
    if args.follow {
        printer.note(&format!("run {run}"));
        follow::until_started(client, &run, printer).await?;
        follow::log(client, &run, follow::driver_log(client, &run).await?, printer::bytes).await?;
    } else if args.wait {
        follow::until_started(client, &run, printer).await?;
    } else {
        printer.note(&format!("follow it with: trainyard logs -f {run}"));
        return Ok(ExitCode::SUCCESS);
    }
    let end = follow::until_ended(client, &run).await?;
    tell_end(printer, &run, &end.run);
    Ok(if end.is_completed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says how a run ended, with its warnings.
pub fn tell_end(printer: &Printer, id: &str, run: &Value) {
    for warning in run["warnings"].as_array().into_iter().flatten() {
        printer.note(&format!("warning: {}", text(warning, "message")));
    }
    printer.note(&format!("run {id}: {}", text(run, "status")));
    if let Some(message) = run["error"]["error"]["message"].as_str() {
        printer.note(&format!("  because: {message}"));
    }
}

/// The definition file with the flags laid over it.
fn definition(args: &SubmitArgs) -> Result<Value> {
    let mut document = match &args.definition {
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("the definition {} cannot be read", path.display()))?;
            serde_json::from_slice(&bytes).with_context(|| format!("the definition {} is not JSON", path.display()))?
        }
        None if args.script.is_none() => bail!("what should be run? Give --definition FILE or --script FILE"),
        None => json!({ "Configuration": {
            "Framework": "Python", "Communicator": "None", "Target": "cpu-cluster", "NodeCount": 1,
            "Environment": { "Python": { "InterpreterPath": "python", "UserManagedDependencies": false, "CondaDependencies": { "dependencies": [] } } },
            "History": { "OutputCollection": true },
        } }),
    };
    let configuration = member(&mut document, "Configuration")?;
    let mut set = |name: &str, value: Option<Value>| -> Result<()> {
        if let Some(value) = value {
            let object = configuration.as_object_mut().context("`Configuration` is not an object")?;
            object.retain(|key, _| !key.eq_ignore_ascii_case(name));
            object.insert(name.to_owned(), value);
        }
        Ok(())
    };
    set("Script", args.script.clone().map(Value::from))?;
    set("Target", args.target.clone().map(Value::from))?;
    set("MaxRunDurationSeconds", args.max_seconds.map(Value::from))?;
    set("Priority", args.priority.map(Value::from))?;
    set("Arguments", (!args.arguments.is_empty()).then(|| json!(args.arguments)))?;
    for (name, number) in [("Infrastructure", args.retries), ("UserCode", args.user_retries)] {
        if let Some(number) = number {
            *member(member(configuration, "Retries")?, name)? = json!(number);
        }
    }
    let variables = args.env.iter().map(|pair| pair.split_once('=').with_context(|| format!("`--env {pair}` has no `=`")));
    let variables: Vec<(&str, &str)> = variables.collect::<Result<_>>()?;
    if !variables.is_empty() {
        let map = member(configuration, "EnvironmentVariables")?;
        let map = map.as_object_mut().context("`EnvironmentVariables` is not an object")?;
        map.extend(variables.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))));
    }
    args.environment.lay_over(configuration)?;
    if let Some(name) = &args.name {
        document.as_object_mut().context("the definition is not an object")?.insert("displayName".into(), json!(name));
    }
    Ok(document)
}

/// The zip, as a file: the one named, or a temporary one made of the folder.
fn archive(path: &Path, printer: &Printer) -> Result<std::fs::File> {
    if path.is_file() {
        return std::fs::File::open(path).with_context(|| format!("{} cannot be read", path.display()));
    }
    if !path.is_dir() {
        bail!("{} is neither a folder nor a zip", path.display());
    }
    let project = Project::scan(path)?;
    let bar = printer.bytes_bar("packing", project.bytes);
    let mut file = unnamed_file()?;
    project.write(&mut file, |done| bar.set_position(done))?;
    bar.finish_and_clear();
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// A file without a name, so that nothing is left behind however the command ends.
pub(super) fn unnamed_file() -> Result<std::fs::File> {
    let path = std::env::temp_dir().join(format!("trainyard-{}.zip", uuid::Uuid::new_v4().simple()));
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path);
    let file = file.with_context(|| format!("the temporary file {} cannot be made", path.display()))?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// What is sent.
pub(super) struct Submission<'a> {
    /// The experiment.
    pub(super) experiment: &'a str,
    /// The id that the run is to have.
    pub(super) run_id: Option<&'a str>,
    /// The definition.
    pub(super) definition: Value,
    /// The zip.
    pub(super) archive: std::fs::File,
}

/// Sends a submission; gives the run's id.
pub(super) async fn send(client: &Client, printer: &Printer, submission: Submission<'_>) -> Result<String> {
    let Submission { experiment, run_id, definition, archive } = submission;
    let length = archive.metadata()?.len();
    let bar = printer.bytes_bar("uploading", length);
    let counted = ReaderStream::with_capacity(bar.wrap_async_read(tokio::fs::File::from_std(archive)), 1 << 18);
    let project = Part::stream_with_length(Body::wrap_stream(counted), length).file_name("project.zip");
    let definition = Part::bytes(serde_json::to_vec(&definition)?).file_name("definition.json");
    let form = Form::new().part("runDefinitionFile", definition).part("projectZipFile", project);
    let mut path = client.azure("execution/v1.0", &format!("/experiments/{experiment}/startrun"));
    if let Some(id) = run_id {
        path.push_str(&format!("?runId={id}"));
    }
    let response = client.send(client.request(Method::POST, &path).await?.multipart(form)).await?;
    bar.finish_and_clear();
    let answer: Value = response.json().await.context("the answer cannot be read")?;
    answer["runId"].as_str().map(str::to_owned).context("the answer has no runId")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SubmitArgs,
    }

    fn args(line: &[&str]) -> SubmitArgs {
        Line::parse_from(std::iter::once("submit").chain(line.iter().copied())).args
    }

    #[test]
    fn flags_alone_make_a_whole_definition() {
        let made = definition(&args(&[
            "p",
            "--script",
            "t.py",
            "--python",
            "3.11",
            "--pip",
            "six",
            "--env",
            "A=b=c",
            "--user-retries",
            "4",
            "--",
            "--epochs",
            "3",
        ]))
        .unwrap();
        let configuration = &made["Configuration"];
        assert_eq!(configuration["Script"], "t.py");
        assert_eq!(configuration["Arguments"], json!(["--epochs", "3"]));
        assert_eq!(configuration["EnvironmentVariables"], json!({ "A": "b=c" }));
        assert_eq!(configuration["Retries"], json!({ "UserCode": 4 }));
        assert_eq!(configuration["Environment"]["Python"]["CondaDependencies"]["dependencies"], json!(["python=3.11", { "pip": ["six"] }]));
    }

    #[test]
    fn flags_change_a_definition_file_whatever_its_case() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"configuration": {"script": "old.py", "target": "x"}}"#).unwrap();
        let made = definition(&args(&["p", "-d", file.path().to_str().unwrap(), "--script", "new.py"])).unwrap();
        assert_eq!(made, json!({ "configuration": { "Script": "new.py", "target": "x" } }));
    }

    #[test]
    fn nothing_to_run_is_a_question() {
        assert!(definition(&args(&["p"])).unwrap_err().to_string().contains("--script"));
    }
}
