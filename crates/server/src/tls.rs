//! TLS of the server: which certificate it shows, and the one cryptography provider of the process.
//!
//! The certificate is either a leaf of the private CA ([`Authority`], module `authority`), issued and renewed here
//! without anybody's help, or a pair of files that the operator names (`server.tls_cert`, `server.tls_key`). What
//! clients trust in turn is the engine crate's `trust`.
//!
//! A leaf that is shown is always accepted by a client that trusts the CA, for every configured name, now and for
//! the next [`RENEW_BEFORE`]: it is checked with the verifier that a client would use.

mod authority;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use jiff::{SignedDuration, Timestamp};
use rustls::{
    RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use trainyard_core::{Error, Result};
use trainyard_engine::trust::{self, Access};

pub use authority::{Authority, LEAF_LIFETIME, Leaf};

/// How long before its end a leaf of our own is replaced.
pub const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How often a running server looks whether its leaf is to be replaced.
const CHECK_EVERY: SignedDuration = SignedDuration::from_hours(12);

/// What the server proves its identity with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerCertificate {
    /// A leaf of the private CA for these DNS names and IP addresses, kept in `DIR/tls/server.pem` and `.key`.
    Own {
        /// Without brackets, ports or schemes: `localhost`, `127.0.0.1`, `::1`, `trainyard.example.org`.
        names: Vec<String>,
    },
    /// PEM files that the operator keeps: the chain, leaf first, and its unencrypted private key.
    Files {
        /// `server.tls_cert`
        cert: PathBuf,
        /// `server.tls_key`
        key: PathBuf,
        /// Names that a leaf of the private CA answers for all the same, as in `Own`: agents on this machine trust the
        /// CA and nothing else. A client that names no host (one that dials an IP address) gets that leaf too.
        local: Vec<String>,
    },
}

/// Makes aws-lc-rs the cryptography of this process. The first line of `main` and of tests that speak TLS; calling
/// it again does nothing.
pub fn install_crypto_provider() {
    // An error means that a provider is installed already, and there is only this one in the tree.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// The TLS side of the listener: HTTP/2 and HTTP/1.1 by ALPN, TLS 1.2 and 1.3, no client certificates.
///
/// [`trainyard_core::ErrorKind::Invalid`] if the operator's files do not hold what they should, or a name is not one.
pub fn server_config(authority: &Arc<Authority>, certificate: &ServerCertificate) -> Result<ServerConfig> {
    let resolver: Arc<dyn ResolvesServerCert> = match certificate {
        ServerCertificate::Own { names } => Arc::new(OwnLeaf::open_or_issue(Arc::clone(authority), names.clone(), Timestamp::now())?),
        ServerCertificate::Files { cert, key, local } => Arc::new(Both {
            files: Arc::new(read_certified_key(cert, key)?),
            own: OwnLeaf::open_or_issue(Arc::clone(authority), local.clone(), Timestamp::now())?,
        }),
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::internal)?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()))
}

fn read_certified_key(cert: &Path, key: &Path) -> Result<CertifiedKey> {
    let unreadable =
        |file: &Path, key: &str, error: io::Error| Error::invalid(format!("cannot read `{}` ({key})", file.display())).with_source(error);
    let chain_text = fs::read_to_string(cert).map_err(|error| unreadable(cert, "server.tls_cert", error))?;
    let chain = trust::certificates(&chain_text, &format!("`{}` (server.tls_cert)", cert.display()))?;
    let key_text = fs::read(key).map_err(|error| unreadable(key, "server.tls_key", error))?;
    let key_der = PrivateKeyDer::from_pem_slice(&key_text).map_err(|error| {
        let problem =
            format!("`{}` (server.tls_key) holds no unencrypted PEM private key; decrypt it first if it has a password", key.display());
        Error::invalid(problem).with_source(error)
    })?;
    CertifiedKey::from_der(chain, key_der, &provider()).map_err(|error| {
        let (cert, key) = (cert.display(), key.display());
        let problem = match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("the private key `{key}` (server.tls_key) does not belong to the first certificate in `{cert}` (server.tls_cert)")
            }
            _ => format!("`{cert}` (server.tls_cert) and `{key}` (server.tls_key) cannot be used"),
        };
        Error::invalid(problem).with_source(error)
    })
}

/// The leaf of the private CA that this server shows; replaced while the server runs when its end comes near.
#[derive(Debug)]
struct OwnLeaf {
    authority: Arc<Authority>,
    names: Vec<String>,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    check_at: Timestamp,
}

impl OwnLeaf {
    fn open_or_issue(authority: Arc<Authority>, names: Vec<String>, now: Timestamp) -> Result<Self> {
        let key = current_leaf(&authority, &names, now)?;
        Ok(Self { authority, names, current: RwLock::new(Current { key, check_at: now + CHECK_EVERY }) })
    }

