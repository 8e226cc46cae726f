//! Making and checking access tokens: JWTs signed with the server's key, for applications and for runs.
//!
//! A token says who its bearer is, never what it may do: grants are read from the store at every request, so that a change of rights, a
//! deleted application and a rotated secret count at once. Claims have the names that Azure's tokens have, because clients read them
//! (azureml-wire A.3).

use std::{path::Path, sync::Arc};

use jsonwebtoken::{Algorithm, Header, Validation, crypto::aws_lc, errors::ErrorKind as JwtErrorKind};
use serde::{Deserialize, Serialize};
use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{AppId, AttemptId, RunId, TenantId, WorkspaceId},
};
use trainyard_engine::RunTokens;
use trainyard_store::apps::App;
use trainyard_wire::azureml::tokens::Jwks;
use url::Url;
use uuid::Uuid;

use super::{audience, cache::Verified, keys::SigningKey, secrets};
use crate::clock;

/// How long the token of an application holds, in seconds. Azure's say 3599, an hour and a bit less.
pub const APP_TOKEN_SECONDS: i64 = 3599;

/// How long the token of a run holds, in seconds, if the run does: 14 days. So long because an agent has to get through a server that is
/// down; it asks for a fresh one long before. What ends such a token in practice is the end of its run ([`super::guard`]).
pub const RUN_TOKEN_SECONDS: i64 = 14 * 24 * 3600;

/// What a token says. Times are seconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// What it is for.
    pub aud: String,
    /// Who signed it: the authority as the client addressed it. Not checked; the signature is.
    pub iss: String,
    /// When it was made.
    pub iat: i64,
    /// From when on it holds.
    pub nbf: i64,
    /// From when on it does not hold any more.
    pub exp: i64,
    /// `1.0` or `2.0`, after the endpoint that gave it.
    pub ver: String,
    /// The tenant.
    pub tid: TenantId,
    /// The principal: the application's id or the run's uuid-like subject.
    pub sub: String,
    /// Its own id.
    pub uti: Uuid,
    /// The application, in an application's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appid: Option<AppId>,
    /// The application again, as its object in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oid: Option<AppId>,
    /// How the application proved itself: `1`, by its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appidacr: Option<String>,
    /// `app`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idtyp: Option<String>,
    /// [`secrets::mark`] of the secret that the token was got with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sec: Option<String>,
    /// The run, in a run-scoped token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunClaims>,
}

/// What a run-scoped token says of its run (azureml-wire A.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunClaims {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The run.
    pub id: RunId,
    /// The attempt that it was made for.
    pub attempt: AttemptId,
}

/// What a token for an application is to say besides who it is.
#[derive(Clone, Debug)]
pub struct AppTokenRequest<'a> {
    /// What it is for, as the client wrote it.
    pub audience: &'a str,
    /// The authority as the client addressed it.
    pub issuer: String,
    /// `1.0` or `2.0`.
    pub version: &'static str,
    /// Microseconds since the epoch.
    pub now_us: i64,
}

/// Makes and checks tokens. Cheap to clone.
#[derive(Clone)]
pub struct Tokens(Arc<Inner>);

