//! Group commit: every write of the store goes through a queue, and whatever waits is written in one transaction.
//!
//! A durable commit costs a flush of the disk, whatever is in it. So the one task behind a queue takes everything that waits
//! (up to [`BATCH`]), writes it in one transaction, commits once and answers all. Each item stands in its own savepoint: one
//! that fails is undone alone. Callers may be dropped at any time; their write happens completely or not at all, because no
//! transaction is ever held by a caller.
//!
//! SQLite has one writer and so one queue. PostgreSQL has a few: new runs and everything that is not one run go through the
//! first, changes of a run through the one that its id hashes to, so that no two queues ever wait for each other's rows.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    panic::AssertUnwindSafe,
    sync::{Mutex, PoisonError},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use trainyard_core::{Error, ErrorKind, Result, ids::RunId};

use crate::{
    create,
    db::{Conn, Db, Dialect, Sql},
    runs::{Created, NewRun},
};

/// The most items in one transaction.
const BATCH: usize = 256;
/// Items that may wait in a queue before callers wait to enter it.
const QUEUE: usize = 1024;
/// Queues on PostgreSQL.
const POSTGRES_QUEUES: usize = 4;

/// Which queue a write goes through.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lane<'a> {
    /// Anything that is not about one existing run.
    Shared,
    /// A change of this run and of what belongs to it.
    Run(&'a RunId),
}

/// The queues.
pub(crate) struct Writer {
    queues: Vec<Queue>,
}

struct Queue {
    /// `None` once closed.
    sender: Mutex<Option<mpsc::Sender<Item>>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

enum Item {
    Create(PendingRun),
    Job(Box<dyn Job>),
}

struct PendingRun {
    run: Box<NewRun>,
    reply: oneshot::Sender<Result<Created>>,
}

/// A write and its answer, which waits for the commit.
trait Job: Send {
    /// Writes; whether to keep what it wrote.
    fn run<'a>(&'a mut self, conn: &'a mut Conn) -> BoxFuture<'a, Verdict>;
    /// Tells the caller; `lost` says why the transaction did not commit.
    fn answer(self: Box<Self>, lost: Option<&Error>);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Keep,
    Undo,
}

struct Task<T, F> {
    work: Option<F>,
    result: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T, F> Job for Task<T, F>
where
    T: Send + 'static,
    F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<T>> + Send + 'static,
{
    fn run<'a>(&'a mut self, conn: &'a mut Conn) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            let Some(work) = self.work.take() else { return Verdict::Undo };
            // A panic must not end the queue for everybody.
            let result = AssertUnwindSafe(work(conn)).catch_unwind().await;
            let result = result.unwrap_or_else(|_| Err(Error::internal("a write to the database panicked")));
            let verdict = if result.is_ok() { Verdict::Keep } else { Verdict::Undo };
            self.result = Some(result);
            verdict
        })
    }

    fn answer(self: Box<Self>, lost: Option<&Error>) {
        let result = match (self.result, lost) {
            (Some(Err(error)), _) => Err(error),
            (_, Some(lost)) => Err(copy(lost)),
            (Some(Ok(value)), None) => Ok(value),
            (None, None) => Err(Error::internal("a write was committed before it was made")),
        };
        // A caller that is gone does not want to know.
        let _ = self.reply.send(result);
    }
}

impl Writer {
    /// Starts the queues' tasks on the present runtime.
    pub(crate) fn start(db: &Db) -> Self {
        let queues = match db.dialect() {
            Dialect::Sqlite => 1,
            Dialect::Postgres => POSTGRES_QUEUES,
        };
        Self { queues: (0..queues).map(|_| Queue::start(db.clone())).collect() }
    }

    /// Stores a new run together with whatever else waits.
    pub(crate) async fn create(&self, run: NewRun) -> Result<Created> {
        let (reply, answer) = oneshot::channel();
        self.queues[0].send(Item::Create(PendingRun { run: Box::new(run), reply })).await?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Runs `work` in a transaction, together with whatever else waits, and gives its result once that is durable. What `work`
    /// wrote is undone when it fails.
    pub(crate) async fn write<T, F>(&self, lane: Lane<'_>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.queue(lane).send(Item::Job(Box::new(Task { work: Some(work), result: None, reply }))).await?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    fn queue(&self, lane: Lane<'_>) -> &Queue {
        match lane {
            Lane::Run(run) if self.queues.len() > 1 => {
                let mut hasher = DefaultHasher::new();
                run.hash(&mut hasher);
                let others = self.queues.len() as u64 - 1;
                let index = 1 + hasher.finish() % others;
                &self.queues[usize::try_from(index).expect("an index below the number of queues")]
            }
            Lane::Run(_) | Lane::Shared => &self.queues[0],
        }
    }

    /// Takes no more writes, finishes those that wait, and gives the connections back.
    pub(crate) async fn close(&self) {
        for queue in &self.queues {
            queue.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
            let task = queue.task.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(task) = task
                && let Err(error) = task.await
            {
                tracing::error!(%error, "a task that writes to the database ended badly");
            }
        }
    }
}

impl Queue {
    fn start(db: Db) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let task = tokio::spawn(serve(db, receiver));
        Self { sender: Mutex::new(Some(sender)), task: Mutex::new(Some(task)) }
    }

