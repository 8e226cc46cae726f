use std::time::Duration;

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// A writer whose queue is held up until the gate is opened, so that what is sent meanwhile is one batch.
struct Bench {
    db: Db,
    writer: std::sync::Arc<Writer>,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let db = Db::open("sqlite", dir.path()).await.expect("a database");
        let writer = std::sync::Arc::new(Writer::start(&db));
        Self { db, writer, _dir: dir }
    }

    /// Writes a row named `name` and then does `what`, all jobs in one transaction; what each caller is told.
    async fn batch(&self, jobs: &[(&'static str, What)]) -> Vec<Result<()>> {
        let (open, gate) = oneshot::channel::<()>();
        let (began, begun) = oneshot::channel::<()>();
        let writer = self.writer.clone();
        let holder = tokio::spawn(async move {
            writer
                .write(Lane::Shared, move |_| {
                    Box::pin(async move {
                        began.send(()).expect("the test waits");
                        gate.await.map_err(Error::internal)
                    })
                })
                .await
        });
        begun.await.expect("the first job began");
        let mut callers = Vec::new();
        for (name, what) in jobs.iter().copied() {
            let writer = self.writer.clone();
            callers.push(tokio::spawn(async move { writer.write(Lane::Shared, move |conn| Box::pin(insert(conn, name, what))).await }));
            self.wait_for_queued(callers.len()).await;
        }
        open.send(()).expect("the first job waits");
        holder.await.expect("no panic").expect("the first job is fine");
        let mut told = Vec::new();
        for caller in callers {
            told.push(tokio::time::timeout(DEADLINE, caller).await.expect("every caller is told").expect("no panic"));
        }
        told
    }

    /// Until so many wait in the queue: callers are tasks of their own and must be sent in order.
    async fn wait_for_queued(&self, count: usize) {
        let queued = async {
            loop {
                let sender = self.writer.queues[0].sender.lock().expect("not poisoned").clone().expect("not closed");
                if sender.max_capacity() - sender.capacity() >= count {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, queued).await.expect("the job is queued");
    }

    async fn names(&self) -> Vec<String> {
        let mut reader = self.db.reader().await.expect("a reader");
        let rows = reader.fetch_all(Sql::new("select name from apps order by name")).await.expect("a list");
        rows.iter().map(|row| row.columns().text().expect("a name")).collect()
    }
}

#[derive(Clone, Copy)]
enum What {
    Succeed,
    Fail,
    Panic,
    /// Ends the transaction under everybody's feet, as the database does when the disk is full.
    BreakTransaction,
}

async fn insert(conn: &mut Conn, name: &'static str, what: What) -> Result<()> {
    let sql = Sql::new("insert into apps (id, name, secret_sha256, grants, created_us, generated) values ($1, $1, '', '[]', 0, $2)");
    conn.execute(sql.bind(name).bind(false)).await?;
    match what {
        What::Succeed => Ok(()),
        What::Fail => Err(Error::invalid("refused")),
        What::Panic => panic!("this panic is part of a test"),
        What::BreakTransaction => conn.execute(Sql::new("rollback")).await.map(|_| ()),
    }
}

#[tokio::test]
async fn a_job_that_fails_or_panics_is_undone_alone() {
    let bench = Bench::new().await;
    let told = bench.batch(&[("a", What::Succeed), ("b", What::Fail), ("c", What::Panic), ("d", What::Succeed)]).await;
    assert!(told[0].is_ok() && told[3].is_ok());
    assert_eq!(told[1].as_ref().expect_err("failed").kind(), ErrorKind::Invalid);
    assert_eq!(told[2].as_ref().expect_err("panicked").kind(), ErrorKind::Internal);
    assert_eq!(bench.names().await, ["a", "d"]);
}

#[tokio::test]
async fn a_job_alone_that_fails_is_undone() {
    let bench = Bench::new().await;
    for what in [What::Fail, What::Panic, What::BreakTransaction] {
        let told = bench.writer.write(Lane::Shared, move |conn| Box::pin(insert(conn, "a", what))).await;
        assert!(told.is_err());
        assert!(bench.names().await.is_empty());
    }
    bench.writer.write(Lane::Shared, |conn| Box::pin(insert(conn, "a", What::Succeed))).await.expect("the queue goes on");
    assert_eq!(bench.names().await, ["a"]);
}

#[tokio::test]
async fn when_a_transaction_is_lost_those_behind_are_written_and_those_before_are_told() {
    let bench = Bench::new().await;
    let jobs = [("a", What::Succeed), ("b", What::BreakTransaction), ("c", What::Succeed), ("d", What::Fail), ("e", What::Succeed)];
    let told = bench.batch(&jobs).await;
    let outcomes: Vec<bool> = told.iter().map(Result::is_ok).collect();
    assert_eq!(outcomes, [false, false, true, false, true]);
    assert_eq!(bench.names().await, ["c", "e"], "what callers were told is what is stored");
}

#[tokio::test]
async fn closing_finishes_what_waits_and_refuses_what_comes() {
    let bench = Bench::new().await;
    let pending = bench.writer.write(Lane::Shared, |conn| Box::pin(insert(conn, "a", What::Succeed)));
    let mut pending = Box::pin(pending);
    // Polled once, it waits in the queue.
    assert!((&mut pending).now_or_never().is_none());
    bench.writer.close().await;
    pending.await.expect("written before the end");
    let late = bench.writer.write(Lane::Shared, |conn| Box::pin(insert(conn, "b", What::Succeed))).await;
    assert_eq!(late.expect_err("closed").kind(), ErrorKind::Unavailable);
    assert_eq!(bench.names().await, ["a"]);
}
