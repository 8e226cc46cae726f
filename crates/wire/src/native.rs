//! The server's own API: what the command line and the agents speak, under `/api/v1`.
//!
//! Addresses: `{W}` = `/api/v1/subscriptions/{sub}/resourceGroups/{rg}/workspaces/{ws}`. Errors come in the envelope of
//! [`ErrorBody`]. The Azure ML and MLflow dialects are not part of this module; the command line uses them wherever they say enough.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

pub mod computes;
mod environments;

pub use environments::{
    CacheTotals, CachedEnvironment, DownloadSizes, Environment, EnvironmentList, EnvironmentSummary, FileDifference, Pin, PruneWish,
    Pruned, Verified, VerifyWish,
};

/// `{"error": {"kind": "...", "message": "...", "target": null}}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// The inside of [`ErrorBody`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// A word of the closed list, e.g. `not_found`.
    pub kind: String,
    /// One sentence for a person.
    pub message: String,
    /// The part of the request that it is about.
    #[serde(default)]
    pub target: Option<String>,
    /// Present in the log of the server, too.
    #[serde(default)]
    pub request_id: Option<String>,
}

/// A workspace: `GET /api/v1/workspaces` gives a list of these, `POST` takes one without id and time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workspace {
    /// Its id; absent in a request.
    #[serde(default)]
    pub id: Option<Uuid>,
    /// Subscription id.
    pub subscription_id: String,
    /// Resource group.
    pub resource_group: String,
    /// Name.
    pub workspace_name: String,
    /// Region; in a request the server's own if absent.
    #[serde(default)]
    pub region: Option<String>,
    /// RFC 3339; absent in a request.
    #[serde(default)]
    pub created: Option<String>,
}

/// An application: `GET /api/v1/apps` gives a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct App {
    /// Its client id.
    pub client_id: Uuid,
    /// Its display name.
    pub name: String,
    /// What it may do.
    pub grants: Vec<AppGrant>,
    /// RFC 3339.
    pub created: String,
}

/// A role on a workspace, or on all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AppGrant {
    /// ARM id of the workspace; `None`: every workspace and the server itself.
    #[serde(default)]
    pub workspace: Option<String>,
    /// `Owner`, `Contributor` or `Reader`.
    pub role: String,
}

/// `POST /api/v1/apps`. An Owner of a workspace may create applications for that workspace; an Owner of the server for any.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewApp {
    /// Its display name.
    pub name: String,
    /// What it may do; at least one grant.
    pub grants: Vec<AppGrant>,
}

/// Answer of `POST /api/v1/apps` and `POST /api/v1/apps/{client_id}/rotate`: the only time that the secret is shown.
#[derive(Clone, Serialize, Deserialize)]
pub struct AppSecret {
    /// Its client id.
    pub client_id: Uuid,
    /// The secret; the server keeps only its hash.
    pub client_secret: String,
    /// The tenant to ask for tokens.
    pub tenant_id: Uuid,
}

/// `GET /api/v1/whoami`: whom the server takes the bearer of the token for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Identity {
    /// An application.
    App {
        /// Its client id.
        client_id: Uuid,
        /// Its display name.
        name: String,
        /// The tenant.
        tenant_id: Uuid,
        /// What it may do.
        grants: Vec<AppGrant>,
    },
    /// The code of a run, or the agent beside it.
    Run {
        /// The workspace of the run.
        workspace_id: Uuid,
        /// The run.
        run_id: String,
        /// The attempt that the token was made for.
        attempt: Uuid,
        /// The tenant.
        tenant_id: Uuid,
    },
}

/// `GET {W}/runs/{runId}/attempts`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// Its id.
    pub id: Uuid,
    /// 1, 2, ...
    pub number: i64,
    /// The compute target.
    pub target: String,
    /// The node, once its agent has reported; of an attempt on several nodes the first one.
    #[serde(default)]
    pub node: Option<String>,
    /// The nodes of an attempt on several, as far as their agents have reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Node>,
    /// RFC 3339: when the intent was stored.
    pub intended: String,
    /// RFC 3339: when the user's code started.
    #[serde(default)]
    pub started: Option<String>,
    /// RFC 3339: when it was over.
    #[serde(default)]
    pub ended: Option<String>,
    /// What ended it, as `core::run::Cause`.
    #[serde(default)]
    pub cause: Option<Value>,
    /// What its preparation is at now, as `core::environment::Progress`; `None` unless it prepares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preparation: Option<Value>,
}

/// `GET {W}/runs/{runId}/events?after={seq}`: a list of these.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Grows by one within a run.
    pub seq: i64,
    /// RFC 3339.
    pub timestamp: String,
    /// E.g. `Microsoft.MachineLearning.Run.Start`.
    pub name: String,
    /// As the name says.
    pub data: Value,
}

