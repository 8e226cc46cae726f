//! Runs on several nodes and in several processes, through the real server and real agents: on the local executor, and on the real Slurm of
//! `scripts/slurm`.

use std::{fs, path::PathBuf, process::Command};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use trainyard_engine::agent::folder::AttemptFolder;

use crate::{
    slurm::{Cluster, Kind},
    support::{TestServer, definition, form, is_alive, signal, until, zip},
};

/// Meets all other processes over TCP with nothing but the variables of `torch.distributed`: the first one adds up what every other one sends, and
/// tells all of them.
const RENDEZVOUS: &str = r#"
import os, pathlib, socket, time
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
local, node = int(os.environ["LOCAL_RANK"]), int(os.environ["NODE_RANK"])
assert rank == node * int(os.environ["LOCAL_WORLD_SIZE"]) + local
address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank == 0:
    with socket.create_server(("", address[1])) as server:
        others = [server.accept()[0] for _ in range(world - 1)]
        total = sum(int(other.makefile().readline()) for other in others)
        for other in others:
            other.sendall(f"{total}\n".encode())
else:
    while True:
        try:
            connection = socket.create_connection(address, timeout=30)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    connection.sendall(f"{rank}\n".encode())
    total = int(connection.makefile().readline())
print(f"rank {rank} of {world} on node {node} of {os.environ['AZUREML_NODE_COUNT']}: total {total}", flush=True)
pathlib.Path(f"outputs/rank-{rank}.txt").write_text(str(total))
pathlib.Path("logs").mkdir(exist_ok=True)
pathlib.Path(f"logs/{rank}.log").write_text("watched")
"#;

/// Every process waits until it is stopped; one ends badly when a file appears.
const PATIENT: &str = r#"
import os, pathlib, sys, time
rank = os.environ.get("RANK", os.environ.get("AZ_BATCH_NODE_ID"))
print("process", os.getpid(), flush=True)
door = pathlib.Path(sys.argv[1])
while True:
    if (door / f"fail-{rank}").exists():
        sys.exit(7)
    if (door / "done").exists():
        sys.exit(0)
    time.sleep(0.02)
"#;

async fn local_server() -> TestServer {
    TestServer::with_config("[server]\nheartbeat_limit_seconds = 3\ncancel_grace_seconds = 2\n[compute.cpu-cluster]\nslots = 4\nretries = 0\n[compute.local]\nslots = 1\n").await
}

fn torch(nodes: u32, processes: u32) -> impl FnOnce(&mut Value) {
    move |configuration| {
        configuration["NodeCount"] = json!(nodes);
        configuration["Framework"] = json!("PyTorch");
        configuration["Communicator"] = json!("Gloo");
        configuration["PyTorch"] = json!({ "CommunicationBackend": "gloo", "ProcessCount": processes });
    }
}

/// A run of two nodes with two processes each that waits at the door, with all of them at work.
async fn patient(server: &TestServer) -> (String, PathBuf) {
    let door = server.dir().join("door");
    fs::create_dir_all(&door).unwrap();
    let path = door.display().to_string();
    let run = server
        .submit(PATIENT, |configuration| {
            torch(2, 4)(configuration);
            configuration["Arguments"] = json!([path]);
        })
        .await;
    for rank in 0..4 {
        wait_for_rank(server, &run, rank, "process ").await;
    }
    (run, door)
}

async fn rank_log(server: &TestServer, run: &str, rank: u32) -> String {
    server.log(run, &format!("azureml-logs/70_driver_log_{rank}.txt")).await
}

async fn wait_for_rank(server: &TestServer, run: &str, rank: u32, text: &str) {
    until(&format!("`{text}` in the log of rank {rank}"), || async { rank_log(server, run, rank).await.contains(text).then_some(()) })
        .await;
}

async fn processes(server: &TestServer, run: &str, ranks: u32) -> Vec<u32> {
    let mut pids = Vec::new();
    for rank in 0..ranks {
        let log = rank_log(server, run, rank).await;
        pids.push(log.split_whitespace().nth(1).unwrap_or_else(|| panic!("no process in `{log}`")).parse().unwrap());
    }
    pids
}

