//! Several machines without Slurm: what a launcher is given so that the agents of the other nodes are its remote shell.
//!
//! Everything lies in a folder of node 0's attempt: the list of hosts in the launcher's words, the nodes with the key for [`crate::agent::shell`], and a
//! small program that a launcher can call as it calls `ssh`. The hosts are the addresses that the nodes have told each other.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use trainyard_core::definition::Distribution;
use trainyard_wire::native::Node;

use super::{by_definition, machine};
use crate::{
    agent::{
        process::NotStarted,
        shell::{Called, Directory},
    },
    trust::{Access, replace_file},
};

/// Where it lies, in the folder of the attempt.
const FOLDER: &str = "mpi";

/// What a launcher that goes through the agents is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent::mpi) struct Machines {
    /// Open MPI's list of hosts.
    pub(in crate::agent::mpi) open: PathBuf,
    /// Hydra's list of hosts.
    pub(in crate::agent::mpi) hydra: PathBuf,
    /// What stands for `ssh`.
    pub(in crate::agent::mpi) shell: PathBuf,
    /// Where the others reach the launcher.
    pub(in crate::agent::mpi) own: String,
    /// The network interface that the others are reached through; `None`: not known.
    pub(in crate::agent::mpi) interface: Option<String>,
}

impl Machines {
    /// Writes everything below `attempt`, the folder of node 0. `key` is that of the attempt's order.
    pub(in crate::agent::mpi) fn write(
        attempt: &Path,
        (spread, nodes): (&Distribution, &[Node]),
        key: Option<&str>,
    ) -> Result<Self, NotStarted> {
        let key = key.ok_or_else(without_key)?;
        let hosts: BTreeSet<&str> = nodes.iter().map(|node| node.host.as_str()).collect();
        if hosts.len() < nodes.len() {
            let list: Vec<&str> = nodes.iter().map(|node| node.host.as_str()).collect();
            return Err(by_definition(format!(
                "two nodes of the run have the same address ({}), and MPI could not tell them apart; do its pods use the network of their machine?",
                list.join(", ")
            )));
        }
        let (mut own, mut others) = (String::new(), Vec::new());
        for node in nodes {
            match (node.node, node.ports.first()) {
                (0, _) => own.clone_from(&node.host),
                (number, Some(port)) => others.push(Called { node: number, host: node.host.clone(), port: *port }),
                (number, None) => {
                    return Err(machine(format!(
                        "the agent of node {number} ({}) takes no calls from the launcher; is it of an older version than that of node 0?",
                        node.host
                    )));
                }
            }
        }
        let interface =
            others.first().and_then(|other| interface_to(&other.host, &fs::read_to_string("/proc/net/route").unwrap_or_default()));
        let folder = attempt.join(FOLDER);
        let directory = Directory { key: key.to_owned(), own: own.clone(), nodes: others };
        let written = put(&folder, (spread, nodes), &directory);
        let (open, hydra, shell) = written.map_err(|why| machine(format!("`{}` cannot be written: {why}", folder.display())))?;
        // Open MPI takes it for a list of programs with arguments.
        if shell.to_string_lossy().contains([' ', ':']) {
            return Err(machine(format!(
                "the path of the attempt `{}` has a space or a colon in it, which launchers cannot bear",
                attempt.display()
            )));
        }
        Ok(Self { open, hydra, shell, own, interface })
    }
}

/// Why there can be no MPI over machines where the order has no key.
pub(in crate::agent) fn without_key() -> NotStarted {
    machine("the server gave the agents no key to know each other by; is it of an older version than the agents?".into())
}

fn put(folder: &Path, (spread, nodes): (&Distribution, &[Node]), directory: &Directory) -> Result<(PathBuf, PathBuf, PathBuf), String> {
    let text = |error: std::io::Error| error.to_string();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(text)?;
    let (open, hydra, shell, list) = (folder.join("hostfile"), folder.join("hosts"), folder.join("shell"), folder.join("nodes.json"));
    let each = spread.processes_per_node;
    let lines = |line: &dyn Fn(&str) -> String| nodes.iter().map(|node| line(&node.host)).collect::<String>();
    let program = std::env::current_exe().map_err(|error| format!("this program cannot find itself: {error}"))?;
    let script = format!(
        "#!/bin/sh\n# Stands for ssh: the agents of the other nodes do it.\nexec {} node-shell --nodes {} -- \"$@\"\n",
        quoted(&program),
        quoted(&list)
    );
    let documents = [
        (&open, lines(&|host| format!("{host} slots={each}\n"))),
        (&hydra, lines(&|host| format!("{}:{each}\n", bracketed(host)))),
        (&list, serde_json::to_string(directory).map_err(|error| error.to_string())?),
        (&shell, script),
    ];
    for (path, content) in documents {
        replace_file(path, content.as_bytes(), Access::Owner).map_err(|error| error.chain())?;
    }
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o700)).map_err(text)?;
    Ok((open, hydra, shell))
}

/// One word for a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// The interface through which `host` is reached, by the kernel's `table` of IPv4 routes (`/proc/net/route`). Intel MPI would otherwise tell the others the
/// name of this machine, which no other pod can resolve.
fn interface_to(host: &str, table: &str) -> Option<String> {
    let address: Ipv4Addr = host.parse().ok()?;
    if address.is_loopback() {
        return Some("lo".to_owned());
    }
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::swap_bytes);
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (destination, mask) = (number(fields.get(1)?)?, number(fields.get(7)?)?);
        (u32::from(address) & mask == destination).then(|| (mask, (*fields[0]).to_owned()))
    });
    routes.max_by_key(|(mask, _)| *mask).map(|(_, interface)| interface)
}

