//! The private CA: made once on first start, kept in `DIR/tls`, and asked for leaves from then on.
//!
//! `ca.key` (mode 0600) is written before `ca.pem`, each in one step and both under a lock that ends with its process.
//! So two first starts at once end with one CA, and a crash between the two files leaves a key that the next start
//! makes the certificate for. A key that is gone is never made again behind the operator's back: everyone who trusts
//! the old certificate would stop working without a word.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp, ToSpan, civil::Date, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};
use trainyard_core::{Error, ErrorKind, Result};
use trainyard_engine::trust::{self, Access};

/// How long a leaf is good from the moment it is asked for. With the day before, for clocks that are behind, it stays
/// below the 398 days that browsers accept.
pub const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(390 * 24);

/// How long the CA is good: longer than its machine.
const CA_YEARS: i64 = 30;

/// A certificate and its private key.
pub struct Leaf {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: KeyPair,
    key_pem: String,
}

impl Leaf {
    /// The certificate alone, as PEM; clients have the CA already.
    pub fn chain_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key, PKCS #8 as PEM. Secret.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The pair as rustls wants it.
    pub fn certified_key(&self) -> Result<CertifiedKey> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        CertifiedKey::from_der(vec![self.certificate.clone()], key, &super::provider()).map_err(Error::internal)
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("certificate", &fingerprint(&self.certificate)).finish_non_exhaustive()
    }
}

/// The private CA of one data directory.
pub struct Authority {
    dir: PathBuf,
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("dir", &self.dir).field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

impl Authority {
    /// Opens the CA in `DIR/tls`, making it if there is none. `dir` is the data directory.
    ///
    /// Fails when the files are unreadable, do not belong together, or the key of a present certificate is gone.
    pub fn open_or_create(dir: &Path) -> Result<Self> {
        let tls = dir.join("tls");
        fs::create_dir_all(&tls).map_err(|error| broken(format!("cannot make the folder `{}`", tls.display())).with_source(error))?;
        let _lock = lock(&tls)?;
        let (cert_path, key_path) = (tls.join("ca.pem"), tls.join("ca.key"));
        if !key_path.exists() {
            if cert_path.exists() {
                return Err(key_gone(&cert_path, &key_path));
            }
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::internal)?;
            trust::replace_file(&key_path, key.serialize_pem().as_bytes(), Access::Owner)?;
        }
        if !cert_path.exists() {
            let key = read_key(&key_path)?;
            let certificate = ca_params(&key, Timestamp::now()).self_signed(&key).map_err(Error::internal)?;
            trust::replace_file(&cert_path, certificate.pem().as_bytes(), Access::Everyone)?;
            tracing::info!(path = %cert_path.display(), fingerprint = fingerprint(certificate.der()), "made a private CA");
        }
        Self::open_beside(&cert_path)
    }

