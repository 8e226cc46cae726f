//! The body of a token request: a form, and optionally HTTP Basic for the client's id and secret (RFC 6749, 2.3.1).

use axum::extract::Request;
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, header};
use http_body_util::{BodyExt, Limited};
use percent_encoding::percent_decode_str;

use super::oauth::Refusal;

/// A token request is a few hundred bytes; assertions of other grant types would be some thousand.
const LIMIT_BYTES: usize = 64 * 1024;

/// The fields of a token request. No `Debug`: one of them is a secret.
pub(crate) struct TokenForm {
    fields: Vec<(String, String)>,
    basic: Option<(String, String)>,
}

impl TokenForm {
    /// Reads the body.
    pub(crate) async fn read(request: Request) -> Result<Self, Refusal> {
        let basic = basic(request.headers())?;
        let body = Limited::new(request.into_body(), LIMIT_BYTES).collect().await;
        let bytes = body.map_err(|_| Refusal::malformed("The request body is too large, or ended before it was complete."))?.to_bytes();
        Self::parse(&bytes, basic)
    }

    fn parse(bytes: &[u8], basic: Option<(String, String)>) -> Result<Self, Refusal> {
        let fields: Vec<(String, String)> = url::form_urlencoded::parse(bytes).into_owned().collect();
        let repeated = fields.iter().enumerate().find(|(at, (name, _))| fields[..*at].iter().any(|(earlier, _)| earlier == name));
        match repeated {
            Some((_, (name, _))) if NAMED.contains(&name.as_str()) => Err(Refusal::repeated(name)),
            Some(_) | None => Ok(Self { fields, basic }),
        }
    }

    /// A field that is there and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// A field that must be there.
    pub(crate) fn required(&self, name: &str) -> Result<&str, Refusal> {
        self.get(name).ok_or_else(|| Refusal::missing(name))
    }

    /// The client's id: of the form, else of HTTP Basic.
    pub(crate) fn client_id(&self) -> Result<&str, Refusal> {
        self.get("client_id").or(self.basic.as_ref().map(|(id, _)| id.as_str())).ok_or_else(|| Refusal::missing("client_id"))
    }

    /// The client's secret: of the form, else of HTTP Basic.
    pub(crate) fn client_secret(&self) -> Result<&str, Refusal> {
        self.get("client_secret")
            .or(self.basic.as_ref().map(|(_, secret)| secret.as_str()))
            .ok_or_else(|| Refusal::missing("client_secret"))
    }

    /// Whether the client used HTTP Basic: then a refusal of its secret names that scheme.
    pub(crate) fn uses_basic(&self) -> bool {
        self.basic.is_some()
    }
}

/// The fields that count; clients add others of their own (`client_info`, telemetry).
const NAMED: [&str; 5] = ["grant_type", "client_id", "client_secret", "resource", "scope"];

fn basic(headers: &HeaderMap) -> Result<Option<(String, String)>, Refusal> {
    let Some(value) = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) else { return Ok(None) };
    let Some((scheme, encoded)) = value.split_once(' ') else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case("basic") {
        return Ok(None);
    }
    let malformed = || Refusal::malformed("The Authorization header is not valid HTTP Basic.");
    let bytes = BASE64_STANDARD.decode(encoded.trim()).map_err(|_| malformed())?;
    let text = String::from_utf8(bytes).map_err(|_| malformed())?;
    let (id, secret) = text.split_once(':').ok_or_else(malformed)?;
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    Ok(Some((decoded(id), decoded(secret))))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_field_that_counts_is_given_once() {
        let refusal = TokenForm::parse(b"grant_type=a&client_id=1&client_id=2", None).err().unwrap();
        assert_eq!((refusal.error, refusal.code), ("invalid_request", 90_100));
        assert!(TokenForm::parse(b"grant_type=a&x=1&x=2", None).is_ok());
    }

    #[test]
    fn credentials_come_from_the_form_or_from_http_basic() {
        let mut headers = HeaderMap::new();
        let encoded = BASE64_STANDARD.encode("my%2Did:s%3Acret");
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("basic {encoded}")).unwrap());
        let form = TokenForm::parse(b"grant_type=client_credentials", basic(&headers).ok().flatten()).ok().unwrap();
        assert_eq!(form.client_id().unwrap(), "my-id");
        assert_eq!(form.client_secret().unwrap(), "s:cret");
        let form = TokenForm::parse(b"client_id=a&client_secret=", None).ok().unwrap();
        assert_eq!(form.client_id().unwrap(), "a");
        assert_eq!(form.client_secret().unwrap_err().code, 900_144);
    }
}