pub(crate) fn message(dto: &Value) -> String {
    dto["error"]["error"]["message"].as_str().unwrap_or_default().to_owned()
}

/// What the run has of files.
pub(crate) fn downloaded(server: &TestServer, run: &str) -> Vec<String> {
    let out = server.dir().join(format!("out-{run}"));
    let done = server.cli(&["download", run, "--output", out.to_str().unwrap()]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let files = server.files(&format!("out-{run}"));
    let mut names: Vec<String> = files.iter().map(|file| file.strip_prefix(&out).unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// The folders of the attempt's nodes.
fn node_folders(server: &TestServer) -> Vec<AttemptFolder> {
    let attempt = fs::read_dir(server.dir().join("attempts")).unwrap().flatten().next().expect("an attempt").path();
    AttemptFolder::new(attempt).nodes()
}

#[tokio::test]
async fn processes_on_two_nodes_find_each_other_and_everything_of_them_is_kept() {
    let server = local_server().await;
    let run = server.submit(RENDEZVOUS, torch(2, 4)).await;
    server.wait_for(&run, "Completed").await;
    for rank in 0..4 {
        let log = rank_log(&server, &run, rank).await;
        assert_eq!(log, format!("rank {rank} of 4 on node {} of 2: total 6\n", rank / 2));
    }
    let files = downloaded(&server, &run);
    for file in [
        "outputs/rank-0.txt",
        "outputs/rank-1.txt",
        "outputs/node-1/rank-2.txt",
        "outputs/node-1/rank-3.txt",
        "logs/0.log",
        "logs/node-1/3.log",
        "azureml-logs/20_image_build_log.txt",
        "azureml-logs/20_image_build_log_node-1.txt",
    ] {
        assert!(files.iter().any(|found| found == file), "{file} is not in {files:?}");
    }
    let attempts = server.get(&server.client().native(&format!("/runs/{run}/attempts"))).await;
    let nodes: Vec<_> = attempts[0]["nodes"].as_array().unwrap().iter().map(|node| (&node["node"], &node["phase"])).collect();
    // The first node does not tell the others when everything of it is kept: that ends the attempt.
    assert_eq!(nodes, [(&json!(0), &json!("ended")), (&json!(1), &json!("collected"))]);
    until("the folders of all nodes to be swept", || async { server.files("attempts").is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn two_distributed_runs_at_once_do_not_take_each_others_port() {
    let server = local_server().await;
    let first = server.submit(RENDEZVOUS, torch(2, 2)).await;
    let second = server.submit(RENDEZVOUS, torch(2, 2)).await;
    for run in [first, second] {
        server.wait_for(&run, "Completed").await;
        assert_eq!(rank_log(&server, &run, 1).await, "rank 1 of 2 on node 1 of 2: total 1\n");
    }
}

#[tokio::test]
async fn tensorflow_is_told_its_cluster_and_its_parameter_servers_end_with_the_workers() {
    let server = local_server().await;
    let script = r#"
import json, os, pathlib, socket, time
config = json.loads(os.environ["TF_CONFIG"])
task = config["task"]
own = config["cluster"][task["type"]][task["index"]]
print(json.dumps(config), os.environ["AZ_BATCHAI_TASK_INDEX"], os.environ["AZ_BATCHAI_WORKER_HOSTS"], os.environ["AZ_BATCHAI_PS_HOSTS"], flush=True)
def port(address): return int(address.rsplit(":", 1)[1])
if task["type"] == "ps":
    with socket.create_server(("", port(own))) as server:
        while True:
            server.accept()[0].sendall(b"weights\n")
for address in config["cluster"]["ps"]:
    while True:
        try:
            connection = socket.create_connection((address.rsplit(":", 1)[0], port(address)), timeout=30)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    assert connection.makefile().readline() == "weights\n"
"#;
    let run = server
        .submit(script, |configuration| {
            configuration["NodeCount"] = json!(2);
            configuration["Framework"] = json!("TensorFlow");
            configuration["Communicator"] = json!("ParameterServer");
            configuration["Tensorflow"] = json!({ "WorkerCount": 2, "ParameterServerCount": 1 });
        })
        .await;
    server.wait_for(&run, "Completed").await;
    let (mut tasks, mut clusters) = (Vec::new(), Vec::new());
    for rank in 0..3 {
        let log = rank_log(&server, &run, rank).await;
        let (text, rest) = log.split_once("} ").unwrap();
        let config: Value = serde_json::from_str(&format!("{text}}}")).unwrap();
        assert_eq!(config["environment"], "cloud");
        let workers: Vec<&str> = config["cluster"]["worker"].as_array().unwrap().iter().map(|host| host.as_str().unwrap()).collect();
        let words: Vec<&str> = rest.split_whitespace().collect();
        assert_eq!(words[1], workers.join(","));
        assert_eq!(words[0], config["task"]["index"].to_string());
        assert_eq!(words[2], config["cluster"]["ps"][0].as_str().unwrap());
        tasks.push(format!("{}/{}", config["task"]["type"].as_str().unwrap(), config["task"]["index"]));
        clusters.push(config["cluster"].clone());
    }
    assert_eq!(tasks, ["worker/0", "worker/1", "ps/0"]);
    assert!(clusters.iter().all(|cluster| *cluster == clusters[0]) && clusters[0]["worker"].as_array().unwrap().len() == 2);
}

#[tokio::test]
async fn one_rank_that_fails_ends_the_others_and_is_the_cause() {
    let server = local_server().await;
    let (run, door) = patient(&server).await;
    let pids = processes(&server, &run, 4).await;
    fs::write(door.join("fail-3"), "").unwrap();
    let dto = server.wait_for(&run, "Failed").await;
    let message = message(&dto);
    assert!(
        message.contains("rank 3 on node 1") && message.contains("exit code 7") && message.contains("70_driver_log_3.txt"),
        "{message}"
    );
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "a process of the run is still there");
}

#[tokio::test]
async fn a_cancel_ends_every_node() {
    let server = local_server().await;
    let (run, _) = patient(&server).await;
    let pids = processes(&server, &run, 4).await;
    let path = server.ws("execution/v1.0", &format!("/experiments/it/runId/{run}/cancel"));
    let (status, answer) = server.send(Method::POST, &path, json!({})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    server.wait_for(&run, "Cancelled").await;
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
}

#[tokio::test]
async fn a_server_that_is_killed_meanwhile_changes_nothing() {
    let mut server = local_server().await;
    let (run, door) = patient(&server).await;
    let pids = processes(&server, &run, 4).await;
    server.kill();
    server.start_again().await;
    assert!(pids.iter().all(|pid| is_alive(*pid)), "they went on");
    server.kill();
    fs::write(door.join("done"), "").unwrap();
    until("the code to end without a server", || async { pids.iter().all(|pid| !is_alive(*pid)).then_some(()) }).await;
    server.start_again().await;
    server.wait_for(&run, "Completed").await;
}

#[tokio::test]
async fn an_agent_that_is_killed_is_the_cause_with_its_node_and_nothing_runs_on() {
    let server = local_server().await;
    let (run, _) = patient(&server).await;
    let pids = processes(&server, &run, 4).await;
    let agent = node_folders(&server)[1].agent_pid().expect("the agent of node 1");
    signal(agent.unsigned_abs(), "KILL");
    let dto = server.wait_for(&run, "Failed").await;
    let message = message(&dto);
    assert!(message.contains("node 1 (") && message.contains("was killed while the code ran"), "{message}");
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
}

#[tokio::test]
async fn a_silent_node_makes_the_run_not_responding_and_is_named() {
    let server = local_server().await;
    let (run, door) = patient(&server).await;
    let agent = node_folders(&server)[1].agent_pid().expect("the agent of node 1").unsigned_abs();
    signal(agent, "STOP");
    server.wait_for(&run, "NotResponding").await;
    let events = server.get(&server.client().native(&format!("/runs/{run}/events"))).await;
    let silent =
        events.as_array().unwrap().iter().find(|event| event["name"].as_str().unwrap().ends_with("NotResponding")).unwrap().clone();
    assert_eq!(silent["data"]["Node"], 1);
    signal(agent, "CONT");
    fs::write(door.join("done"), "").unwrap();
    until("the run to end", || async { (server.run(&run).await["status"] == "Completed").then_some(()) }).await;
}

#[tokio::test]
async fn the_script_runs_once_on_every_node_where_nobody_communicates_and_a_retry_is_of_all_nodes() {
    let server = TestServer::with_config("[compute.cpu-cluster]\nslots = 3\nretry_backoff_seconds = 0\n[compute.local]\nslots = 1\n").await;
    let script = r#"
import os, pathlib, sys
print(os.environ["AZ_BATCH_NODE_ID"], os.environ["NODE_RANK"], os.environ["AZ_BATCH_IS_CURRENT_NODE_MASTER"])
tried = pathlib.Path(sys.argv[1]) / ("tried-" + os.environ["NODE_RANK"])
count = len(tried.read_text()) if tried.exists() else 0
tried.write_text("x" * (count + 1))
import time
if count == 0 and os.environ["NODE_RANK"] == "2":
    # Not before the others have begun, or their first time would be the next attempt's.
    while not all((tried.parent / f"tried-{node}").exists() for node in (0, 1)): time.sleep(0.05)
    sys.exit(3)
while count == 0: time.sleep(1)
"#;
    let path = server.dir().display().to_string();
    let run = server
        .submit(script, |configuration| {
            configuration["NodeCount"] = json!(3);
            configuration["Arguments"] = json!([path]);
            configuration["Retries"] = json!({ "UserCode": 1, "BackoffSeconds": 0 });
        })
        .await;
    until("the run to end", || async { (server.run(&run).await["status"] == "Completed").then_some(()) }).await;
    for node in 0..3 {
        assert_eq!(fs::read_to_string(server.dir().join(format!("tried-{node}"))).unwrap(), "xx", "node {node}");
        assert_eq!(rank_log(&server, &run, node).await, format!("node-{node} {node} {}\n", if node == 0 { "true" } else { "false" }));
    }
}

#[tokio::test]
async fn a_run_takes_a_slot_for_each_node_and_one_that_never_fits_is_refused() {
    let server = local_server().await;
    let (first, door) = patient(&server).await;
    let second = server.submit("", |configuration| configuration["NodeCount"] = json!(3)).await;
    let reason = until("the reason why it waits", || async {
        let message = server.run(&second).await["queueingInfo"]["message"].as_str().unwrap_or_default().to_owned();
        message.contains("slots").then_some(message)
    })
    .await;
    assert!(reason.contains("3 slots at once") && reason.contains("2 of 4 busy"), "{reason}");
    let mut asked = definition();
    asked["Configuration"]["NodeCount"] = json!(5);
    let (status, answer) = server.start_run("", form(&asked, &zip(&[("hello.py", "")]))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert!(answer.to_string().contains("has 4 slots, and the run takes 5 at once"), "{answer}");
    fs::write(door.join("done"), "").unwrap();
    for run in [first, second] {
        server.wait_for(&run, "Completed").await;
    }
}

/// Adds up the ranks of all processes with Open MPI's own functions. Written for the compiler of the test's machine.
const RING: &str = r#"
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **words) {
    int rank, size, total;
    MPI_Init(&count, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&rank, &total, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    char *where = getenv("SLURMD_NODENAME") ? getenv("SLURMD_NODENAME") : getenv("POD_IP");
    printf("rank %d of %d: total %d on %s\n", rank, size, total, where ? where : "here");
    fflush(stdout);
    if (count > 1 && rank == atoi(words[1])) return 5;
    if (count > 1) for (;;) pause();
    MPI_Finalize();
    return 0;
}
"#;

/// The program, compiled; `None`: there is no MPI here, and the test says so.
pub(crate) fn ring(test: &str) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ring.c"), RING).unwrap();
    match Command::new(std::env::var("TRY_MPI").map(|d| format!("{d}/mpicc")).unwrap_or("mpicc".into()))
        .args(["-o", "ring", "ring.c"])
        .current_dir(dir.path())
        .status()
    {
        Ok(status) => assert!(status.success(), "mpicc"),
        Err(_) => {
            eprintln!("SKIPPED {test}: mpicc is not installed; scripts/test installs Open MPI where it may");
            return None;
        }
    }
    Some(fs::read(dir.path().join("ring")).unwrap())
}

/// Submits the program as a command on two nodes with two processes each.
pub(crate) async fn submit_ring(server: &TestServer, ring: &[u8], arguments: &[&str]) -> String {
    let mut asked = definition();
    let configuration = &mut asked["Configuration"];
    configuration["Script"] = Value::Null;
    // The permission to execute does not come with every zip.
    configuration["Command"] = json!([
        "sh",
        "-c",
        "echo kept >outputs/from-$OMPI_COMM_WORLD_RANK && cp ring ring.run.$$ && chmod 755 ring.run.$$ && exec ./ring.run.$$ \"$@\"",
        "ring"
    ]);
    configuration["Arguments"] = json!(arguments);
    configuration["NodeCount"] = json!(2);
    configuration["Communicator"] = json!("OpenMpi");
    configuration["Mpi"] = json!({ "ProcessCountPerNode": 2 });
    // All nodes are this machine, where their segments of shared memory would have the same names.
    configuration["EnvironmentVariables"] = json!({ "OMPI_MCA_btl": "tcp,self", "OMPI_MCA_btl_tcp_if_include": "lo", "OMPI_MCA_oob_tcp_if_include": "lo", "FI_PROVIDER": "tcp" });
    if let Ok(d) = std::env::var("TRY_MPI") {
        configuration["EnvironmentVariables"]["PATH"] = json!(format!("{d}:/usr/bin:/bin"));
    }
    let (status, answer) = server.start_run("", form(&asked, &zip_bytes("ring", ring))).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer["runId"].as_str().unwrap().to_owned()
}

fn zip_bytes(name: &str, content: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap().into_inner()
}

pub(crate) async fn all_four_ranks(server: &TestServer, run: &str) -> Vec<String> {
    let mut nodes = Vec::new();
    for rank in 0..4 {
        let log = rank_log(server, run, rank).await;
        assert!(log.starts_with(&format!("rank {rank} of 4: total 6 on ")), "{log}; the launcher: {}", server.driver_log(run).await);
        nodes.push(log.split_whitespace().last().unwrap_or_default().to_owned());
    }
    nodes
}

#[tokio::test]
async fn an_mpi_program_runs_on_two_nodes_of_this_machine() {
    let Some(ring) = ring("an_mpi_program_runs_on_two_nodes_of_this_machine") else { return };
    let server = local_server().await;
    let run = submit_ring(&server, &ring, &[]).await;
    server.wait_for(&run, "Completed").await;
    all_four_ranks(&server, &run).await;
}

#[tokio::test]
async fn an_mpi_rank_that_fails_is_the_cause() {
    let Some(ring) = ring("an_mpi_rank_that_fails_is_the_cause") else { return };
    let server = local_server().await;
    let run = submit_ring(&server, &ring, &["2"]).await;
    let dto = server.wait_for(&run, "Failed").await;
    let message = message(&dto);
    assert!(message.contains("rank 2 on node 0") && message.contains("exit code 5"), "{message}; {}", server.driver_log(&run).await);
}

#[tokio::test]
async fn without_an_mpirun_the_run_fails_and_says_what_to_install() {
    let server = local_server().await;
    let run = server
        .submit("", |configuration| {
            configuration["Communicator"] = json!("Mpi");
            configuration["EnvironmentVariables"] = json!({ "PATH": "/nowhere" });
            configuration["Environment"]["Python"]["InterpreterPath"] = json!("/usr/bin/python3");
        })
        .await;
    let dto = server.wait_for(&run, "Failed").await;
    let message = message(&dto);
    assert!(message.contains("there is no `mpirun`") && message.contains("install Open MPI or MPICH"), "{message}");
}

#[tokio::test]
async fn processes_on_two_slurm_nodes_find_each_other() {
    let Some(cluster) = Cluster::find("processes_on_two_slurm_nodes_find_each_other", Kind::Plain) else { return };
    let server = cluster.server("partition = \"cpu\"").await;
    let run = server.submit(&format!("{RENDEZVOUS}\nprint(os.environ['SLURMD_NODENAME'])\n"), torch(2, 4)).await;
    server.wait_for(&run, "Completed").await;
    let mut nodes = Vec::new();
    for rank in 0..4 {
        let log = rank_log(&server, &run, rank).await;
        assert!(log.starts_with(&format!("rank {rank} of 4 on node {} of 2: total 6\n", rank / 2)), "{log}");
        nodes.push(log.lines().last().unwrap_or_default().to_owned());
    }
    assert!(nodes[0] == nodes[1] && nodes[2] == nodes[3] && nodes[0] != nodes[2], "{nodes:?}");
    until("the folder of the attempt to be swept", || async { cluster.attempts().is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn a_cancel_ends_both_slurm_nodes_and_their_job() {
    let Some(cluster) = Cluster::find("a_cancel_ends_both_slurm_nodes_and_their_job", Kind::Plain) else { return };
    let server = cluster.server("").await;
    let (run, _) = patient(&server).await;
    let path = server.ws("execution/v1.0", &format!("/experiments/it/runId/{run}/cancel"));
    server.send(Method::POST, &path, json!({})).await;
    server.wait_for(&run, "Cancelled").await;
    until("the job to be gone", || async { cluster.jobs("PD,R,CG").is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn a_slurm_node_that_dies_ends_the_run_as_lost() {
    let Some(cluster) = Cluster::find("a_slurm_node_that_dies_ends_the_run_as_lost", Kind::Plain) else { return };
    let server = cluster.server("retries = 0").await;
    let (run, _) = patient(&server).await;
    let nodes = cluster.job("R").await.1;
    let output = cluster.command("scontrol", &["show", "hostnames", &nodes]);
    let second = String::from_utf8(output.stdout).unwrap().lines().nth(1).expect("two nodes").to_owned();
    cluster.daemon("node", &[&second, "kill"]);
    let failed = until("the run to fail", || async {
        let dto = server.run(&run).await;
        (dto["status"] == "Failed").then_some(dto)
    })
    .await;
    cluster.daemon("node", &[&second, "start"]);
    until("the node to be back", || async {
        let nodes = cluster.command("sinfo", &["-h", "-N", "-p", "cpu", "-t", "idle,mix,alloc,comp", "-o", "%N"]);
        (String::from_utf8_lossy(&nodes.stdout).lines().count() == 4).then_some(())
    })
    .await;
    let message = message(&failed);
    assert!(message.contains("NODE_FAIL") || message.contains("node 1 ("), "{message}");
}

#[tokio::test]
async fn an_open_mpi_program_runs_over_two_slurm_nodes() {
    let Some(cluster) = Cluster::find("an_open_mpi_program_runs_over_two_slurm_nodes", Kind::Plain) else { return };
    let Some(ring) = ring("an_open_mpi_program_runs_over_two_slurm_nodes") else { return };
    let server = cluster.server("partition = \"cpu\"").await;
    let run = submit_ring(&server, &ring, &[]).await;
    until("the run to end", || async {
        let status = server.run(&run).await["status"].as_str().unwrap_or_default().to_owned();
        ["Completed", "Failed"].contains(&status.as_str()).then_some(())
    })
    .await;
    let nodes = all_four_ranks(&server, &run).await;
    server.wait_for(&run, "Completed").await;
    assert!(nodes[0] != nodes[3], "{nodes:?}");
}
