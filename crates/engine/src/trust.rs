//! Which certificates a process around Trainyard trusts: the system's roots plus the server's private CA, as one
//! PEM file that `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE` can name.
//!
//! Those variables replace a program's own list instead of adding to it, hence the system's roots in the file. The
//! CA itself, its key and the certificates it issues belong to the server crate; here it is only text.
//!
//! A bundle is replaced whole (write, fsync, rename), and only when its content changes, so that a program that is
//! reading it never sees half of it.

use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use trainyard_core::{Error, ErrorKind, Result};
use uuid::Uuid;

/// Where the bundle lies below a data directory.
const BUNDLE: &str = "tls/bundle.pem";

/// Stands in every bundle before the private CA; what follows it is ours and not the system's.
const OWN_PART: &str = "# The private CA of this Trainyard server:\n";

/// Brings `DIR/tls/bundle.pem` up to date (system roots and then the CA `ca_pem`) and gives its path.
///
/// `dir` is a data directory, or for an agent its own folder. The system's roots are those that `SSL_CERT_FILE` and
/// `SSL_CERT_DIR` name, else the platform's. A machine without any gets a bundle of the CA alone, with a warning in the log.
pub fn bundle(dir: &Path, ca_pem: &str) -> Result<PathBuf> {
    let path = dir.join(BUNDLE);
    write_bundle(&path, ca_pem, &[])?;
    Ok(path)
}

/// Like [`bundle`], at `path`, and with the certificates of the files or folders `extra` added to the system's.
pub fn write_bundle(path: &Path, ca_pem: &str, extra: &[PathBuf]) -> Result<()> {
    let folder = path.parent().ok_or_else(|| Error::invalid(format!("`{}` cannot hold a CA bundle: it has no folder", path.display())))?;
    let text = bundle_text(system_roots(folder, extra), ca_pem)?;
    if fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(());
    }
    fs::create_dir_all(folder).map_err(|error| cannot_write(folder, error))?;
    replace_file(path, text.as_bytes(), Access::Everyone)
}

/// The certificates in some PEM text, at least one; `what` names the text in the error.
pub fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| Error::invalid(format!("{what} is not valid PEM")).with_source(error))?;
    if certificates.is_empty() {
        return Err(Error::invalid(format!("{what} holds no PEM certificate (`-----BEGIN CERTIFICATE-----`)")));
    }
    Ok(certificates)
}

/// Who may read a file that [`replace_file`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The owner alone (mode 0600).
    Owner,
    /// Everyone the folder lets in (mode 0644).
    Everyone,
}

/// Puts `content` at `path` in one step that a crash cannot split: a new file beside it, fsync, rename, fsync of the folder.
pub fn replace_file(path: &Path, content: &[u8], access: Access) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let staged = path.with_file_name(format!(".{name}.{}.tmp", Uuid::new_v4().simple()));
    write_and_rename(&staged, path, content, access).map_err(|error| {
        // What is left of a failed write would only lie about; the error that counts is the first one.
        let _ = fs::remove_file(&staged);
        cannot_write(path, error)
    })
}

fn write_and_rename(staged: &Path, path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    let mode = match access {
        Access::Owner => 0o600,
        Access::Everyone => 0o644,
    };
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(staged)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(staged, path)?;
    fs::File::open(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
}

fn cannot_write(path: &Path, error: io::Error) -> Error {
    let kind = if error.kind() == io::ErrorKind::StorageFull { ErrorKind::StorageFull } else { ErrorKind::Internal };
    Error::new(kind, format!("cannot write `{}`", path.display())).with_source(error)
}

/// The system's roots, then those of `extra`. Bundles that lie in `own_folder` count only up to our own part.
fn system_roots(own_folder: &Path, extra: &[PathBuf]) -> Vec<CertificateDer<'static>> {
    let configured = env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    // A server started by a program that itself runs under our bundle must not take the bundle for the system's
    // roots: a CA that has since been replaced would stay in it for ever.
    let mut roots = match configured.as_deref().and_then(|file| foreign_part(own_folder, file)) {
        Some(text) => CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok).collect(),
        None => read_logged(rustls_native_certs::load_native_certs()),
    };
    for path in extra {
        match foreign_part(own_folder, path) {
            Some(text) => roots.extend(CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok)),
            None if path.is_dir() => roots.extend(read_logged(rustls_native_certs::load_certs_from_paths(None, Some(path)))),
            None => roots.extend(read_logged(rustls_native_certs::load_certs_from_paths(Some(path), None))),
        }
    }
    if roots.is_empty() {
        tracing::warn!("no CA certificates of the system were found; programs that use the bundle will trust this server only");
    }
    roots
}

