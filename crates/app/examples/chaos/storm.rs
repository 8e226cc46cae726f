//! Does what the plan says: faults at their times, and their ends; and starts the server again whenever it is gone.

use std::{
    os::unix::process::ExitStatusExt as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use rustix::process::Signal;
use tokio::time::Instant;

use crate::{
    ledger::Ledger,
    plan::{Fault, RoundPlan, Step},
    postgres::Postgres,
    processes::{self, Agent},
    world::World,
};

/// How often is looked whether the server is still there.
const LOOK: Duration = Duration::from_millis(20);

/// How long a server that ended by itself stays away.
const AWAY: Duration = Duration::from_millis(50);

/// A server that is younger than this may not have come to listening for signals.
const YOUTH: Duration = Duration::from_secs(1);

/// The database server of all worlds.
pub(crate) type SharedDatabase = Option<Arc<Mutex<Postgres>>>;

/// What is due at some time.
#[derive(Clone, Debug)]
enum Event {
    Fault(Fault),
    StartServer,
    ResumeServer,
    MendProxy,
    FreeDisk,
    ResumeAgent(Agent),
    StartDatabase,
}

/// The faults of one round.
pub(crate) struct Storm<'a> {
    world: &'a mut World,
    plan: &'a RoundPlan,
    ledger: &'a Ledger,
    database: SharedDatabase,
    due: Vec<(Instant, Event)>,
    starts: usize,
    paused: bool,
    database_away: bool,
}

impl<'a> Storm<'a> {
    /// A storm on a world whose server does not run.
    pub(crate) fn new(world: &'a mut World, plan: &'a RoundPlan, ledger: &'a Ledger, database: SharedDatabase) -> Self {
        Self { world, plan, ledger, database, due: Vec::new(), starts: 0, paused: false, database_away: false }
    }

    /// Starts the server, does everything in the plan, and leaves all as it was except that the server may be in any state.
    pub(crate) async fn run(mut self) -> Result<()> {
        let began = Instant::now();
        self.start_server()?;
        self.due = self.plan.steps.iter().map(|Step { at, fault }| (began + *at, Event::Fault(*fault))).collect();
        let end = began + self.plan.length;
        while Instant::now() < end || !self.due.is_empty() {
            self.due.sort_by_key(|(at, _)| *at);
            let next = self.due.first().map_or(end, |(at, _)| *at);
            if next <= Instant::now() && !self.due.is_empty() {
                let (_, event) = self.due.remove(0);
                self.happen(event).await?;
                continue;
            }
            tokio::time::sleep_until(next.min(Instant::now() + LOOK)).await;
            self.watch()?;
        }
        Ok(())
    }

