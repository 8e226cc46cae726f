//! Any JSON as a run definition: what is taken serialises again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainyard_wire::azureml::execution::SubmissionEnvelope;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(document) = serde_json::from_slice(bytes)
        && let Ok(envelope) = SubmissionEnvelope::read(document)
    {
        serde_json::to_value(&envelope.configuration.asked).expect("a configuration is JSON");
    }
});
