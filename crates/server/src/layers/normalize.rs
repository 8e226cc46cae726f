//! Brings the path of a request to the form in which the routes are written.
//!
//! Clients write the literal parts of a path in any case (Azure Resource Manager compares without case), double slashes,
//! and a slash at the end. The router does none of that, so this goes in front of it: the path is matched segment by
//! segment against a tree of the routes, literals are replaced by their own spelling, and parameters stay as they came.
//! Slashes at the end are dropped unless they are part of a `{*rest}` (artifact prefixes end in one, azureml-wire C.9). A
//! path that fits no route is left to the router's 404.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use axum::{Router, extract::Request};
use http::Uri;
use percent_encoding::percent_decode_str;
use tower::{ServiceExt, util::MapRequest};

/// The paths of all routes, as a tree.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    /// By the literal in lower case; the value keeps its spelling.
    literals: BTreeMap<String, (String, Node)>,
    parameter: Option<Box<Node>>,
    /// A `{*rest}` follows here.
    rest: bool,
    /// A route ends here.
    ends: bool,
}

impl Paths {
    pub(crate) fn new<'a>(paths: impl Iterator<Item = &'a str>) -> Self {
        let mut tree = Self::default();
        for path in paths {
            let mut node = &mut tree.root;
            for segment in path.split('/').filter(|segment| !segment.is_empty()) {
                if segment.starts_with("{*") {
                    node.rest = true;
                    break;
                }
                node = if segment.starts_with('{') {
                    node.parameter.get_or_insert_default()
                } else {
                    &mut node.literals.entry(segment.to_ascii_lowercase()).or_insert_with(|| (segment.to_owned(), Node::default())).1
                };
            }
            node.ends |= !path.contains("{*");
        }
        tree
    }

    /// `path` in the spelling of the route that it fits; `None` when it is so already or fits none.
    pub(crate) fn canonical(&self, path: &str) -> Option<String> {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let mut spelled = Vec::with_capacity(segments.len() + 1);
        if !spell(&self.root, &segments, path.ends_with('/'), &mut spelled) {
            return None;
        }
        let canonical = format!("/{}", spelled.join("/"));
        (canonical != path).then_some(canonical)
    }
}

/// Fills `spelled` with the segments of the first route that fits: literals before parameters, parameters before rests.
fn spell<'a>(node: &'a Node, segments: &[&'a str], slash_at_end: bool, spelled: &mut Vec<&'a str>) -> bool {
    let Some((first, others)) = segments.split_first() else { return node.ends };
    let decoded: Cow<'_, str> = percent_decode_str(first).decode_utf8_lossy();
    let depth = spelled.len();
    if let Some((spelling, next)) = node.literals.get(&decoded.to_ascii_lowercase()) {
        spelled.push(spelling);
        if spell(next, others, slash_at_end, spelled) {
            return true;
        }
        spelled.truncate(depth);
    }
    if let Some(next) = &node.parameter {
        spelled.push(first);
        if spell(next, others, slash_at_end, spelled) {
            return true;
        }
        spelled.truncate(depth);
    }
    if node.rest {
        spelled.extend(segments);
        if slash_at_end {
            spelled.push("");
        }
    }
    node.rest
}

/// A router that sees only canonical paths.
pub(crate) fn in_front_of(router: Router, paths: Arc<Paths>) -> Router {
    let rewrite = move |request: Request| rewritten(request, &paths);
    let inner: MapRequest<Router, _> = router.map_request(rewrite);
    Router::new().fallback_service(inner)
}

fn rewritten(mut request: Request, paths: &Paths) -> Request {
    if let Some(path) = paths.canonical(request.uri().path()) {
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let mut parts = request.uri().clone().into_parts();
        // The characters are those of a valid address, only fewer or of another case.
        if let Ok(path_and_query) = format!("{path}{query}").parse() {
            parts.path_and_query = Some(path_and_query);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Paths {
        let routes = [
            "/history/v1.0/subscriptions/{sub}/experiments/{experiment}",
            "/history/v1.0/subscriptions/{sub}/experiments:query",
            "/history/v1.0/subscriptions/{sub}/experiments/{experiment}/runs/{run}",
            "/artifacts/{origin}/{container}",
            "/artifacts/{origin}/{container}/{*path}",
            "/artifacts/metadata/{origin}/{container}/{*path}",
            "/",
        ];
        Paths::new(routes.into_iter())
    }

    #[test]
    fn literals_take_the_spelling_of_the_route_and_parameters_keep_theirs() {
        let table = [
            ("/History/V1.0/Subscriptions/ABC/EXPERIMENTS/Runs", "/history/v1.0/subscriptions/ABC/experiments/Runs"),
            ("/history//v1.0/subscriptions/s//experiments/e/", "/history/v1.0/subscriptions/s/experiments/e"),
            ("/history/v1.0/subscriptions/s/experiments%3Aquery", "/history/v1.0/subscriptions/s/experiments:query"),
            ("/history/v1.0/subscriptions/s/experiments/RUNS/RUNS/Run_1", "/history/v1.0/subscriptions/s/experiments/RUNS/runs/Run_1"),
            ("/history/v1.0/subscriptions/a%20b/Experiments/e", "/history/v1.0/subscriptions/a%20b/experiments/e"),
        ];
        for (given, expected) in table {
            assert_eq!(paths().canonical(given).as_deref(), Some(expected), "{given}");
        }
    }

    #[test]
    fn a_slash_at_the_end_stays_where_it_is_part_of_an_artifact_path() {
        let table = [
            ("/artifacts/ExperimentRun/dcid.r/", "/artifacts/ExperimentRun/dcid.r"),
            ("/Artifacts/ExperimentRun/dcid.r/Outputs/", "/artifacts/ExperimentRun/dcid.r/Outputs/"),
            ("/artifacts/Metadata/ExperimentRun/dcid.r/outputs//x", "/artifacts/metadata/ExperimentRun/dcid.r/outputs/x"),
        ];
        for (given, expected) in table {
            assert_eq!(paths().canonical(given).as_deref(), Some(expected), "{given}");
        }
    }

    #[test]
    fn a_path_that_is_canonical_or_fits_nothing_is_left_alone() {
        for path in ["/history/v1.0/subscriptions/S/experiments/E", "/nothing/here", "/", "/History"] {
            assert_eq!(paths().canonical(path), None, "{path}");
        }
    }
}
