//! The way of agents to the server: a TCP proxy that can be cut, which closes what is open and everything that comes.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// A running proxy; dropping it ends it.
pub(crate) struct Proxy {
    /// Where agents connect.
    pub(crate) address: SocketAddr,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy on a free port that passes everything on to `server`.
    pub(crate) async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("the proxy cannot listen")?;
        let address = listener.local_addr()?;
        let cut = watch::Sender::new(false);
        let task = tokio::spawn(accept(listener, server, cut.subscribe()));
        Ok(Self { address, cut, task })
    }

    /// Lets nothing through until [`Proxy::mend`].
    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Lets everything through.
    pub(crate) fn mend(&self) {
        self.cut.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut.send_replace(true);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, cut: watch::Receiver<bool>) {
    loop {
        // Without a descriptor to spare the caller tries again, like everyone whose connection is closed.
        let Ok((agent, _)) = listener.accept().await else { continue };
        if !*cut.borrow() {
            tokio::spawn(pass(agent, server, cut.clone()));
        }
    }
}

async fn pass(mut agent: TcpStream, server: SocketAddr, mut cut: watch::Receiver<bool>) {
    let both = async {
        let mut server = TcpStream::connect(server).await?;
        server.set_nodelay(true)?;
        agent.set_nodelay(true)?;
        copy_bidirectional(&mut agent, &mut server).await
    };
    tokio::select! {
        // Whatever ended it, the agent sees a closed connection.
        _ = both => {}
        _ = cut.wait_for(|cut| *cut) => {}
    }
}
