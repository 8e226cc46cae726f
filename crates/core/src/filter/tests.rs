use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ErrorKind;

fn compared(field: Field, op: Operator, value: Literal) -> Filter {
    Filter::Compare { field, op, value }
}

fn text(text: &str) -> Literal {
    Literal::Text(text.to_owned())
}

fn time(text: &str) -> Literal {
    Literal::Time(text.parse().unwrap())
}

fn present(field: Field) -> Filter {
    Filter::Present { field }
}

/// Everything that azureml-wire C.7 lists, as the SDK writes it.
#[test]
fn every_form_that_the_sdk_emits_is_read() {
    use Operator::{Eq, Ge, Gt, Ne};
    let tag = |key: &str| Field::Tag(key.to_owned());
    let property = |key: &str| Field::Property(key.to_owned());
    let table = [
        ("(ParentRunId eq null)", compared(Field::ParentRunId, Eq, Literal::Null)),
        ("(Status eq Completed)", compared(Field::Status, Eq, text("Completed"))),
        (
            "(RunType eq azureml.scriptrun or Properties/azureml.runsource eq azureml.scriptrun)",
            Filter::Or(vec![
                compared(Field::RunType, Eq, text("azureml.scriptrun")),
                compared(property("azureml.runsource"), Eq, text("azureml.scriptrun")),
            ]),
        ),
        ("(Tags/k eq \"v\")", compared(tag("k"), Eq, text("v"))),
        ("(Tags/k eq null)", compared(tag("k"), Eq, Literal::Null)),
        ("(Tags/k ne null or Tags/k eq null)", present(tag("k"))),
        ("(Tags/my key ne null or Tags/my key eq null)", present(tag("my key"))),
        ("(Properties/a.b-c eq \"v w\")", compared(property("a.b-c"), Eq, text("v w"))),
        ("(Properties/a.b-c ne null or Properties/a.b-c eq null)", present(property("a.b-c"))),
        ("(RunTypeV2/Orchestrator eq External)", compared(Field::Orchestrator, Eq, text("External"))),
        ("(RunTypeV2/Traits/t ne null)", compared(Field::Trait("t".into()), Ne, Literal::Null)),
        ("(RunTypeV2/Traits/t ne null) or (RunTypeV2/Traits/t eq null)", present(Field::Trait("t".into()))),
        ("(CreatedUtc ge 2024-01-02 03:04:05)", compared(Field::CreatedUtc, Ge, time("2024-01-02T03:04:05Z"))),
        ("(CreatedUtc ge 2024-01-02 03:04:05.5+02:00)", compared(Field::CreatedUtc, Ge, time("2024-01-02T01:04:05.5Z"))),
        ("CreatedUtc gt 2024-01-02T03:04:05.1234567Z", compared(Field::CreatedUtc, Gt, time("2024-01-02T03:04:05.1234567Z"))),
        ("(Target eq cpu-cluster)", compared(Field::Target, Eq, text("cpu-cluster"))),
        (
            "RunId eq a_1 or RunId eq b-2",
            Filter::Or(vec![compared(Field::RunId, Eq, text("a_1")), compared(Field::RunId, Eq, text("b-2"))]),
        ),
        (
            "(RootRunId eq X and RunId ne X)",
            Filter::And(vec![compared(Field::RootRunId, Eq, text("X")), compared(Field::RunId, Ne, text("X"))]),
        ),
        (
            "((Status eq Running) and (Tags/k eq \"v\"))",
            Filter::And(vec![compared(Field::Status, Eq, text("Running")), compared(tag("k"), Eq, text("v"))]),
        ),
        ("(name eq my run)", compared(Field::Name, Eq, text("my run"))),
    ];
    for (input, expected) in table {
        assert_eq!(Filter::parse(input).unwrap(), expected, "{input}");
    }
}

#[test]
fn names_and_words_are_read_in_any_case_and_statuses_become_canonical() {
    let expected = Filter::And(vec![
        compared(Field::Status, Operator::Eq, text("Canceled")),
        compared(Field::Hidden, Operator::Ne, Literal::Flag(true)),
        compared(Field::Orchestrator, Operator::Eq, Literal::Null),
    ]);
    assert_eq!(Filter::parse("STATUS EQ cancelled AnD hidden NE True and runtypev2/orchestrator eq NULL").unwrap(), expected);
}

