//! Load generator for the figures in `docs/benchmarks.md`: durable submissions, and reads of runs.
//!
//! `cargo run --release --example load -- submit --client DIR/client.json --target bench --seconds 15`
//! `cargo run --release --example load -- get --client DIR/client.json --run RUN --seconds 5`
//!
//! It keeps TLS connections open and writes HTTP/1.1 by hand, so that on a machine with two cores the server gets most of both. Every submission carries
//! another zip (100 kB that do not compress): nothing is answered from a blob that is there already.

#![expect(clippy::print_stdout, reason = "its output is the measurement")]

use std::{
    io::Write as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use trainyard::{client::Client, client_file::ClientFile};
use zip::write::SimpleFileOptions;

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// `startrun` of a 100 kB zip.
    Submit,
    /// GET of one run.
    Get,
}

#[derive(Parser)]
struct Args {
    #[arg(value_enum)]
    what: What,
    #[arg(long)]
    client: PathBuf,
    /// The compute target of the submitted runs.
    #[arg(long, default_value = "bench")]
    target: String,
    /// The run to get.
    #[arg(long, default_value = "")]
    run: String,
    #[arg(long, default_value_t = 32)]
    connections: u64,
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Stop after this many requests.
    #[arg(long, default_value_t = u64::MAX)]
    requests: u64,
    /// Bytes of the file in the zip.
    #[arg(long, default_value_t = 100_000)]
    bytes: usize,
}

struct Plan {
    args: Args,
    host: String,
    port: u16,
    path: String,
    token: String,
    definition: String,
    tls: TlsConnector,
    sent: AtomicU64,
    deadline: Instant,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    trainyard_server::tls::install_crypto_provider();
    let file = ClientFile::read(&args.client)?;
    let endpoint: url::Url = file.endpoint.parse()?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&file.ca_cert)? {
        roots.add(certificate?)?;
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let client = Client::new(file, None)?;
    let path = match args.what {
        What::Submit => client.azure("execution/v1.0", "/experiments/bench/startrun"),
        What::Get => client.azure("history/v1.0", &format!("/runs/{}", args.run)),
    };
    let plan = Arc::new(Plan {
        host: endpoint.host_str().context("the endpoint has no host")?.to_owned(),
        port: endpoint.port_or_known_default().context("the endpoint has no port")?,
        path,
        token: client.token().await?,
        definition: definition(&args.target),
        tls: TlsConnector::from(Arc::new(config)),
        sent: AtomicU64::new(0),
        deadline: Instant::now() + Duration::from_secs(args.seconds),
        args,
    });
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..plan.args.connections {
        tasks.spawn(connection(Arc::clone(&plan)));
    }
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    report(&mut latencies, started.elapsed());
    Ok(())
}

fn report(latencies: &mut [Duration], elapsed: Duration) {
    latencies.sort_unstable();
    let at = |share: f64| {
        latencies.get(((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    println!(
        "{} requests in {:.1} s: {:.0}/s; median {:.2} ms, p99 {:.2} ms, worst {:.2} ms",
        latencies.len(),
        elapsed.as_secs_f64(),
        latencies.len() as f64 / elapsed.as_secs_f64(),
        milliseconds(at(0.5)),
        milliseconds(at(0.99)),
        milliseconds(at(1.0)),
    );
}

async fn connection(plan: Arc<Plan>) -> Result<Vec<Duration>> {
    let mut stream = connect(&plan).await?;
    let mut latencies = Vec::new();
    let mut payload: Vec<u8> = noise(plan.args.bytes);
    loop {
        let number = plan.sent.fetch_add(1, Ordering::Relaxed);
        if Instant::now() >= plan.deadline || number >= plan.args.requests {
            return Ok(latencies);
        }
        let request = request(&plan, number, &mut payload)?;
        let began = Instant::now();
        stream.write_all(&request).await?;
        stream.flush().await?;
        answer(&mut stream).await?;
        latencies.push(began.elapsed());
    }
}

async fn connect(plan: &Plan) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect((plan.host.as_str(), plan.port)).await?;
    stream.set_nodelay(true)?;
    Ok(plan.tls.connect(ServerName::try_from(plan.host.clone())?, stream).await?)
}

fn request(plan: &Plan, number: u64, payload: &mut [u8]) -> Result<Vec<u8>> {
    let Plan { host, port, path, token, .. } = plan;
    let mut request = Vec::with_capacity(payload.len() + 8192);
    match plan.args.what {
        What::Get => write!(request, "GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {token}\r\n\r\n")?,
        What::Submit => {
            payload[..8].copy_from_slice(&number.to_le_bytes());
            payload[8..24].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
            let body = multipart(&plan.definition, &project(payload)?);
            let length = body.len();
            write!(
                request,
                "POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {token}\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\ncontent-length: {length}\r\n\r\n"
            )?;
            request.extend_from_slice(&body);
        }
    }
    Ok(request)
}

const BOUNDARY: &str = "9f2d1c7e5b8a4f60";

fn multipart(definition: &str, project: &[u8]) -> Vec<u8> {
    let part =
        |name: &str, file: &str| format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\r\n");
    let mut body = Vec::with_capacity(project.len() + 2048);
    body.extend_from_slice(part("runDefinitionFile", "definition.json").as_bytes());
    body.extend_from_slice(definition.as_bytes());
    body.extend_from_slice(b"\r\n");
    body.extend_from_slice(part("projectZipFile", "project.zip").as_bytes());
    body.extend_from_slice(project);
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    body
}

fn project(payload: &[u8]) -> Result<Vec<u8>> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::with_capacity(payload.len() + 512)));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("hello.py", stored)?;
    zip.write_all(b"print(\"Hello!\")\n")?;
    zip.start_file("data.bin", stored)?;
    zip.write_all(payload)?;
    Ok(zip.finish()?.into_inner())
}

fn definition(target: &str) -> String {
    serde_json::json!({ "Configuration": {
        "Script": "hello.py", "Framework": "Python", "Communicator": "None", "Target": target, "NodeCount": 1,
        "Environment": { "Python": { "InterpreterPath": "python3", "UserManagedDependencies": true } },
        "History": { "OutputCollection": true },
    }})
    .to_string()
}

/// Bytes that do not compress: a xorshift stream.
fn noise(length: usize) -> Vec<u8> {
    let mut state = uuid::Uuid::new_v4().as_u64_pair().0 | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length.max(24) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length.max(24));
    bytes
}

/// Reads one answer with a Content-Length and fails unless it is 200.
async fn answer(stream: &mut TlsStream<TcpStream>) -> Result<()> {
    let mut received = Vec::with_capacity(4096);
    loop {
        let mut chunk = [0u8; 4096];
        let count = stream.read(&mut chunk).await?;
        if count == 0 {
            bail!("the server closed the connection");
        }
        received.extend_from_slice(&chunk[..count]);
        let Some(head) = received.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&received[..head]).to_ascii_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok())
            .context("no content-length")?;
        if received.len() >= head + 4 + length {
            if !text.starts_with("http/1.1 200") {
                bail!("{}", String::from_utf8_lossy(&received));
            }
            return Ok(());
        }
    }
}
