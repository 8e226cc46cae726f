//! Any text as an `environment.yml`: it is read within bounds, and what is taken has a canonical hash or a clear refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainyard_core::environment::{HashContext, parse_conda};
use trainyard_wire::yaml::Yaml;

fuzz_target!(|text: &str| {
    if let Ok(file) = Yaml::read(text)
        && let Ok(found) = parse_conda(&file.value, "")
    {
        let context = HashContext { interpreter: "3.11.7", platform: "linux", indexes: &[], builder: "1" };
        let _ = found.environment.canonical_hash(&context);
    }
});
