//! How many uploads a second the blobs take on this machine, and what each step of one costs.
//!
//! `cargo run --release -p trainyard-store --example blob_rate -- [FOLDER] [UPLOADS] [CALLERS] [BYTES]`
//!
//! Every upload is a distinct zip of random bytes, as large as `BYTES` says: staged, hashed, inspected and committed.
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::{
    io::{Cursor, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use trainyard_core::archive::ArchiveLimits;
use trainyard_store::{archive, blobs::Blobs};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| "blob_rate_data".into()));
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse());
    let (uploads, callers, bytes) = (number(5_000)?, number(32)?, number(100_000)? as usize);

    let sample = project(bytes, 0)?;
    println!("one upload of {} bytes:", sample.len());
    each("  SHA-256", sample.len(), || {
        std::hint::black_box(Sha256::digest(&sample));
    });
    each("  inspect_bytes, as it is", sample.len(), || {
        archive::inspect_bytes(&sample, &ArchiveLimits::default()).expect("the sample is taken");
    });
    let text = source_code(bytes)?;
    each(&format!("  inspect_bytes of {} bytes of deflated text", text.len()), text.len(), || {
        archive::inspect_bytes(&text, &ArchiveLimits::default()).expect("the sample is taken");
    });
    // The least that any design pays: one writer, one file after the other.
    fs_rate(&folder, &sample)?;

    let blobs = Blobs::open("file", &folder)?;
    let sample = Arc::new(sample);
    for (name, step) in [("commit", Step::Commit), ("stage, inspect and commit", Step::All)] {
        let next = Arc::new(AtomicU64::new(0));
        let cpu_before = cpu_time()?;
        let started = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let (blobs, next, sample) = (blobs.clone(), next.clone(), sample.clone());
                tokio::spawn(async move { upload_all(&blobs, &next, uploads, &sample, step).await })
            })
            .collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await??);
        }
        let elapsed = started.elapsed();
        let cpu = (cpu_time()? - cpu_before) / u32::try_from(uploads)?;
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        let rate = uploads as f64 / elapsed.as_secs_f64();
        println!("{name}: {uploads} uploads by {callers} callers: {rate:.0}/s, p50 {:?}, p99 {:?}, {cpu:?} of CPU each", at(50), at(99));
    }
    large_upload(&blobs).await?;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Commit,
    All,
}

async fn upload_all(blobs: &Blobs, next: &AtomicU64, uploads: u64, sample: &[u8], step: Step) -> trainyard_core::Result<Vec<Duration>> {
    let mut times = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= uploads {
            return Ok(times);
        }
        // Distinct by a comment behind the archive, which every zip may have.
        let mut upload = sample.to_vec();
        let end = upload.len() - 2;
        upload[end..].copy_from_slice(&9u16.to_le_bytes());
        upload.push(u8::from(step == Step::All));
        upload.extend(number.to_le_bytes());
        let upload = Bytes::from(upload);
        let started = Instant::now();
        match step {
            Step::Commit => drop(blobs.put_bytes(upload).await?),
            Step::All => {
                let mut writer = blobs.stage(1 << 30).await?;
                for piece in 0..upload.len().div_ceil(16 << 10) {
                    writer.write(upload.slice(piece * (16 << 10)..upload.len().min((piece + 1) * (16 << 10)))).await?;
                }
                let staged = writer.finish().await?;
                archive::inspect_staged(&staged, ArchiveLimits::default()).await?;
                blobs.commit(staged).await?;
            }
        }
        times.push(started.elapsed());
    }
}

/// Stages and commits 1 GB in the pieces that a connection gives and says how much more memory that took.
async fn large_upload(blobs: &Blobs) -> Result<(), Box<dyn std::error::Error>> {
    let resident = |field: &str| -> Result<u64, Box<dyn std::error::Error>> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find(|line| line.starts_with(field)).ok_or("no such field")?;
        Ok(line.split_whitespace().nth(1).unwrap_or_default().parse()?)
    };
    // Forget the peak so far.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = resident("VmRSS:")?;
    let started = Instant::now();
    let mut writer = blobs.stage(2 << 30).await?;
    for number in 0..16_000u64 {
        let mut piece = vec![0; 62_500];
        piece[..8].copy_from_slice(&number.to_le_bytes());
        writer.write(piece.into()).await?;
    }
    let stored = blobs.commit(writer.finish().await?).await?;
    let more = (resident("VmHWM:")? - before) / 1024;
    println!("one upload of {} bytes: {:?}, {more} MiB more memory at its peak", stored.size, started.elapsed());
    Ok(())
}

fn each(name: &str, bytes: usize, mut run: impl FnMut()) {
    let rounds = 200;
    let started = Instant::now();
    for _ in 0..rounds {
        run();
    }
    let one = started.elapsed() / rounds;
    println!("{name}: {one:?} ({:.0} MB/s)", bytes as f64 / one.as_secs_f64() / 1e6);
}

fn fs_rate(folder: &std::path::Path, content: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let rounds = 500u32;
    let started = Instant::now();
    for number in 0..rounds {
        // Kept until the end: ext4 searches long for an inode that was not freed within the last seconds.
        let mut file = std::fs::File::create(folder.join(number.to_string()))?;
        file.write_all(content)?;
        file.sync_data()?;
    }
    println!(
        "the disk: {:.0} files of this size a second written and synced by one writer",
        f64::from(rounds) / started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// CPU time of this process so far, user and system: what stays comparable on a machine that does other things.
fn cpu_time() -> Result<Duration, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// A zip of about `bytes` that do not compress.
fn project(bytes: usize, seed: u64) -> zip::result::ZipResult<Vec<u8>> {
    let mut state = seed | 1;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(bytes)
    .collect();
    zip_of(&content)
}

/// A zip of text as repetitive as source code, about `bytes` when packed.
fn source_code(bytes: usize) -> zip::result::ZipResult<Vec<u8>> {
    let line = |n: u32| format!("    value_{} = compute(value_{}, rate={})\n", n % 977, n % 331, n.wrapping_mul(2_654_435_761) % 1000);
    let content: String = (0..bytes as u32 / 8).map(line).collect();
    zip_of(content.as_bytes())
}

fn zip_of(content: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (number, part) in content.chunks(content.len().div_ceil(10).max(1)).enumerate() {
        writer.start_file(format!("src/module_{number}.py"), options)?;
        writer.write_all(part)?;
    }
    Ok(writer.finish()?.into_inner())
}