struct Inner {
    key: SigningKey,
    tenant: TenantId,
    /// `iss` of run-scoped tokens.
    issuer: String,
    verified: Verified,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("key", &self.0.key).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Opens the key of the data directory `dir`, making it on first start. `public_url` names the server in run-scoped tokens.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) when the key can neither be read nor made.
    pub fn open(dir: &Path, tenant: TenantId, public_url: &Url) -> Result<Self> {
        // Without this the first signature panics as soon as another crate of the tree asks jsonwebtoken for a second provider.
        let _ = aws_lc::DEFAULT_PROVIDER.install_default();
        let key = SigningKey::open(dir)?;
        let issuer = format!("{}/{tenant}/", public_url.as_str().trim_end_matches('/'));
        Ok(Self(Arc::new(Inner { key, tenant, issuer, verified: Verified::default() })))
    }

    /// A token for `app`, and when it ends, in seconds since the epoch.
    pub fn mint_app(&self, app: &App, request: &AppTokenRequest<'_>) -> Result<(String, i64)> {
        let now_s = request.now_us.div_euclid(1_000_000);
        let claims = Claims {
            aud: request.audience.to_owned(),
            iss: request.issuer.clone(),
            iat: now_s,
            nbf: now_s,
            exp: now_s + APP_TOKEN_SECONDS,
            ver: request.version.to_owned(),
            tid: self.0.tenant,
            sub: app.id.to_string(),
            uti: Uuid::new_v4(),
            appid: Some(app.id),
            oid: Some(app.id),
            appidacr: Some("1".into()),
            idtyp: Some("app".into()),
            sec: Some(secrets::mark(app)),
            run: None,
        };
        Ok((self.sign(&claims)?, claims.exp))
    }

    /// A token for the agent and the code of `attempt`, and when it ends, in seconds since the epoch.
    pub fn mint_run(&self, workspace: WorkspaceId, run: &RunId, attempt: AttemptId, now_us: i64) -> Result<(String, i64)> {
        let now_s = now_us.div_euclid(1_000_000);
        let claims = Claims {
            aud: audience::RUN.to_owned(),
            iss: self.0.issuer.clone(),
            iat: now_s,
            nbf: now_s,
            exp: now_s + RUN_TOKEN_SECONDS,
            ver: "1.0".into(),
            tid: self.0.tenant,
            sub: format!("run:{workspace}:{run}"),
            uti: Uuid::new_v4(),
            appid: None,
            oid: None,
            appidacr: None,
            idtyp: None,
            sec: None,
            run: Some(RunClaims { workspace, id: run.clone(), attempt }),
        };
        Ok((self.sign(&claims)?, claims.exp))
    }

    /// The claims of `token`, if this server signed it and it holds at `now_us`. What it is for is left to the caller.
    ///
    /// # Errors
    /// [`Unauthenticated`](ErrorKind::Unauthenticated) with a sentence that says which of them it is.
    pub fn verify(&self, token: &str, now_us: i64) -> Result<Arc<Claims>> {
        let now_s = now_us.div_euclid(1_000_000);
        let key = Verified::key(token);
        let claims = match self.0.verified.get(&key) {
            Some(claims) => claims,
            None => {
                let claims = Arc::new(self.check_signature(token)?);
                if claims.exp > now_s {
                    self.0.verified.insert(key, Arc::clone(&claims), now_s);
                }
                claims
            }
        };
        if claims.exp <= now_s {
            return Err(refused(format!("the access token expired at {}", clock::rfc3339(claims.exp.saturating_mul(1_000_000)))));
        }
        if claims.nbf > now_s {
            return Err(refused(format!("the access token is not valid before {}", clock::rfc3339(claims.nbf.saturating_mul(1_000_000)))));
        }
        Ok(claims)
    }

    /// The public half of the key, as a JSON Web Key Set.
    pub(crate) fn key_set(&self) -> Jwks {
        self.0.key.key_set()
    }

    fn sign(&self, claims: &Claims) -> Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.0.key.id.clone());
        jsonwebtoken::encode(&header, claims, &self.0.key.signs).map_err(Error::internal)
    }

    fn check_signature(&self, token: &str) -> Result<Claims> {
        let mut rules = Validation::new(Algorithm::ES256);
        // Times and audience are compared with the request's, by the callers.
        rules.validate_exp = false;
        rules.validate_aud = false;
        rules.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Claims>(token, &self.0.key.verifies, &rules).map_err(|error| match error.kind() {
            JwtErrorKind::InvalidSignature | JwtErrorKind::InvalidAlgorithm | JwtErrorKind::InvalidAlgorithmName => {
                refused("the access token was not signed by this server; get one from its token endpoint")
            }
            _ => refused("the access token is malformed: expected a JWT from this server's token endpoint"),
        })?;
        if claims.claims.tid != self.0.tenant {
            return Err(refused("the access token is of another tenant"));
        }
        Ok(claims.claims)
    }
}

impl RunTokens for Tokens {
    fn mint(&self, workspace: WorkspaceId, run: &RunId, attempt: AttemptId) -> Result<(String, i64)> {
        self.mint_run(workspace, run, attempt, clock::now_us())
    }

    fn node_key(&self, attempt: AttemptId) -> String {
        self.0.key.node_key(attempt)
    }

