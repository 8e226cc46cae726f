//! The counters of `/metrics`. A registry of its own, no process globals, bounded label sets: routes as written, never ids.

use std::{
    fmt,
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use trainyard_core::{Error, Result, run::RunState};
use trainyard_engine::Attendance;
use trainyard_store::ends::EndCounts;

/// Upper bounds of the duration buckets, seconds: from a cached lookup to a long upload.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Counting reads an index of all runs, and whoever scrapes may do it every second.
const COUNT_RUNS_EVERY: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    route: String,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: String,
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InvariantLabels {
    invariant: String,
}

type ByCause = Family<CauseLabels, Counter>;

/// What the server counts.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    runs: Family<StateLabels, Gauge>,
    runs_ended: ByCause,
    attempts_ended: ByCause,
    attempts_live: Gauge,
    attempts_heard: Gauge,
    violations: Family<InvariantLabels, Gauge>,
    runs_counted: Mutex<Option<Instant>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(..)")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let requests = Family::default();
        let durations: Family<RouteLabels, Histogram, fn() -> Histogram> = Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let runs = Family::default();
        let mut registry = Registry::with_prefix("trainyard");
        registry.register("http_requests", "Requests answered, by method, route and class of status", requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "Time from the head of a request to the head of its answer",
            Unit::Seconds,
            durations.clone(),
        );
        registry.register("runs", "Runs, by state", runs.clone());
        let (runs_ended, attempts_ended) = (ByCause::default(), ByCause::default());
        registry.register("runs_ended", "Runs that ended since the server started, by cause", runs_ended.clone());
        registry.register("attempts_ended", "Attempts that ended since the server started, by cause", attempts_ended.clone());
        let (attempts_live, attempts_heard) = (Gauge::default(), Gauge::default());
        registry.register("attempts_live", "Attempts in execution that the server has looked at since it started", attempts_live.clone());
        registry.register("attempts_heard", "Those of them whose agents said something since then", attempts_heard.clone());
        let violations = Family::default();
        registry.register("invariant_violations", "Objects that break an invariant of the rows, at the last count", violations.clone());
        let runs_counted = Mutex::new(None);
        Self { registry, requests, durations, runs, runs_ended, attempts_ended, attempts_live, attempts_heard, violations, runs_counted }
    }
}

impl Metrics {
    /// Counts a request.
    pub(crate) fn request_answered(&self, method: &Method, route: &str, status: StatusCode, elapsed: Duration) {
        let method = method_label(method).to_owned();
        let route = route.to_owned();
        let class = format!("{}xx", status.as_u16() / 100);
        self.requests.get_or_create(&RequestLabels { method: method.clone(), route: route.clone(), status: class }).inc();
        self.durations.get_or_create(&RouteLabels { method, route }).observe(elapsed.as_secs_f64());
    }

    /// Whether the runs should be counted again; the caller that hears yes does it.
    pub(crate) fn runs_are_due(&self) -> bool {
        let mut counted = self.runs_counted.lock().unwrap_or_else(PoisonError::into_inner);
        let due = counted.is_none_or(|at| at.elapsed() >= COUNT_RUNS_EVERY);
        if due {
            *counted = Some(Instant::now());
        }
        due
    }

    /// Replaces the counts of runs.
    pub(crate) fn set_runs(&self, counts: &[(RunState, i64)]) {
        for state in RunState::ALL {
            let count = counts.iter().filter(|(counted, _)| *counted == state).map(|(_, count)| count).sum();
            self.runs.get_or_create(&StateLabels { state: state.as_str().to_owned() }).set(count);
        }
    }

    /// Takes over what the store and the engine count.
    pub(crate) fn set_counts(&self, ends: &EndCounts, attendance: Attendance) {
        for (family, counts) in [(&self.runs_ended, ends.runs().collect::<Vec<_>>()), (&self.attempts_ended, ends.attempts().collect())] {
            for (cause, count) in counts {
                family.get_or_create(&CauseLabels { cause: cause.to_owned() }).inner().store(count, Ordering::Relaxed);
            }
        }
        self.attempts_live.set(i64::try_from(attendance.live).unwrap_or(i64::MAX));
        self.attempts_heard.set(i64::try_from(attendance.heard).unwrap_or(i64::MAX));
    }

    /// Replaces the counts of objects that break an invariant.
    pub(crate) fn set_violations(&self, counts: &[(&'static str, u64)]) {
        for (invariant, count) in counts {
            let labels = InvariantLabels { invariant: (*invariant).to_owned() };
            self.violations.get_or_create(&labels).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
    }

    /// OpenMetrics text.
    pub(crate) fn render(&self) -> Result<String> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).map_err(Error::internal)?;
        Ok(text)
    }
}

/// Methods are free text in HTTP; labels are not.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_and_class_of_status() {
        let metrics = Metrics::default();
        metrics.request_answered(&Method::GET, "/healthz", StatusCode::OK, Duration::from_millis(3));
        metrics.request_answered(&Method::from_bytes(b"BREW").unwrap(), "unmatched", StatusCode::NOT_FOUND, Duration::from_millis(3));
        metrics.set_runs(&[(RunState::Queued, 2), (RunState::Queued, 3)]);
        let text = metrics.render().unwrap();
        assert!(text.contains(r#"trainyard_http_requests_total{method="GET",route="/healthz",status="2xx"} 1"#), "{text}");
        assert!(text.contains(r#"trainyard_http_requests_total{method="other",route="unmatched",status="4xx"} 1"#), "{text}");
        assert!(text.contains(r#"trainyard_runs{state="Queued"} 5"#), "{text}");
        assert!(text.contains(r#"trainyard_runs{state="Failed"} 0"#), "{text}");
    }
}
