//! The crash harness behind `scripts/chaos`: real servers, agents and databases are killed, paused, cut off and starved of disk while
//! runs are submitted, and after every round each promise is checked.
//!
//! A **round** is made from its seed alone ([`plan`]): a stream of runs, each of which appends one line with its run and attempt to a
//! file outside, says the same words to its log and outside, leaves an output, sleeps, and ends with a chosen code or signal; faults at
//! their times; and fail points ([`trainyard_store::fail`]) that each start of the server and its agents have armed. Clients send
//! every request again until it is answered. Then everything is made healthy, the harness waits until all runs have ended, and checks
//! ([`round`], [`judge`]): every accepted run is there and has ended; the lines outside are those that the attempts in the rows account for;
//! status and cause are what the plan and the recorded kills of exactly that attempt allow; the log holds at least every word that
//! was said outside after it was said there; outputs are kept; tries follow the rule of the target; the timeline has one end; no process,
//! attempt folder, staged or growing file is left; the server ended with 0 when it was asked to; and the rows agree with each other and
//! with the blobs.
//!
//! The times at which things happen are those of a real machine, so that a round repeats what is done, not every interleaving.

#![expect(clippy::print_stdout, reason = "its output is the result")]

mod judge;
mod ledger;
mod observe;
mod plan;
mod postgres;
mod processes;
mod proxy;
mod report;
mod round;
mod seed;
mod server;
mod storm;
mod stream;
mod world;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};

use crate::{
    judge::{Broken, Violation},
    plan::{RoundPlan, Scope},
    postgres::Postgres,
    report::{How, Tally},
    seed::Seed,
    storm::SharedDatabase,
    world::{HEARTBEAT_LIMIT, Recipe, World},
};

/// Rounds that a world is used for.
const ROUNDS_PER_WORLD: u64 = 6;

/// Bytes of the small file system of a data directory, for each run of a round and in any case.
const SMALL_DISK_BYTES: (u64, u64) = (400 << 10, 48 << 20);

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Databases {
    Sqlite,
    Postgres,
    /// One world with each in turn.
    Both,
}

