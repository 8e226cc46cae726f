//! `trainyard environments verify`: whether an environment in the cache is still what was built.

use std::process::ExitCode;

use anyhow::Result;
use reqwest::Method;
use trainyard_core::ids::EnvironmentHash;
use trainyard_wire::native::{Verified, VerifyWish};

use super::find;
use crate::{client::Client, printer::Printer};

/// How many files are listed for people; programs get all.
const LISTED: usize = 50;

/// Arguments of `environments verify`.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// Its hash, the beginning of it, or a run
    environment: String,
    /// Remove it if it differs, with the downloads that share its files: its next use builds it again
    #[arg(long)]
    repair: bool,
}

/// Verifies; the exit code is 1 if something differs and was left as it is.
pub(super) async fn run(args: &VerifyArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    let hash = match EnvironmentHash::new(&args.environment) {
        Ok(hash) => hash.to_string(),
        Err(_) => find(client, &args.environment).await?.hash,
    };
    let wish = VerifyWish { repair: args.repair };
    let verified: Verified = client.send_json(Method::POST, &format!("/api/v1/environments/{hash}/verify"), &wish).await?;
    printer.data(&verified, page)?;
    Ok(if verified.differences.is_empty() || verified.removed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn page(verified: &Verified) -> String {
    let Verified { hash, files, differences, removed } = verified;
    if differences.is_empty() {
        return format!("{hash}: {files} files are as they were built");
    }
    let mut lines: Vec<String> =
        differences.iter().take(LISTED).map(|file| format!("{:<16} {}", file.how.replace('_', " "), file.path)).collect();
    if differences.len() > LISTED {
        lines.push(format!("… and {} more (--json lists all)", differences.len() - LISTED));
    }
    let end = if *removed {
        "it was removed, and its next use builds it again"
    } else {
        "`--repair` removes it, so that its next use builds it again"
    };
    lines.push(format!("{hash}: {} of {files} files differ; {end}", differences.len()));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use trainyard_wire::native::FileDifference;

    use super::*;

    #[test]
    fn a_page_names_the_files_that_differ_and_what_to_do() {
        let differences = vec![
            FileDifference { path: "lib/python3.11/site-packages/six.py".into(), how: "changed".into() },
            FileDifference { path: "bin/tool".into(), how: "not_as_packaged".into() },
        ];
        let mut verified = Verified { hash: "0123".into(), files: 20, differences, removed: false };
        insta::assert_snapshot!(page(&verified), @r"
        changed          lib/python3.11/site-packages/six.py
        not as packaged  bin/tool
        0123: 2 of 20 files differ; `--repair` removes it, so that its next use builds it again
        ");
        verified.differences.clear();
        assert_eq!(page(&verified), "0123: 20 files are as they were built");
    }
}
