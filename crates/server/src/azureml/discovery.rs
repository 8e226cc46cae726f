//! Where the services are: the cloud metadata document (azureml-wire A.5) and the discovery document (B.3). Public, and the
//! same for everyone.
//!
//! A client that came under one of Azure's own host names (`trainyard exec` answers for them) is told Azure's names, so that it stays under
//! them; everyone else is told the host that they used.

use axum::{
    Json,
    extract::{FromRequestParts, State},
};
use http::request::Parts;
use std::convert::Infallible;
use trainyard_wire::azureml::arm::{Cloud, CloudAuthentication, CloudSuffixes, Discovery};

use crate::{context::base_url, state::AppState};

const LOGIN: &str = "https://login.microsoftonline.com";
const MANAGEMENT: &str = "https://management.azure.com";
/// Host names, or their endings, that this server answers for under `trainyard exec`.
const PUBLIC_HOSTS: [&str; 2] = ["management.azure.com", "login.microsoftonline.com"];
const PUBLIC_ENDINGS: [&str; 2] = [".api.azureml.ms", ".experiments.azureml.net"];

/// The URL that the client used, for public addresses, where there is no caller.
pub(crate) struct BaseUrl(pub String);

impl FromRequestParts<AppState> for BaseUrl {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        Ok(Self(base_url(parts, state)))
    }
}

/// `GET /metadata/endpoints`
pub(crate) async fn cloud_metadata(BaseUrl(base_url): BaseUrl) -> Json<Vec<Cloud>> {
    let public = is_public(&base_url);
    let (login_endpoint, resource_manager, storage) = if public {
        (LOGIN.to_owned(), MANAGEMENT.to_owned(), "core.windows.net".to_owned())
    } else {
        (base_url.clone(), base_url.clone(), base_url.trim_start_matches("https://").to_owned())
    };
    // Named as the public cloud, because several classes of the SDK default to that name.
    Json(vec![Cloud {
        name: "AzureCloud".into(),
        portal: if public { "https://portal.azure.com".into() } else { base_url },
        authentication: CloudAuthentication {
            login_endpoint,
            audiences: vec!["https://management.core.windows.net/".into(), "https://management.azure.com/".into()],
            tenant: "common".into(),
            identity_provider: "AAD".into(),
        },
        resource_manager,
        graph_audience: "https://graph.windows.net/".into(),
        suffixes: CloudSuffixes {
            storage,
            acr_login_server: "azurecr.io".into(),
            key_vault_dns: "vault.azure.net".into(),
            sql_server_hostname: "database.windows.net".into(),
        },
    }])
}

/// `GET /discovery` and `GET /discovery/workspaces/{id}`: every service is this server.
pub(crate) async fn services(State(state): State<AppState>, BaseUrl(base_url): BaseUrl) -> Json<Discovery> {
    Json(Discovery::all_at(&data_plane_url(&base_url, &state.settings.region)))
}

/// Where the data plane is, for a client that used `base_url`.
pub(crate) fn data_plane_url(base_url: &str, region: &str) -> String {
    if is_public(base_url) { format!("https://{region}.api.azureml.ms") } else { base_url.to_owned() }
}

fn is_public(base_url: &str) -> bool {
    let host = base_url.trim_start_matches("https://").split(':').next().unwrap_or_default().to_ascii_lowercase();
    PUBLIC_HOSTS.contains(&host.as_str()) || PUBLIC_ENDINGS.iter().any(|ending| host.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_stay_under_the_names_that_they_used() {
        let table = [
            ("https://management.azure.com", "https://local.api.azureml.ms"),
            ("https://local.api.azureml.ms", "https://local.api.azureml.ms"),
            ("https://eastus.experiments.azureml.net:443", "https://local.api.azureml.ms"),
            ("https://localhost:8443", "https://localhost:8443"),
            ("https://api.azureml.ms.example.org", "https://api.azureml.ms.example.org"),
        ];
        for (base_url, expected) in table {
            assert_eq!(data_plane_url(base_url, "local"), expected);
        }
    }
}
