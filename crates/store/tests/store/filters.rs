use std::{borrow::Cow, cell::RefCell, collections::BTreeMap};

use jiff::Timestamp;
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::select,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use serde_json::{Map, Value, json};
use trainyard_core::{
    filter::{Cell, Field, Filter, Literal, Operator},
    ids::RunId,
    run::{Cause, Desired, RunState},
};
use trainyard_store::runs::{RunQuery, RunRecord};

use crate::{
    database::Bench,
    fixtures::{NOW, Place, run_id, texts},
    lists::{all, newest_first},
};

/// Names that a careless path into JSON, or SQL put together from text, would stumble over.
const KEYS: [&str; 12] = ["k", "K", "a.b", "a-b", "quote\"d", "it's", "sl\\ash", "🚂", "", "$", "[0]", "tab\there"];
const TEXTS: [&str; 10] = ["", "v", "V", "1", "null", "it's \"so\"", "back\\slash", "é🚂", "%", "true"];
const STATUSES: [&str; 13] = [
    "NotStarted",
    "Starting",
    "Provisioning",
    "Preparing",
    "Queued",
    "Running",
    "Finalizing",
    "CancelRequested",
    "Completed",
    "Failed",
    "Canceled",
    "NotResponding",
    "Paused",
];

fn text() -> impl Strategy<Value = String> {
    select(&TEXTS[..]).prop_map(str::to_owned)
}

fn key() -> impl Strategy<Value = String> {
    select(&KEYS[..]).prop_map(str::to_owned)
}

/// Microseconds close enough to each other to be equal now and then.
fn time_us() -> impl Strategy<Value = i64> {
    (0..4_i64).prop_map(|n| NOW + n)
}

/// A `runTypeV2`, mostly of the right shape.
fn run_type_v2() -> impl Strategy<Value = Value> {
    let orchestrator = prop_oneof![Just(Value::Null), Just(json!(7)), text().prop_map(Value::from)];
    let traits = prop_oneof![Just(Value::Null), Just(json!({ "v": 1 })), vec(text(), 0..3).prop_map(Value::from), Just(json!([1, null]))];
    prop_oneof![
        3 => (orchestrator, traits).prop_map(|(orchestrator, traits)| json!({ "orchestrator": orchestrator, "traits": traits })),
        1 => Just(Value::Null),
    ]
}

type Texts = BTreeMap<String, Option<String>>;

/// What a filter can look at.
#[derive(Clone, Debug)]
struct Look {
    state: RunState,
    times: (i64, Option<i64>, Option<i64>),
    names: [Option<String>; 4],
    flags: (bool, bool),
    maps: (Texts, Texts),
    run_type: Value,
    user: Value,
}

impl Look {
    fn give(self, run: &mut RunRecord) {
        run.state = self.state;
        run.desired = if self.flags.0 { Desired::Cancel } else { Desired::Run };
        run.cause = self.state.is_terminal().then_some(Cause::Completed);
        (run.created_us, run.started_us, run.ended_us) = self.times;
        [run.name, run.display_name, run.run_type, run.script_name] = self.names;
        run.hidden = self.flags.1;
        (run.tags, run.properties) = self.maps;
        run.extra = Map::from_iter([("runTypeV2".to_owned(), self.run_type)]);
        run.created_by = self.user;
    }
}

fn look() -> impl Strategy<Value = Look> {
    let times = (time_us(), option::of(time_us()), option::of(time_us()));
    let names = [option::of(text()), option::of(text()), option::of(text()), option::of(text())];
    let maps = (btree_map(key(), option::of(text()), 0..4), btree_map(key(), option::of(text()), 0..4));
    let user = prop_oneof![Just(json!({})), text().prop_map(|id| json!({ "userObjectId": id })), Just(json!({ "userObjectId": 1 }))];
    (select(&RunState::ALL[..]), times, names, any::<(bool, bool)>(), maps, run_type_v2(), user)
        .prop_map(|(state, times, names, flags, maps, run_type, user)| Look { state, times, names, flags, maps, run_type, user })
}

