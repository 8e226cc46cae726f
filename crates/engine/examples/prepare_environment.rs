//! Prepares an environment as an agent does, without a server: for `scripts/bench-environments`.
//!
//! `prepare_environment FOLDER REQUIREMENT…` puts cache, tools and the run's layer into FOLDER.

use std::{path::PathBuf, process::ExitCode};

use tokio_util::sync::CancellationToken;
use trainyard_core::environment::{EnvironmentSpec, PythonEnvironment};
use trainyard_engine::environment::{EnvironmentSettings, overlay, prepare};

#[expect(clippy::print_stderr, reason = "an example for people")]
fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(folder) = words.next().map(PathBuf::from) else {
        eprintln!("usage: prepare_environment FOLDER REQUIREMENT…");
        return ExitCode::from(2);
    };
    let spec = EnvironmentSpec::Python(PythonEnvironment { pip: words.collect(), ..PythonEnvironment::default() });
    let settings =
        EnvironmentSettings { cache_dir: folder.join("cache"), tools_dir: folder.join("tools"), ..EnvironmentSettings::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let mut log: Vec<String> = Vec::new();
    let prepared = runtime.block_on(prepare(&spec, &settings, &mut log, &CancellationToken::new()));
    let ready = prepared
        .map_err(|error| error.to_string())
        .and_then(|mut prepared| overlay(&mut prepared, &folder.join("venv")).map_err(|error| error.to_string()));
    match ready {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}\n{error}", log.join("\n"));
            ExitCode::FAILURE
        }
    }
}