#[test]
fn and_binds_tighter_than_or() {
    let [a, b, c] = ["a", "b", "c"].map(|id| compared(Field::RunId, Operator::Eq, text(id)));
    assert_eq!(
        Filter::parse("RunId eq a or RunId eq b and RunId eq c").unwrap(),
        Filter::Or(vec![a.clone(), Filter::And(vec![b.clone(), c.clone()])])
    );
    assert_eq!(Filter::parse("(RunId eq a or RunId eq b) and RunId eq c").unwrap(), Filter::And(vec![Filter::Or(vec![a, b]), c]));
}

#[test]
fn quotes_are_doubled_inside_values_and_a_quoted_null_is_a_text() {
    assert_eq!(Filter::parse("Name eq 'it''s'").unwrap(), compared(Field::Name, Operator::Eq, text("it's")));
    assert_eq!(Filter::parse("Name eq \"say \"\"hi\"\"\"").unwrap(), compared(Field::Name, Operator::Eq, text("say \"hi\"")));
    assert_eq!(Filter::parse("Name eq 'null'").unwrap(), compared(Field::Name, Operator::Eq, text("null")));
    assert_eq!(Filter::parse("Name eq ''").unwrap(), compared(Field::Name, Operator::Eq, text("")));
    assert_eq!(Filter::parse("(Name eq f(x) and RunId eq a)").unwrap().to_string(), "Name eq 'f(x)' and RunId eq 'a'");
}

#[test]
fn a_tautology_on_a_plain_field_stays_what_it_is() {
    let filter = Filter::parse("ParentRunId ne null or ParentRunId eq null").unwrap();
    assert!(matches!(filter, Filter::Or(ref parts) if parts.len() == 2), "{filter:?}");
}

#[test]
fn what_does_not_parse_is_named_with_its_place_and_what_was_expected() {
    let table = [
        ("", "expected `(` or one of RunId, Status", "at character 1, found the end"),
        ("Foo eq 1", "expected `(` or one of RunId, Status", "at character 1, found `Foo eq 1`"),
        ("not RunId eq a", "expected `(` or one of", "at character 1, found `not RunId eq a`"),
        ("RunId", "expected one of eq, ne, gt, ge, lt, le after `RunId`", "at character 6, found the end"),
        ("RunId = a", "expected one of eq, ne", "at character 7, found `= a`"),
        ("RunId eq", "expected a value after `RunId eq`", "at character 9, found the end"),
        ("RunId eq a b", "expected `and`, `or` or the end", "at character 12, found `b`"),
        ("RunId gt a", "expected eq or ne, since `RunId` is not a time,", "at character 7"),
        ("(RunId eq a", "expected `and`, `or` or `)`", "at character 12, found the end"),
        ("RunId eq a)", "expected `and`, `or` or the end", "at character 11, found `)`"),
        ("RunId eq a and", "expected `(` or one of", "found the end"),
        ("Name eq 'a", "expected a text that ends with '", "at character 9"),
        ("Tags/k eq \"a\"b\"", "a quote inside a value is written twice", "at character 14"),
        ("Tags/ eq 1", "expected a key", "at character 6"),
        ("Tags/k and RunId eq a", "expected a key", "stands in quotes"),
        ("Status eq Dancing", "expected a status (NotStarted, Starting", "at character 11"),
        ("CreatedUtc ge yesterday", "expected a time such as", "at character 15, found `yesterday`"),
        ("CreatedUtc gt null", "expected a time such as", "at character 15"),
        ("Hidden eq null", "expected true or false", "at character 11"),
        ("ExperimentId eq x", "expected a GUID", "at character 17"),
        ("RunTypeV2/Traits/t eq x", "expected null: a trait is there or not", "at character 23"),
        ("RunId eq \0", "NUL at character 10", "no value can hold"),
    ];
    for (input, expected, place) in table {
        let error = Filter::parse(input).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_eq!(error.target(), Some("filter"));
        assert!(error.message().contains(expected) && error.message().contains(place), "{input}: {error}");
    }
}

