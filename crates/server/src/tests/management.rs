//! What clients ask before they do anything: clouds, subscriptions, workspaces, discovery, compute targets (azureml-wire A.5, B).

use axum::body::Body;
use http::{Request, StatusCode, header};
use serde_json::json;
use trainyard_core::access::Role;

use super::support::{HOST, TENANT, TestServer, add_workspace};

async fn get_as(server: &TestServer, host: &str, path: &str, token: &str) -> serde_json::Value {
    let request = Request::get(path).header(header::HOST, host).header(header::AUTHORIZATION, format!("Bearer {token}"));
    server.send(request.body(Body::empty()).unwrap()).await.json()
}

#[tokio::test]
async fn the_sdk_finds_subscription_workspace_discovery_and_targets() {
    let server = TestServer::start().await;
    let token = server.token(Role::Reader).await;
    let subscriptions = server.get("/subscriptions?api-version=2022-12-01", &token).await.json();
    assert_eq!(subscriptions["value"][0]["subscriptionId"], "s");
    assert_eq!(subscriptions["value"][0]["tenantId"], TENANT);
    assert_eq!(server.get("/subscriptions/S", &token).await.json()["id"], "/subscriptions/s");

    for path in [server.ws(), format!("/rp/workspaces{}", server.ws())] {
        let workspace = server.get(&format!("{path}?api-version=2022-05-01"), &token).await.json();
        assert_eq!((workspace["id"].as_str(), workspace["location"].as_str()), (Some(&*server.ws()), Some("local")));
        assert_eq!(workspace["properties"]["workspaceId"], server.workspace.id.to_string());
        let discovery = workspace["properties"]["discoveryUrl"].as_str().unwrap();
        let document = server.get(discovery.strip_prefix(&format!("https://{HOST}")).unwrap(), "").await.json();
        for service in ["api", "experimentation", "history", "hyperdrive", "modelmanagement", "studio"] {
            assert_eq!(document[service], format!("https://{HOST}"), "{service}");
        }
    }
    for path in [
        "/subscriptions/s/providers/microsoft.machinelearningservices/workspaces",
        "/subscriptions/s/resourceGroups/G/providers/Microsoft.MachineLearningServices/workspaces",
    ] {
        assert_eq!(server.get(path, &token).await.json()["value"].as_array().unwrap().len(), 1, "{path}");
    }

    let computes = format!("/rp/workspaces{}/computes", server.ws());
    let list = server.get(&format!("{computes}?api-version=2020-02-02"), &token).await.json();
    let names: Vec<_> = list["value"].as_array().unwrap().iter().map(|compute| compute["name"].clone()).collect();
    assert_eq!(names, [json!("cpu-cluster"), json!("local")]);
    let compute = server.get(&format!("{computes}/CPU-cluster"), &token).await.json();
    assert_eq!(compute["properties"]["computeType"], "AmlCompute");
    assert_eq!(compute["properties"]["properties"]["scaleSettings"]["maxNodeCount"], 2);
    let missing = server.get(&format!("{computes}/gpu"), &token).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let sentence = "compute target `gpu` is not configured; known targets: cpu-cluster, local";
    assert_eq!(missing.json(), json!({ "error": { "code": "ResourceNotFound", "message": sentence, "details": [] } }));
}

#[tokio::test]
async fn a_workspace_that_a_caller_may_not_see_is_like_one_that_does_not_exist() {
    let server = TestServer::start().await;
    let hidden = add_workspace(&server.state, "hidden").await;
    let token = server.token(Role::Owner).await;
    let absent = server.get(&server.ws().replace("lab", "absent"), &token).await;
    let refused = server.get(&hidden.path.arm_id(), &token).await;
    assert_eq!((absent.status, refused.status), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND));
    assert_eq!(absent.text.replace("absent", "?"), refused.text.replace("hidden", "?"));
    let listed =
        server.get("/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces", &token).await.json();
    assert_eq!(listed["value"].as_array().unwrap().len(), 1);
    let owner = server.owner().await;
    assert_eq!(server.get(&hidden.path.arm_id(), &owner).await.status, StatusCode::OK);
}

#[tokio::test]
async fn clients_are_told_the_names_that_they_used() {
    let server = TestServer::start().await;
    let token = server.token(Role::Reader).await;
    let own = get_as(&server, "box:9443", "/metadata/endpoints?api-version=2019-05-01", "").await;
    assert_eq!(own[0]["name"], "AzureCloud");
    assert_eq!(own[0]["authentication"]["loginEndpoint"], "https://box:9443");
    assert_eq!(own[0]["authentication"]["audiences"][0], "https://management.core.windows.net/");
    assert_eq!((own[0]["resourceManager"].as_str(), own[0]["suffixes"]["storage"].as_str()), (Some("https://box:9443"), Some("box:9443")));

    let public = get_as(&server, "management.azure.com", "/metadata/endpoints", "").await;
    assert_eq!(public[0]["authentication"]["loginEndpoint"], "https://login.microsoftonline.com");
    assert_eq!(public[0]["resourceManager"], "https://management.azure.com");
    let workspace = get_as(&server, "management.azure.com", &server.ws(), &token).await;
    let expected = format!("https://local.api.azureml.ms/discovery/workspaces/{}", server.workspace.id);
    assert_eq!(workspace["properties"]["discoveryUrl"], expected);
    let discovery = get_as(&server, "local.api.azureml.ms", "/discovery", "").await;
    assert_eq!(discovery["history"], "https://local.api.azureml.ms");
}
