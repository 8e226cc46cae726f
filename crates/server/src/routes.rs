//! Every address this server answers, in one list.
//!
//! The list builds the router, the normaliser of paths ([`crate::layers::normalize`]) and [`route_list`], which tests walk. A route is
//! closed unless it says otherwise: [`Access::Token`] puts the guard in front of the handler, so that a handler that forgets to ask
//! who calls is still not reachable without a token. What the caller may do is the handler's first line.
//!
//! Shorthand in paths: `{WS}` is the path of a workspace; `{E}` its two ways to name an experiment; `{R}` its three ways to name
//! a run (azureml-wire C.3). A line with `{E}` or `{R}` makes that many routes.

use axum::{
    Router,
    extract::DefaultBodyLimit,
    handler::Handler,
    routing::{MethodFilter, on},
};
use http::Method;

use crate::{
    auth::{endpoints, guard},
    azureml::{
        arm, artifacts, batch, computes, content, datastores, details, discovery, environment_builds, environments, events, execution,
        experiments, lists, run_token, runs, tags,
    },
    native::{
        apps, attempts, computes as native_computes, drain, environments as native_environments, health, logs, nodes, runs as native_runs,
        whoami, workspaces,
    },
    state::AppState,
};

/// What a caller needs to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Public,
    /// A URL that this server signed; the handler checks signature and expiry.
    SignedUrl,
    /// An access token.
    Token,
}

/// One route, as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    /// The method.
    pub method: Method,
    /// The path in full, parameters in braces.
    pub path: String,
    /// What a caller needs to bring.
    pub access: Access,
}

/// All routes.
pub fn route_list() -> Vec<RouteInfo> {
    table().list
}

/// The list. Add a line to the section of its prefix.
pub(crate) fn table() -> Routes {
    [operations, authentication, management, native, agents, history, execution, environment_service, data, artifacts, content]
        .into_iter()
        .fold(Routes::default(), |routes, section| section(routes))
}

/// For operators and probes.
fn operations(routes: Routes) -> Routes {
    routes.get(Access::Public, "/healthz", health::healthz).get(Access::Public, "/readyz", health::readyz).get(
        Access::Public,
        "/metrics",
        health::metrics,
    )
}

/// Tokens and what is needed to get one (azureml-wire A.1, A.2, A.5).
fn authentication(routes: Routes) -> Routes {
    routes
        .post(Access::Public, "/{tenant}/oauth2/token", endpoints::token_v1)
        .post(Access::Public, "/{tenant}/oauth2/v2.0/token", endpoints::token_v2)
        .get(Access::Public, "/{tenant}/.well-known/openid-configuration", endpoints::openid_configuration)
        .get(Access::Public, "/{tenant}/v2.0/.well-known/openid-configuration", endpoints::openid_configuration)
        .get(Access::Public, "/{tenant}/discovery/instance", endpoints::instance_discovery)
        .get(Access::Public, "/{tenant}/discovery/keys", endpoints::keys)
        .get(Access::Public, "/{tenant}/discovery/v2.0/keys", endpoints::keys)
        .get(Access::Public, "/error", endpoints::explain)
        .get(Access::Public, "/metadata/endpoints", discovery::cloud_metadata)
}

/// The part of resource management that clients call (azureml-wire B).
fn management(routes: Routes) -> Routes {
    let routes = routes
        .get(Access::Public, "/discovery", discovery::services)
        .get(Access::Public, "/discovery/workspaces/{workspace_id}", discovery::services)
        .get(Access::Token, "/subscriptions", arm::list_subscriptions)
        .get(Access::Token, "/subscriptions/{sub}", arm::get_subscription)
        .get(Access::Token, "/subscriptions/{sub}/providers/Microsoft.MachineLearningServices/workspaces", arm::list_workspaces)
        .get(
            Access::Token,
            "/subscriptions/{sub}/resourceGroups/{rg}/providers/Microsoft.MachineLearningServices/workspaces",
            arm::list_workspaces,
        )
        .get(Access::Token, "{WS}", arm::get_workspace)
        .get(Access::Token, "/rp/workspaces{WS}", arm::get_workspace);
    // The SDK asks resource management or its mirror, as it likes. Compute targets come from the configuration: nothing changes them.
    ["{WS}", "/rp/workspaces{WS}"].into_iter().fold(routes, |routes, base| {
        let at = |rest: &str| format!("{base}/computes{rest}");
        let routes = routes
            .get(Access::Token, &at(""), computes::list)
            .get(Access::Token, &at("/{compute}"), computes::get)
            .put(Access::Token, &at("/{compute}"), computes::change)
            .patch(Access::Token, &at("/{compute}"), computes::change)
            .delete(Access::Token, &at("/{compute}"), computes::change)
            .post(Access::Token, &at("/{compute}/listNodes"), computes::nodes);
        ["start", "stop", "restart", "resize", "listKeys"]
            .into_iter()
            .fold(routes, |routes, verb| routes.post(Access::Token, &at(&format!("/{{compute}}/{verb}")), computes::change))
    })
}

