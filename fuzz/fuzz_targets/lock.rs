//! Any JSON as a lock: what is taken can be written and taken again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainyard_core::environment::EnvironmentLock;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(document) = serde_json::from_slice(bytes)
        && let Ok(lock) = EnvironmentLock::read(&document, "lock")
    {
        let written = serde_json::to_value(&lock).expect("a lock is JSON");
        assert_eq!(EnvironmentLock::read(&written, "lock").expect("it was taken before"), lock);
    }
});