fn field() -> impl Strategy<Value = Field> {
    prop_oneof![
        4 => key().prop_map(Field::Tag),
        4 => key().prop_map(Field::Property),
        1 => text().prop_map(Field::Trait),
        8 => select(vec![
            Field::RunId, Field::Status, Field::CreatedUtc, Field::StartTimeUtc, Field::EndTimeUtc, Field::ParentRunId, Field::RootRunId,
            Field::ExperimentId, Field::RunType, Field::Orchestrator, Field::Target, Field::Name, Field::DisplayName, Field::UserId,
            Field::Hidden, Field::ScriptName,
        ]),
    ]
}

/// Any value for any field: the wrong type now and then too.
fn literal(field: &Field, experiment: String) -> BoxedStrategy<Literal> {
    let time = (time_us(), select(vec![0_i64, 1, 999])).prop_map(|(us, ns)| {
        Literal::Time(Timestamp::from_nanosecond(i128::from(us) * 1000 + i128::from(ns)).expect("a time of this century"))
    });
    let right = match field {
        // The parser lets a trait be compared with nothing else.
        Field::Trait(_) => return Just(Literal::Null).boxed(),
        Field::CreatedUtc | Field::StartTimeUtc | Field::EndTimeUtc => time.boxed(),
        Field::Hidden => any::<bool>().prop_map(Literal::Flag).boxed(),
        Field::Status => select(&STATUSES[..]).prop_map(|status| Literal::Text(status.to_owned())).boxed(),
        Field::ExperimentId => Just(Literal::Text(experiment)).boxed(),
        Field::RunId | Field::ParentRunId | Field::RootRunId => (0..6).prop_map(|n| Literal::Text(format!("run-{n}"))).boxed(),
        Field::Target => select(vec!["cpu-cluster", "gpu"]).prop_map(|target| Literal::Text(target.to_owned())).boxed(),
        _ => text().prop_map(Literal::Text).boxed(),
    };
    prop_oneof![12 => right, 4 => Just(Literal::Null), 1 => text().prop_map(Literal::Text), 1 => any::<bool>().prop_map(Literal::Flag)]
        .boxed()
}

fn filter(experiment: String) -> impl Strategy<Value = Filter> {
    let operator = prop_oneof![
        4 => select(vec![Operator::Eq, Operator::Ne]),
        1 => select(vec![Operator::Gt, Operator::Ge, Operator::Lt, Operator::Le]),
    ];
    let compare = (field(), operator).prop_flat_map(move |(field, op)| {
        literal(&field, experiment.clone()).prop_map(move |value| Filter::Compare { field: field.clone(), op, value })
    });
    let present = prop_oneof![key().prop_map(Field::Tag), key().prop_map(Field::Property), text().prop_map(Field::Trait)]
        .prop_map(|field| Filter::Present { field });
    prop_oneof![6 => compare, 1 => present].prop_recursive(3, 12, 4, |inner| {
        prop_oneof![vec(inner.clone(), 1..4).prop_map(Filter::and), vec(inner, 1..4).prop_map(Filter::or)]
    })
}

/// What the columns of a run mean, said a second time and without SQL.
fn cell<'a>(run: &'a RunRecord, field: &Field) -> Cell<'a> {
    let text = |text: Option<&'a str>| text.map_or(Cell::Null, |text| Cell::Text(Cow::Borrowed(text)));
    let time = |us: Option<i64>| us.map_or(Cell::Null, |us| Cell::Time(Timestamp::from_microsecond(us).expect("a time of this century")));
    let map = |map: &'a Texts, key: &str| map.get(key).map_or(Cell::Absent, |value| text(value.as_deref()));
    let run_type = &run.extra.get("runTypeV2").unwrap_or(&Value::Null);
    match field {
        Field::RunId => text(Some(run.id.as_str())),
        Field::Status if run.desired == Desired::Cancel && !run.state.is_terminal() => text(Some("CancelRequested")),
        Field::Status => text(Some(run.state.as_str())),
        Field::CreatedUtc => time(Some(run.created_us)),
        Field::StartTimeUtc => time(run.started_us),
        Field::EndTimeUtc => time(run.ended_us),
        Field::ParentRunId => text(run.parent.as_ref().map(RunId::as_str)),
        Field::RootRunId => text(Some(run.root.as_str())),
        Field::ExperimentId => Cell::Text(Cow::Owned(run.experiment.to_string())),
        Field::RunType => text(run.run_type.as_deref()),
        Field::Orchestrator => text(run_type["orchestrator"].as_str()),
        Field::Trait(name) => {
            let found = run_type["traits"].as_array().is_some_and(|traits| traits.iter().any(|found| found.as_str() == Some(name)));
            if found { text(Some("")) } else { Cell::Absent }
        }
        Field::Target => text(run.target.as_deref()),
        Field::Name => text(run.name.as_deref()),
        Field::DisplayName => text(run.display_name.as_deref()),
        Field::UserId => text(run.created_by["userObjectId"].as_str()),
        Field::Hidden => Cell::Flag(run.hidden),
        Field::ScriptName => text(run.script_name.as_deref()),
        Field::Tag(key) => map(&run.tags, key),
        Field::Property(key) => map(&run.properties, key),
    }
}