    async fn send(&self, item: Item) -> Result<()> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        sender.ok_or_else(closed)?.send(item).await.map_err(|_| closed())
    }
}

/// Writes batch after batch until the queue is closed and empty. The connection is kept from batch to batch.
async fn serve(db: Db, mut receiver: mpsc::Receiver<Item>) {
    let mut conn = None;
    let mut items = Vec::with_capacity(BATCH);
    while receiver.recv_many(&mut items, BATCH).await > 0 {
        gather(&mut receiver, &mut items).await;
        let mut batch = Batch::default();
        for item in items.drain(..) {
            match item {
                Item::Create(run) => batch.runs.push(run),
                Item::Job(job) => batch.jobs.push(job),
            }
        }
        batch.write(&db, &mut conn).await;
    }
}

/// Takes what comes at the same time, too: callers that one sync or one commit woke together arrive one after the other, and the first of
/// them should not have a transaction of its own. Costs a turn of the scheduler, no time.
async fn gather(receiver: &mut mpsc::Receiver<Item>, items: &mut Vec<Item>) {
    let mut before = 0;
    while before < items.len() && items.len() < BATCH {
        before = items.len();
        tokio::task::yield_now().await;
        while items.len() < BATCH
            && let Ok(item) = receiver.try_recv()
        {
            items.push(item);
        }
    }
}

/// What is written in one transaction.
#[derive(Default)]
struct Batch {
    runs: Vec<PendingRun>,
    jobs: Vec<Box<dyn Job>>,
}

impl Batch {
    /// Writes and answers. When the transaction as a whole is lost, new runs and jobs that did not begin are tried again one by
    /// one, so that one item cannot fail its neighbours.
    async fn write(mut self, db: &Db, conn: &mut Option<Conn>) {
        let mut begun = 0;
        let lost = match self.attempt(db, conn, &mut begun).await {
            Ok(created) => {
                crate::fail_point!("store.committed");
                for (pending, created) in self.runs.into_iter().zip(created) {
                    let _ = pending.reply.send(created);
                }
                for job in self.jobs {
                    job.answer(None);
                }
                return;
            }
            Err(lost) => lost,
        };
        if let Some(conn) = conn.take() {
            conn.discard().await;
        }
        tracing::warn!(error = %lost.chain(), runs = self.runs.len(), jobs = self.jobs.len(), "a database transaction was lost");
        let unbegun = self.jobs.split_off(begun);
        for job in self.jobs {
            job.answer(Some(&lost));
        }
        if self.runs.len() + unbegun.len() <= 1 || lost.kind() == ErrorKind::Unavailable {
            for pending in self.runs {
                let _ = pending.reply.send(Err(copy(&lost)));
            }
            for job in unbegun {
                job.answer(Some(&lost));
            }
            return;
        }
        let runs = self.runs.into_iter().map(|run| Self { runs: vec![run], jobs: Vec::new() });
        let jobs = unbegun.into_iter().map(|job| Self { runs: Vec::new(), jobs: vec![job] });
        for single in runs.chain(jobs) {
            Box::pin(single.write(db, conn)).await;
        }
    }

    /// One transaction. An error means that nothing of it is kept; `begun` counts the jobs that ran in it.
    async fn attempt(&mut self, db: &Db, slot: &mut Option<Conn>, begun: &mut usize) -> Result<Vec<Result<Created>>> {
        let conn = begin(db, slot).await?;
        let runs: Vec<&NewRun> = self.runs.iter().map(|pending| &*pending.run).collect();
        let created = if runs.is_empty() { Vec::new() } else { create::create_all(conn, &runs).await? };
        let alone = runs.is_empty() && self.jobs.len() == 1;
        for job in &mut self.jobs {
            *begun += 1;
            if alone {
                // The transaction is its savepoint.
                let end = match job.run(conn).await {
                    Verdict::Keep => "commit",
                    Verdict::Undo => "rollback",
                };
                crate::fail_point!("store.written");
                conn.execute(Sql::new(end)).await?;
                return Ok(created);
            }
            conn.execute(Sql::new("savepoint item")).await?;
            let end = match job.run(conn).await {
                Verdict::Keep => "release savepoint item",
                Verdict::Undo => "rollback to savepoint item",
            };
            conn.execute(Sql::new(end)).await?;
        }
        crate::fail_point!("store.written");
        conn.execute(Sql::new("commit")).await?;
        Ok(created)
    }
}

/// Begins a transaction on the kept connection, or on a new one if that one is gone (a database that was restarted).
async fn begin<'s>(db: &Db, slot: &'s mut Option<Conn>) -> Result<&'s mut Conn> {
    let begin = || Sql::new(db.dialect().begin_write());
    if let Some(mut kept) = slot.take() {
        match kept.execute(begin()).await {
            Ok(_) => return Ok(slot.insert(kept)),
            Err(error) => {
                tracing::info!(error = %error.chain(), "the connection to the database is gone; making a new one");
                kept.discard().await;
            }
        }
    }
    let conn = slot.insert(db.writer().await?);
    conn.execute(begin()).await?;
    Ok(conn)
}

/// The same failure for another caller.
fn copy(error: &Error) -> Error {
    Error::new(error.kind(), error.message()).with_source(error.chain())
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is closed: the server is stopping")
}

#[cfg(test)]
mod tests;
