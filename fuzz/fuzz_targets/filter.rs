//! Any text as a filter: what is taken is shown as text that reads back to the same filter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainyard_core::filter::Filter;

fuzz_target!(|text: &str| {
    if let Ok(filter) = Filter::parse(text) {
        let again = Filter::parse(&filter.to_string()).expect("a shown filter reads back");
        assert_eq!(again, filter);
    }
});
