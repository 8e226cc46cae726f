//! Reading a lock that somebody gives along with a definition: whatever could be built as something else than it says, or lead a builder
//! out of its folder, is refused here. Whether the packages can be had is for the builder.

use serde_json::Value;

use super::{EnvironmentLock, LockedConda, LockedPackage};
use crate::{
    Error, ErrorKind, Result,
    environment::{PipLine, PythonVersion, requirement::hide_userinfo, requirement::normalised_name},
};

/// More packages than any environment has.
const MAX_PACKAGES: usize = 10_000;
/// The members of a lock; a member of a newer server could change what is built.
const MEMBERS: [&str; 7] = ["python", "packages", "builder", "platform", "conda", "image", "pip_options"];

impl EnvironmentLock {
    /// Reads a lock, the document that `trainyard environments lock` prints; `place` is where it stands, for messages.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for what is no lock or can not be meant, [`ErrorKind::Unsupported`] for members that this server does
    /// not know. The sentence never repeats credentials; the target of the error is the place.
    pub fn read(value: &Value, place: &str) -> Result<Self> {
        let about = |error: Error, inner: &str| {
            let at = if inner.is_empty() { place.to_owned() } else { format!("{place}.{inner}") };
            Error::new(error.kind(), format!("{at}: {}", error.message())).with_target(at)
        };
        let Some(members) = value.as_object() else {
            return Err(about(Error::invalid("expected a lock, the document that `trainyard environments lock` prints"), ""));
        };
        if let Some(unknown) = members.keys().find(|name| !MEMBERS.contains(&name.as_str())) {
            let sentence = format!("`{}` is not known to this server, which so cannot build exactly this", unknown.escape_debug());
            return Err(about(Error::new(ErrorKind::Unsupported, sentence), ""));
        }
        let lock: Self = serde_json::from_value(value.clone())
            .map_err(|error| about(Error::invalid(format!("this is not a lock: {}", hide_userinfo(&error.to_string()))), ""))?;
        if lock.packages.len() + lock.conda.len() > MAX_PACKAGES {
            return Err(about(Error::invalid(format!("a lock has at most {MAX_PACKAGES} packages")), ""));
        }
        lock.python.parse::<PythonVersion>().map_err(|error| about(error, "python"))?;
        names_once(lock.packages.iter().map(|package| normalised_name(&package.name))).map_err(|error| about(error, "packages"))?;
        names_once(lock.conda.iter().map(|package| package.name.clone())).map_err(|error| about(error, "conda"))?;
        for (index, package) in lock.packages.iter().enumerate() {
            check_package(package).map_err(|error| about(error, &format!("packages[{index}]")))?;
        }
        for (index, package) in lock.conda.iter().enumerate() {
            check_conda(package).map_err(|error| about(error, &format!("conda[{index}]")))?;
        }
        for (index, option) in lock.pip_options.iter().enumerate() {
            check_option(option).map_err(|error| about(error, &format!("pip_options[{index}]")))?;
        }
        if let Some(image) = &lock.image {
            check_digest(&image.digest, "sha256:").map_err(|error| about(error, "image.digest"))?;
            check_word(&image.reference, "reference").map_err(|error| about(error, "image.reference"))?;
        }
        Ok(lock)
    }
}

fn names_once(names: impl Iterator<Item = String>) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if seen.contains(&name) {
            return Err(Error::invalid(format!("`{name}` is listed twice")));
        }
        seen.insert(name);
    }
    Ok(())
}

