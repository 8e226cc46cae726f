//! The tenant in the path of token and discovery endpoints.
//!
//! A server has one tenant. Its GUID, the well-known aliases, and any domain name mean it: people write their own login's domain there
//! (`me.onmicrosoft.com`), which a server cannot know. Another GUID is surely another tenant.

use trainyard_core::ids::TenantId;
use uuid::Uuid;

const ALIASES: [&str; 3] = ["common", "organizations", ADFS];
/// The alias with the shorter addresses and the version-2 answers (azureml-wire A.2).
pub(crate) const ADFS: &str = "adfs";

/// Whether `name`, as written in a path, means the tenant `own`.
pub(crate) fn is_own(name: &str, own: TenantId) -> bool {
    match Uuid::parse_str(name) {
        Ok(id) => id == own.0,
        Err(_) => ALIASES.iter().any(|alias| alias.eq_ignore_ascii_case(name)) || is_domain(name),
    }
}

/// At least two labels of letters, digits and dashes.
fn is_domain(name: &str) -> bool {
    let label = |label: &str| !label.is_empty() && !label.starts_with('-') && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    name.len() <= 253 && name.contains('.') && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_guid_the_aliases_and_any_domain_mean_the_one_tenant() {
        let own = TenantId(Uuid::from_u128(7));
        for fine in ["00000000-0000-0000-0000-000000000007", "common", "Organizations", "adfs", "me.onmicrosoft.com", "my-company.example"]
        {
            assert!(is_own(fine, own), "{fine}");
        }
        for foreign in ["00000000-0000-0000-0000-000000000008", "acme", "", "a..b", ".com", "a b.com", "a.b/c"] {
            assert!(!is_own(foreign, own), "{foreign}");
        }
    }
}
