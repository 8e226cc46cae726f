//! What the nodes of an attempt have told each other: where they are, how far they have got, how they ended.
//!
//! Invariants: a node never goes back, and how it ended is never changed; an attempt that is not its run's live one writes nothing.

use serde::{Deserialize, Serialize};
use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{AttemptId, RunId, WorkspaceId},
    run::Cause,
};

use crate::{
    db::{Conn, Row, Sql, json::encode},
    store::Store,
    writer::Lane,
};

/// How far a node has got, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodePhase {
    /// Its agent is at work.
    Preparing,
    /// Everything is there that its processes need.
    Ready,
    /// Those of its processes that have an end have come to it; the others are not needed once every node has got here.
    Done,
    /// None of its processes is left.
    Ended,
    /// Its logs and outputs are with the server.
    Collected,
}

/// A node of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptNode {
    /// 0, 1, …
    pub node: u32,
    /// Where the other nodes reach it.
    pub host: String,
    /// Ports that it keeps free for its processes.
    pub ports: Vec<u16>,
    /// How far it has got.
    pub phase: NodePhase,
    /// What ended it; `None`: it has not ended, or only because another node had.
    pub cause: Option<Cause>,
    /// When it ended, microseconds since the epoch by this server's clock.
    pub ended_us: Option<i64>,
}

impl NodePhase {
    /// The name, as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "Preparing",
            Self::Ready => "Ready",
            Self::Done => "Done",
            Self::Ended => "Ended",
            Self::Collected => "Collected",
        }
    }

    fn parse(text: &str) -> Result<Self> {
        [Self::Preparing, Self::Ready, Self::Done, Self::Ended, Self::Collected]
            .into_iter()
            .find(|phase| phase.as_str() == text)
            .ok_or_else(|| Error::internal(format!("a node of an attempt has the unknown phase `{text}`")))
    }
}

const SELECT: &str = "select node, host, ports, phase, cause, ended_us from attempt_nodes where attempt = $1 order by node";

const UPSERT: &str = "insert into attempt_nodes (attempt, node, host, ports, phase, cause, ended_us) values ($1, $2, $3, $4, $5, $6, $7) \
     on conflict (attempt, node) do update set host = excluded.host, ports = excluded.ports, phase = excluded.phase, cause = excluded.cause, \
     ended_us = excluded.ended_us";

impl Store {
    /// Notes what a node of an attempt says, and gives what all of them have said. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Forbidden`] when the attempt is not its run's live one (any more).
    pub async fn tell_node(
        &self,
        (workspace, run, attempt): (WorkspaceId, &RunId, AttemptId),
        told: AttemptNode,
    ) -> Result<Vec<AttemptNode>> {
        let id = run.clone();
        // In the queue of the run's own changes, so that a fence stands between what came before and after it.
        let write = self.writer().write(Lane::Run(run), move |conn| {
            Box::pin(async move {
                let live = Sql::new("select 1 from runs where workspace = $1 and id = $2 and attempt = $3");
                let live = live.bind(workspace.to_string()).bind(id.as_str()).bind(attempt.to_string());
                if conn.fetch_optional(live).await?.is_none() {
                    let message = "this attempt is not the run's live one any more; it must stop and write nothing";
                    return Err(Error::new(ErrorKind::Forbidden, message));
                }
                tell(conn, attempt, told).await
            })
        });
        write.await
    }

    /// What the nodes of an attempt have said, by number.
    pub async fn attempt_nodes(&self, attempt: AttemptId) -> Result<Vec<AttemptNode>> {
        let rows = self.reader().await?.fetch_all(Sql::new(SELECT).bind(attempt.to_string())).await?;
        rows.iter().map(decode).collect()
    }
}

async fn tell(conn: &mut Conn, attempt: AttemptId, told: AttemptNode) -> Result<Vec<AttemptNode>> {
    let rows = conn.fetch_all(Sql::new(SELECT).bind(attempt.to_string())).await?;
    let mut nodes = rows.iter().map(decode).collect::<Result<Vec<_>>>()?;
    let known = nodes.iter().position(|node| node.node == told.node);
    let node = match known {
        Some(at) => merged(&nodes[at], told),
        None => told,
    };
    match known {
        Some(at) if nodes[at] == node => return Ok(nodes),
        Some(at) => nodes[at] = node.clone(),
        None => {
            nodes.push(node.clone());
            nodes.sort_by_key(|node| node.node);
        }
    }
    let sql = Sql::new(UPSERT)
        .bind(attempt.to_string())
        .bind(i64::from(node.node))
        .bind(node.host.as_str())
        .bind(encode(&node.ports)?)
        .bind(node.phase.as_str())
        .bind(node.cause.as_ref().map(encode).transpose()?)
        .bind(node.ended_us);
    conn.execute(sql).await?;
    Ok(nodes)
}

/// What is known of a node once it has said `told`.
fn merged(known: &AttemptNode, told: AttemptNode) -> AttemptNode {
    // A word from before may be repeated after a later one.
    if told.phase < known.phase {
        return known.clone();
    }
    let (cause, ended_us) = if known.ended_us.is_some() { (known.cause.clone(), known.ended_us) } else { (told.cause, told.ended_us) };
    // Others have been told, and may have begun.
    let (host, ports) = if known.phase >= NodePhase::Ready { (known.host.clone(), known.ports.clone()) } else { (told.host, told.ports) };
    AttemptNode { node: known.node, host, ports, phase: told.phase, cause, ended_us }
}

fn decode(row: &Row) -> Result<AttemptNode> {
    let mut row = row.columns();
    Ok(AttemptNode {
        node: u32::try_from(row.int()?).map_err(Error::internal)?,
        host: row.text()?,
        ports: row.json()?,
        phase: NodePhase::parse(&row.text()?)?,
        cause: row.opt_json()?,
        ended_us: row.opt_int()?,
    })
}
