//! Experiments between the store and the wire (azureml-wire C.2).

use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{ExperimentName, WorkspaceId},
};
use trainyard_store::experiments::{Experiment, ExperimentPatch, ExperimentQuery, NameFilter, View};
use trainyard_wire::azureml::{
    experiments::{ExperimentDto, ModifyExperiment},
    query::{QueryParams, ViewType},
    time::{CreatedTime, UtcTime},
};

use super::paging::page_request;

/// An experiment as clients see it.
pub(crate) fn to_dto(experiment: Experiment) -> ExperimentDto {
    ExperimentDto {
        experiment_id: experiment.id.0,
        name: experiment.name.into(),
        description: experiment.description,
        created_utc: CreatedTime::from_microseconds(experiment.created_us),
        tags: experiment.tags,
        archived_time: experiment.archived_us.map(UtcTime::from_microseconds),
        latest_created_run_id: experiment.latest_run_id.map(String::from),
        latest_created_run_created_utc: experiment.latest_run_created_us.map(CreatedTime::from_microseconds),
        // Nothing is cleaned up before its workspace is.
        retain_for_lifetime_of_workspace: true,
        artifact_location: None,
    }
}

/// Which experiments a view shows.
pub(crate) fn view(wanted: Option<ViewType>) -> View {
    match wanted {
        None | Some(ViewType::Default | ViewType::ActiveOnly) => View::ActiveOnly,
        Some(ViewType::ArchivedOnly) => View::ArchivedOnly,
        Some(ViewType::All) => View::All,
    }
}

/// Whether one experiment that was asked for by name is in the view. Without a word, an archived one is: the SDK opens it so.
pub(crate) fn shows(wanted: Option<ViewType>, experiment: &Experiment) -> bool {
    match wanted {
        None | Some(ViewType::Default | ViewType::All) => true,
        Some(ViewType::ActiveOnly) => experiment.archived_us.is_none(),
        Some(ViewType::ArchivedOnly) => experiment.archived_us.is_some(),
    }
}

/// What a PATCH asks for.
///
/// # Errors
/// [`ErrorKind::Invalid`] when the new name breaks the rule; [`ErrorKind::Unsupported`] when the experiment is to be given up
/// before its workspace.
pub(crate) fn to_patch(modify: ModifyExperiment, at_us: i64) -> Result<ExperimentPatch> {
    if modify.retain_for_lifetime_of_workspace == Some(false) {
        let message = "experiments are kept until they are deleted; retainForLifetimeOfWorkspace can not be false";
        return Err(Error::new(ErrorKind::Unsupported, message).with_target("retainForLifetimeOfWorkspace"));
    }
    let name = modify.name.map(ExperimentName::new).transpose().map_err(|error| error.with_target("name"))?;
    Ok(ExperimentPatch { name, description: modify.description, tags: modify.tags, archive: modify.archive, at_us })
}

/// What a list asks for.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a filter or an order that this server does not know.
pub(crate) fn to_query(workspace: WorkspaceId, query: &QueryParams) -> Result<ExperimentQuery> {
    check_order(query)?;
    let filter = query.filter.as_deref().filter(|text| !text.trim().is_empty());
    Ok(ExperimentQuery {
        workspace,
        view: view(query.view_type),
        name_filter: filter.map(name_filter).transpose()?,
        page: page_request(query),
    })
}

/// Experiments are listed newest first; an order that asks for it by name is fine, another one would be silently wrong.
fn check_order(query: &QueryParams) -> Result<()> {
    let order = query.orderby.as_deref().unwrap_or_default();
    let words: Vec<String> = order.split_whitespace().map(str::to_ascii_lowercase).collect();
    let newest_first = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["createdutc", "desc" | "descending"] => true,
        ["createdutc"] => query.sort_order.as_deref().is_some_and(|order| order.eq_ignore_ascii_case("desc")),
        _ => false,
    };
    if newest_first {
        return Ok(());
    }
    Err(Error::invalid(format!("experiments can not be ordered by `{order}`; they are listed by CreatedUtc desc")).with_target("orderby"))
}

/// Reads `Name eq x`, `startswith(Name, 'x')` or `contains(Name, 'x')`.
fn name_filter(text: &str) -> Result<NameFilter> {
    let inner = unwrapped(text.trim());
    let unknown = || {
        Error::invalid(format!(
            "experiments can not be filtered by `{}`; expected `Name eq 'x'`, `startswith(Name, 'x')` or `contains(Name, 'x')`",
            inner.chars().take(80).collect::<String>()
        ))
        .with_target("filter")
    };
    if let Some((call, rest)) = inner.split_once('(') {
        let (field, value) = rest.strip_suffix(')').and_then(|arguments| arguments.split_once(',')).ok_or_else(unknown)?;
        let make = match call.trim().to_ascii_lowercase().as_str() {
            "startswith" => NameFilter::StartsWith,
            "contains" => NameFilter::Contains,
            _ => return Err(unknown()),
        };
        return if is_name(field) { Ok(make(unquoted(value))) } else { Err(unknown()) };
    }
    let words: Vec<&str> = inner.splitn(3, ' ').map(str::trim).collect();
    match words[..] {
        [field, operator, value] if is_name(field) && operator.eq_ignore_ascii_case("eq") => Ok(NameFilter::Equals(unquoted(value))),
        _ => Err(unknown()),
    }
}