/// This server's own API.
fn native(routes: Routes) -> Routes {
    routes
        .get(Access::Token, "/api/v1/whoami", whoami::whoami)
        .get(Access::Token, "/api/v1/workspaces", workspaces::list)
        .post(Access::Token, "/api/v1/workspaces", workspaces::create)
        .get(Access::Token, "/api/v1/apps", apps::list)
        .post(Access::Token, "/api/v1/apps", apps::create)
        .delete(Access::Token, "/api/v1/apps/{client_id}", apps::delete)
        .post(Access::Token, "/api/v1/apps/{client_id}/rotate", apps::rotate)
        .get(Access::Token, "/api/v1/drain", drain::get)
        .put(Access::Token, "/api/v1/drain", drain::put)
        .get(Access::Token, "/api/v1{W}/computes", native_computes::list)
        .get(Access::Token, "/api/v1{W}/computes/{compute}", native_computes::get)
        .get(Access::Token, "/api/v1/environments", native_environments::list_all)
        .get(Access::Token, "/api/v1/environments/{hash}", native_environments::get_any)
        .get(Access::Token, "/api/v1/environments/{hash}/lock", native_environments::lock_of_any)
        .put(Access::Token, "/api/v1/environments/{hash}/pin", native_environments::pin)
        .delete(Access::Token, "/api/v1/environments/{hash}/pin", native_environments::unpin)
        .post(Access::Token, "/api/v1/environments/{hash}/verify", native_environments::verify)
        .post(Access::Token, "/api/v1/environments/prune", native_environments::prune)
        .get(Access::Token, "/api/v1{W}/environments", native_environments::list)
        .get(Access::Token, "/api/v1{W}/environments/{hash}", native_environments::get)
        .get(Access::Token, "/api/v1{W}/environments/{hash}/lock", native_environments::lock)
        .get(Access::Token, "/api/v1{W}/runs/{run}/attempts", native_runs::attempts)
        .get(Access::Token, "/api/v1{W}/runs/{run}/events", native_runs::events)
        .get(Access::Token, "/api/v1{W}/runs/{run}/logs/{*path}", logs::read_log)
}

/// What agents say and ask; each route takes only the token of that attempt.
fn agents(routes: Routes) -> Routes {
    routes
        .get(Access::Token, "/api/v1/attempts/{attempt}/snapshot", attempts::snapshot)
        .get(Access::Token, "/api/v1/attempts/{attempt}/instruction", attempts::instruction)
        .get(Access::Token, "/api/v1/attempts/{attempt}/token", attempts::token)
        .post(Access::Token, "/api/v1/attempts/{attempt}/report", attempts::report)
        .post(Access::Token, "/api/v1/attempts/{attempt}/nodes/{node}", nodes::tell)
        .get(Access::Token, "/api/v1/attempts/{attempt}/nodes", nodes::list)
        .put(Access::Token, "/api/v1/attempts/{attempt}/logs/{*path}", attempts::append_log)
        .post(Access::Token, "/api/v1/attempts/{attempt}/logs/{*path}", attempts::seal_log)
        .put_file(Access::Token, "/api/v1/attempts/{attempt}/outputs/{*path}", attempts::put_output)
}