/// The command line of Open MPI's part.
pub(in crate::agent::mpi) fn open_words(machines: &Machines) -> Vec<OsString> {
    // The session of the remote shell lives as long as what it started, so that each notices the end of the other. Node 0's directory may be none elsewhere.
    let words = ["--map-by", "slot:OVERSUBSCRIBE", "--leave-session-attached", "--wdir", "/", "--hostfile"].map(OsString::from);
    words.into_iter().chain([machines.open.clone().into()]).collect()
}

/// The command line of Hydra's part: MPICH's and Intel MPI's.
pub(in crate::agent::mpi) fn hydra_words(machines: &Machines) -> Vec<OsString> {
    // Every node has variables of its own, which those of node 0 must not replace.
    let words = ["-genvnone", "-wdir", "/", "-localhost", &machines.own, "-f"].map(OsString::from);
    words.into_iter().chain([machines.hydra.clone().into()]).collect()
}

/// What Open MPI is told besides: version 4 by its own variables, version 5 by those of PRRTE.
pub(in crate::agent::mpi) fn open_settings(machines: &Machines) -> Vec<(&'static str, String)> {
    let shell = machines.shell.to_string_lossy().into_owned();
    let word = str::to_owned;
    vec![
        ("OMPI_MCA_plm", word("rsh")),
        ("OMPI_MCA_plm_rsh_agent", shell.clone()),
        // A daemon cannot call another node: only node 0 has the list.
        ("OMPI_MCA_plm_rsh_no_tree_spawn", word("1")),
        ("OMPI_MCA_orte_keep_fqdn_hostnames", word("1")),
        ("PRTE_MCA_plm", word("ssh")),
        ("PRTE_MCA_plm_ssh_agent", shell),
        ("PRTE_MCA_plm_ssh_no_tree_spawn", word("1")),
        ("PRTE_MCA_prte_keep_fqdn_hostnames", word("1")),
    ]
}

/// What Hydra is told besides, by MPICH's names and by Intel's.
pub(in crate::agent::mpi) fn hydra_settings(machines: &Machines) -> Vec<(&'static str, String)> {
    let shell = machines.shell.to_string_lossy().into_owned();
    let mut all = vec![
        ("HYDRA_LAUNCHER", "ssh".to_owned()),
        ("HYDRA_LAUNCHER_EXEC", shell.clone()),
        ("I_MPI_HYDRA_BOOTSTRAP", "ssh".to_owned()),
        ("I_MPI_HYDRA_BOOTSTRAP_EXEC", shell),
    ];
    all.extend(machines.interface.clone().map(|interface| ("I_MPI_HYDRA_IFACE", interface)));
    all
}

#[cfg(test)]
mod tests {
    use trainyard_core::definition::Communication;
    use trainyard_wire::native::NodePhase;

    use super::*;

    const KEY: &str = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";

    fn spread() -> Distribution {
        Distribution { node_count: 2, processes_per_node: 3, communication: Communication::Mpi }
    }

    fn node(node: u32, host: &str, ports: &[u16]) -> Node {
        Node { node, host: host.into(), ports: ports.to_vec(), phase: NodePhase::Ready, cause: None, ended_us: None }
    }

    #[test]
    fn the_launcher_gets_hosts_in_its_words_and_something_to_call_them_with() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = [node(0, "10.0.0.1", &[6105]), node(1, "10.0.0.2", &[6305])];
        let machines = Machines::write(dir.path(), (&spread(), &nodes), Some(KEY)).unwrap();
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&machines.open), "10.0.0.1 slots=3\n10.0.0.2 slots=3\n");
        assert_eq!(read(&machines.hydra), "10.0.0.1:3\n10.0.0.2:3\n");
        assert!(read(&machines.shell).ends_with("-- \"$@\"\n") && !read(&machines.shell).contains(KEY));
        let list: Directory = serde_json::from_str(&read(&dir.path().join("mpi/nodes.json"))).unwrap();
        assert_eq!(list.nodes, [Called { node: 1, host: "10.0.0.2".into(), port: 6305 }], "node 0 is where the launcher is");
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("mpi"), mode("mpi/nodes.json"), mode("mpi/shell")), (0o700, 0o600, 0o700));
    }

    #[test]
    fn nodes_that_cannot_be_called_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |nodes: &[Node], key| Machines::write(dir.path(), (&spread(), nodes), key).unwrap_err();
        let same = refused(&[node(0, "10.0.0.1", &[]), node(1, "10.0.0.1", &[1])], Some(KEY));
        assert!(same.by_definition && same.message.contains("have the same address"), "{same:?}");
        let old = refused(&[node(0, "10.0.0.1", &[]), node(1, "10.0.0.2", &[])], Some(KEY));
        assert!(!old.by_definition && old.message.contains("node 1 (10.0.0.2) takes no calls"), "{old:?}");
        assert_eq!(refused(&[], None), without_key());
    }

    #[test]
    fn the_interface_is_that_of_the_narrowest_route() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     pod0\t0000F40A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        assert_eq!(interface_to("10.244.3.4", table).as_deref(), Some("pod0"));
        assert_eq!(interface_to("192.0.2.7", table).as_deref(), Some("eth0"));
        assert_eq!(interface_to("127.0.0.2", table).as_deref(), Some("lo"));
        assert_eq!(interface_to("fd00::2", table), None);
    }
}
