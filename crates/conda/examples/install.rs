//! Solves and installs packages and says how long each step took: `install CHANNEL DOWNLOADS PREFIX PACKAGE…`. For `scripts/bench-conda`.

use std::{path::PathBuf, sync::Arc, time::Instant};

use trainyard_conda::{Access, Request, Watch, install, resolve, solve};
use trainyard_core::environment::MatchSpec;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "that is what it is for")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [channel, downloads, prefix, packages @ ..] = arguments.as_slice() else {
        return Err("install CHANNEL DOWNLOADS PREFIX PACKAGE…".into());
    };
    let packages = packages.iter().map(|package| MatchSpec::parse(package)).collect::<Result<Vec<_>, _>>()?;
    let channels = resolve(std::slice::from_ref(channel), "https://conda.anaconda.org")?;
    let access = Access { downloads: downloads.into(), offline: false, credentials: Vec::new(), brought: None };
    let watch: Watch = Arc::new(|_| {});
    let begun = Instant::now();
    let locked = solve(Request { packages: &packages, channels: &channels, alias: "https://conda.anaconda.org" }, &access, &watch).await?;
    let solved = begun.elapsed();
    install(&locked, &PathBuf::from(prefix), &access, &watch, ()).await?;
    println!(
        "{} packages: solved in {:.3} s, installed in {:.3} s",
        locked.len(),
        solved.as_secs_f64(),
        (begun.elapsed() - solved).as_secs_f64()
    );
    Ok(())
}