    fn lasts(&self, token: &str) -> bool {
        let later_us = clock::now_us().saturating_add(RUN_TOKEN_SECONDS / 2 * 1_000_000);
        self.verify(token, later_us).is_ok()
    }
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unauthenticated, message)
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    use serde_json::Value;

    use super::*;

    const NOW_US: i64 = 1_800_000_000_000_000;

    fn tenant() -> TenantId {
        TenantId(Uuid::from_u128(1))
    }

    fn tokens(dir: &Path) -> Tokens {
        Tokens::open(dir, tenant(), &"https://localhost:8443".parse().unwrap()).unwrap()
    }

    fn app() -> App {
        App {
            id: AppId(Uuid::from_u128(2)),
            name: "a".into(),
            secret_sha256: secrets::hash("s"),
            grants: vec![],
            created_us: 0,
            generated: false,
        }
    }

    fn app_token(tokens: &Tokens) -> String {
        let request =
            AppTokenRequest { audience: "https://management.azure.com/", issuer: "https://h/t/".into(), version: "1.0", now_us: NOW_US };
        tokens.mint_app(&app(), &request).unwrap().0
    }

    #[test]
    fn a_token_that_was_signed_here_verifies_and_says_what_clients_read() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(dir.path());
        let token = app_token(&tokens);
        for _ in 0..2 {
            let claims = tokens.verify(&token, NOW_US).unwrap();
            assert_eq!(claims.aud, "https://management.azure.com/");
            assert_eq!(claims.appid, Some(app().id));
            assert_eq!((claims.tid, claims.exp), (tenant(), NOW_US / 1_000_000 + 3599));
        }
        let parts: Vec<&str> = token.split('.').collect();
        let header: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(parts[0]).unwrap()).unwrap();
        assert_eq!(header["alg"], "ES256");
        assert_eq!(header["kid"], tokens.key_set().keys[0].kid);
        assert_eq!(BASE64_URL_SAFE_NO_PAD.decode(parts[2]).unwrap().len(), 64);
    }

    #[test]
    fn a_run_token_says_its_run_and_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(dir.path());
        let (workspace, run, attempt) = (WorkspaceId(Uuid::from_u128(3)), RunId::new("r1").unwrap(), AttemptId(Uuid::from_u128(4)));
        let (token, expires_on) = tokens.mint_run(workspace, &run, attempt, NOW_US).unwrap();
        assert_eq!(expires_on, NOW_US / 1_000_000 + RUN_TOKEN_SECONDS);
        let claims = tokens.verify(&token, NOW_US).unwrap();
        assert_eq!(claims.run, Some(RunClaims { workspace, id: run, attempt }));
        assert_eq!(claims.appid, None);
    }

    #[test]
    fn expired_early_foreign_and_broken_tokens_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(dir.path());
        let token = app_token(&tokens);
        let fails = |token: &str, at_us: i64| {
            let error = tokens.verify(token, at_us).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unauthenticated);
            error.message().to_owned()
        };
        assert!(tokens.verify(&token, NOW_US + 3_598_000_000).is_ok());
        assert!(fails(&token, NOW_US + 3_599_000_000).contains("expired at 2027-01-15T08:59:59Z"));
        assert!(fails(&token, NOW_US - 2_000_000).contains("not valid before"));
        let elsewhere = tempfile::tempdir().unwrap();
        let foreign = app_token(&Tokens::open(elsewhere.path(), tenant(), &"https://x".parse().unwrap()).unwrap());
        assert!(fails(&foreign, NOW_US).contains("not signed by this server"));
        for broken in ["", "x", "a.b.c", &token[..token.len() - 4], &token.replace('.', "")] {
            assert!(!fails(broken, NOW_US).is_empty());
        }
    }

    #[test]
    fn a_token_without_a_signature_or_with_a_symmetric_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(dir.path());
        let token = app_token(&tokens);
        let claims = token.split('.').nth(1).unwrap();
        let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        assert!(tokens.verify(&format!("{none}.{claims}."), NOW_US).is_err());
        let public = serde_json::to_string(&tokens.key_set()).unwrap();
        let claims: Claims = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        let forged =
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &jsonwebtoken::EncodingKey::from_secret(public.as_bytes()))
                .unwrap();
        assert!(tokens.verify(&forged, NOW_US).is_err());
    }

    #[test]
    fn a_token_of_another_tenant_is_refused_even_with_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let token = app_token(&tokens(dir.path()));
        let other = Tokens::open(dir.path(), TenantId(Uuid::from_u128(9)), &"https://x".parse().unwrap()).unwrap();
        assert!(other.verify(&token, NOW_US).unwrap_err().message().contains("another tenant"));
    }
}
