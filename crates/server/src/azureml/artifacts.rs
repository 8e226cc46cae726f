//! Reading artifacts: what there is and where to read it (azureml-wire C.9).
//!
//! Three families of addresses say the same: the SDK's (`artifacts/contentinfo/{origin}/{container}/{path}`), the specification's
//! (`artifacts/{origin}/{container}/contentinfo?path=`) and run history's own (`R/artifacts/contentinfo/{path}` or `?path=`).
//! [`ArtifactPath`] reads all of them. The bytes are served by [`super::content`].

use axum::{
    Json,
    extract::{FromRequestParts, RawPathParams, RawQuery, State},
};
use http::request::Parts;
use trainyard_core::{Error, Result, access::Action};
use trainyard_store::artifacts::Artifact;
use trainyard_wire::azureml::{
    artifacts::{Artifact as ArtifactDto, ContentInfo},
    paging::Page,
};

use super::{
    address::RunPath,
    convert::{
        artifacts::{RUN_ORIGIN, artifact_id, container_of, to_content_info, to_dto},
        paging::{page, page_request, query_from_string},
    },
    error::AzureError,
};
use crate::{
    context::Context,
    failure::Rejection,
    query::Query,
    signing::{SignedName, Validity},
    state::AppState,
};

/// The artifacts that an address speaks of. Extractor.
#[derive(Clone, Debug)]
pub(crate) struct ArtifactPath {
    /// The run, when the address goes through one.
    run: Option<RunPath>,
    /// Whether the origin is that of runs; nothing is kept under others.
    of_runs: bool,
    /// `dcid.{runId}`.
    pub(crate) container: String,
    /// A path or a prefix of paths; may be empty.
    pub(crate) path: String,
}

impl FromRequestParts<AppState> for ArtifactPath {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Rejection> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::invalid("the path is not valid UTF-8 once decoded"))?;
        let param = |wanted: &str| params.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned());
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let path = param("path").or_else(|| query.get("path").map(str::to_owned)).unwrap_or_default();
        let path = path.trim_start_matches('/').to_owned();
        if param("run").is_some() {
            let run = RunPath::from_request_parts(parts, state).await?;
            return Ok(Self { of_runs: true, container: container_of(&run.run), path, run: Some(run) });
        }
        let of_runs = param("origin").is_some_and(|origin| origin.eq_ignore_ascii_case(RUN_ORIGIN));
        Ok(Self { run: None, of_runs, container: param("container").unwrap_or_default(), path })
    }
}

impl ArtifactPath {
    /// Fails when the address goes through a run that is not there.
    async fn check_run(&self, state: &AppState, context: &Context) -> Result<()> {
        match &self.run {
            Some(run) => run.find(state, context).await.map(drop),
            None => Ok(()),
        }
    }

    /// The artifact at exactly this path.
    pub(crate) async fn find(&self, state: &AppState, context: &Context) -> Result<Artifact> {
        self.check_run(state, context).await?;
        if self.path.is_empty() {
            return Err(Error::invalid("no path of an artifact is named").with_target("path"));
        }
        let found = if self.of_runs { state.store.artifact(context.workspace.id, &self.container, &self.path).await? } else { None };
        found.ok_or_else(|| Error::not_found(format!("artifact `{}` was not found in container {}", self.path, self.container)))
    }

    /// One page of the artifacts whose path starts with this one.
    async fn below(&self, state: &AppState, context: &Context, query: Option<&str>) -> Result<trainyard_store::Page<Artifact>> {
        self.check_run(state, context).await?;
        let request = page_request(&query_from_string(query)?);
        if !self.of_runs {
            return Ok(trainyard_store::Page { items: Vec::new(), token: None });
        }
        state.store.list_artifacts(context.workspace.id, &self.container, &self.path, &request).await
    }
}

/// Makes the URLs that artifacts are read from.
pub(crate) struct Links<'a> {
    state: &'a AppState,
    context: &'a Context,
    validity: Validity,
}

impl<'a> Links<'a> {
    /// URLs for the caller of `context`, on the host that it used, good from now on.
    pub(crate) fn new(state: &'a AppState, context: &'a Context) -> Self {
        Self { state, context, validity: Validity::starting(context.now_us, state.settings.url_signing_ttl) }
    }

    /// A URL that reads the artifact without a token.
    pub(crate) fn read_url(&self, artifact: &Artifact) -> String {
        let name = SignedName { workspace: artifact.workspace, artifact_id: artifact_id(artifact) };
        self.state.url_signer.sign(&self.context.base_url, &name, self.validity)
    }
}

/// Lists the artifacts at a path: the file of that name, or everything in the folder of that name.
pub(crate) async fn list(
    State(state): State<AppState>,
    context: Context,
    path: ArtifactPath,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<ArtifactDto>>, AzureError> {
    context.allow(Action::Read)?;
    let mut found = path.below(&state, &context, query.as_deref()).await?;
    found.items.retain(|artifact| is_at(&artifact.path, &path.path));
    Ok(Json(page(found, |artifact| to_dto(&artifact))))
}

/// Whether `path` is `place` or lies in the folder `place`.
fn is_at(path: &str, place: &str) -> bool {
    let folder = place.trim_end_matches('/');
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Read URLs for all artifacts whose path starts with a text, which may be empty.
pub(crate) async fn prefix_content_info(
    State(state): State<AppState>,
    context: Context,
    path: ArtifactPath,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<ContentInfo>>, AzureError> {
    context.allow(Action::Read)?;
    let found = path.below(&state, &context, query.as_deref()).await?;
    let links = Links::new(&state, &context);
    Ok(Json(page(found, |artifact| to_content_info(&artifact, links.read_url(&artifact)))))
}

/// The read URL of one artifact.
pub(crate) async fn content_info(
    State(state): State<AppState>,
    context: Context,
    path: ArtifactPath,
) -> Result<Json<ContentInfo>, AzureError> {
    context.allow(Action::Read)?;
    let artifact = path.find(&state, &context).await?;
    let url = Links::new(&state, &context).read_url(&artifact);
    Ok(Json(to_content_info(&artifact, url)))
}

/// The read URL of one artifact as a JSON string.
pub(crate) async fn uri(State(state): State<AppState>, context: Context, path: ArtifactPath) -> Result<Json<String>, AzureError> {
    context.allow(Action::Read)?;
    let artifact = path.find(&state, &context).await?;
    Ok(Json(Links::new(&state, &context).read_url(&artifact)))
}

/// What is known about one artifact.
pub(crate) async fn metadata(State(state): State<AppState>, context: Context, path: ArtifactPath) -> Result<Json<ArtifactDto>, AzureError> {
    context.allow(Action::Read)?;
    Ok(Json(to_dto(&path.find(&state, &context).await?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_not_a_prefix() {
        for (path, place, at) in [
            ("outputs/a", "outputs", true),
            ("outputs/a", "outputs/", true),
            ("outputs/a", "outputs/a", true),
            ("outputs2/a", "outputs", false),
            ("outputs/ab", "outputs/a", false),
            ("outputs/a", "", true),
        ] {
            assert_eq!(is_at(path, place), at, "{path} at {place}");
        }
    }
}