    fn at(&self, now: Timestamp) -> Arc<CertifiedKey> {
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if now < current.check_at {
                return Arc::clone(&current.key);
            }
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if now >= current.check_at {
            current.check_at = now + CHECK_EVERY;
            match current_leaf(&self.authority, &self.names, now) {
                Ok(key) => current.key = key,
                Err(error) => {
                    tracing::error!(error = %error.chain(), "the server's certificate could not be renewed; the present one stays in use");
                }
            }
        }
        Arc::clone(&current.key)
    }
}

impl ResolvesServerCert for OwnLeaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(Timestamp::now()))
    }
}

/// The operator's certificate for whoever names a host, the private CA's for this machine.
#[derive(Debug)]
struct Both {
    files: Arc<CertifiedKey>,
    own: OwnLeaf,
}

impl ResolvesServerCert for Both {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) if name != "localhost" => Some(Arc::clone(&self.files)),
            Some(_) | None => Some(self.own.at(Timestamp::now())),
        }
    }
}

/// The leaf on disk if it is good for `names` and long enough, else a new one, on disk before it is shown.
fn current_leaf(authority: &Authority, names: &[String], now: Timestamp) -> Result<Arc<CertifiedKey>> {
    let _lock = authority::lock(authority.dir())?;
    let (cert_path, key_path) = (authority.dir().join("server.pem"), authority.dir().join("server.key"));
    if let Ok(present) = read_certified_key(&cert_path, &key_path)
        && is_good(authority, &present, names, now)
    {
        return Ok(Arc::new(present));
    }
    let leaf = authority.leaf_at(names, now)?;
    // A crash between the two leaves a pair that does not match, which the next start replaces.
    trust::replace_file(&key_path, leaf.key_pem().as_bytes(), Access::Owner)?;
    trust::replace_file(&cert_path, leaf.chain_pem().as_bytes(), Access::Everyone)?;
    leaf.certified_key().map(Arc::new)
}

/// Whether a client that trusts the CA accepts `key` for each of `names`, now and after [`RENEW_BEFORE`]. A name that is
/// in the certificate and no longer wanted does no harm and makes no new one.
fn is_good(authority: &Authority, key: &CertifiedKey, names: &[String], now: Timestamp) -> bool {
    let Ok(leaf) = key.end_entity_cert() else { return false };
    let Ok(accepts) = verifier(authority) else { return false };
    [now, now + RENEW_BEFORE].into_iter().all(|time| names.iter().all(|name| accepts(leaf, name, time)))
}

