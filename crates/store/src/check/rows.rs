//! What must hold between rows, as statements that find what breaks it.

use trainyard_core::{
    Error, Result,
    ids::AttemptId,
    run::{self, Ownership, Run},
};

use super::{Checking, Repair};
use crate::{
    db::{Conn, Row, Sql, Value},
    progress::Unit,
    run_row,
    store::Store,
};

/// Findings of one statement; what is beyond is counted by the next check.
const FINDINGS: i64 = 1000;
/// Runs that are read at once.
const RUNS: i64 = 500;

/// A rule and the statement that finds the objects which break it: two texts, together the object's name.
struct Rule {
    invariant: &'static str,
    sentence: &'static str,
    select: &'static str,
    repair: Option<&'static str>,
}

/// Runs that execute; the words are those of an index, so that this costs nothing however many runs there are.
macro_rules! executing {
    () => {
        "r.ownership = 'Managed' and r.state in ('Starting', 'Preparing', 'Running', 'Finalizing')"
    };
}

/// Rules over runs that wait or execute, which are few: cheap enough for a server at work.
const CHEAP_RULES: [Rule; 6] = [
    Rule {
        invariant: "execution_without_attempt",
        sentence: "the run is in execution and has no live attempt",
        select: concat!("select r.workspace, r.id from runs r where ", executing!(), " and r.attempt is null"),
        repair: None,
    },
    Rule {
        invariant: "attempt_unknown",
        sentence: "the run's live attempt has no row, or that of another run, or is closed",
        select: concat!(
            "select r.workspace, r.id from runs r where ",
            executing!(),
            " and r.attempt is not null and not exists (select 1 from attempts a where a.id = r.attempt and a.workspace = r.workspace \
             and a.run = r.id and a.state <> 'Closed')"
        ),
        repair: None,
    },
    Rule {
        invariant: "several_live_attempts",
        sentence: "more than one attempt of the run is not closed",
        select: concat!(
            "select r.workspace, r.id from runs r where ",
            executing!(),
            " and (select count(*) from attempts a where a.workspace = r.workspace and a.run = r.id and a.state <> 'Closed') > 1"
        ),
        repair: None,
    },
    Rule {
        invariant: "finalizing_without_cause",
        sentence: "the run is finalizing without a cause",
        select: concat!("select r.workspace, r.id from runs r where ", executing!(), " and r.state = 'Finalizing' and r.cause is null"),
        repair: None,
    },
    Rule {
        invariant: "waiting_with_attempt",
        sentence: "the run waits and has a live attempt",
        select: "select r.workspace, r.id from runs r where r.state = 'Queued' and r.attempt is not null",
        repair: None,
    },
    Rule {
        invariant: "waiting_with_open_attempt",
        sentence: "the run waits and an attempt of it is not closed",
        select: "select r.workspace, r.id from runs r where r.state = 'Queued' and exists \
                 (select 1 from attempts a where a.workspace = r.workspace and a.run = r.id and a.state <> 'Closed')",
        repair: None,
    },
];

/// The words of the rules that a server at work checks.
pub const CHEAP: [&str; 6] = [
    CHEAP_RULES[0].invariant,
    CHEAP_RULES[1].invariant,
    CHEAP_RULES[2].invariant,
    CHEAP_RULES[3].invariant,
    CHEAP_RULES[4].invariant,
    CHEAP_RULES[5].invariant,
];

/// Rules over everything there ever was.
const THOROUGH_RULES: [Rule; 9] = [
    Rule {
        invariant: "attempt_without_run",
        sentence: "the attempt is of a run that does not exist",
        select: "select a.workspace, a.id from attempts a where not exists (select 1 from runs r where r.workspace = a.workspace and r.id = a.run)",
        repair: None,
    },
    Rule {
        invariant: "open_attempt_of_ended_run",
        sentence: "the run is over and an attempt of it is not closed",
        select: "select distinct r.workspace, r.id from attempts a join runs r on r.workspace = a.workspace and r.id = a.run \
                 where a.state <> 'Closed' and r.state in ('Completed', 'Failed', 'Canceled')",
        repair: Some(
            "update attempts set state = 'Closed', ended_us = coalesce(ended_us, (select r.ended_us from runs r where r.workspace = $1 and r.id = $2)) \
             where workspace = $1 and run = $2 and state <> 'Closed'",
        ),
    },
    Rule {
        invariant: "event_gap",
        sentence: "the run's timeline has a gap",
        select: "select e.workspace, e.run from events e group by e.workspace, e.run having count(*) <> max(e.seq) or min(e.seq) <> 1",
        repair: None,
    },
    Rule {
        invariant: "definition_missing",
        sentence: "the server executes the run and has no definition for it",
        select: "select r.workspace, r.id from runs r where r.ownership = 'Managed' and not exists \
                 (select 1 from run_documents d where d.workspace = r.workspace and d.run = r.id and d.definition is not null)",
        repair: None,
    },
    Rule {
        invariant: "snapshot_unknown",
        sentence: "the run's snapshot has no row",
        select: "select r.workspace, r.id from runs r where r.snapshot is not null and not exists \
                 (select 1 from snapshots s where s.workspace = r.workspace and s.id = r.snapshot)",
        repair: None,
    },
    Rule {
        invariant: "environment_unknown",
        sentence: "the run's environment has no row",
        select: "select r.workspace, r.id from runs r where r.environment is not null and not exists \
                 (select 1 from environments e where e.hash = r.environment)",
        repair: None,
    },
    Rule {
        invariant: "number_taken_twice",
        sentence: "two runs of the experiment have the same number",
        select: "select distinct r.workspace, r.experiment from runs r group by r.workspace, r.experiment, r.number having count(*) > 1",
        repair: None,
    },
    Rule {
        invariant: "experiment_counter",
        sentence: "the experiment's counter is below the number of its youngest run",
        select: "select e.workspace, e.id from experiments e where e.last_number < coalesce \
                 ((select max(r.number) from runs r where r.workspace = e.workspace and r.experiment = e.id), 0)",
        repair: Some(
            "update experiments set last_number = (select max(r.number) from runs r where r.workspace = $1 and r.experiment = $2) \
             where workspace = $1 and id = $2",
        ),
    },
    Rule {
        invariant: "experiment_latest_run",
        sentence: "the experiment does not know its youngest run",
        select: "select e.workspace, e.id from experiments e where exists \
                 (select 1 from runs r where r.workspace = e.workspace and r.experiment = e.id) and (e.latest_run_id is null or not exists \
                 (select 1 from runs r where r.workspace = e.workspace and r.id = e.latest_run_id and r.experiment = e.id))",
        repair: Some(
            "update experiments set \
             latest_run_id = (select r.id from runs r where r.workspace = $1 and r.experiment = $2 order by r.number desc limit 1), \
             latest_run_created_us = (select r.created_us from runs r where r.workspace = $1 and r.experiment = $2 order by r.number desc limit 1) \
             where workspace = $1 and id = $2",
        ),
    },
];