async fn generated_runs(bench: &Bench, place: &Place, runner: &mut TestRunner) -> Vec<RunRecord> {
    let mut runs = Vec::new();
    for n in 0..40 {
        let look = look().new_tree(runner).expect("a look").current();
        let run = place.run_with(&format!("run-{n}"), |run| {
            look.give(run);
            if n % 4 == 1 {
                run.parent = Some(run_id("run-0"));
                run.root = run_id("run-0");
                run.target = if n % 8 == 1 { None } else { Some("gpu".into()) };
            }
        });
        runs.push(bench.store_run(run).await);
    }
    runs
}

pub(crate) async fn filters_mean_what_core_says(bench: &Bench) {
    let place = bench.place().await;
    let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    let runs = generated_runs(bench, &place, &mut runner).await;
    let handle = tokio::runtime::Handle::current();
    let strategy = filter(place.experiment.id.to_string());
    let telling = RefCell::new(0);
    let outcome = tokio::task::block_in_place(|| {
        runner.run(&strategy, |filter| {
            let query = RunQuery { filter: Some(filter.clone()), ..newest_first(place.workspace) };
            let mut found: Vec<String> = handle.block_on(all(bench, query)).into_iter().map(|run| run.id.to_string()).collect();
            let mut expected: Vec<String> =
                runs.iter().filter(|run| filter.matches(&|field| cell(run, field))).map(|run| run.id.to_string()).collect();
            found.sort();
            expected.sort();
            if !found.is_empty() && found.len() < runs.len() {
                *telling.borrow_mut() += 1;
            }
            prop_assert_eq!(found, expected, "{}", filter);
            Ok(())
        })
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let telling = telling.into_inner();
    assert!(telling > 50, "only {telling} filters told runs apart");
}

pub(crate) async fn the_filters_of_the_sdk_find_their_runs(bench: &Bench) {
    let place = bench.place().await;
    let parent = place.run_with("parent", |run| {
        run.run_type = Some("azureml.scriptrun".into());
        run.tags = texts(&[("quality", Some("good")), ("flag", None)]);
    });
    bench.store_run(parent).await;
    let child = place.run_with("child", |run| {
        run.parent = Some(run_id("parent"));
        run.root = run_id("parent");
        run.properties = texts(&[("azureml.runsource", Some("azureml.scriptrun"))]);
        run.created_us = NOW + 1;
    });
    bench.store_run(child).await;
    let table: [(&str, &[&str]); 9] = [
        ("(ParentRunId eq null)", &["parent"]),
        ("(Status eq Queued)", &["child", "parent"]),
        ("(Status eq Running)", &[]),
        ("(RunType eq azureml.scriptrun or Properties/azureml.runsource eq azureml.scriptrun)", &["child", "parent"]),
        ("(Tags/quality eq \"good\")", &["parent"]),
        ("(Tags/flag ne null or Tags/flag eq null)", &["parent"]),
        ("(RootRunId eq parent and RunId ne parent)", &["child"]),
        ("(CreatedUtc gt 2023-11-14T22:13:20Z)", &["child"]),
        ("(Target eq cpu-cluster) and (Properties/azureml.runsource eq null)", &["parent"]),
    ];
    for (text, expected) in table {
        let filter = Some(Filter::parse(text).expect("a filter of the SDK"));
        let found = all(bench, RunQuery { filter, ..newest_first(place.workspace) }).await;
        assert_eq!(found.iter().map(|run| run.id.as_str()).collect::<Vec<_>>(), expected, "{text}");
    }
}
