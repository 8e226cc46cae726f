//! Events of a run's timeline (azureml-wire C.6), in and out.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{error::ErrorResponse, time::UtcTime};
use crate::json::{Fields, FromJson, WireError, object};

/// What the names of all known events start with.
pub const PREFIX: &str = "Microsoft.MachineLearning.Run.";

/// An event as it stands in a timeline. Keys of `data` are PascalCase, unlike everything else.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventDto {
    /// When it happened.
    pub timestamp: UtcTime,
    /// `Microsoft.MachineLearning.Run.{X}`.
    pub name: String,
    /// What belongs to it.
    pub data: Value,
}

object! {
    /// An event that a client posts.
    pub struct NewEvent {
        /// When it happened, as the client says.
        "timestamp" timestamp: Option<UtcTime> = None,
        /// `Microsoft.MachineLearning.Run.{X}`.
        "name" name: String = String::new(),
        /// What belongs to it.
        "data" data: Map<String, Value> = Map::new(),
    }
}

impl NewEvent {
    /// Reads the body of `POST R/events`; the name must be there.
    pub fn read(path: &str, value: Value) -> Result<Self, WireError> {
        let event = Self::from_json(path, value)?;
        if event.name.is_empty() {
            let path = if path.is_empty() { "name".to_owned() } else { format!("{path}.name") };
            return Err(WireError::new(path, format!("is required: the name of an event such as {PREFIX}Start")));
        }
        Ok(event)
    }

    /// The `X` of a name `Microsoft.MachineLearning.Run.X`; `None` for other names, which are kept and mean nothing.
    pub fn kind(&self) -> Option<&str> {
        let (head, tail) = self.name.split_at_checked(PREFIX.len())?;
        head.eq_ignore_ascii_case(PREFIX).then_some(tail)
    }

    /// The properties of `data`, to be read in any case. Their paths in errors start with `data`.
    pub fn fields(&self) -> Result<Fields, WireError> {
        Fields::new("data", Value::Object(self.data.clone()))
    }
}

/// Reads the body of `POST /experiments/{name}/batch/events`: `{"events": […]}`.
pub fn read_batch(value: Value) -> Result<Vec<NewEvent>, WireError> {
    let events: Vec<Value> = Fields::new("", value)?.required("events")?;
    events.into_iter().enumerate().map(|(index, event)| NewEvent::read(&format!("events[{index}]"), event)).collect()
}

/// `{"errors": [{"key": …, "value": ErrorResponse}]}`: what a batch of events answers. `errors` is empty when all were taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BatchEventResult {
    /// One for each event that was refused.
    pub errors: Vec<EventError>,
}

/// Why an event of a batch was refused.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventError {
    /// The event as it was posted.
    pub key: NewEvent,
    /// Why.
    pub value: ErrorResponse,
}

/// A timeline, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventList {
    /// The events.
    pub events: Vec<EventDto>,
    /// Extra links, none today.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_events_that_the_sdk_posts_are_read() {
        let start = json!({
            "timestamp": "2024-01-01T00:00:00.1234567Z",
            "name": "Microsoft.MachineLearning.Run.Start",
            "data": {"RunId": "r", "StartTime": "2024-01-01T00:00:00.12Z"}
        });
        let event = NewEvent::read("", start.clone()).unwrap();
        assert_eq!(event.kind(), Some("Start"));
        let mut data = event.fields().unwrap();
        assert_eq!(data.string("runId").unwrap().as_deref(), Some("r"));
        assert_eq!(data.read::<UtcTime>("startTime").unwrap().unwrap().to_string(), "2024-01-01T00:00:00.12Z");
        assert_eq!(serde_json::to_value(&event).unwrap(), start);
        let batch = read_batch(json!({"Events": [start, {"name": "custom"}]})).unwrap();
        assert_eq!((batch.len(), batch[1].kind()), (2, None));
    }

    #[test]
    fn an_event_without_a_name_is_refused_where_it_stands() {
        let error = read_batch(json!({"events": [{"data": {}}]})).unwrap_err();
        assert_eq!(error.path, "events[0].name");
        assert_eq!(NewEvent::read("", json!({})).unwrap_err().path, "name");
        assert_eq!(read_batch(json!({})).unwrap_err().to_string(), "events: is required and missing");
        assert!(NewEvent::read("", json!({"name": "x", "timestamp": "soon"})).unwrap_err().message.contains("expected a time"));
    }

    #[test]
    fn a_batch_without_errors_answers_an_empty_list() {
        assert_eq!(serde_json::to_value(BatchEventResult::default()).unwrap(), json!({"errors": []}));
    }
}