/// Kills, pauses and cuts off real servers and agents while runs are submitted, and checks that no run is lost, run twice, or ends wrong.
#[derive(Parser)]
#[command(name = "chaos")]
struct Args {
    /// How many rounds
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// Runs in each round; all may execute at once
    #[arg(long, default_value_t = 20)]
    live: u64,
    /// The seed of everything [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Only this round of the seed, in a world of its own
    #[arg(long)]
    round: Option<u64>,
    /// Which databases
    #[arg(long, value_enum, default_value = "sqlite")]
    database: Databases,
    /// The page with the counts
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The program under test, built with the feature `failpoints` [default: beside this one]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where worlds are made [default: the folder for temporary files]
    #[arg(long, value_name = "DIR")]
    place: Option<PathBuf>,
    /// Where the worlds of failed rounds are kept [default: they are not]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Stop after the first round that breaks a promise
    #[arg(long)]
    stop: bool,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    ensure!(cfg!(feature = "failpoints"), "this was built without fail points; use scripts/chaos, or build with --features failpoints");
    trainyard_server::tls::install_crypto_provider();
    let harness = Harness::new(args)?;
    tokio::select! {
        done = harness.run() => done,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

struct Harness {
    args: Args,
    seed: u64,
    binary: PathBuf,
    place: PathBuf,
    postgres: SharedDatabase,
    slots: u64,
}

impl Harness {
    fn new(args: Args) -> Result<Self> {
        let beside = || -> Result<PathBuf> {
            let own = std::env::current_exe()?;
            Ok(own.parent().and_then(|examples| examples.parent()).context("this program has no place")?.join("trainyard"))
        };
        let binary = args.binary.clone().map_or_else(beside, Ok)?.canonicalize().context("there is no program to test")?;
        let place = args.place.clone().unwrap_or_else(std::env::temp_dir);
        std::fs::create_dir_all(&place)?;
        let seed = args.seed.unwrap_or_else(|| jiff::Timestamp::now().as_microsecond().unsigned_abs());
        let postgres = if args.database == Databases::Sqlite { None } else { Some(Arc::new(Mutex::new(Postgres::start()?))) };
        Ok(Self { seed, binary, place: place.canonicalize()?, postgres, slots: args.live, args })
    }

    async fn run(&self) -> Result<ExitCode> {
        println!("seed {}: {} rounds of {} runs", self.seed, self.args.rounds, self.args.live);
        let began = Instant::now();
        let mut tally = Tally::default();
        let rounds: Vec<u64> = self.args.round.map_or_else(|| (0..self.args.rounds).collect(), |round| vec![round]);
        let mut world: Option<World> = None;
        for number in rounds {
            if number.is_multiple_of(ROUNDS_PER_WORLD) {
                world = None;
            }
            let place = match world.take() {
                Some(world) => world,
                None => self.world(number, &mut tally).await?,
            };
            world = self.round(number, place, &mut tally).await?;
            tally.elapsed = began.elapsed();
            if self.args.stop && !tally.violations.is_empty() {
                break;
            }
        }
        drop(world);
        self.conclude(&tally)
    }

    /// Plays a round; the world, if it may be used again.
    async fn round(&self, number: u64, mut world: World, tally: &mut Tally) -> Result<Option<World>> {
        let scope = Scope {
            live: self.args.live,
            database_server: self.uses_postgres(number),
            small_disk: world.has_small_disk(),
            heartbeat_limit: HEARTBEAT_LIMIT,
        };
        let plan = RoundPlan::make(self.seed, number, &scope);
        let began = Instant::now();
        let database = self.postgres.clone().filter(|_| scope.database_server);
        let played = round::play(&mut world, &plan, database).await;
        let name = format!("seed {} round {number} ({})", self.seed, if scope.database_server { "PostgreSQL" } else { "SQLite" });
        let violations = match played {
            Ok(outcome) => {
                tally.add(&outcome.record, &outcome.seen, outcome.lines);
                let fired: u64 = outcome.record.fired.values().sum();
                println!(
                    "{name}: {} runs, {} faults, {fired} fail points, {:.1} s",
                    outcome.seen.len(),
                    plan.steps.len(),
                    began.elapsed().as_secs_f64()
                );
                outcome.violations
            }
            Err(error) => vec![Violation {
                broken: Broken::Misbehaved,
                about: "the round".into(),
                expected: "it can be played to its end".into(),
                found: format!("{error:#}"),
            }],
        };
        if violations.is_empty() {
            return Ok(Some(world));
        }
        println!("{name} did:\n{plan}");
        for violation in &violations {
            println!("{name}: {violation}");
        }
        if let Some(keep) = &self.args.keep {
            let place = keep.join(format!("{}-{number}", self.seed));
            world.keep(&place)?;
            println!("{name}: its world is kept in {}", place.display());
        }
        tally.violations.extend(violations.into_iter().map(|violation| (name.clone(), violation)));
        // What comes after is not to be blamed for it.
        Ok(None)
    }

    async fn world(&self, number: u64, tally: &mut Tally) -> Result<World> {
        let world_number = number / ROUNDS_PER_WORLD;
        let small = !Seed::new(self.seed).part(u64::MAX - world_number).once_in(4);
        let database = match (&self.postgres, self.uses_postgres(number)) {
            (Some(postgres), true) => {
                let name = format!("world_{number}_{}", std::process::id());
                let mut postgres = postgres.lock().unwrap_or_else(PoisonError::into_inner);
                postgres.start_again()?;
                postgres.database(&name)?
            }
            _ => "sqlite".to_owned(),
        };
        let small_disk = small.then_some(SMALL_DISK_BYTES.1 + SMALL_DISK_BYTES.0 * self.args.live);
        let recipe = Recipe { binary: &self.binary, place: &self.place, database, small_disk, slots: self.slots };
        let world = World::make(recipe).await?;
        tally.worlds += 1;
        tally.worlds_with_small_disk += u64::from(world.has_small_disk());
        Ok(world)
    }

    fn uses_postgres(&self, number: u64) -> bool {
        match self.args.database {
            Databases::Sqlite => false,
            Databases::Postgres => true,
            Databases::Both => (number / ROUNDS_PER_WORLD) % 2 == 1,
        }
    }

    fn conclude(&self, tally: &Tally) -> Result<ExitCode> {
        println!();
        for (what, count) in tally.rows() {
            println!("{count:>8}  {what}");
        }
        println!("fail points that fired:");
        for (name, count) in &tally.fired {
            println!("{count:>8}  {name}");
        }
        if let Some(file) = &self.args.report {
            let command = format!(
                "scripts/chaos --rounds {} --live {} --seed {} --database {}",
                self.args.rounds,
                self.args.live,
                self.seed,
                self.word()
            );
            std::fs::write(file, tally.page(&How::now(command, &self.binary)?))
                .with_context(|| format!("{} cannot be written", file.display()))?;
            println!("written: {}", file.display());
        }
        Ok(if tally.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn word(&self) -> &'static str {
        match self.args.database {
            Databases::Sqlite => "sqlite",
            Databases::Postgres => "postgres",
            Databases::Both => "both",
        }
    }
}