// ---- what an agent says; all with the run-scoped token, under /api/v1/attempts/{attempt} ----

/// `POST /api/v1/attempts/{attempt}/report`: what the agent is doing. Repeating a report is harmless.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Report {
    /// It fetches the snapshot and prepares the environment.
    Preparing {
        /// Host name of the node.
        node: String,
    },
    /// How far the preparation of the environment is. Only the last one counts, and it is not stored.
    Progress {
        /// `core::environment::Progress`.
        progress: Value,
    },
    /// The environment is ready.
    EnvironmentReady {
        /// Canonical hash, unless user-managed.
        hash: Option<String>,
        /// What was asked for, as `core::environment::EnvironmentSpec`.
        spec: Value,
        /// What is installed; stored once per hash.
        lock: Option<Value>,
        /// For the run's warnings.
        warnings: Vec<String>,
    },
    /// The user's code runs.
    Started,
    /// Nothing new; keeps the run from looking dead.
    Alive,
    /// Something the user should know.
    Warning {
        /// The sentence.
        message: String,
    },
    /// The user's code is over and the exit record is on disk; logs and outputs are still being uploaded.
    Ended {
        /// `core::run::Cause`.
        cause: Value,
    },
    /// Every log is sealed and every output uploaded; the attempt's folder may go.
    Collected {
        /// What could not be kept, a sentence each; for the run's warnings.
        warnings: Vec<String>,
    },
}

/// `POST /api/v1/attempts/{attempt}/nodes/{node}`: what the agent of one of an attempt's nodes tells the others. Repeating it is harmless, and a
/// node never goes back. Answered with [`Nodes`], as is `GET /api/v1/attempts/{attempt}/nodes?after={n}&wait={seconds}`, which waits until
/// [`Nodes::progress`] is beyond `n`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeWord {
    /// Where the other nodes reach it.
    pub host: String,
    /// Ports that it keeps free for its processes, by their local ranks.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// How far it has got.
    pub phase: NodePhase,
    /// What ended it, or is ending it, as `core::run::Cause`; `None` where it did not end, or ended only because another node had.
    #[serde(default)]
    pub cause: Option<Value>,
    /// How long ago that was, in microseconds.
    #[serde(default)]
    pub ended_ago_us: Option<i64>,
}

/// How far a node has got, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodePhase {
    /// Its agent is at work.
    Preparing,
    /// Everything is there that its processes need.
    Ready,
    /// Those of its processes that have an end have come to it.
    Done,
    /// None of its processes is left.
    Ended,
    /// Its logs and outputs are with the server.
    Collected,
}

/// What the nodes of an attempt have said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    /// Grows with everything that is said.
    pub progress: u64,
    /// The nodes that have said something, by number.
    pub nodes: Vec<Node>,
}

/// A node of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// 0, 1, ...
    pub node: u32,
    /// Where the other nodes reach it.
    pub host: String,
    /// Ports that it keeps free for its processes, by their local ranks.
    pub ports: Vec<u16>,
    /// How far it has got.
    pub phase: NodePhase,
    /// What ended it, as `core::run::Cause`.
    #[serde(default)]
    pub cause: Option<Value>,
    /// When it ended, microseconds since the epoch by the server's clock.
    #[serde(default)]
    pub ended_us: Option<i64>,
}

/// Answer to every report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Instruction {
    /// What the agent is to do next.
    pub command: Command,
    /// Who asked for a cancel.
    #[serde(default)]
    pub by: Option<String>,
    /// Why, if they said so.
    #[serde(default)]
    pub why: Option<String>,
}

/// What the server wants of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Go on.
    Continue,
    /// Stop the user's code (or the build): TERM, grace, KILL, then end with the cause `cancelled`.
    Cancel,
    /// This attempt was given up: stop everything and write nothing more.
    Abandon,
}

/// `PUT /api/v1/attempts/{attempt}/logs/{path}?offset={n}` (octet-stream) answers with the length that the server holds.
/// A gap is 409 with the same body: the agent goes on from there. Bytes before that length are skipped.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LogLength {
    /// Bytes.
    pub length: u64,
}

/// `POST /api/v1/attempts/{attempt}/logs/{path}/seal`: the log is complete. 409 with [`LogLength`] when the server holds fewer bytes or other ones
/// (then the agent sends again from 0 after `truncate`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seal {
    /// Bytes in all.
    pub length: u64,
    /// SHA-256 of all of it, lower-case hex.
    pub sha256: String,
}