#[test]
fn length_depth_and_number_of_comparisons_are_bounded() {
    let long = format!("Name eq '{}'", "x".repeat(MAX_LENGTH));
    assert!(Filter::parse(&long).unwrap_err().message().contains("the limit is 131072"));
    let nested = |depth: usize| format!("{}RunId eq a{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Filter::parse(&nested(MAX_DEPTH)).is_ok());
    assert!(Filter::parse(&nested(MAX_DEPTH + 1)).unwrap_err().message().contains("deeper than 32"));
    let chain = |count: usize| vec!["RunId eq a"; count].join(" or ");
    assert!(Filter::parse(&chain(MAX_COMPARISONS)).is_ok());
    assert!(Filter::parse(&chain(MAX_COMPARISONS + 1)).unwrap_err().message().contains("more than 500 comparisons"));
}

/// Reading these in the square of their length would take minutes.
#[test]
fn a_hostile_filter_is_refused_or_read_in_one_go() {
    let spaces = " ".repeat(MAX_LENGTH - 40);
    let words = "a ".repeat(MAX_LENGTH / 2 - 40);
    assert!(Filter::parse(&format!("Tags/k{spaces}eq v")).is_ok());
    assert!(Filter::parse(&format!("Tags/{words}eq v")).is_err());
    assert!(Filter::parse(&format!("Name eq a{spaces}b")).is_ok());
    assert!(Filter::parse(&format!("Name eq {words}")).is_ok());
}

#[test]
fn a_blank_filter_is_no_filter() {
    assert_eq!(Filter::parse_optional(None).unwrap(), None);
    assert_eq!(Filter::parse_optional(Some("  ")).unwrap(), None);
    assert!(Filter::parse_optional(Some("RunId eq a")).unwrap().is_some());
}

#[test]
fn matching_follows_presence_null_and_time() {
    let tags: BTreeMap<&str, Option<&str>> = BTreeMap::from([("value", Some("v")), ("null", None)]);
    let cell = |field: &Field| match field {
        Field::RunId => Cell::Text("r1".into()),
        Field::CreatedUtc => Cell::Time("2024-01-01T00:00:00Z".parse().unwrap()),
        Field::Hidden => Cell::Flag(false),
        Field::Tag(key) => match tags.get(key.as_str()) {
            None => Cell::Absent,
            Some(None) => Cell::Null,
            Some(Some(value)) => Cell::Text((*value).into()),
        },
        _ => Cell::Null,
    };
    let table = [
        ("RunId eq r1", true),
        ("RunId ne r1", false),
        ("RunId eq R1", false),
        ("ParentRunId eq null", true),
        ("ParentRunId ne x", true),
        ("Tags/value eq v", true),
        ("Tags/value ne null", true),
        ("Tags/null eq null", true),
        ("Tags/null ne null", false),
        ("Tags/none eq null", true),
        ("Tags/none ne v", true),
        ("Tags/value ne null or Tags/value eq null", true),
        ("Tags/null ne null or Tags/null eq null", true),
        ("Tags/none ne null or Tags/none eq null", false),
        ("CreatedUtc ge 2024-01-01", true),
        ("CreatedUtc gt 2024-01-01", false),
        ("CreatedUtc le 2024-01-01T00:00:00Z", true),
        ("CreatedUtc lt 2024-01-01T01:00:00+01:00", false),
        ("StartTimeUtc lt 2030-01-01", false),
        ("Hidden eq false and (RunId eq x or RunId eq r1)", true),
    ];
    for (input, expected) in table {
        assert_eq!(Filter::parse(input).unwrap().matches(&cell), expected, "{input}");
    }
}

#[test]
fn orders_are_read_in_all_their_forms() {
    use Direction::{Ascending, Descending};
    use OrderField::{CreatedUtc, EndTimeUtc, RunId, StartTimeUtc};
    let table = [
        (None, None, None),
        (Some(""), Some(" "), None),
        (Some("StartTimeUtc desc"), None, Some((StartTimeUtc, Descending))),
        (Some("CreatedUtc desc"), Some("Asc"), Some((CreatedUtc, Descending))),
        (Some("RunId desc"), None, Some((RunId, Descending))),
        (Some("endtimeutc ASC"), None, Some((EndTimeUtc, Ascending))),
        (Some("CreatedUtc"), None, Some((CreatedUtc, Ascending))),
        (Some("CreatedUtc"), Some("Desc"), Some((CreatedUtc, Descending))),
        (None, Some("desc"), Some((CreatedUtc, Descending))),
        (Some("StartTimeUtc desc, RunId desc"), None, Some((StartTimeUtc, Descending))),
    ];
    for (orderby, sortorder, expected) in table {
        let order = OrderBy::parse(orderby, sortorder).unwrap();
        assert_eq!(order, expected.map(|(field, direction)| OrderBy { field, direction }), "{orderby:?} {sortorder:?}");
    }
    for (orderby, sortorder, words) in [
        (Some("Tags/x desc"), None, "expected one of CreatedUtc, StartTimeUtc"),
        (Some("RunId down"), None, "expected asc or desc"),
        (Some("RunId desc now"), None, "`now` after the direction"),
        (Some("CreatedUtc desc, StartTimeUtc desc"), None, "order by one field"),
        (Some(","), None, "can not be ordered by ``"),
        (None, Some("sideways"), "expected asc or desc"),
    ] {
        let error = OrderBy::parse(orderby, sortorder).unwrap_err();
        assert!(error.message().contains(words), "{error}");
    }
}

fn any_comparison() -> impl Strategy<Value = Filter> {
    let keyed = prop_oneof![
        "[^\0]{1,12}".prop_map(Field::Tag),
        "[^\0]{1,12}".prop_map(Field::Property),
        Just(Field::Name),
        Just(Field::RunId),
        Just(Field::DisplayName),
    ];
    let texts = (
        keyed,
        prop_oneof![Just(Operator::Eq), Just(Operator::Ne)],
        prop_oneof![Just(Literal::Null), "[^\0]{0,16}".prop_map(Literal::Text)],
    );
    let times = (
        prop_oneof![Just(Field::CreatedUtc), Just(Field::StartTimeUtc), Just(Field::EndTimeUtc)],
        (0usize..Operator::ALL.len()).prop_map(|index| Operator::ALL[index].1),
        (-62_135_596_800i64..253_402_207_200, 0i32..1_000_000_000)
            .prop_map(|(seconds, nanos)| Literal::Time(Timestamp::new(seconds, nanos).unwrap())),
    );
    prop_oneof![
        texts.prop_map(|(field, op, value)| Filter::Compare { field, op, value }),
        times.prop_map(|(field, op, value)| Filter::Compare { field, op, value }),
        "[^\0]{1,12}".prop_map(|key| Filter::Present { field: Field::Tag(key) }),
    ]
}

fn any_filter() -> impl Strategy<Value = Filter> {
    any_comparison().prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..5).prop_map(Filter::and),
            proptest::collection::vec(inner, 1..5).prop_map(Filter::or)
        ]
    })
}

proptest! {
    #[test]
    fn a_shown_filter_reads_back_to_itself(filter in any_filter()) {
        prop_assert_eq!(Filter::parse(&filter.to_string()).unwrap(), filter);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,80}") {
        let _ = Filter::parse(&text);
    }

    #[test]
    fn no_shuffled_filter_makes_the_parser_panic(words in proptest::collection::vec(proptest::sample::select(vec![
        "(", ")", "and", "or", "eq", "ne", "ge", "null", "'", "\"", "''", "Tags/", "Tags/k", "Properties/a.b", "RunTypeV2/Traits/é",
        "RunId", "CreatedUtc", "2024-01-01", "Status", "Running", " ", "é"
    ]), 0..24), glue in proptest::sample::select(vec!["", " "])) {
        if let Ok(filter) = Filter::parse(&words.join(glue)) {
            prop_assert_eq!(Filter::parse(&filter.to_string()).unwrap(), filter);
        }
    }

    #[test]
    fn no_order_makes_the_parser_panic(text in "\\PC{0,40}", sort in "\\PC{0,8}") {
        let _ = OrderBy::parse(Some(&text), Some(&sort));
    }
}
