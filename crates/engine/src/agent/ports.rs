//! Ports on which the processes of a run find each other.
//!
//! The usual one is taken where it is free (azureml-wire F.3: 6105, 2222), else the next one. Who has which port is kept from other agents on the
//! machine by a name that only one process can hold and that the kernel frees with it: the port itself must be free for the user's code.

use std::{
    net::{Ipv4Addr, TcpListener},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
};

/// How many ports are looked at before the search is given up.
const TRIES: u16 = 2_000;

/// A port that no other agent on this machine gives to its code as long as this lives.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) port: u16,
    _guard: UnixListener,
}

/// Reserves `count` ports from `first` on. Fewer where so many are not to be had.
pub(super) fn reserve(first: u16, count: usize) -> Vec<Reserved> {
    (first..first.saturating_add(TRIES)).filter_map(reserve_one).take(count).collect()
}

/// Takes up a reservation of a former agent of the same node again, as far as that is possible: the others have been told these ports.
pub(super) fn reserve_again(ports: &[u16]) -> Vec<Reserved> {
    ports.iter().filter_map(|port| guard(*port).map(|guard| Reserved { port: *port, _guard: guard })).collect()
}

fn reserve_one(port: u16) -> Option<Reserved> {
    let guard = guard(port)?;
    // Somebody who knows nothing of the names may listen there.
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).ok()?;
    Some(Reserved { port, _guard: guard })
}

fn guard(port: u16) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("trainyard-port-{port}")).ok()?;
    UnixListener::bind_addr(&name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_to_one_agent_at_a_time_and_not_at_all_while_somebody_listens() {
        let first = reserve(46_105, 2);
        assert_eq!(first.len(), 2);
        let ports: Vec<u16> = first.iter().map(|reserved| reserved.port).collect();
        let second = reserve(46_105, 1);
        assert!(!ports.contains(&second[0].port), "{ports:?} are taken");
        assert!(reserve_again(&ports).is_empty());
        drop(first);
        assert_eq!(reserve_again(&ports).len(), 2);
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let busy = listener.local_addr().unwrap().port();
        assert_ne!(reserve(busy, 1).first().map(|reserved| reserved.port), Some(busy));
    }
}