fn read_logged(found: rustls_native_certs::CertificateResult) -> Vec<CertificateDer<'static>> {
    for error in &found.errors {
        tracing::warn!(%error, "some of the system's CA certificates could not be read and are left out of the bundle");
    }
    found.certs
}

/// What `file` holds before our own part, if it is a bundle in `own_folder`; `None` for any other file.
fn foreign_part(own_folder: &Path, file: &Path) -> Option<String> {
    let (own_folder, file) = (own_folder.canonicalize().ok()?, file.canonicalize().ok()?);
    if file.parent() != Some(own_folder.as_path()) {
        return None;
    }
    let text = fs::read_to_string(file).ok()?;
    text.split_once(OWN_PART).map(|(foreign, _)| foreign.to_owned())
}

fn bundle_text(mut roots: Vec<CertificateDer<'static>>, ca_pem: &str) -> Result<String> {
    let own = certificates(ca_pem, "the CA certificate")?;
    // Sorted, so that the order in which a folder is listed does not make a new file.
    roots.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    roots.dedup();
    roots.retain(|root| !own.contains(root));
    let mut text = String::from("# Written by Trainyard, and again whenever one of its sources changes: edits are lost.\n");
    for root in &roots {
        push_pem(&mut text, root);
    }
    text.push_str(OWN_PART);
    for certificate in &own {
        push_pem(&mut text, certificate);
    }
    Ok(text)
}

fn push_pem(text: &mut String, certificate: &CertificateDer<'_>) {
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    let encoded = BASE64.encode(certificate);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// PEM around some bytes: the bundle does not look into its certificates.
    fn fake_certificate(content: &[u8]) -> String {
        let mut text = String::new();
        push_pem(&mut text, &CertificateDer::from(content.to_vec()));
        text
    }

    fn contents(path: &Path) -> Vec<Vec<u8>> {
        CertificateDer::pem_file_iter(path).unwrap().map(|certificate| certificate.unwrap().to_vec()).collect()
    }

    #[test]
    fn a_bundle_ends_with_the_ca_and_holds_the_extra_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let extra = dir.path().join("company.pem");
        fs::write(&extra, fake_certificate(b"company")).unwrap();
        let path = dir.path().join("tls/bundle.pem");
        write_bundle(&path, &fake_certificate(&[7; 100]), &[extra]).unwrap();
        let contents = contents(&path);
        assert_eq!(contents.last().unwrap(), &vec![7; 100]);
        assert!(contents.contains(&b"company".to_vec()));
    }

    #[test]
    fn an_unchanged_bundle_is_left_alone_and_a_new_ca_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = bundle(dir.path(), &fake_certificate(b"old")).unwrap();
        let first = fs::metadata(&path).unwrap().ino();
        bundle(dir.path(), &fake_certificate(b"old")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), first);

        bundle(dir.path(), &fake_certificate(b"new")).unwrap();
        assert_ne!(fs::metadata(&path).unwrap().ino(), first);
        assert_eq!(contents(&path).last().unwrap(), b"new");
        assert!(!contents(&path).contains(&b"old".to_vec()));
        assert_eq!(fs::read_dir(dir.path().join("tls")).unwrap().count(), 1, "no staged file is left");
    }

    #[test]
    fn our_own_bundle_as_a_source_does_not_keep_a_ca_that_was_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let company = dir.path().join("company.pem");
        fs::write(&company, fake_certificate(b"company")).unwrap();
        let outer = dir.path().join("tls/outer.pem");
        write_bundle(&outer, &fake_certificate(b"old"), &[company]).unwrap();

        let inner = dir.path().join("tls/inner.pem");
        write_bundle(&inner, &fake_certificate(b"new"), &[outer]).unwrap();
        let contents = contents(&inner);
        assert!(contents.contains(&b"company".to_vec()), "what was not ours is kept");
        assert!(!contents.contains(&b"old".to_vec()));
    }

    #[test]
    fn a_ca_text_without_a_certificate_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let error = bundle(dir.path(), "hello").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains("holds no PEM certificate"), "{error}");
        assert!(!dir.path().join("tls").exists());
    }

    #[test]
    fn a_private_file_is_private_from_its_first_byte_and_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "open to all").unwrap();
        replace_file(&path, b"secret", Access::Owner).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&path).unwrap(), b"secret");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named_with_the_reason() {
        let error = replace_file(Path::new("/proc/nowhere/ca.pem"), b"", Access::Everyone).unwrap_err();
        assert!(error.message().contains("cannot write `/proc/nowhere/ca.pem`"), "{error}");
    }
}
