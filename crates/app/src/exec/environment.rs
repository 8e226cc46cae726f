//! The variables that a program under `exec` gets on top of what it inherits. Data in, data out.
//!
//! Proxy and trust variables are what requests, urllib, adal, msal, httpx, curl, pip, git and Go read; each proxy
//! variable is set in both spellings, since programs differ in which of the two wins.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::hosts;

/// The cloud metadata document (azureml-wire A.5) under its public name, so that the endpoints it names are public
/// ones too: hosts that `exec` answers.
const METADATA_URL: &str = "https://management.azure.com/metadata/endpoints?api-version=2019-05-01";

/// Always reached directly, beside the server itself.
const LOOPBACK: [&str; 4] = ["localhost", "127.0.0.1", "::1", "[::1]"];

/// Variables that name a CA file a program trusts instead of the system's.
const TRUST: [&str; 3] = ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"];

/// What the variables are made from.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The proxy with its credential: `http://user:password@127.0.0.1:port`.
    pub proxy_url: &'a str,
    /// The CA bundle: system roots and the private CA.
    pub bundle: &'a Path,
    /// Host of the Trainyard server, without port.
    pub server_host: &'a str,
}

/// The variables to set for the child; `inherited` looks one up in the environment that it would have without us.
pub fn variables(settings: Settings<'_>, inherited: impl Fn(&str) -> Option<OsString>) -> Vec<(&'static str, OsString)> {
    let no_proxy = no_proxy(settings.server_host, &inherited);
    let mut variables = Vec::new();
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"] {
        variables.push((name, settings.proxy_url.into()));
    }
    for name in ["NO_PROXY", "no_proxy"] {
        variables.push((name, no_proxy.clone().into()));
    }
    for name in TRUST {
        variables.push((name, settings.bundle.into()));
    }
    variables.push(("ARM_CLOUD_METADATA_URL", METADATA_URL.into()));
    variables
}

/// CA files and folders that the child would have trusted without us and must go on trusting, such as that of a
/// company's inspecting proxy. What `SSL_CERT_FILE` names is not among them: it counts as the system's roots.
pub fn inherited_trust(inherited: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let system = inherited("SSL_CERT_FILE").unwrap_or_default();
    let mut paths: Vec<PathBuf> = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
        .into_iter()
        .filter_map(inherited)
        .filter(|value| !value.is_empty() && *value != system)
        .map(PathBuf::from)
        .collect();
    paths.dedup();
    paths
}

/// The exceptions that were there, less those that would lead past the proxy for a host that it answers, plus ours.
/// What is dropped for the child still holds for the proxy itself, which reads our own environment.
fn no_proxy(server_host: &str, inherited: impl Fn(&str) -> Option<OsString>) -> String {
    let mut entries: Vec<String> = Vec::new();
    let mut add = |entry: &str| {
        if !entry.is_empty() && !entries.iter().any(|present| present == entry) {
            entries.push(entry.to_owned());
        }
    };
    for text in ["NO_PROXY", "no_proxy"].into_iter().filter_map(&inherited) {
        let text = text.to_string_lossy();
        text.split([',', ' ']).filter(|entry| !hosts::bypasses(entry)).for_each(&mut add);
    }
    LOOPBACK.into_iter().chain([server_host]).for_each(&mut add);
    entries.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings<'static> {
        Settings { proxy_url: "http://u:p@127.0.0.1:9", bundle: Path::new("/d/tls/bundle.pem"), server_host: "trainyard.example.org" }
    }

    fn value(variables: &[(&'static str, OsString)], name: &str) -> String {
        variables.iter().find(|(key, _)| *key == name).unwrap().1.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_program_gets_proxy_trust_and_metadata_in_every_spelling() {
        let variables = variables(settings(), |_| None);
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"] {
            assert_eq!(value(&variables, name), "http://u:p@127.0.0.1:9");
        }
        for name in ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"] {
            assert_eq!(value(&variables, name), "/d/tls/bundle.pem");
        }
        assert!(value(&variables, "ARM_CLOUD_METADATA_URL").starts_with("https://management.azure.com/metadata/endpoints?"));
        assert_eq!(value(&variables, "no_proxy"), "localhost,127.0.0.1,::1,[::1],trainyard.example.org");
        assert_eq!(value(&variables, "NO_PROXY"), value(&variables, "no_proxy"));
    }

    #[test]
    fn exceptions_are_kept_unless_they_would_lead_to_the_real_azure() {
        let variables = variables(settings(), |name| match name {
            "NO_PROXY" => Some("internal.example.org, .azure.com,localhost".into()),
            "no_proxy" => Some("10.0.0.0/8,*".into()),
            _ => None,
        });
        assert_eq!(value(&variables, "NO_PROXY"), "internal.example.org,localhost,10.0.0.0/8,127.0.0.1,::1,[::1],trainyard.example.org");
    }

    #[test]
    fn cas_that_the_program_trusted_before_are_carried_over() {
        let paths = inherited_trust(|name| match name {
            "REQUESTS_CA_BUNDLE" | "CURL_CA_BUNDLE" => Some("/etc/company.pem".into()),
            _ => Some("/elsewhere".into()),
        });
        assert_eq!(paths, [PathBuf::from("/etc/company.pem")]);
        for nothing_more in ["", "/etc/ssl/certs/ca-certificates.crt"] {
            assert!(inherited_trust(|_| Some(nothing_more.into())).is_empty());
        }
    }
}