/// Read as the requirement that it stands for, so that the rules for names, versions, URLs and credentials are the same.
fn check_package(package: &LockedPackage) -> Result<()> {
    check_word(&package.version, "version")?;
    if !package.version.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '!' | '-' | '_')) {
        return Err(Error::invalid(format!("`{}` is not a version", hide_userinfo(&package.version))));
    }
    let requirement = match &package.url {
        Some(url) => format!("{} @ {url}", package.name),
        None => format!("{}=={}", package.name, package.version),
    };
    let name = normalised_name(&package.name);
    match PipLine::parse(&requirement)? {
        PipLine::Requirement(text) if text.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with(['=', ' ', '@'])) => {}
        _ => return Err(Error::invalid(format!("`{}` is not the name of a package", hide_userinfo(&package.name)))),
    }
    for hash in &package.hashes {
        let known = [("sha256:", 64), ("sha384:", 96), ("sha512:", 128)];
        let fits = |(algorithm, digits): &(&str, usize)| hash.strip_prefix(algorithm).is_some_and(|text| is_hex(text, *digits));
        if !known.iter().any(fits) {
            return Err(Error::invalid("a hash is `sha256:`, `sha384:` or `sha512:` and as many hexadecimal digits as that has"));
        }
    }
    Ok(())
}

fn check_conda(package: &LockedConda) -> Result<()> {
    for (text, what) in [(&package.name, "name"), (&package.version, "version"), (&package.build, "build")] {
        check_word(text, what)?;
        if text.contains(['/', '\\']) || text.starts_with('.') {
            return Err(Error::invalid(format!("`{}` is not a {what} of a conda package", hide_userinfo(text))));
        }
    }
    let url = &package.url;
    // A token may be a part of the path (`/t/TOKEN/channel`), so only the end of such a URL is repeated.
    let shown = match url.rsplit_once("/t/") {
        Some((_, rest)) => format!("…/{}", rest.rsplit('/').next().unwrap_or_default()),
        None => hide_userinfo(url),
    };
    if shown != *url {
        return Err(Error::new(ErrorKind::Unsupported, format!("`{shown}` carries credentials, which would be stored with the run")));
    }
    let file = url.rsplit('/').next().unwrap_or_default();
    let scheme = ["https://", "http://", "file://"].iter().any(|scheme| url.starts_with(scheme));
    let package_file = file.ends_with(".conda") || file.ends_with(".tar.bz2");
    if !scheme || !package_file || url.chars().any(|c| c.is_whitespace() || c.is_control()) || url.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!("`{shown}` is not the URL of a conda package (a `.conda` or `.tar.bz2` file)")));
    }
    match &package.sha256 {
        Some(sha256) => check_digest(sha256, ""),
        None => Ok(()),
    }
}

fn check_option(option: &str) -> Result<()> {
    match PipLine::parse(option)? {
        PipLine::Options(_) => Ok(()),
        _ => Err(Error::invalid(format!("`{}` is not an option of pip", hide_userinfo(option)))),
    }
}