/// Run history: experiments, runs, events (azureml-wire C.2 to C.6).
fn history(routes: Routes) -> Routes {
    let routes = routes
        .post(Access::Token, "/history/v1.0{WS}/experiments/{experiment}", experiments::create_or_get)
        .get(Access::Token, "/history/v1.0{E}", experiments::get)
        .get(Access::Token, "/history/v1.0{WS}/experiments", experiments::list)
        .post(Access::Token, "/history/v1.0{WS}/experiments:query", experiments::query)
        .patch(Access::Token, "/history/v1.0{WS}/experimentids/{experiment_id}", experiments::modify)
        .delete(Access::Token, "/history/v1.0{WS}/experimentids/{experiment_id}", experiments::delete)
        .post(Access::Token, "/history/v1.0{WS}/experimentids/{experiment_id}/tags:delete", experiments::delete_tags)
        .delete(Access::Token, "/history/v1.0{WS}/experimentids/{experiment_id}/tags", experiments::delete_tags);
    let routes = routes
        .get(Access::Token, "/history/v1.0{E}/runs", lists::list)
        .get(Access::Token, "/history/v1.0{WS}/runs", lists::list)
        .post(Access::Token, "/history/v1.0{E}/runs:query", lists::query)
        .post(Access::Token, "/history/v1.0{WS}/runs:query", lists::query)
        .get(Access::Token, "/history/v1.0{E}/runcounts", lists::run_counts)
        .get(Access::Token, "/history/v1.0{WS}/computes/{compute}/runs", lists::on_compute)
        .get(Access::Token, "/history/v1.0{R}/children", lists::children)
        .patch(Access::Token, "/history/v1.0{E}/batch/runs", batch::patch)
        .post(Access::Token, "/history/v1.0{E}/runs/runIds", batch::by_ids)
        .post(Access::Token, "/history/v1.0{E}/batch/events", events::post_batch)
        .post(Access::Token, "/history/v1.0{WS}/rundata", runs::data);
    routes
        .get(Access::Token, "/history/v1.0{R}", runs::get)
        .patch(Access::Token, "/history/v1.0{R}", runs::create_or_change)
        .post(Access::Token, "/history/v1.0{WS}/runs/{run}", runs::create_or_change)
        .get(Access::Token, "/history/v1.0{R}/details", details::get)
        .post(Access::Token, "/history/v1.0{R}/cancel", runs::cancel)
        .get(Access::Token, "/history/v1.0{R}/metricsingest/wait", runs::metrics_ingested)
        .delete(Access::Token, "/history/v1.0{R}/tags", tags::delete)
        .patch(Access::Token, "/history/v1.0{R}/tags", tags::modify)
        .get(Access::Token, "/history/v1.0{R}/events", events::list)
        .post(Access::Token, "/history/v1.0{R}/events", events::post)
        .get(Access::Token, "/history/v1.0{R}/token", run_token::refresh)
}

/// Execution: submitting and cancelling (azureml-wire D.1).
fn execution(routes: Routes) -> Routes {
    routes.upload(Access::Token, "/execution/v1.0{WS}/experiments/{experiment}/startrun", execution::start_run).post(
        Access::Token,
        "/execution/v1.0{WS}/experiments/{experiment}/runId/{run}/cancel",
        execution::cancel_run,
    )
}

/// Environments under names (azureml-wire E.2). The address without a version means the latest one.
fn environment_service(routes: Routes) -> Routes {
    let routes = ["", "/versions/{version}"].into_iter().fold(routes, |routes, version| {
        let v1 = |rest: &str| format!("/environment/v1.0{{WS}}/environments/{{name}}{version}{rest}");
        let v2 = |rest: &str| format!("/environment/v2.0{{WS}}/environments/{{name}}{version}{rest}");
        routes
            .get(Access::Token, &v1(""), environments::get)
            .put(Access::Token, &v1(""), environments::put)
            .put(Access::Token, &v1("/metadata"), environments::put_metadata)
            .get(Access::Token, &v1("/image"), environments::image)
            .post(Access::Token, &v1("/recipe"), environments::recipe)
            .post(Access::Token, &v2("/image"), environment_builds::start)
            .post(Access::Token, &v2("/imageoncompute/{compute}"), environment_builds::start)
    });
    routes
        .get(Access::Token, "/environment/v1.0{WS}/environments", environments::list)
        .get(Access::Token, "/environment/v1.0{WS}/environments/{name}/versions", environments::list_versions)
        .get(Access::Token, "/environment/v1.0{WS}/environments/{name}/labels/{label}", environments::by_label)
        .get(Access::Token, "/environment/v1.0{WS}/builds/{run}", environment_builds::status)
}

