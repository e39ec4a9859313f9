//! Sockets as a proxy uses them: many at once, large and small pieces, ends and breaks.

use std::future::poll_fn;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::timeout;
use uring::{Ring, Socket};

/// Runs a test with a ring, or says why it cannot.
fn with_ring(test: impl AsyncFnOnce(Ring)) {
    let ring = match Ring::new() {
        Ok(ring) => ring,
        Err(error) => {
            println!("skipped: this kernel gives no io_uring to this process: {error}");
            return;
        }
    };
    let runtime = uring::runtime(&ring).expect("a runtime");
    runtime.block_on(async { timeout(Duration::from_secs(20), test(ring)).await.expect("in time") });
}

fn pair(ring: &Ring) -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    (ring.socket(ours.into()), theirs)
}

async fn receive(socket: &mut Socket) -> std::io::Result<Bytes> {
    poll_fn(|cx| socket.poll_receive(cx)).await
}

async fn send(socket: &mut Socket, data: impl Into<Bytes>) -> std::io::Result<()> {
    socket.send(data.into());
    poll_fn(|cx| socket.poll_sent(cx)).await
}

#[test]
fn what_is_sent_arrives_and_ends() {
    with_ring(async |ring| {
        let (mut ours, mut theirs) = pair(&ring);
        theirs.write_all(b"hello").expect("written");
        assert_eq!(receive(&mut ours).await.expect("data"), "hello");
        assert!(!ours.has_received());
        send(&mut ours, "world").await.expect("sent");
        assert_eq!(ours.written(), 5);
        let mut read = [0; 5];
        theirs.read_exact(&mut read).expect("read");
        assert_eq!(&read, b"world");
        ours.listen();
        tokio::task::yield_now().await;
        drop(theirs);
        assert!(receive(&mut ours).await.expect("the end").is_empty());
        let broken = send(&mut ours, "nobody hears").await.expect_err("nobody is there");
        assert_eq!((broken.kind(), ours.written()), (ErrorKind::BrokenPipe, 5));
    });
}

#[test]
fn more_than_the_sockets_hold_is_sent_as_it_is_read() {
    with_ring(async |ring| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let theirs = TcpStream::connect(listener.local_addr().expect("its address")).expect("connected");
        let mut ours = ring.socket(listener.accept().expect("accepted").0.into());
        let whole: Vec<u8> = (0..20_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let expected = whole.clone();
        let mut theirs = theirs;
        // Echoes all of it back, slowly at first.
        let echo = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut read = vec![0; 20_000_000];
            theirs.read_exact(&mut read).expect("read");
            theirs.write_all(&read).expect("written");
        });
        send(&mut ours, whole).await.expect("sent");
        let mut back = BytesMut::new();
        while back.len() < expected.len() {
            back.extend_from_slice(&receive(&mut ours).await.expect("data"));
        }
        assert!(back == expected, "it came back otherwise");
        echo.join().expect("it ends");
    });
}

#[test]
fn many_sockets_share_few_buffers() {
    with_ring(async |ring| {
        let mut pairs: Vec<_> = (0..500).map(|_| pair(&ring)).collect();
        for _ in 0..3 {
            for (number, (_, theirs)) in pairs.iter_mut().enumerate() {
                theirs.write_all(&vec![u8::try_from(number % 251).expect("small"); 1000]).expect("written");
            }
            for (ours, _) in &mut pairs {
                ours.listen();
            }
            for (number, (ours, _)) in pairs.iter_mut().enumerate() {
                let data = receive(ours).await.expect("data");
                assert!(data.len() == 1000 && data.iter().all(|byte| usize::from(*byte) == number % 251));
            }
        }
    });
}

#[test]
fn sockets_may_be_dropped_whatever_they_do() {
    with_ring(async |ring| {
        for _ in 0..100 {
            let (mut ours, theirs) = pair(&ring);
            ours.listen();
            ours.send(Bytes::from(vec![7; 1 << 20]));
            let (mut other, mut heard) = pair(&ring);
            other.listen();
            assert!(timeout(Duration::ZERO, receive(&mut other)).await.is_err());
            drop(ours);
            // Its number may be that of a new socket by now, which must hear nothing of the old one's.
            let (mut new, mut speaker) = pair(&ring);
            speaker.write_all(b"new").expect("written");
            assert_eq!(receive(&mut new).await.expect("data"), "new");
            heard.write_all(b"still").expect("written");
            assert_eq!(
                receive(&mut other).await.expect("data"),
                "still",
                "a caller that gave up lost nothing"
            );
            drop(theirs);
        }
        // What was cancelled ends.
        for _ in 0..100 {
            if ring.under_way() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} operations never ended", ring.under_way());
    });
}

#[test]
fn another_thread_wakes_a_sleeping_ring() {
    with_ring(async |ring| {
        let (mut ours, mut theirs) = pair(&ring);
        let writer = std::thread::spawn(move || {
            for _ in 0..20 {
                std::thread::sleep(Duration::from_millis(5));
                theirs.write_all(b"x").expect("written");
            }
        });
        // Several may come at once where this thread was kept from looking.
        let mut came = 0;
        loop {
            let data = receive(&mut ours).await.expect("data or the end");
            if data.is_empty() {
                break;
            }
            came += data.len();
        }
        assert_eq!(came, 20);
        writer.join().expect("it ends");
    });
}
