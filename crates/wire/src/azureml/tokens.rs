//! Answers of the token endpoints and of the discovery documents in front of them (azureml-wire A.1, A.2, A.6).
//!
//! Tokens are secrets: the structs that hold one do not show it in `Debug`.

use std::fmt;

use serde::Serialize;

use super::time::UtcTime;

/// `POST /{tenant}/oauth2/token`. Numbers are strings, as from the real endpoint.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct TokenV1 {
    /// `Bearer`.
    pub token_type: String,
    /// Seconds.
    pub expires_in: String,
    /// Seconds.
    pub ext_expires_in: String,
    /// Epoch seconds.
    pub expires_on: String,
    /// Epoch seconds.
    pub not_before: String,
    /// The audience asked for.
    pub resource: String,
    /// The JWT.
    pub access_token: String,
}

impl TokenV1 {
    /// A bearer token for `resource`, valid from `not_before` for `lifetime_seconds`, both in seconds.
    pub fn bearer(access_token: String, resource: String, not_before: i64, lifetime_seconds: i64) -> Self {
        Self {
            token_type: "Bearer".to_owned(),
            expires_in: lifetime_seconds.to_string(),
            ext_expires_in: lifetime_seconds.to_string(),
            expires_on: not_before.saturating_add(lifetime_seconds).to_string(),
            not_before: not_before.to_string(),
            resource,
            access_token,
        }
    }
}

/// `POST /{tenant}/oauth2/v2.0/token`. Numbers are numbers.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct TokenV2 {
    /// `Bearer`.
    pub token_type: String,
    /// Seconds.
    pub expires_in: i64,
    /// Seconds.
    pub ext_expires_in: i64,
    /// The JWT.
    pub access_token: String,
}

impl TokenV2 {
    /// A bearer token that is valid for `lifetime_seconds`.
    pub fn bearer(access_token: String, lifetime_seconds: i64) -> Self {
        Self { token_type: "Bearer".to_owned(), expires_in: lifetime_seconds, ext_expires_in: lifetime_seconds, access_token }
    }
}

/// `GET R/token`: a fresh token for the code of a run.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunToken {
    /// The JWT.
    pub token: String,
    /// When it expires.
    pub expiry_time_utc: UtcTime,
}

impl fmt::Debug for TokenV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenV1").field("resource", &self.resource).field("expires_on", &self.expires_on).finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenV2").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

impl fmt::Debug for RunToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunToken").field("expiry_time_utc", &self.expiry_time_utc).finish_non_exhaustive()
    }
}

/// `GET {authority}/v2.0/.well-known/openid-configuration`: what MSAL needs, and what a verifier of our tokens needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OidcDiscovery {
    /// Where a browser would be sent.
    pub authorization_endpoint: String,
    /// Where tokens come from.
    pub token_endpoint: String,
    /// The `iss` of the tokens.
    pub issuer: String,
    /// Where the keys are.
    pub jwks_uri: String,
    /// `client_secret_post`, `client_secret_basic`.
    pub token_endpoint_auth_methods_supported: Vec<String>,
    /// `token`.
    pub response_types_supported: Vec<String>,
    /// `pairwise`.
    pub subject_types_supported: Vec<String>,
    /// The signature algorithm of the tokens.
    pub id_token_signing_alg_values_supported: Vec<String>,
    /// `client_credentials`.
    pub grant_types_supported: Vec<String>,
}

/// `GET /common/discovery/instance`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceDiscovery {
    /// URL of the OIDC discovery document; adal and MSAL only look whether it is there.
    pub tenant_discovery_endpoint: String,
    /// `1.1`; MSAL of this version reads `metadata`.
    #[serde(rename = "api-version")]
    pub api_version: String,
    /// Which host names mean the same authority.
    pub metadata: Vec<InstanceMetadata>,
}

/// Host names that mean one authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceMetadata {
    /// Host to ask.
    pub preferred_network: String,
    /// Host to cache under.
    pub preferred_cache: String,
    /// All of them.
    pub aliases: Vec<String>,
}

/// `GET /{tenant}/discovery/keys`: the public keys that tokens are signed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Jwks {
    /// The keys.
    pub keys: Vec<Jwk>,
}

/// One public key (RFC 7517). Which of the optional members are there depends on `kty`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Jwk {
    /// `RSA`, `EC` or `OKP`.
    pub kty: String,
    /// `sig`.
    #[serde(rename = "use")]
    pub key_use: String,
    /// Which key: the `kid` of the tokens' headers.
    pub kid: String,
    /// Algorithm, e.g. `RS256`.
    pub alg: String,
    /// Modulus of an RSA key, base64url.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    /// Exponent of an RSA key, base64url.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// Curve of an EC or OKP key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// First coordinate, base64url.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// Second coordinate, base64url.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_older_endpoint_answers_numbers_as_strings_and_the_newer_as_numbers() {
        let old = TokenV1::bearer("jwt".into(), "https://management.azure.com/".into(), 1000, 3599);
        assert_eq!(
            serde_json::to_value(&old).unwrap(),
            json!({
                "token_type": "Bearer", "expires_in": "3599", "ext_expires_in": "3599", "expires_on": "4599", "not_before": "1000",
                "resource": "https://management.azure.com/", "access_token": "jwt"
            })
        );
        let new = TokenV2::bearer("jwt".into(), 3599);
        assert_eq!(
            serde_json::to_value(&new).unwrap(),
            json!({"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": "jwt"})
        );
    }

    #[test]
    fn tokens_do_not_show_in_debug() {
        let run = RunToken { token: "s3cret".into(), expiry_time_utc: UtcTime::from_microseconds(0) };
        let shown = format!("{:?} {:?} {run:?}", TokenV1::bearer("s3cret".into(), "r".into(), 0, 1), TokenV2::bearer("s3cret".into(), 1));
        assert!(!shown.contains("s3cret"), "{shown}");
        assert_eq!(serde_json::to_value(&run).unwrap(), json!({"token": "s3cret", "expiryTimeUtc": "1970-01-01T00:00:00Z"}));
    }

    #[test]
    fn a_key_shows_only_the_members_of_its_kind() {
        let key =
            Jwk { kty: "RSA".into(), key_use: "sig".into(), kid: "k".into(), alg: "RS256".into(), n: Some("n".into()), ..Jwk::default() };
        let expected = json!({"keys": [{"kty": "RSA", "use": "sig", "kid": "k", "alg": "RS256", "n": "n"}]});
        assert_eq!(serde_json::to_value(Jwks { keys: vec![key] }).unwrap(), expected);
    }
}