/// Datastores, which come from the configuration, and datasets, of which there are none (azureml-wire E.3).
fn data(routes: Routes) -> Routes {
    routes
        .get(Access::Token, "/datastore/v1.0{WS}/datastores", datastores::list)
        .post(Access::Token, "/datastore/v1.0{WS}/datastores", datastores::change)
        .delete(Access::Token, "/datastore/v1.0{WS}/datastores", datastores::change)
        .get(Access::Token, "/datastore/v1.0{WS}/datastores/{datastore}", datastores::get)
        .put(Access::Token, "/datastore/v1.0{WS}/datastores/{datastore}", datastores::change)
        .delete(Access::Token, "/datastore/v1.0{WS}/datastores/{datastore}", datastores::change)
        .get(Access::Token, "/datastore/v1.0{WS}/default", datastores::get_default)
        .put(Access::Token, "/datastore/v1.0{WS}/default/{datastore}", datastores::change)
        .get(Access::Token, "/dataset/v1.0{WS}/datasets", datastores::list_datasets)
        .post(Access::Token, "/dataset/v1.0{WS}/datasets", datastores::change_dataset)
        .get(Access::Token, "/dataset/v1.0{WS}/datasets/{*path}", datastores::get_dataset)
        .post(Access::Token, "/dataset/v1.0{WS}/saveddatasets", datastores::change_dataset)
        .get(Access::Token, "/dataset/v1.0{WS}/saveddatasets/{*path}", datastores::get_dataset)
}

/// Artifacts of runs (azureml-wire C.9).
fn artifacts(routes: Routes) -> Routes {
    let sdk_style = routes
        .get(Access::Token, "/artifact/v2.0{WS}/artifacts/{origin}/{container}", artifacts::list)
        .get(Access::Token, "/artifact/v2.0{WS}/artifacts/{origin}/{container}/{*path}", artifacts::list)
        .get(Access::Token, "/artifact/v2.0{WS}/artifacts/prefix/contentinfo/{origin}/{container}", artifacts::prefix_content_info)
        .get(Access::Token, "/artifact/v2.0{WS}/artifacts/prefix/contentinfo/{origin}/{container}/{*path}", artifacts::prefix_content_info)
        .get(Access::Token, "/artifact/v2.0{WS}/artifacts/contentinfo/{origin}/{container}/{*path}", artifacts::content_info)
        .get(Access::Token, "/artifact/v2.0{WS}/artifacts/content/{origin}/{container}/{*path}", content::get)
        .get(Access::Token, "/artifact/v2.0{WS}/artifacts/metadata/{origin}/{container}/{*path}", artifacts::metadata);
    let specification_style = sdk_style
        .get(Access::Token, "/artifact/v2.0{WS}/artifacts/{origin}/{container}/prefix/contentinfo", artifacts::prefix_content_info)
        .get(Access::Token, "/artifact/v2.0{WS}/artifacts/{origin}/{container}/contentinfo", artifacts::content_info)
        .get(Access::Token, "/artifact/v2.0{WS}/artifacts/{origin}/{container}/content", content::get)
        .get(Access::Token, "/artifact/v2.0{WS}/artifacts/{origin}/{container}/metadata", artifacts::metadata);
    // The same through run history; its paths come as a segment or as `?path=`.
    specification_style
        .get(Access::Token, "/history/v1.0{R}/artifacts", artifacts::list)
        .get(Access::Token, "/history/v1.0{R}/artifacts/path", artifacts::list)
        .get(Access::Token, "/history/v1.0{R}/artifacts/path/{*path}", artifacts::list)
        .get(Access::Token, "/history/v1.0{R}/artifacts/prefix/contentinfo", artifacts::prefix_content_info)
        .get(Access::Token, "/history/v1.0{R}/artifacts/prefix/contentinfo/{*path}", artifacts::prefix_content_info)
        .get(Access::Token, "/history/v1.0{R}/artifacts/contentinfo", artifacts::content_info)
        .get(Access::Token, "/history/v1.0{R}/artifacts/contentinfo/{*path}", artifacts::content_info)
        .get(Access::Token, "/history/v1.0{R}/artifacts/artifacturi", artifacts::uri)
        .get(Access::Token, "/history/v1.0{R}/artifacts/artifacturi/{*path}", artifacts::uri)
        .get(Access::Token, "/history/v1.0{R}/artifacts/metadata", artifacts::metadata)
        .get(Access::Token, "/history/v1.0{R}/artifacts/metadata/{*path}", artifacts::metadata)
}

