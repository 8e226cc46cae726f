//! What tokens of applications are for (azureml-wire A.3).
//!
//! Clients ask for tokens for Azure's management or machine-learning API, or for this server by its own URL; it is the same token to us.
//! The audience is kept as the client wrote it, because clients compare it, and is compared without case and slashes at the end.

/// Resources that clients written for Azure ask for.
const KNOWN: [&str; 3] = ["https://management.azure.com", "https://management.core.windows.net", "https://ml.azure.com"];

/// Scopes of OpenID Connect that say nothing about a resource; clients add them out of habit.
const IGNORED_SCOPES: [&str; 4] = ["openid", "profile", "email", "offline_access"];

/// The audience of run-scoped tokens; nobody can ask for it.
pub(crate) const RUN: &str = "urn:trainyard:run";

/// Whether a token may be for `resource`, given the URLs that this server goes by.
pub(crate) fn accepted(resource: &str, own_urls: &[&str]) -> bool {
    let resource = comparable(resource);
    KNOWN.iter().chain(own_urls).any(|known| comparable(known) == resource)
}

/// The resource in a `scope` of the v2 endpoint: exactly one `{resource}/.default`, where the resource may itself end in a slash.
pub(crate) fn of_scope(scope: &str) -> Option<&str> {
    let mut scopes = scope.split_whitespace().filter(|scope| !IGNORED_SCOPES.contains(scope));
    match (scopes.next(), scopes.next()) {
        (Some(only), None) => only.strip_suffix("/.default").filter(|resource| !resource.is_empty()),
        _ => None,
    }
}

fn comparable(resource: &str) -> String {
    resource.trim_end_matches('/').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_names_its_resource_with_or_without_a_slash() {
        let table = [
            ("https://management.azure.com/.default", Some("https://management.azure.com")),
            ("https://management.core.windows.net//.default", Some("https://management.core.windows.net/")),
            ("https://ml.azure.com/.default openid profile", Some("https://ml.azure.com")),
            ("https://ml.azure.com/user_impersonation", None),
            ("https://a/.default https://b/.default", None),
            ("/.default", None),
            ("", None),
        ];
        for (scope, resource) in table {
            assert_eq!(of_scope(scope), resource, "{scope}");
        }
    }

    #[test]
    fn the_resources_of_azure_and_the_own_url_are_accepted_and_nothing_else() {
        let own = ["https://localhost:8443/"];
        for fine in [
            "https://management.azure.com/",
            "https://management.azure.com",
            "https://MANAGEMENT.core.windows.net//",
            "https://ml.azure.com",
            "https://localhost:8443",
        ] {
            assert!(accepted(fine, &own), "{fine}");
        }
        for foreign in ["https://graph.microsoft.com", "https://localhost", "https://management.azure.com.evil.example", "", RUN] {
            assert!(!accepted(foreign, &own), "{foreign}");
        }
    }
}
