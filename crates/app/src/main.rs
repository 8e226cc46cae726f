//! The binary: everything is in the library, so that tests can reach it.

use std::process::ExitCode;

/// A submission allocates on one thread and frees on another, which the allocator of the C library does slowly: see `docs/benchmarks.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    trainyard::cli::main()
}
