//! Any text as a requirement of conda: what is taken reads as itself again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainyard_core::environment::MatchSpec;

fuzz_target!(|text: &str| {
    if let Ok(spec) = MatchSpec::parse(text) {
        let again = MatchSpec::parse(&spec.to_string()).expect("the canonical form is a requirement");
        assert_eq!(again, spec, "{text:?}");
    }
});
