//! Error bodies: run history's envelope (azureml-wire C.10), ARM's (B.2) and the token endpoints' (A.1).

use serde::Serialize;
use serde_json::{Map, Value};

use super::time::UtcTime;
use crate::json::{FromJson, WireError};

/// The envelope that history, artifact, metric and execution share. Keys stand in the order in which the service prints them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorResponse {
    /// The error itself.
    pub error: RootError,
    /// Ids that connect it with the log.
    pub correlation: Correlation,
    /// Region.
    pub environment: String,
    /// Region.
    pub location: String,
    /// When it happened.
    pub time: UtcTime,
    /// Which service says so, e.g. `run-history`.
    pub component_name: String,
}

/// The inside of the envelope. `code` and `message` are what the SDK reads.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RootError {
    /// `UserError`, `ValidationError`, `ServiceError`, `TransientError`, `RequestThrottled`, …
    pub code: String,
    /// Severity, normally null.
    pub severity: Option<i64>,
    /// One sentence.
    pub message: String,
    /// The sentence with placeholders.
    pub message_format: Option<String>,
    /// Their values.
    pub message_parameters: Map<String, Value>,
    /// A code for support.
    pub reference_code: Option<String>,
    /// Where more is written.
    pub details_uri: Option<String>,
    /// The part of the request that it is about.
    pub target: Option<String>,
    /// Errors of parts.
    pub details: Vec<RootError>,
    /// A finer code.
    pub inner_error: Option<InnerError>,
    /// Never filled: it would show our insides.
    pub debug_info: Option<Value>,
    /// Never filled.
    pub additional_info: Option<Value>,
}

/// A finer code inside a coarse one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InnerError {
    /// The code, e.g. `NotFoundError`.
    pub code: String,
    /// A still finer one.
    pub inner_error: Option<Box<InnerError>>,
}

/// Ids that connect an answer with the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Correlation {
    /// 32 hexadecimal digits.
    pub operation: String,
    /// 16 hexadecimal digits.
    pub request: String,
}

impl RootError {
    /// An error with a code and a sentence.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), ..Self::default() }
    }
}

/// What a client says about its own run in an `Error` event: `{error: {code, message, …}}`, kept whole.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportedError {
    /// `error.code`.
    pub code: Option<String>,
    /// `error.message`.
    pub message: Option<String>,
    /// The document, as it came.
    pub document: Value,
}

impl FromJson for ReportedError {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        let document = value.clone();
        let mut fields = crate::json::Fields::new(path, value)?;
        let mut error = fields.object("error")?;
        let mut text = |name| error.as_mut().map_or(Ok(None), |error| error.string(name));
        Ok(Self { code: text("code")?, message: text("message")?, document })
    }
}

/// ARM's envelope: `{"error": {"code", "message", "details": []}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ArmError {
    /// The error.
    pub error: ArmErrorDetail,
}

/// The inside of [`ArmError`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ArmErrorDetail {
    /// E.g. `ResourceNotFound`.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// Errors of parts.
    pub details: Vec<ArmErrorDetail>,
}

impl ArmError {
    /// An error with a code and a sentence.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { error: ArmErrorDetail { code: code.into(), message: message.into(), details: Vec::new() } }
    }
}

/// What a token endpoint answers when it refuses (azureml-wire A.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenError {
    /// OAuth's word, e.g. `invalid_client`.
    pub error: String,
    /// `AADSTS{code}: …`.
    pub error_description: String,
    /// The number alone.
    pub error_codes: Vec<u32>,
    /// `2024-01-01 00:00:00Z`.
    pub timestamp: String,
    /// A GUID.
    pub trace_id: String,
    /// A GUID: the client's `client-request-id` if it sent one.
    pub correlation_id: String,
    /// Where more is written.
    pub error_uri: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::azureml::time::parse;

    #[test]
    fn the_envelope_has_every_key_in_the_order_of_the_service() {
        let envelope = ErrorResponse {
            error: RootError { target: Some("runId".into()), ..RootError::new("UserError", "Run X was not found") },
            correlation: Correlation { operation: "0".repeat(32), request: "1".repeat(16) },
            environment: "eastus".into(),
            location: "eastus".into(),
            time: UtcTime(parse("2024-12-05T20:44:53.5Z").unwrap()),
            component_name: "run-history".into(),
        };
        let expected = concat!(
            r#"{"error":{"code":"UserError","severity":null,"message":"Run X was not found","messageFormat":null,"messageParameters":{},"#,
            r#""referenceCode":null,"detailsUri":null,"target":"runId","details":[],"innerError":null,"debugInfo":null,"#,
            r#""additionalInfo":null},"correlation":{"operation":"00000000000000000000000000000000","request":"1111111111111111"},"#,
            r#""environment":"eastus","location":"eastus","time":"2024-12-05T20:44:53.5Z","componentName":"run-history"}"#
        );
        assert_eq!(serde_json::to_string(&envelope).unwrap(), expected);
    }

    #[test]
    fn what_a_client_reports_is_kept_whole() {
        let document = json!({"Error": {"Code": "UserError", "message": "boom", "extra": 1}});
        let read = ReportedError::from_json("", document.clone()).unwrap();
        assert_eq!((read.code.as_deref(), read.message.as_deref()), (Some("UserError"), Some("boom")));
        assert_eq!(read.document, document);
    }
}