/// `GET /api/v1/attempts/{attempt}/token`: a fresh run-scoped token before the old one ends.
#[derive(Clone, Serialize, Deserialize)]
pub struct FreshToken {
    /// The JWT.
    pub token: String,
    /// Seconds since the epoch.
    pub expires_on: i64,
}

/// Everything that the agent gets at launch, as `order.json` (mode 0600) in its folder; engines only carry it.
#[derive(Clone, Serialize, Deserialize)]
pub struct AttemptOrder {
    /// Version of this document and of the agent's API.
    pub protocol: u32,
    /// The attempt.
    pub attempt: Uuid,
    /// The run.
    pub run_id: String,
    /// `https://host:port`, no trailing slash.
    pub endpoint: String,
    /// PEM of the server's CA.
    pub ca_pem: String,
    /// Run-scoped JWT.
    pub token: String,
    /// Seconds since the epoch.
    pub token_expires_on: i64,
    /// The definition, as `core::definition::Definition`.
    pub definition: Value,
    /// SHA-256 of the snapshot's zip; fetched from `GET /api/v1/attempts/{attempt}/snapshot`.
    pub snapshot_sha256: Option<String>,
    /// How environments are built, as `engine::environment::EnvironmentSettings`.
    pub environments: Value,
    /// How containers are run, with logins at registries, as `engine::container::ContainerSettings`; null: as an older server left it out.
    #[serde(default)]
    pub containers: Value,
    /// Where the definition's data is, with credentials, as `engine::data::DataAccess`; null: it has none.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
    /// Limits of the archive, as `core::archive::ArchiveLimits`.
    pub archive_limits: Value,
    /// Variables of azureml-wire F.1 and F.2 that the server knows: scope, ids, endpoints.
    pub variables: BTreeMap<String, String>,
    /// Seconds between TERM and KILL.
    pub grace_seconds: u64,
    /// When the user's code of this attempt started, seconds since the epoch, if a previous agent of the attempt got that far.
    #[serde(default)]
    pub started_at: Option<i64>,
    /// The workspace of the run, so that what is left of an attempt can be matched with a row that knows nothing of it.
    #[serde(default)]
    pub workspace: Option<Uuid>,
    /// The agent says something at least this often, in seconds: a third of the server's heartbeat limit.
    #[serde(default = "default_heartbeat_seconds")]
    pub heartbeat_seconds: u64,
    /// How much of a log may wait for a server that can't be reached, in bytes; beyond, its middle is cut out.
    #[serde(default = "default_spool_limit_bytes")]
    pub spool_limit_bytes: u64,
    /// What starts the processes of an MPI run: `mpirun` (the default), or `srun:TYPE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mpi: Option<String>,
    /// What the agents of the nodes know each other by, in hexadecimal digits, where the launcher of an MPI run reaches the other nodes through them; as an
    /// older server left it out, and for all other runs: `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_key: Option<String>,
}

fn default_heartbeat_seconds() -> u64 {
    10
}

fn default_spool_limit_bytes() -> u64 {
    1 << 30
}

/// The version of [`AttemptOrder`] and of the agent's routes that this binary speaks. 2: attempts on several nodes, and in several processes.
pub const AGENT_PROTOCOL: u32 = 2;

/// The version that an attempt of one process needs. Its order and its agent's requests say no more than that, so that an agent of the binary
/// before this one understands them, and the other way round.
pub const SINGLE_AGENT_PROTOCOL: u32 = 1;

/// The oldest version of the agent's protocol that this binary still understands: agents of the binary before it may be alive when the
/// server is replaced.
pub const OLDEST_AGENT_PROTOCOL: u32 = 1;

/// The header in which an agent names the version that it speaks, with every request. An agent that sends none speaks version 1.
pub const AGENT_PROTOCOL_HEADER: &str = "x-trainyard-agent-protocol";

/// The header in which the agent of an attempt's node other than 0 names that node, with every request.
pub const AGENT_NODE_HEADER: &str = "x-trainyard-node";

/// The header of a log's answer that names the attempt whose log it is. A client that goes on reading sends it back as `attempt=`.
pub const LOG_ATTEMPT_HEADER: &str = "x-trainyard-attempt";

/// `GET /api/v1/drain`, and the answer of `PUT`: whether the server takes no new work, and what is still under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Whether nothing new is started.
    pub drained: bool,
    /// Runs in execution.
    pub running: u64,
    /// Runs that wait.
    pub queued: u64,
    /// Whether nothing runs and nothing will be started: the machine may go down.
    pub safe: bool,
}

/// Body of `PUT /api/v1/drain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainWish {
    /// Whether nothing new is to be started.
    pub drained: bool,
}
