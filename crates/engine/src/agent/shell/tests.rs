use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    door::{Asked, Door, Guest},
    proof::{Frame, NONCE_BYTES, NodeKey, Request, sent},
};

const HOST: &str = "127.0.0.1";

fn key(digits: &str) -> NodeKey {
    NodeKey::read(&digits.repeat(32)).unwrap()
}

/// A door of node 1, kept, and what is asked through it.
async fn door() -> (u16, mpsc::Receiver<Asked>, tokio::task::JoinHandle<()>) {
    let door = Door::open(HOST, None).await.unwrap();
    let (port, (asks, asked)) = (door.port(), mpsc::channel(1));
    let kept = tokio::spawn(async move {
        door.keep((1, &key("5a")), &asks).await;
    });
    (port, asked, kept)
}

/// Calls, and gives the connection once everything is sent.
fn call(port: u16, key: &NodeKey, node: u32) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect((HOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut nonce = [0; NONCE_BYTES];
    stream.read_exact(&mut nonce)?;
    stream.write_all(&sent(key, &nonce, &Request { node, line: "orted".into() })?)?;
    Ok(stream)
}

async fn called(port: u16, digits: &'static str, node: u32) -> TcpStream {
    tokio::task::spawn_blocking(move || call(port, &key(digits), node)).await.unwrap().unwrap()
}

async fn heard(mut stream: TcpStream) -> Vec<(Frame, Vec<u8>)> {
    let frames = tokio::task::spawn_blocking(move || std::iter::from_fn(|| Frame::read(&mut stream).ok()).collect());
    frames.await.unwrap()
}

#[tokio::test]
async fn what_a_command_writes_and_how_it_ends_reaches_the_caller() {
    let (port, mut asked, kept) = door().await;
    let stream = called(port, "5a", 1).await;
    let Asked { line, answer } = asked.recv().await.unwrap();
    assert_eq!(line, "orted");
    let ((output, output_in), (errors, errors_in)) = (rustix::pipe::pipe().unwrap(), rustix::pipe::pipe().unwrap());
    let ((tells, ended), (wanted, _leaves)) = (oneshot::channel(), oneshot::channel());
    assert!(answer.send(Ok(Guest { outputs: (output, errors), ended, wanted })).is_ok());
    rustix::io::write(&output_in, b"out").unwrap();
    drop(output_in);
    rustix::io::write(&errors_in, b"err").unwrap();
    tells.send(7).unwrap();
    // The other end of one pipe stays open, as a daemon may keep it.
    let frames = heard(stream).await;
    drop(errors_in);
    assert_eq!(frames.last().unwrap(), &(Frame::Ended, 7_i32.to_be_bytes().to_vec()));
    assert!(frames.contains(&(Frame::Output, b"out".to_vec())) && frames.contains(&(Frame::Error, b"err".to_vec())), "{frames:?}");
    kept.abort();
}

#[tokio::test]
async fn the_end_of_a_caller_is_noticed() {
    let (port, mut asked, kept) = door().await;
    let stream = called(port, "5a", 1).await;
    let Asked { answer, .. } = asked.recv().await.unwrap();
    let ((output, _output_in), (errors, _errors_in)) = (rustix::pipe::pipe().unwrap(), rustix::pipe::pipe().unwrap());
    let ((_tells, ended), (wanted, leaves)) = (oneshot::channel(), oneshot::channel());
    assert!(answer.send(Ok(Guest { outputs: (output, errors), ended, wanted })).is_ok());
    drop(stream);
    assert!(leaves.await.is_err(), "its other half is dropped");
    kept.abort();
}

#[tokio::test]
async fn nobody_gets_in_without_the_key_of_the_attempt_or_by_mistake() {
    let (port, mut asked, kept) = door().await;
    for (digits, node) in [("5b", 1), ("5a", 2)] {
        let stream = called(port, digits, node).await;
        assert!(heard(stream).await.is_empty(), "the connection is closed");
    }
    let mut too_long = tokio::task::spawn_blocking(move || TcpStream::connect((HOST, port)).unwrap()).await.unwrap();
    too_long.write_all(&u32::MAX.to_be_bytes()).unwrap();
    let mut rest = Vec::new();
    let read = tokio::task::spawn_blocking(move || too_long.read_to_end(&mut rest).map(|_| rest.len()));
    assert!(read.await.unwrap().is_ok_and(|length| length == NONCE_BYTES), "nothing but the nonce, and then the end");
    assert!(asked.try_recv().is_err(), "nothing was asked for");
    kept.abort();
}

#[tokio::test]
async fn what_cannot_be_started_is_said_to_the_caller() {
    let (port, mut asked, kept) = door().await;
    let stream = called(port, "5a", 1).await;
    let _ = asked.recv().await.unwrap().answer.send(Err("no room".into()));
    let frames = heard(stream).await;
    assert_eq!(frames, [(Frame::Error, b"no room\n".to_vec()), (Frame::Ended, 126_i32.to_be_bytes().to_vec())]);
    kept.abort();
}