    async fn happen(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Fault(fault) => {
                if self.strike(fault).await? {
                    self.ledger.note(|record| *record.faults.entry(fault.word()).or_default() += 1);
                }
            }
            Event::StartServer => self.start_server()?,
            Event::ResumeServer => {
                self.world.server.signal(Signal::CONT);
                self.paused = false;
            }
            Event::MendProxy => self.world.proxy.mend(),
            Event::FreeDisk => self.world.free_disk()?,
            Event::ResumeAgent(agent) => drop(processes::signal_agent(&agent, &self.world.attempts(), Signal::CONT)),
            Event::StartDatabase => {
                if let Some(database) = &self.database {
                    database.lock().unwrap_or_else(PoisonError::into_inner).start_again()?;
                }
                self.database_away = false;
            }
        }
        Ok(())
    }

    /// Whether there was anything to strike.
    async fn strike(&mut self, fault: Fault) -> Result<bool> {
        Ok(match fault {
            Fault::KillServer(away) => self.kill_server(away)?,
            Fault::StopServer(away) => self.stop_server(away).await?,
            Fault::PauseServer(time) => self.pause_server(time),
            Fault::KillAgent(pick) => self.pick_agent(pick).is_some_and(|agent| self.kill_agent(&agent)),
            Fault::KillAllAgents => {
                let agents = processes::agents(&self.world.attempts());
                agents.iter().map(|agent| self.kill_agent(agent)).filter(|hit| *hit).count() > 0
            }
            Fault::TermAgent(pick) => self.pick_agent(pick).is_some_and(|agent| {
                self.ledger.note(|record| record.agents_ended.insert(agent.attempt.clone()));
                processes::signal_agent(&agent, &self.world.attempts(), Signal::TERM)
            }),
            Fault::PauseAgent(pick, time) => self.pick_agent(pick).is_some_and(|agent| {
                let hit = processes::signal_agent(&agent, &self.world.attempts(), Signal::STOP);
                self.after(time, Event::ResumeAgent(agent));
                hit
            }),
            Fault::KillCode(pick, signal) => self.kill_code(pick, signal)?,
            Fault::Partition(time) => {
                self.world.proxy.cut();
                self.after(time, Event::MendProxy);
                true
            }
            Fault::FillDisk(time) => {
                self.ledger.note(|record| record.disk_was_full = true);
                self.world.fill_disk()?;
                self.after(time, Event::FreeDisk);
                true
            }
            Fault::KillDatabase(away) => self.kill_database(away)?,
        })
    }

    fn kill_server(&mut self, away: Duration) -> Result<bool> {
        let runs = self.world.server.pid().is_some();
        self.world.server.kill()?;
        self.start_after(away);
        Ok(runs)
    }

    fn pause_server(&mut self, time: Duration) -> bool {
        let runs = self.world.server.pid().is_some();
        self.world.server.signal(Signal::STOP);
        if runs {
            self.paused = true;
            self.after(time, Event::ResumeServer);
        }
        runs
    }

    fn kill_database(&mut self, away: Duration) -> Result<bool> {
        let Some(database) = &self.database else { return Ok(false) };
        database.lock().unwrap_or_else(PoisonError::into_inner).kill()?;
        self.database_away = true;
        self.after(away, Event::StartDatabase);
        Ok(true)
    }

    /// A server that is asked to end must do so, and say that all is well.
    async fn stop_server(&mut self, away: Duration) -> Result<bool> {
        // A paused one would end only once it goes on.
        if self.paused || self.world.server.pid().is_none() {
            return Ok(false);
        }
        let uptime = self.world.server.uptime();
        let (took, status) = self.world.server.stop().await?;
        // A fail point may have ended it first, and without its database or disk it may say that something is wrong.
        // One that has just been started does not listen for signals yet, and has nothing to hand over.
        let too_young = status.signal() == Some(Signal::TERM.as_raw()) && uptime < YOUTH;
        if !status.success() && !too_young && !self.database_away && !self.is_armed() {
            self.ledger.note(|record| record.ended_by_itself.push(format!("after TERM the server ended with {status} in {took:?}")));
        }
        self.start_after(away);
        Ok(true)
    }

    fn is_armed(&self) -> bool {
        self.starts > 0 && self.plan.armed.get(self.starts - 1).is_some_and(|rules| !rules.is_empty())
    }

    fn start_after(&mut self, away: Duration) {
        self.paused = false;
        self.due.retain(|(_, event)| !matches!(event, Event::StartServer | Event::ResumeServer));
        self.after(away, Event::StartServer);
    }

    fn after(&mut self, time: Duration, event: Event) {
        self.due.push((Instant::now() + time, event));
    }

    fn start_server(&mut self) -> Result<()> {
        let rules = self.plan.armed.get(self.starts).map_or("", String::as_str);
        self.starts += 1;
        self.world.start_server(rules)
    }

    /// Starts the server again if it is gone, which a fail point may have brought about.
    fn watch(&mut self) -> Result<()> {
        let Some(status) = self.world.server.ended()? else { return Ok(()) };
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9) && self.is_armed();
        let excused = self.database_away || self.ledger.read().disk_was_full;
        if !killed && !excused {
            self.ledger.note(|record| record.ended_by_itself.push(format!("the server ended with {status}")));
        }
        self.start_after(AWAY);
        Ok(())
    }

    fn pick_agent(&self, pick: u64) -> Option<Agent> {
        let agents = processes::agents(&self.world.attempts());
        let index = usize::try_from(pick % agents.len().max(1) as u64).ok()?;
        agents.into_iter().nth(index)
    }

    fn kill_agent(&self, agent: &Agent) -> bool {
        // Written down first: whoever looks after the kill finds it.
        self.ledger.note(|record| record.agents_killed.insert(agent.attempt.clone()));
        processes::signal_agent(agent, &self.world.attempts(), Signal::KILL)
    }

    fn kill_code(&self, pick: u64, number: i32) -> Result<bool> {
        let living: Vec<_> = self.world.lines()?.into_iter().filter(|(_, _, pid)| processes::is_alive(*pid)).collect();
        let Some(index) = pick.checked_rem(living.len() as u64).and_then(|index| usize::try_from(index).ok()) else { return Ok(false) };
        let (_, attempt, pid) = &living[index];
        let Some(signal) = Signal::from_named_raw(number) else { return Ok(false) };
        self.ledger.note(|record| record.code_signals.entry(attempt.clone()).or_default().push(number));
        Ok(processes::signal_code(*pid, attempt, signal))
    }
}
