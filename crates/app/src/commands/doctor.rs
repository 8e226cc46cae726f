//! `trainyard doctor`: checks what runs need on this machine, and the server if there is one. Each finding says what to do.

use std::{process::ExitCode, process::Stdio};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{client::Client, client_file::Search, printer::Printer, settings};

/// Arguments of `doctor`.
#[derive(clap::Args)]
pub struct DoctorArgs {
    /// Print the reference page of the configuration and do nothing else
    #[arg(long, hide = true)]
    configuration_reference: bool,
}

/// How a check went.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failure,
}

/// One check.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    message: String,
}

/// Runs every check; the exit code is 1 if one failed.
pub async fn run(args: DoctorArgs, search: &Search, printer: &Printer) -> Result<ExitCode> {
    if args.configuration_reference {
        crate::printer::bytes(settings::reference().as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut findings = vec![python().await, uv().await, processes()];
    findings.extend(server(search).await);
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Failure);
    printer.data(&findings, |findings| {
        let word = |verdict| match verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failure => "FAILED",
        };
        findings.iter().map(|finding| format!("{:<8} {:<10} {}\n", word(finding.verdict), finding.check, finding.message)).collect()
    })?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn finding(check: &'static str, verdict: Verdict, message: impl Into<String>) -> Finding {
    Finding { check, verdict, message: message.into() }
}

/// The first line that a program says of its version.
async fn version(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().await.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}

async fn python() -> Finding {
    let Some(found) = version("python3", &["--version"]).await else {
        return finding(
            "python",
            Verdict::Failure,
            "python3 is not on PATH; runs need it. Install Python 3.9 or newer with its venv module",
        );
    };
    match version("python3", &["-c", "import venv, ensurepip; print('ok')"]).await {
        Some(_) => finding("python", Verdict::Ok, format!("{found} with venv")),
        None => finding(
            "python",
            Verdict::Warning,
            format!("{found} has no venv module: uv must be on PATH, or install the venv module (python3-venv)"),
        ),
    }
}

async fn uv() -> Finding {
    match version("uv", &["--version"]).await {
        Some(found) => finding("uv", Verdict::Ok, format!("{found} on PATH")),
        None => finding("uv", Verdict::Ok, "not on PATH; the first run that needs it installs it into the data directory"),
    }
}

/// The agent finds every descendant of the user's code through /proc.
fn processes() -> Finding {
    if std::path::Path::new("/proc/self/stat").exists() {
        finding("processes", Verdict::Ok, "/proc is there: a cancelled run's processes are found and ended")
    } else {
        finding("processes", Verdict::Failure, "/proc is not mounted: processes that a run leaves behind could not be found; mount it")
    }
}

async fn server(search: &Search) -> Vec<Finding> {
    let file = match search.find() {
        Ok(file) => file,
        Err(error) => return vec![finding("client", Verdict::Warning, format!("{error:#}").replace('\n', "; "))],
    };
    let mut findings = vec![finding("client", Verdict::Ok, format!("client file for {}", file.endpoint))];
    let asked = async {
        let client = Client::new(file, None)?;
        client.token().await?;
        let computes: Vec<Value> = client.get(&client.native("/computes")).await?;
        let names: Vec<String> = computes.iter().map(|compute| crate::follow::text(compute, "name")).collect();
        anyhow::Ok(json!(names))
    };
    findings.push(match asked.await {
        Ok(names) => finding("server", Verdict::Ok, format!("answers, gives tokens, and has the targets {names}")),
        Err(error) => finding("server", Verdict::Failure, format!("{error:#}").replace('\n', "; ")),
    });
    findings
}
