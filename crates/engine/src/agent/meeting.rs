//! Where the agents of an attempt's nodes meet: each tells the server where it is and how far it has got, and hears what all others said.
//!
//! What follows from that every agent works out by itself: nobody's code begins before every node is ready; when one node ends badly the others
//! are ended; what ended the attempt is what ended the first of them. The server keeps what was said, so an agent that was started again, and
//! a server that was, find everybody where they were.

use std::{
    net::{ToSocketAddrs as _, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use trainyard_core::{
    definition::{Communication, Distribution},
    run::Cause,
};
use trainyard_wire::native::{Node, NodePhase, Nodes};

use super::{
    client::{Client, Refusal, Word},
    control::{Control, Demand},
    folder::AttemptFolder,
    ports::{self, Reserved},
};

/// Where PyTorch's processes meet (azureml-wire F.3).
const MASTER_PORT: u16 = 6105;

/// Where TensorFlow's tasks listen (azureml-wire F.3).
const TASK_PORT: u16 = 2222;

/// Before the server is asked again after an answer that makes no sense.
const PAUSE: Duration = Duration::from_secs(2);

/// Set where a pod knows its own address better than the agent can find out.
const ADDRESS_VARIABLE: &str = "POD_IP";

/// What a node has told the others, so that an agent that comes after says the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NotedMeeting {
    pub(super) host: String,
    pub(super) ports: Vec<u16>,
}

/// The nodes of an attempt, as the agent of one of them knows them.
pub(super) struct Meeting {
    node: u32,
    spread: Distribution,
    /// What this node says, and says again until the server knows it.
    word: watch::Sender<Word>,
    /// What all have said.
    heard: watch::Sender<Nodes>,
    reserved: Mutex<Vec<Reserved>>,
}

impl Meeting {
    /// The meeting of the node that `folder` is of. With several nodes it begins to tell and to listen.
    pub(super) fn start(client: &Arc<Client>, control: &Arc<Control>, (spread, node): (Distribution, u32)) -> Arc<Self> {
        let word = Word { host: own_address(&client.endpoint()), ports: Vec::new(), phase: NodePhase::Preparing, end: None };
        let (word, heard) = (watch::Sender::new(word), watch::Sender::new(Nodes::default()));
        let meeting = Arc::new(Self { node, spread, word, heard, reserved: Mutex::default() });
        if meeting.is_alone() {
            meeting.listen_to_oneself();
        } else {
            tokio::spawn(Arc::clone(&meeting).talk(Arc::clone(client), Arc::clone(control)));
        }
        meeting
    }

    /// Whether there are no other nodes.
    pub(super) fn is_alone(&self) -> bool {
        self.spread.node_count == 1
    }

    /// What is known of this node: its number, and where it is.
    pub(super) fn own(&self) -> (u32, String) {
        (self.node, self.word.borrow().host.clone())
    }

    /// What all nodes have said.
    pub(super) fn nodes(&self) -> Vec<Node> {
        self.heard.borrow().nodes.clone()
    }

    /// Resolves once the server knows that this node's agent is at work, and takes it for the attempt's.
    pub(super) async fn known(&self) {
        self.until(|nodes| nodes.iter().any(|node| node.node == self.node)).await;
    }

    /// Where the first node is, once it has said so.
    pub(super) async fn first_host(&self) -> String {
        self.until(|nodes| nodes.iter().any(|node| node.node == 0)).await;
        self.nodes().into_iter().find(|node| node.node == 0).map(|node| node.host).unwrap_or_default()
    }

    /// Says that everything is there that this node's processes need, and waits until that is so on every node. Ports that others have to know are
    /// free and reserved; `opened`: but for this one, on which the agent itself listens.
    pub(super) async fn ready(&self, folder: &AttemptFolder, opened: Option<u16>) {
        let noted = folder.meeting().ok().flatten();
        let (ports, mut reserved) = match (&noted, opened) {
            (_, Some(port)) => (vec![port], Vec::new()),
            (Some(noted), None) => (noted.ports.clone(), ports::reserve_again(&noted.ports)),
            (None, None) => {
                let reserved = self.reserve();
                (reserved.iter().map(|reserved| reserved.port).collect(), reserved)
            }
        };
        let host = noted.map_or_else(|| self.word.borrow().host.clone(), |noted| noted.host);
        if let Err(error) = folder.write_meeting(&NotedMeeting { host: host.clone(), ports: ports.clone() }) {
            tracing::warn!(%error, "what this node tells the others is not noted");
        }
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner).append(&mut reserved);
        self.say(|word| (word.host, word.ports, word.phase) = (host, ports, NodePhase::Ready));
        tracing::info!(nodes = self.spread.node_count, "this node is ready; waiting for the others");
        self.all(NodePhase::Ready).await;
    }

    /// Says that this node's processes have come to their end, and waits until that is so on every node.
    pub(super) async fn done(&self) {
        self.say(|word| word.phase = word.phase.max(NodePhase::Done));
        self.all(NodePhase::Done).await;
    }

    /// Resolves once the first node has ended well.
    pub(super) async fn first_ended(&self) {
        self.until(|nodes| nodes.iter().any(|node| node.node == 0 && node.phase >= NodePhase::Ended)).await;
    }

    /// Says at once that this node ends, and why, while its processes are still being ended.
    pub(super) fn ends(&self, cause: &Cause, at_us: i64) {
        let end = serde_json::to_value(cause).ok().map(|cause| (cause, at_us));
        self.say(|word| (word.phase, word.end) = (word.phase.max(NodePhase::Done), word.end.take().or(end)));
    }

    /// Says that none of this node's processes is left, with what ended it and when; `None`: only that another node had ended.
    pub(super) fn ended(&self, end: Option<(&Cause, i64)>) {
        let end = end.and_then(|(cause, at_us)| Some((serde_json::to_value(cause).ok()?, at_us)));
        self.say(|word| (word.phase, word.end) = (word.phase.max(NodePhase::Ended), word.end.take().or(end)));
    }

    /// Says that this node's logs and outputs are with the server; resolves once it knows.
    pub(super) async fn collected(&self) {
        self.say(|word| word.phase = NodePhase::Collected);
        self.until(|nodes| nodes.iter().any(|node| node.node == self.node && node.phase == NodePhase::Collected)).await;
    }

    /// Resolves once every other node's logs and outputs are with the server.
    pub(super) async fn others_collected(&self) {
        let count = self.spread.node_count as usize;
        self.until(|nodes| nodes.iter().filter(|node| node.node != self.node && node.phase == NodePhase::Collected).count() + 1 >= count)
            .await;
    }

    /// What ended the attempt, once every node has ended.
    pub(super) async fn conclusion(&self) -> Cause {
        self.all(NodePhase::Ended).await;
        let nodes = self.nodes();
        let nobody = || Cause::AgentLost { message: "every node ended because of another one, and none says why".into() };
        match first_failure(&nodes) {
            Some(cause) => cause,
            None if nodes.iter().all(|node| node.cause.is_some()) => Cause::Completed,
            None => nobody(),
        }
    }

    async fn all(&self, phase: NodePhase) {
        let count = self.spread.node_count as usize;
        self.until(|nodes| nodes.iter().filter(|node| node.phase >= phase).count() >= count).await;
    }

    async fn until(&self, mut is_so: impl FnMut(&[Node]) -> bool) {
        // The sender lives in `self`, so the channel can't close while somebody waits.
        let _ = self.heard.subscribe().wait_for(|heard| is_so(&heard.nodes)).await;
    }

    fn say(&self, change: impl FnOnce(&mut Word)) {
        self.word.send_modify(change);
        if self.is_alone() {
            self.listen_to_oneself();
        }
    }

    /// Without other nodes there is nobody to ask.
    fn listen_to_oneself(&self) {
        let Word { host, ports, phase, end } = self.word.borrow().clone();
        let (cause, ended_us) = end.map_or((None, None), |(cause, at_us)| (Some(cause), Some(at_us)));
        let own = Node { node: self.node, host, ports, phase, cause, ended_us };
        self.heard.send_replace(Nodes { progress: 0, nodes: vec![own] });
    }

    /// The ports that other processes have to know.
    fn reserve(&self) -> Vec<Reserved> {
        match self.spread.communication {
            Communication::ParameterServer { .. } => ports::reserve(TASK_PORT, self.spread.ranks(self.node).len()),
            Communication::None | Communication::Mpi | Communication::Torch { .. } if self.node == 0 => ports::reserve(MASTER_PORT, 1),
            Communication::None | Communication::Mpi | Communication::Torch { .. } => Vec::new(),
        }
    }

    /// Tells the server what is new here and hears what is new elsewhere, until the attempt is given up.
    async fn talk(self: Arc<Self>, client: Arc<Client>, control: Arc<Control>) {
        let mut words = self.word.subscribe();
        loop {
            let word = words.borrow_and_update().clone();
            let answer = if self.is_told(&word) {
                let after = self.heard.borrow().progress;
                tokio::select! {
                    biased;
                    _ = words.changed() => continue,
                    answer = client.nodes(after) => answer,
                }
            } else {
                client.tell_node(&word).await
            };
            match answer {
                Ok(nodes) => self.hear(nodes, &control),
                Err(Refusal::Abandoned) => return,
                Err(refusal) => {
                    tracing::warn!(%refusal, "the server does not say how the other nodes are");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Whether the server knows it: it may have been restored from a backup since it was told.
    fn is_told(&self, word: &Word) -> bool {
        let heard = self.heard.borrow();
        let own = heard.nodes.iter().find(|node| node.node == self.node);
        own.is_some_and(|own| own.phase >= word.phase && (own.cause.is_some() || word.end.is_none() || own.phase >= NodePhase::Ended))
    }

    fn hear(&self, nodes: Nodes, control: &Control) {
        let others: Vec<Node> = nodes.nodes.iter().filter(|node| node.node != self.node).cloned().collect();
        if let Some(cause) = first_failure(&others) {
            control.raise(Demand::Leave { cause });
        }
        self.heard.send_replace(nodes);
    }
}

/// What ended the first of the nodes that ended badly; `None`: none did, so far.
fn first_failure(nodes: &[Node]) -> Option<Cause> {
    let bad = nodes.iter().filter_map(|node| {
        let cause = node.cause.clone()?;
        // A cause that this agent does not know is one all the same.
        let cause: Cause = serde_json::from_value(cause)
            .unwrap_or_else(|error| Cause::AgentLost { message: format!("its cause cannot be read: {error}") });
        (cause != Cause::Completed).then(|| (node.ended_us.unwrap_or(i64::MAX), node.node, cause.of_part(None, (node.node, &node.host))))
    });
    bad.min_by_key(|(at_us, node, _)| (*at_us, *node)).map(|(_, _, cause)| cause)
}

/// Where the other nodes reach this one: the address from which it reaches the server.
fn own_address(endpoint: &str) -> String {
    if let Some(address) = std::env::var(ADDRESS_VARIABLE).ok().filter(|address| !address.trim().is_empty()) {
        return address.trim().to_owned();
    }
    let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).split('/').next().unwrap_or_default();
    // Nothing is sent: this only asks the system which way it would go.
    let addresses = authority.to_socket_addrs().into_iter().flatten();
    let found = addresses.into_iter().find_map(|server| {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(server).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    });
    found.unwrap_or_else(|| {
        tracing::warn!(endpoint, "the address from which this node reaches the server is not known; the others are told 127.0.0.1, which is right on one machine only");
        "127.0.0.1".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(node: u32, cause: Option<Cause>, ended_us: Option<i64>) -> Node {
        let cause = cause.map(|cause| serde_json::to_value(cause).unwrap());
        Node { node, host: format!("n{node}"), ports: Vec::new(), phase: NodePhase::Ended, cause, ended_us }
    }

    #[test]
    fn the_node_that_failed_first_is_the_cause_and_those_that_were_ended_with_it_are_not() {
        let exit = |code| Some(Cause::ExitCode { code });
        let nodes =
            [node(0, exit(1), Some(30)), node(1, None, Some(5)), node(2, exit(7), Some(20)), node(3, Some(Cause::Completed), Some(1))];
        let cause = first_failure(&nodes).unwrap();
        assert_eq!(cause.sentence().split(';').next(), Some("node 2 (n2): the code ended with exit code 7"));
        assert_eq!(first_failure(&nodes[3..]), None);
    }

    #[test]
    fn a_cancel_is_a_cancel_on_whichever_node_it_arrived_first() {
        let cancelled = Cause::Cancelled { by: Some("ada".into()), why: None };
        assert_eq!(first_failure(&[node(1, Some(cancelled.clone()), Some(3))]), Some(cancelled));
    }

    #[test]
    fn a_cause_of_another_version_still_ends_the_others() {
        let strange = Node { cause: Some(json!({ "kind": "eaten" })), ..node(1, None, Some(3)) };
        assert!(matches!(first_failure(&[strange]), Some(Cause::Part { node: 1, .. })));
    }

    #[test]
    fn a_node_is_where_it_reaches_the_server_from() {
        assert_eq!(own_address("https://127.0.0.1:8443"), "127.0.0.1");
        assert_eq!(own_address("https://[::1]:8443/x"), "::1");
    }
}