/// What signed URLs point to (azureml-wire C.9).
fn content(routes: Routes) -> Routes {
    routes.get(Access::SignedUrl, "/azureml/{origin}/{container}/{*path}", content::get_signed)
}

const WORKSPACE: &str = "/subscriptions/{sub}/resourceGroups/{rg}/providers/Microsoft.MachineLearningServices/workspaces/{ws}";
const NATIVE_WORKSPACE: &str = "/subscriptions/{sub}/resourceGroups/{rg}/workspaces/{ws}";
const EXPERIMENT: [&str; 2] = ["/experiments/{experiment}", "/experimentids/{experiment_id}"];
const RUN: [&str; 3] = ["/experiments/{experiment}/runs/{run}", "/experimentids/{experiment_id}/runs/{run}", "/runs/{run}"];

/// A list of routes under construction: the router and the same as data.
#[derive(Default)]
pub(crate) struct Routes {
    open: Router<AppState>,
    guarded: Router<AppState>,
    list: Vec<RouteInfo>,
}

impl Routes {
    pub(crate) fn get<H: Handler<T, AppState>, T: 'static>(self, access: Access, path: &str, handler: H) -> Self {
        self.add(Method::GET, access, path, handler)
    }

    pub(crate) fn post<H: Handler<T, AppState>, T: 'static>(self, access: Access, path: &str, handler: H) -> Self {
        self.add(Method::POST, access, path, handler)
    }

    pub(crate) fn put<H: Handler<T, AppState>, T: 'static>(self, access: Access, path: &str, handler: H) -> Self {
        self.add(Method::PUT, access, path, handler)
    }

    pub(crate) fn patch<H: Handler<T, AppState>, T: 'static>(self, access: Access, path: &str, handler: H) -> Self {
        self.add(Method::PATCH, access, path, handler)
    }

    pub(crate) fn delete<H: Handler<T, AppState>, T: 'static>(self, access: Access, path: &str, handler: H) -> Self {
        self.add(Method::DELETE, access, path, handler)
    }

    /// A POST whose handler reads the body as a stream and counts it itself.
    pub(crate) fn upload<H: Handler<T, AppState>, T: 'static>(self, access: Access, path: &str, handler: H) -> Self {
        self.add(Method::POST, access, path, handler.layer(DefaultBodyLimit::disable()))
    }

    /// A PUT whose handler reads the body as a stream.
    pub(crate) fn put_file<H: Handler<T, AppState>, T: 'static>(self, access: Access, path: &str, handler: H) -> Self {
        self.add(Method::PUT, access, path, handler.layer(DefaultBodyLimit::disable()))
    }

    fn add<H: Handler<T, AppState>, T: 'static>(mut self, method: Method, access: Access, path: &str, handler: H) -> Self {
        let filter = MethodFilter::try_from(method.clone()).expect("the methods above have filters");
        for path in expand(path) {
            let route = on(filter, handler.clone());
            let router = match access {
                Access::Public | Access::SignedUrl => &mut self.open,
                Access::Token => &mut self.guarded,
            };
            *router = std::mem::take(router).route(&path, route);
            self.list.push(RouteInfo { method: method.clone(), path, access });
        }
        self
    }

    /// The paths, for the normaliser.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|route| route.path.as_str())
    }

    /// The router, with the guard in front of every route that is not public.
    pub(crate) fn into_router(self, state: &AppState) -> Router<AppState> {
        let guard = axum::middleware::from_fn_with_state(state.clone(), guard::require_token);
        self.open.merge(self.guarded.route_layer(guard))
    }
}

/// The paths that a line stands for.
fn expand(path: &str) -> Vec<String> {
    let whole = |bases: &[&str], token: &str| -> Vec<String> {
        bases.iter().map(|base| path.replace(token, &format!("{WORKSPACE}{base}"))).collect()
    };
    if path.contains("{R}") {
        whole(&RUN, "{R}")
    } else if path.contains("{E}") {
        whole(&EXPERIMENT, "{E}")
    } else {
        vec![path.replace("{WS}", WORKSPACE).replace("{W}", NATIVE_WORKSPACE)]
    }
}
