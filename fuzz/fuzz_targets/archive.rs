//! Any bytes as an uploaded zip: refused or planned, never a panic, and every planned path stays below its folder.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use trainyard_core::archive::ArchiveLimits;

fuzz_target!(|bytes: &[u8]| {
    let limits = ArchiveLimits { max_unpacked_bytes: 1 << 22, max_files: 100, max_ratio: 100 };
    if let Ok(plan) = trainyard_store::archive::inspect_bytes(bytes, &limits) {
        for file in &plan.files {
            assert!(Path::new(&file.path).components().all(|part| matches!(part, Component::Normal(_))), "{}", file.path);
        }
    }
});