    /// Opens the CA whose certificate is the file `ca_cert` and whose key is `ca.key` beside it, making nothing.
    ///
    /// [`ErrorKind::NotFound`] or [`ErrorKind::Forbidden`] if a file is absent or not readable.
    pub fn open_beside(ca_cert: &Path) -> Result<Self> {
        let key_path = ca_cert.with_file_name("ca.key");
        let pem = read_text(ca_cert, "the CA certificate")?;
        let certificate = trust::certificates(&pem, &format!("the CA certificate `{}`", ca_cert.display()))?.swap_remove(0);
        let key = read_key(&key_path)?;
        let unusable = || format!("`{}` and `{}` cannot be used as a CA", ca_cert.display(), key_path.display());
        let pair = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        CertifiedKey::from_der(vec![certificate.clone()], pair, &super::provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                broken(format!("{}: the key is not that of the certificate; restore the pair from a backup", unusable()))
            }
            error => broken(unusable()).with_source(error),
        })?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| broken(unusable()).with_source(error))?;
        let dir = ca_cert.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self { dir, certificate, pem, issuer })
    }

    /// The folder that the CA's files are in (`DIR/tls`).
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The CA's certificate as PEM, as clients get it.
    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` shows it: pairs of upper-case digits with colons.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// A new leaf for a TLS server with these DNS names and IP addresses, good from yesterday for [`LEAF_LIFETIME`].
    ///
    /// [`ErrorKind::Invalid`] if there is no name or one of them cannot stand in a certificate.
    pub fn leaf(&self, names: &[String]) -> Result<Leaf> {
        self.leaf_at(names, Timestamp::now())
    }

    /// [`Authority::leaf`] as of `now`.
    pub fn leaf_at(&self, names: &[String], now: Timestamp) -> Result<Leaf> {
        if names.is_empty() {
            return Err(Error::invalid("a certificate needs at least one host name or IP address"));
        }
        let mut params = CertificateParams::new(names).map_err(|error| {
            Error::invalid(format!("not all of `{}` can be host names in a certificate", names.join("`, `"))).with_source(error)
        })?;
        params.distinguished_name = DistinguishedName::new();
        // Clients look at the alternative names only. The common name is for people, and is limited to 64 characters.
        params.distinguished_name.push(DnType::CommonName, "Trainyard server");
        set_validity(&mut params, utc_date(now - SignedDuration::from_hours(24)), utc_date(now + LEAF_LIFETIME));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Python 3.13 checks as RFC 5280 says and refuses a leaf without it.
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::internal)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(Error::internal)?;
        let key_pem = key.serialize_pem();
        Ok(Leaf { certificate_pem: certificate.pem(), certificate: certificate.into(), key, key_pem })
    }
}

/// Keeps other processes from writing in the TLS folder `dir` until it is dropped; waits for one that does.
pub(super) fn lock(dir: &Path) -> Result<fs::File> {
    let path = dir.join(".lock");
    let locked = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path).and_then(|file| file.lock().map(|()| file));
    locked.map_err(|error| broken(format!("cannot lock `{}`", path.display())).with_source(error))
}

fn ca_params(key: &KeyPair, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Trainyard");
    // Two CAs with one name in a bundle would make clients guess which of them signed.
    let distinct = hex::encode(&Sha256::digest(key.public_key_raw())[..4]);
    params.distinguished_name.push(DnType::CommonName, format!("Trainyard private CA {distinct}"));
    let today = utc_date(now);
    set_validity(&mut params, today.saturating_sub(1.day()), today.saturating_add(CA_YEARS.years()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn utc_date(time: Timestamp) -> Date {
    time.to_zoned(TimeZone::UTC).date()
}

/// Certificates begin and end at midnight (UTC): a date says enough about them.
fn set_validity(params: &mut CertificateParams, first: Date, last: Date) {
    let [from, to] = [first, last].map(|date| date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs()));
    (params.not_before, params.not_after) = (from, to);
}

fn read_key(path: &Path) -> Result<KeyPair> {
    let text = read_text(path, "the CA's private key")?;
    KeyPair::from_pem(&text)
        .map_err(|error| broken(format!("`{}` does not hold a private key; restore it from a backup", path.display())).with_source(error))
}

fn read_text(path: &Path, what: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::Forbidden,
            _ => ErrorKind::Internal,
        };
        Error::new(kind, format!("cannot read {what} `{}`", path.display())).with_source(error)
    })
}

fn key_gone(cert_path: &Path, key_path: &Path) -> Error {
    let (cert, key) = (cert_path.display(), key_path.display());
    broken(format!(
        "the private key `{key}` of the CA `{cert}` is gone: restore it from a backup, or delete `{cert}` to have a new CA made, which every client must then be given"
    ))
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let pairs: Vec<String> = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

/// The failure to do something with one of our own files: the operator can mend it, a caller cannot.
fn broken(message: String) -> Error {
    Error::new(ErrorKind::Internal, message)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, thread};

    use super::*;

    #[test]
    fn a_ca_is_made_once_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open_or_create(dir.path()).unwrap();
        let second = Authority::open_or_create(dir.path()).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.fingerprint().len(), 32 * 3 - 1);
        let mode = |name: &str| fs::metadata(dir.path().join("tls").join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("ca.key"), mode("ca.pem")), (0o600, 0o644));
    }

    #[test]
    fn first_starts_at_the_same_time_end_with_one_ca() {
        let dir = tempfile::tempdir().unwrap();
        let fingerprints: Vec<_> = thread::scope(|scope| {
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| Authority::open_or_create(dir.path()).unwrap().fingerprint())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(fingerprints.iter().all(|one| *one == fingerprints[0]), "{fingerprints:?}");
    }

    #[test]
    fn a_crash_between_key_and_certificate_is_made_good_with_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        Authority::open_or_create(dir.path()).unwrap();
        let key = fs::read(dir.path().join("tls/ca.key")).unwrap();
        fs::remove_file(dir.path().join("tls/ca.pem")).unwrap();
        Authority::open_or_create(dir.path()).unwrap().leaf(&["localhost".into()]).unwrap();
        assert_eq!(fs::read(dir.path().join("tls/ca.key")).unwrap(), key);
    }

    #[test]
    fn a_lost_key_and_a_foreign_key_are_refused_and_nothing_is_replaced() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pem = Authority::open_or_create(dir.path()).unwrap().ca_pem().to_owned();
        Authority::open_or_create(other.path()).unwrap();

        fs::copy(other.path().join("tls/ca.key"), dir.path().join("tls/ca.key")).unwrap();
        let error = Authority::open_or_create(dir.path()).unwrap_err();
        assert!(error.message().contains("the key is not that of the certificate"), "{error}");

        fs::remove_file(dir.path().join("tls/ca.key")).unwrap();
        let error = Authority::open_or_create(dir.path()).unwrap_err();
        assert!(error.message().contains("is gone: restore it from a backup"), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("tls/ca.pem")).unwrap(), pem);

        let error = Authority::open_beside(&dir.path().join("tls/ca.pem")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn no_debug_output_shows_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path()).unwrap();
        let leaf = authority.leaf(&["localhost".into()]).unwrap();
        let shown = format!("{authority:?} {leaf:?}");
        assert!(shown.contains(&authority.fingerprint()) && !shown.contains("KEY") && !shown.contains("KeyPair"), "{shown}");
    }

    #[test]
    fn a_leaf_needs_names_that_can_stand_in_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path()).unwrap();
        for bad in [vec![], vec!["münchen.example".to_owned()]] {
            assert_eq!(authority.leaf(&bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }
}