fn check_digest(text: &str, prefix: &str) -> Result<()> {
    match text.strip_prefix(prefix) {
        Some(digits) if is_hex(digits, 64) => Ok(()),
        _ => Err(Error::invalid(format!("a digest is `{prefix}` and 64 hexadecimal digits"))),
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn check_word(text: &str, what: &str) -> Result<()> {
    if text.is_empty() || text.len() > 500 || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Error::invalid(format!("the {what} is empty, too long, or holds a space")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn whole() -> Value {
        json!({
            "python": "3.11.7",
            "builder": "uv 0.9.1",
            "platform": "linux-x86_64-glibc-2.36",
            "packages": [
                { "name": "six", "version": "1.16.0", "hashes": [format!("sha256:{}", "a".repeat(64))] },
                { "name": "ours", "version": "2.0", "url": "git+https://git.example/ours@0123456789abcdef0123456789abcdef01234567" },
            ],
            "conda": [
                { "name": "python", "version": "3.11.7", "build": "h_0", "url": "https://c.example/linux-64/python-3.11.7-h_0.conda", "sha256": "b".repeat(64) },
                { "name": "zlib", "version": "1.3", "build": "0", "url": "file:///srv/c/linux-64/zlib-1.3-0.tar.bz2" },
            ],
            "image": { "reference": "registry.example/team/image:1", "digest": format!("sha256:{}", "c".repeat(64)) },
            "pip_options": ["--extra-index-url https://index.example/simple"],
        })
    }

    #[test]
    fn a_lock_that_was_printed_is_read_back() {
        let lock = EnvironmentLock::read(&whole(), "Lock").unwrap();
        assert_eq!((lock.packages.len(), lock.conda.len()), (2, 2));
        let printed = serde_json::to_value(&lock).unwrap();
        assert_eq!(EnvironmentLock::read(&printed, "Lock").unwrap(), lock);
    }

    #[test]
    fn what_is_no_lock_is_refused_with_its_place() {
        let with = |pointer: &str, value: Value| {
            let mut lock = whole();
            *lock.pointer_mut(pointer).unwrap() = value;
            lock
        };
        let mut unknown = whole();
        unknown["wheels"] = json!([]);
        let table = [
            (json!("lock"), "Lock", "expected a lock"),
            (json!({}), "Lock", "not a lock"),
            (unknown, "Lock", "`wheels` is not known"),
            (with("/python", json!("three")), "Lock.python", ""),
            (with("/packages/0/name", json!("../six")), "Lock.packages[0]", ""),
            (with("/packages/0/name", json!("-e")), "Lock.packages[0]", ""),
            (with("/packages/0/version", json!("1.16.0 --index-url https://x")), "Lock.packages[0]", "version"),
            (with("/packages/0/version", json!("1.16.0,<3")), "Lock.packages[0]", ""),
            (with("/packages/0/hashes/0", json!("md5:00")), "Lock.packages[0]", "hash"),
            (with("/packages/1/name", json!("SIX")), "Lock.packages", "listed twice"),
            (with("/packages/1/url", json!("https://u:hunter2@x.example/a.whl")), "Lock.packages[1]", "credentials"),
            (with("/conda/0/name", json!("../python")), "Lock.conda[0]", "name"),
            (with("/conda/0/build", json!("../../x")), "Lock.conda[0]", "build"),
            (with("/conda/0/url", json!("https://u:hunter2@c.example/a-1-0.conda")), "Lock.conda[0]", "credentials"),
            (with("/conda/0/url", json!("https://c.example/t/hunter2/a-1-0.conda")), "Lock.conda[0]", "credentials"),
            (with("/conda/0/url", json!("ftp://c.example/a-1-0.conda")), "Lock.conda[0]", "URL of a conda package"),
            (with("/conda/0/url", json!("https://c.example/../a-1-0.conda")), "Lock.conda[0]", "URL of a conda package"),
            (with("/conda/0/sha256", json!("B".repeat(64))), "Lock.conda[0]", "digest"),
            (with("/image/digest", json!("sha256:1")), "Lock.image.digest", "digest"),
            (with("/pip_options/0", json!("six")), "Lock.pip_options[0]", "option"),
            (with("/pip_options/0", json!("-i https://u:hunter2@x.example/simple")), "Lock.pip_options[0]", "credentials"),
        ];
        for (value, target, words) in table {
            let error = EnvironmentLock::read(&value, "Lock").expect_err(target);
            assert_eq!(error.target(), Some(target), "{error}");
            assert!(error.message().starts_with(target) && error.message().contains(words), "{error}");
            assert!(!error.message().contains("hunter2"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_in_a_lock_breaks_the_reader(name in ".{0,40}", version in ".{0,20}", url in ".{0,60}") {
            let lock = json!({
                "python": "3.11", "builder": "", "packages": [{ "name": name, "version": version, "url": url }],
                "conda": [{ "name": name, "version": version, "build": version, "url": url }],
            });
            if let Ok(lock) = EnvironmentLock::read(&lock, "Lock") {
                prop_assert!(!lock.conda[0].name.contains('/') && lock.conda[0].url.contains("://"));
            }
        }
    }
}
