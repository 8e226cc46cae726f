//! Any JSON as a conda specification: what is taken has a canonical hash or a clear refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainyard_core::environment::{HashContext, parse_conda};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(document) = serde_json::from_slice(bytes)
        && let Ok(found) = parse_conda(&document, "CondaDependencies")
    {
        let context = HashContext { interpreter: "3.11.7", platform: "linux", indexes: &[], builder: "1" };
        let _ = found.environment.canonical_hash(&context);
    }
});