fn is_name(field: &str) -> bool {
    field.trim().eq_ignore_ascii_case("name")
}

/// Without the brackets around the whole, which clients add.
fn unwrapped(text: &str) -> &str {
    match text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) => unwrapped(inner.trim()),
        None => text,
    }
}

fn unquoted(text: &str) -> String {
    let text = text.trim();
    let inner = ['\'', '"'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
    inner.unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use trainyard_core::ids::{ExperimentId, RunId};
    use uuid::Uuid;

    use super::*;

    fn experiment() -> Experiment {
        Experiment {
            id: ExperimentId(Uuid::from_u128(7)),
            workspace: WorkspaceId(Uuid::from_u128(1)),
            name: ExperimentName::new("new_experiment").unwrap(),
            description: Some("d".into()),
            tags: BTreeMap::from([("a".into(), None), ("b".into(), Some("c".into()))]),
            created_us: 1_733_431_493_388_689,
            archived_us: Some(1_733_431_494_000_000),
            latest_run_id: Some(RunId::new("r1").unwrap()),
            latest_run_created_us: Some(1_733_431_493_500_000),
        }
    }

    #[test]
    fn an_experiment_is_written_as_the_service_does() {
        assert_eq!(
            serde_json::to_value(to_dto(experiment())).unwrap(),
            json!({
                "experimentId": "00000000-0000-0000-0000-000000000007", "name": "new_experiment", "description": "d",
                "createdUtc": "2024-12-05T20:44:53.3886890+00:00", "tags": {"a": null, "b": "c"},
                "archivedTime": "2024-12-05T20:44:54Z", "latestCreatedRunId": "r1",
                "latestCreatedRunCreatedUtc": "2024-12-05T20:44:53.5000000+00:00", "retainForLifetimeOfWorkspace": true,
                "artifactLocation": null
            })
        );
    }

    #[test]
    fn views_choose_by_archival() {
        let archived = experiment();
        let active = Experiment { archived_us: None, ..experiment() };
        let table = [
            (None, View::ActiveOnly, true, true),
            (Some(ViewType::Default), View::ActiveOnly, true, true),
            (Some(ViewType::ActiveOnly), View::ActiveOnly, true, false),
            (Some(ViewType::ArchivedOnly), View::ArchivedOnly, false, true),
            (Some(ViewType::All), View::All, true, true),
        ];
        for (wanted, listed, shows_active, shows_archived) in table {
            assert_eq!(view(wanted), listed);
            assert_eq!((shows(wanted, &active), shows(wanted, &archived)), (shows_active, shows_archived), "{wanted:?}");
        }
    }

    #[test]
    fn name_filters_are_read_and_others_refused() {
        let table = [
            ("Name eq hello", NameFilter::Equals("hello".into())),
            ("(name eq 'hello')", NameFilter::Equals("hello".into())),
            ("startswith(Name, \"he\")", NameFilter::StartsWith("he".into())),
            ("( contains(name,'ll') )", NameFilter::Contains("ll".into())),
        ];
        for (text, expected) in table {
            assert_eq!(name_filter(text).unwrap(), expected, "{text}");
        }
        for text in ["Tags/a eq b", "Name ne a", "endswith(Name,'a')", "contains(Tags,'a')", "Name", "contains(Name"] {
            assert_eq!(name_filter(text).unwrap_err().target(), Some("filter"), "{text}");
        }
    }

    #[test]
    fn only_newest_first_is_an_order() {
        let ordered =
            |orderby: &str| to_query(WorkspaceId(Uuid::nil()), &QueryParams { orderby: Some(orderby.into()), ..QueryParams::default() });
        assert!(ordered("CreatedUtc desc").is_ok());
        assert!(ordered("").is_ok());
        for other in ["CreatedUtc", "CreatedUtc asc", "Name"] {
            assert_eq!(ordered(other).unwrap_err().target(), Some("orderby"), "{other}");
        }
    }

    #[test]
    fn a_patch_checks_the_name_and_keeps_what_is_absent() {
        let patch = |value| to_patch(trainyard_wire::json::FromJson::from_json("", value).unwrap(), 5);
        let expected = ExperimentPatch { archive: Some(true), at_us: 5, ..ExperimentPatch::default() };
        assert_eq!(patch(json!({"archive": true})).unwrap(), expected);
        assert_eq!(patch(json!({"name": "a b"})).unwrap_err().target(), Some("name"));
        assert_eq!(patch(json!({"retainForLifetimeOfWorkspace": false})).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
