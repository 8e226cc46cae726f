//! Events of a run's timeline between the wire, the store and the state machine (azureml-wire C.6).

use serde_json::Value;
use trainyard_core::{
    Error, Result,
    ids::RunId,
    run::{Cause, RunEvent, TimelineEntry},
};
use trainyard_store::{
    events::Event,
    runs::{RunRecord, RunWarning},
};
use trainyard_wire::azureml::{
    error::ReportedError,
    events::{EventDto, NewEvent},
    time::UtcTime,
};

use super::status::reported_failure;
use crate::azureml::body::malformed;

/// What a posted event asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Posted {
    /// To move the run.
    Move(RunEvent),
    /// To set the run's error, an `ErrorResponse`.
    Error(Value),
    /// To warn the run's owner.
    Warning(RunWarning),
    /// A sign of life.
    Heartbeat,
    /// An entry in the timeline and nothing else.
    Note,
}

/// Reads what `event` asks of `run`; `by` is who posts it.
///
/// # Errors
/// [`Invalid`](trainyard_core::ErrorKind::Invalid) when its data do not fit its name, or name another run.
pub(crate) fn read(event: &NewEvent, run: &RunRecord, by: &str) -> Result<Posted> {
    if let Some(named) = run_id(event)?
        && named != run.id
    {
        let message = format!("the event is about run {named} and was posted to run {}", run.id);
        return Err(Error::invalid(message).with_target("data.RunId"));
    }
    let mut data = event.fields().map_err(malformed)?;
    let ended = |cause| Posted::Move(RunEvent::ClientEnded { cause });
    Ok(match event.kind().unwrap_or_default().to_ascii_lowercase().as_str() {
        "start" => Posted::Move(RunEvent::ClientStarted),
        "completed" => ended(Cause::Completed),
        "failed" => ended(reported_failure(error_message(run.error.as_ref()))),
        "canceled" | "cancelled" => ended(Cause::Cancelled { by: Some(by.to_owned()), why: None }),
        "cancelrequested" => Posted::Move(RunEvent::CancelRequested { by: by.to_owned(), why: None }),
        "error" => Posted::Error(data.required::<ReportedError>("ErrorResponse").map_err(malformed)?.document),
        "warning" => Posted::Warning(RunWarning {
            source: data.string("Source").map_err(malformed)?.unwrap_or_default(),
            message: data.required("Message").map_err(malformed)?,
        }),
        "heartbeat" => Posted::Heartbeat,
        _ => Posted::Note,
    })
}

/// The run that an event says it is about.
pub(crate) fn run_id(event: &NewEvent) -> Result<Option<RunId>> {
    let id = event.fields().and_then(|mut data| data.string("RunId")).map_err(malformed)?;
    id.map(RunId::new).transpose().map_err(|error| error.with_target("data.RunId"))
}

/// `error.message` of an `ErrorResponse`, its names in any case.
fn error_message(response: Option<&Value>) -> Option<&str> {
    child(child(response?, "error")?, "message")?.as_str()
}

fn child<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// The timeline entry that keeps a posted event as it came.
pub(crate) fn to_entry(event: &NewEvent) -> TimelineEntry {
    TimelineEntry { name: event.name.clone(), data: Value::Object(event.data.clone()) }
}

/// A timeline entry as clients see it: its data name the run, as the data of posted events do.
pub(crate) fn to_dto(event: Event, run: &RunId) -> EventDto {
    let data = match event.data {
        Value::Object(mut data) => {
            data.entry("RunId").or_insert_with(|| Value::String(run.to_string()));
            Value::Object(data)
        }
        other => other,
    };
    EventDto { timestamp: UtcTime::from_microseconds(event.at_us), name: event.name, data }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use trainyard_core::ErrorKind;

    use super::*;
    use crate::azureml::convert::runs::tests::external_run;

    fn posted(value: Value) -> Result<Posted> {
        let run = external_run("r1");
        read(&NewEvent::read("", value).unwrap(), &run, "ada")
    }

    fn event(x: &str, data: Value) -> Value {
        json!({"name": format!("Microsoft.MachineLearning.Run.{x}"), "data": data})
    }

    #[test]
    fn the_events_of_the_sdk_move_the_run() {
        let reported = Cause::Reported { message: "the client that runs the code reported that it failed, and gave no reason".into() };
        let table = [
            ("Start", RunEvent::ClientStarted),
            ("Completed", RunEvent::ClientEnded { cause: Cause::Completed }),
            ("Failed", RunEvent::ClientEnded { cause: reported }),
            ("canceled", RunEvent::ClientEnded { cause: Cause::Cancelled { by: Some("ada".into()), why: None } }),
            ("CancelRequested", RunEvent::CancelRequested { by: "ada".into(), why: None }),
        ];
        for (x, expected) in table {
            assert_eq!(posted(event(x, json!({"RunId": "r1", "EndTime": "2024-01-01T00:00:00Z"}))).unwrap(), Posted::Move(expected), "{x}");
        }
    }

    #[test]
    fn a_failure_carries_the_message_of_the_error_before_it() {
        let mut run = external_run("r1");
        run.error = Some(json!({"Error": {"code": "UserError", "Message": "out of cheese"}}));
        let failed = NewEvent::read("", event("Failed", json!({}))).unwrap();
        let cause = Cause::Reported { message: "out of cheese".into() };
        assert_eq!(read(&failed, &run, "ada").unwrap(), Posted::Move(RunEvent::ClientEnded { cause }));
    }

    #[test]
    fn errors_warnings_and_the_rest_are_told_apart() {
        let response = json!({"error": {"code": "UserError", "message": "boom"}});
        assert_eq!(posted(event("Error", json!({"errorResponse": response}))).unwrap(), Posted::Error(response));
        let warning = RunWarning { source: "sdk".into(), message: "slow".into() };
        assert_eq!(posted(event("Warning", json!({"Source": "sdk", "Message": "slow"}))).unwrap(), Posted::Warning(warning));
        assert_eq!(posted(event("Heartbeat", json!({"TimeToLiveSeconds": 120}))).unwrap(), Posted::Heartbeat);
        for note in [event("QueueingInfo", json!({"Message": "m"})), json!({"name": "my.own", "data": {}})] {
            assert_eq!(posted(note).unwrap(), Posted::Note);
        }
    }

    #[test]
    fn events_that_do_not_fit_are_refused_where_they_are_wrong() {
        let table = [
            (event("Start", json!({"RunId": "other"})), "data.RunId"),
            (event("Start", json!({"RunId": "not an id"})), "data.RunId"),
            (event("Error", json!({})), "data.ErrorResponse"),
            (event("Warning", json!({"Source": "s"})), "data.Message"),
        ];
        for (value, target) in table {
            let error = posted(value).unwrap_err();
            assert_eq!((error.kind(), error.target()), (ErrorKind::Invalid, Some(target)));
        }
    }

    #[test]
    fn the_timeline_names_the_run() {
        let entry = Event {
            seq: 3,
            at_us: 1_733_431_493_388_689,
            name: "Microsoft.MachineLearning.Run.Start".into(),
            data: json!({"AttemptId": 1}),
        };
        assert_eq!(
            serde_json::to_value(to_dto(entry, &RunId::new("r1").unwrap())).unwrap(),
            json!({
                "timestamp": "2024-12-05T20:44:53.388689Z", "name": "Microsoft.MachineLearning.Run.Start",
                "data": {"AttemptId": 1, "RunId": "r1"}
            })
        );
    }
}