impl Store {
    /// How many objects break each of the rules that are cheap to check, in the order of [`CHEAP`].
    pub async fn count_violations(&self) -> Result<Vec<(&'static str, u64)>> {
        let mut conn = self.reader().await?;
        let mut counts = Vec::new();
        for rule in &CHEAP_RULES {
            counts.push((rule.invariant, objects(&mut conn, rule).await?.len() as u64));
        }
        Ok(counts)
    }
}

/// The objects that break a rule, at most [`FINDINGS`].
async fn objects(conn: &mut Conn, rule: &Rule) -> Result<Vec<(String, String)>> {
    let mut sql = Sql::new(rule.select);
    sql.push_limit(FINDINGS);
    let rows = conn.fetch_all(sql).await?;
    rows.iter().map(|row| row.columns()).map(|mut row| Ok((row.text()?, row.text()?))).collect()
}

impl Checking<'_> {
    /// Every rule over rows, and every run by itself.
    pub(super) async fn rows(&mut self) -> Result<()> {
        let rules = CHEAP_RULES.len() + THOROUGH_RULES.len();
        self.begin("checking rows", rules as u64, Unit::Count);
        for rule in CHEAP_RULES.iter().chain(&THOROUGH_RULES) {
            let mut conn = self.store.reader().await?;
            let found = objects(&mut conn, rule).await?;
            drop(conn);
            for (workspace, object) in found {
                let repair = match rule.repair {
                    None => Repair::Impossible,
                    Some(text) => {
                        self.mend(text, &workspace, &object).await?;
                        self.repaired()
                    }
                };
                self.find(rule.invariant, format!("{workspace}/{object}"), rule.sentence, repair);
            }
            self.check.progress.advance(1);
        }
        self.runs().await
    }

    /// What the state machine says must hold for a run by itself.
    async fn runs(&mut self) -> Result<()> {
        let mut after: Option<(String, String)> = None;
        loop {
            let mut sql =
                Sql::new("select r.workspace, r.id, r.ownership, r.state, r.desired, r.attempt, r.cause, r.silent, r.retries from runs r");
            if let Some((workspace, id)) = &after {
                sql.push(" where (r.workspace, r.id) > ").push_row([Value::from(workspace.as_str()), Value::from(id.as_str())]);
            }
            sql.push(" order by r.workspace, r.id").push_limit(RUNS);
            let rows = self.store.reader().await?.fetch_all(sql).await?;
            for row in &rows {
                let (workspace, id, run) = decode(row)?;
                for sentence in run::violations(&run) {
                    self.find("run_state", format!("{workspace}/{id}"), sentence, Repair::Impossible);
                }
                after = Some((workspace, id));
            }
            if rows.is_empty() {
                return Ok(());
            }
        }
    }
}

fn decode(row: &Row) -> Result<(String, String, Run)> {
    let mut row = row.columns();
    let (workspace, id) = (row.text()?, row.text()?);
    let ownership = match row.text()?.as_str() {
        "Managed" => Ownership::Managed,
        "External" => Ownership::External,
        other => return Err(Error::internal(format!("run {id} has the unknown ownership `{other}`"))),
    };
    let run = Run {
        ownership,
        state: run_row::state(&mut row)?,
        desired: run_row::desired(&mut row)?,
        attempt: row.opt_parse::<AttemptId>()?,
        cause: row.opt_json()?,
        silent: row.flag()?,
        retries: row.opt_json()?.unwrap_or_default(),
    };
    Ok((workspace, id, run))
}
