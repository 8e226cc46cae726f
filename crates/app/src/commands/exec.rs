//! `trainyard exec -- COMMAND…`: wiring of the parts in [`crate::exec`], and what a person is told when one is missing.

use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use hyper_util::client::proxy::matcher::Matcher;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use sha2::{Digest as _, Sha256};
use trainyard_core::ErrorKind;
use trainyard_engine::trust;
use trainyard_server::tls::Authority;
use url::Url;

use crate::{
    client_file::ClientFile,
    exec::{
        child,
        endpoint::Endpoint,
        environment::{self, Settings},
        proxy::Proxy,
    },
};

/// `exec` itself failed; the program was not started. The numbers are those of env(1), timeout(1) and shells.
const EXIT_EXEC_FAILED: u8 = 125;
/// The program was found and cannot be run.
const EXIT_NOT_RUNNABLE: u8 = 126;
/// The program was not found.
const EXIT_NOT_FOUND: u8 = 127;

/// Run a program whose Azure ML calls this server answers, with nothing in the program changed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
For the program alone, connections to login.microsoftonline.com, management.azure.com, *.api.azureml.ms,
*.experiments.azureml.net and *.blob.core.windows.net end at this server; all others pass through untouched.

Exit codes: that of the program; 128+N if signal N ended it; 125 if exec itself failed; 126 if the program cannot
be run; 127 if it was not found.

Example: trainyard exec -- python submit.py")]
pub struct ExecArgs {
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// What stopped `exec`, what to do about it, and the exit code that says so to scripts.
#[derive(Debug)]
struct Failure {
    exit_code: u8,
    error: anyhow::Error,
    hint: Option<String>,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit_code: EXIT_EXEC_FAILED, error, hint: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {:#}", self.error)?;
        self.hint.iter().try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

/// Runs the program and gives its exit code. Failures are told on standard error here, since their exit codes are
/// part of what `exec` promises.
pub async fn run(args: ExecArgs, client: &ClientFile) -> anyhow::Result<ExitCode> {
    match run_program(&args.command, &client.endpoint, &client.ca_cert).await {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(failure) => {
            writeln!(io::stderr().lock(), "{failure}").context("cannot write to standard error")?;
            Ok(ExitCode::from(failure.exit_code))
        }
    }
}

async fn run_program(command: &[OsString], endpoint: &str, ca_cert: &Path) -> Result<u8, Failure> {
    // The program may run in another folder by the time it reads the bundle's path.
    let ca_cert = std::path::absolute(ca_cert).with_context(|| format!("cannot find `{}`", ca_cert.display()))?;
    let authority = open_authority(&ca_cert)?;
    let bundle = bundle(&authority)?;
    let url: Url = endpoint.parse().with_context(|| format!("the endpoint `{endpoint}` is not a URL"))?;
    let endpoint = Endpoint::new(&url, roots(&bundle)?)?;
    check_server(&endpoint, &url).await?;
    let server_host = endpoint.host().to_owned();
    let proxy = Proxy::start(endpoint, authority, Matcher::from_env()).await?;
    let settings = Settings { proxy_url: &proxy.url(), bundle: &bundle, server_host: &server_host };
    let status = child::run(command, environment::variables(settings, |name| env::var_os(name)));
    status.await.map(child::exit_code).map_err(|error| not_started(command, error))
}

/// The CA, whose private key stands beside its certificate in the server's data directory and nowhere else.
fn open_authority(ca_cert: &Path) -> Result<Authority, Failure> {
    Authority::open_beside(ca_cert).map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::NotFound | ErrorKind::Forbidden => Some(
                "`exec` issues certificates for Azure's host names with the server's private CA, so it works only on the machine and as \
                 the user of `trainyard serve`, with the client.json in that server's data directory (--data-dir DIR)"
                    .to_owned(),
            ),
            _ => None,
        };
        Failure { exit_code: EXIT_EXEC_FAILED, error: error.into(), hint }
    })
}

/// The CA bundle for the program. One that carries certificates of the caller's own environment gets a name of its
/// own, by content, so that two callers do not overwrite each other's.
fn bundle(authority: &Authority) -> anyhow::Result<PathBuf> {
    let extra = environment::inherited_trust(|name| env::var_os(name));
    let plain = authority.dir().join("bundle.pem");
    if extra.iter().all(|path| *path == plain) {
        trust::write_bundle(&plain, authority.ca_pem(), &[])?;
        return Ok(plain);
    }
    let mut key = Sha256::new();
    for path in &extra {
        key.update(path.as_os_str().as_encoded_bytes());
        key.update([0]);
    }
    let path = authority.dir().join(format!("bundle-{}.pem", &hex::encode(key.finalize())[..16]));
    trust::write_bundle(&path, authority.ca_pem(), &extra)?;
    Ok(path)
}

fn roots(bundle: &Path) -> anyhow::Result<RootCertStore> {
    let text = fs::read(bundle).with_context(|| format!("cannot read `{}`", bundle.display()))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).filter_map(Result::ok));
    Ok(roots)
}

async fn check_server(endpoint: &Endpoint, url: &Url) -> Result<(), Failure> {
    let Err(error) = endpoint.connect().await else { return Ok(()) };
    let hint = if error.kind() == io::ErrorKind::InvalidData {
        "another server may listen there; `trainyard doctor` looks closer"
    } else {
        "start it: `trainyard serve`"
    };
    let error = anyhow::Error::from(error).context(format!("the Trainyard server at {url} cannot be reached"));
    Err(Failure { exit_code: EXIT_EXEC_FAILED, error, hint: Some(hint.to_owned()) })
}

fn not_started(command: &[OsString], error: io::Error) -> Failure {
    let program = command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
    let (exit_code, hint) = match error.kind() {
        io::ErrorKind::NotFound if program.contains('/') => {
            (EXIT_NOT_FOUND, Some("the file, or the interpreter in its first line, does not exist"))
        }
        io::ErrorKind::NotFound => (EXIT_NOT_FOUND, Some("it is not on PATH; a program in this folder is written `./NAME`")),
        io::ErrorKind::PermissionDenied => (EXIT_NOT_RUNNABLE, Some("it is not an executable file (`chmod +x`)")),
        _ => (EXIT_NOT_RUNNABLE, None),
    };
    let error = anyhow::Error::from(error).context(format!("cannot run `{program}`"));
    Failure { exit_code, error, hint: hint.map(str::to_owned) }
}
