//! Which hosts `exec` answers for. Data in, data out.
//!
//! The list is closed: a host that is not on it is never looked into. The audiences of tokens
//! (`management.core.windows.net`, `graph.windows.net`) are names in requests and not hosts that the SDK calls.

/// Hosts that are answered under exactly this name.
const EXACT: [&str; 2] = ["login.microsoftonline.com", "management.azure.com"];

/// Domains of which every subdomain is answered (azureml-wire 0, E.1).
const SUBDOMAINS_OF: [&str; 3] = ["api.azureml.ms", "experiments.azureml.net", "blob.core.windows.net"];

/// The only port that is answered; the same host on another port is somebody else's.
const PORT: u16 = 443;

/// Whether a connection to `host` and `port` is answered by the Trainyard server.
pub fn is_answered(host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let below = |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
    port == PORT && (EXACT.contains(&host.as_str()) || SUBDOMAINS_OF.iter().any(|domain| below(domain)))
}

/// Whether an entry of `NO_PROXY` would lead a program past the proxy for a host that is to be answered.
///
/// Programs differ in how they read entries; this goes by the widest reading, plain suffixes as in Python's urllib.
pub fn bypasses(entry: &str) -> bool {
    let entry = entry.trim().to_ascii_lowercase();
    let entry =
        entry.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())).map_or(entry.as_str(), |(host, _)| host);
    let entry = entry.trim_start_matches(['*', '.']).trim_end_matches('.');
    EXACT.iter().any(|host| host.ends_with(entry)) || SUBDOMAINS_OF.iter().any(|domain| domain.ends_with(entry) || entry.ends_with(domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_of_azure_ml_are_answered_and_no_others() {
        for host in [
            "login.microsoftonline.com",
            "Login.MicrosoftOnline.com.",
            "management.azure.com",
            "westeurope.api.azureml.ms",
            "westeurope.experiments.azureml.net",
            "account.blob.core.windows.net",
        ] {
            assert!(is_answered(host, 443), "{host}");
        }
        for host in [
            "microsoftonline.com",
            "device.login.microsoftonline.com",
            "api.azureml.ms",
            ".api.azureml.ms",
            "evilapi.azureml.ms",
            "westeurope.api.azureml.ms.example.org",
            "management.core.windows.net",
            "account.file.core.windows.net",
            "example.org",
            "127.0.0.1",
            "",
        ] {
            assert!(!is_answered(host, 443), "{host}");
        }
        assert!(!is_answered("management.azure.com", 8443));
    }

    #[test]
    fn only_no_proxy_entries_that_would_hide_an_answered_host_count() {
        for entry in
            ["*", ".azure.com", "*.core.windows.net", "microsoftonline.com", "management.azure.com:443", "a.blob.core.windows.net", " .MS "]
        {
            assert!(bypasses(entry), "{entry}");
        }
        for entry in ["localhost", "127.0.0.1", "10.0.0.0/8", "::1", "example.org", "vault.azure.net", "other.azure.com"] {
            assert!(!bypasses(entry), "{entry}");
        }
    }
}