/// The check that a client does, as a function of certificate, name and time.
fn verifier(authority: &Authority) -> Result<impl Fn(&CertificateDer<'_>, &str, Timestamp) -> bool> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).map_err(Error::internal)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(Error::internal)?;
    Ok(move |leaf: &CertificateDer<'_>, name: &str, time: Timestamp| {
        // A wildcard is not a server's name; any one label in its place is.
        let name = name.replacen("*.", "any.", 1);
        let (Ok(name), Ok(seconds)) = (ServerName::try_from(name), u64::try_from(time.as_second())) else { return false };
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        verifier.verify_server_cert(leaf, &[], &name, &[], time).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use trainyard_core::ErrorKind;

    use super::*;

    fn own(names: &[&str]) -> ServerCertificate {
        ServerCertificate::Own { names: names.iter().map(ToString::to_string).collect() }
    }

    fn files(cert: &Path, key: &Path) -> ServerCertificate {
        ServerCertificate::Files { cert: cert.to_owned(), key: key.to_owned(), local: vec!["localhost".into(), "127.0.0.1".into()] }
    }

    /// Whether a client that trusts only `authority` accepts what a server with `config` shows it as `name`.
    fn accepts(authority: &Authority, config: &ServerConfig, name: &'static str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
        let mut client = rustls::ClientConnection::new(client, name.try_into().unwrap()).unwrap();
        let mut server = rustls::ServerConnection::new(Arc::new(config.clone())).unwrap();
        while client.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            if client.process_new_packets().is_err() {
                return false;
            }
        }
        true
    }

    fn now() -> Timestamp {
        "2026-11-23T10:00:00Z".parse().unwrap()
    }

    fn leaf_der(leaf: &OwnLeaf, at: Timestamp) -> Vec<u8> {
        leaf.at(at).end_entity_cert().unwrap().to_vec()
    }

    #[test]
    fn the_server_keeps_its_leaf_over_restarts_until_a_name_is_added() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open_or_create(dir.path()).unwrap());
        let open = |names: &[&str]| {
            let names = names.iter().map(ToString::to_string).collect();
            leaf_der(&OwnLeaf::open_or_issue(Arc::clone(&authority), names, now()).unwrap(), now())
        };
        let first = open(&["localhost", "127.0.0.1", "*.example.org"]);
        assert_eq!(open(&["localhost", "127.0.0.1", "*.example.org"]), first);
        assert_eq!(open(&["localhost"]), first);
        assert_ne!(open(&["localhost", "trainyard.example.org", "::1"]), first);
    }

    #[test]
    fn a_running_server_replaces_its_leaf_before_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open_or_create(dir.path()).unwrap());
        let leaf = OwnLeaf::open_or_issue(Arc::clone(&authority), vec!["localhost".into()], now()).unwrap();
        let first = leaf_der(&leaf, now());
        let long_before = now() + LEAF_LIFETIME - RENEW_BEFORE - SignedDuration::from_hours(72);
        assert_eq!(leaf_der(&leaf, long_before), first);
        let shortly_before = now() + LEAF_LIFETIME - RENEW_BEFORE + SignedDuration::from_hours(1);
        assert_ne!(leaf_der(&leaf, shortly_before), first);
    }

    #[test]
    fn a_leaf_whose_key_file_is_another_ones_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open_or_create(dir.path()).unwrap());
        server_config(&authority, &own(&["localhost"])).unwrap();
        let other = authority.leaf(&["localhost".into()]).unwrap();
        trust::replace_file(&dir.path().join("tls/server.key"), other.key_pem().as_bytes(), Access::Owner).unwrap();
        server_config(&authority, &own(&["localhost"])).unwrap();
        read_certified_key(&dir.path().join("tls/server.pem"), &dir.path().join("tls/server.key")).unwrap();
    }

    #[test]
    fn a_leaf_of_a_ca_that_was_replaced_is_replaced_too() {
        let dir = tempfile::tempdir().unwrap();
        let old = Arc::new(Authority::open_or_create(dir.path()).unwrap());
        server_config(&old, &own(&["localhost"])).unwrap();
        let before = fs::read(dir.path().join("tls/server.pem")).unwrap();
        fs::remove_file(dir.path().join("tls/ca.pem")).unwrap();
        fs::remove_file(dir.path().join("tls/ca.key")).unwrap();
        let new = Arc::new(Authority::open_or_create(dir.path()).unwrap());
        server_config(&new, &own(&["localhost"])).unwrap();
        assert_ne!(fs::read(dir.path().join("tls/server.pem")).unwrap(), before);
    }

    #[test]
    fn the_operators_files_are_used_or_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open_or_create(dir.path()).unwrap());
        let (leaf, other) = (authority.leaf(&["a.example".into()]).unwrap(), authority.leaf(&["b.example".into()]).unwrap());
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (cert, key) = (write("cert.pem", leaf.chain_pem()), write("key.pem", leaf.key_pem()));
        let (other_key, text) = (write("other.key", other.key_pem()), write("text", "hello"));
        let config = |cert: &Path, key: &Path| server_config(&authority, &files(cert, key));
        assert_eq!(config(&cert, &key).unwrap().alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        for (cert, key, expected) in [
            (&dir.path().join("absent.pem"), &key, "absent.pem` (server.tls_cert): No such file"),
            (&cert, &dir.path().join("absent.key"), "absent.key` (server.tls_key): No such file"),
            (&text, &key, "text` (server.tls_cert) holds no PEM certificate"),
            (&cert, &text, "text` (server.tls_key) holds no unencrypted PEM private key"),
            (&cert, &other_key, "other.key` (server.tls_key) does not belong to the first certificate"),
        ] {
            let error = config(cert, key).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.chain().contains(expected), "{}", error.chain());
        }
    }

    #[test]
    fn the_operators_certificate_is_for_those_who_name_a_host_and_our_own_for_this_machine() {
        let (dir, company) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Arc::new(Authority::open_or_create(dir.path()).unwrap());
        let company_ca = Authority::open_or_create(company.path()).unwrap();
        let leaf = company_ca.leaf(&["trainyard.example.org".into()]).unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        fs::write(&cert, leaf.chain_pem()).unwrap();
        fs::write(&key, leaf.key_pem()).unwrap();
        let config = server_config(&authority, &files(&cert, &key)).unwrap();
        assert!(accepts(&company_ca, &config, "trainyard.example.org"));
        assert!(!accepts(&authority, &config, "trainyard.example.org"));
        assert!(accepts(&authority, &config, "localhost") && accepts(&authority, &config, "127.0.0.1"));
    }

    /// `openssl verify -x509_strict` makes the checks of Python 3.13's `VERIFY_X509_STRICT`.
    #[test]
    fn openssl_in_strict_mode_accepts_a_leaf_for_a_name_and_for_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path()).unwrap();
        let leaf = authority.leaf(&["login.microsoftonline.com".into(), "127.0.0.1".into()]).unwrap();
        let (ca, cert) = (dir.path().join("tls/ca.pem"), dir.path().join("leaf.pem"));
        fs::write(&cert, leaf.chain_pem()).unwrap();
        for check in [["-verify_hostname", "login.microsoftonline.com"], ["-verify_ip", "127.0.0.1"]] {
            let mut openssl = Command::new("openssl");
            openssl.args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]).arg(&ca).args(check).arg(&cert);
            // Not every machine has the tool; the tests with Python clients make the same checks.
            let Ok(output) = openssl.output() else { return };
            assert!(output.status.success(), "{output:?}");
        }
    }
}
