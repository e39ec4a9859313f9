//! Whose a connection is, by the PROXY protocol and over unix sockets.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::ProxyProtocol;
use router::{Settings, Snapshot};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};

use crate::encrypted::{NAME, certify, encrypt, secure};
use crate::lab::{Lab, quick, read_all, until};

const PATH: &str = "/_matrix/client/versions";
const CLIENT: &str = "198.51.100.7";

/// Settings of a router behind a load balancer in one of these networks, or anywhere.
fn proxied(from: &[&str]) -> Settings {
    let from = from.iter().map(|network| (*network).to_owned().try_into().unwrap()).collect();
    Settings { proxy_protocol: Some(ProxyProtocol { from }), head_timeout: Duration::from_secs(5), ..quick() }
}

/// A header of version 2: of a client, with something that nobody knows behind, or of the load balancer itself.
fn v2(source: Option<IpAddr>) -> Vec<u8> {
    let (command, family, addresses) = match source {
        None => (0x20, 0, Vec::new()),
        Some(IpAddr::V4(ip)) => (0x21, 0x11, [ip.octets().as_slice(), &[10, 0, 0, 1, 1, 2, 1, 187]].concat()),
        Some(IpAddr::V6(ip)) => (0x21, 0x21, [ip.octets().as_slice(), &[0; 20]].concat()),
    };
    let body = [addresses.as_slice(), &[0xe0, 0, 2, 7, 7]].concat();
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family], &length, &body].concat()
}

/// What the process behind saw of a request over a connection that began so; two are asked, as one may follow another.
async fn seen(mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, first: &[u8]) -> Value {
    stream.write_all(first).await.unwrap();
    stream.flush().await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut seen = Vec::new();
    for _ in 0..2 {
        sender.ready().await.unwrap();
        seen.push(ask(sender.send_request(request(PATH))).await);
    }
    assert_eq!(seen[0]["x-forwarded-for"], seen[1]["x-forwarded-for"]);
    seen.remove(0)
}

fn request(uri: &str) -> Request<Full<Bytes>> {
    Request::get(uri).header("host", NAME).body(Full::default()).unwrap()
}

/// The headers that the process behind saw.
async fn ask(response: impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>>) -> Value {
    let body = response.await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let mut echoed: Value = serde_json::from_slice(&body).unwrap();
    echoed["headers"].take()
}

fn refused(lab: &Lab, reason: &str) -> f64 {
    lab.metric(&format!("matrix_stack_router_proxy_protocol_refused_total{{reason=\"{reason}\"}}"))
}

#[tokio::test]
async fn a_load_balancer_says_whose_a_connection_is() {
    let lab = Lab::with(&[], proxied(&["127.0.0.0/8"])).await;
    let connect = || async { TcpStream::connect(lab.address).await.unwrap() };
    let six = "2001:db8::7";
    for (first, client) in [
        (format!("PROXY TCP4 {CLIENT} 10.0.0.1 1234 443\r\n").into_bytes(), CLIENT),
        (format!("PROXY TCP6 {six} ::1 1234 443\r\n").into_bytes(), six),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(CLIENT.parse().ok()), CLIENT),
        (v2(six.parse().ok()), six),
        (v2(None), "127.0.0.1"),
    ] {
        assert_eq!(seen(connect().await, &first).await["x-forwarded-for"], client);
    }
    let lines = lab.log(12).await;
    for client in [CLIENT, six, "127.0.0.1"] {
        assert_eq!(lines.iter().filter(|line| line["client"] == client).count(), 4, "{client}");
    }

    // In pieces, with the request right behind it.
    let mut stream = connect().await;
    stream.set_nodelay(true).unwrap();
    let whole =
        [v2(CLIENT.parse().ok()), format!("GET {PATH} HTTP/1.0\r\nhost: a\r\n\r\n").into_bytes()].concat();
    for piece in whole.chunks(9) {
        stream.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let answer = read_all(&mut stream).await;
    assert!(answer.contains(&format!(r#""x-forwarded-for":"{CLIENT}""#)), "{answer}");

    // Who says nothing of the kind gets nothing.
    let asked = lab.seen("main");
    for first in
        ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "PROXY TCP4 x y 1 2\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n"]
    {
        let before = refused(&lab, "malformed");
        let answer = lab.raw(first.as_bytes()).await;
        assert!(!answer.contains("HTTP/"), "{answer}");
        until("it is counted", || refused(&lab, "malformed") > before).await;
    }
    // A look at the port is no offence.
    drop(connect().await);
    until("it is gone", || lab.router.stats().connections == 0).await;
    assert_eq!((lab.seen("main"), refused(&lab, "malformed")), (asked, 2.0));
}

#[tokio::test]
async fn only_load_balancers_that_are_named_may_say_so_and_in_time() {
    let lab = Lab::with(&[], proxied(&["10.0.0.0/8", "2001:db8::1"])).await;
    let first = format!("PROXY TCP4 {CLIENT} 10.0.0.1 1 2\r\nGET {PATH} HTTP/1.0\r\nhost: a\r\n\r\n");
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    // It may be closed before that.
    let _ = stream.write_all(first.as_bytes()).await;
    let answer = read_all(&mut stream).await;
    assert!(!answer.contains("HTTP/"), "{answer}");
    until("it is counted", || refused(&lab, "untrusted") >= 1.0).await;
    assert_eq!(lab.seen("main"), 0);

    let hasty = Settings { head_timeout: Duration::from_millis(50), ..proxied(&[]) };
    lab.router.reload(Snapshot::new(&lab.topology, hasty).unwrap());
    let answer = lab.raw(b"PROXY TCP4 198.51.").await;
    assert!(!answer.contains("HTTP/"), "{answer}");
    until("it is counted", || refused(&lab, "slow") >= 1.0).await;
}

#[tokio::test]
async fn all_of_it_goes_over_unix_sockets() {
    let lab = Lab::new(&[]).await;
    let path = lab.dir.path().join("front.sock");
    tokio::spawn(lab.router.serve(UnixListener::bind(&path).unwrap()));
    let connect = || async { UnixStream::connect(&path).await.unwrap() };
    let reload = |settings| lab.router.reload(Snapshot::new(&lab.topology, settings).unwrap());

    // Nobody has an address.
    assert!(seen(connect().await, b"").await.get("x-forwarded-for").is_none());
    assert_eq!(lab.log(2).await[0]["client"], "unix");
    // But somebody may be believed to know one.
    reload(Settings { trust_forwarded_for: true, ..quick() });
    let told = format!("GET {PATH} HTTP/1.0\r\nhost: a\r\nx-forwarded-for: 203.0.113.66, {CLIENT}\r\n\r\n");
    let mut stream = connect().await;
    stream.write_all(told.as_bytes()).await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.contains(&format!(r#""x-forwarded-for":"{CLIENT}""#)), "{answer}");
    assert_eq!(lab.log(3).await[2]["client"], CLIENT);
    // Networks are for addresses.
    reload(proxied(&["10.0.0.0/8"]));
    assert_eq!(seen(connect().await, &v2(CLIENT.parse().ok())).await["x-forwarded-for"], CLIENT);
    assert!(seen(connect().await, &v2(None)).await.get("x-forwarded-for").is_none());

    // TLS and HTTP/2, with the header of the PROXY protocol before it and without.
    let certificate = certify(lab.dir.path());
    for (settings, first, client) in
        [(quick(), Vec::new(), None), (proxied(&[]), v2(CLIENT.parse().ok()), Some(CLIENT))]
    {
        encrypt(&lab, settings);
        let open = async |alpn: &[u8]| {
            let mut stream = connect().await;
            stream.write_all(&first).await.unwrap();
            secure(stream, certificate.clone(), alpn).await.unwrap()
        };
        let over_1 = seen(open(b"http/1.1").await, b"").await;
        let io = TokioIo::new(open(b"h2").await);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let over_2 = ask(sender.send_request(request(&format!("https://{NAME}{PATH}")))).await;
        for seen in [over_1, over_2] {
            assert_eq!(seen.get("x-forwarded-for").and_then(Value::as_str), client);
            assert_eq!(seen["x-forwarded-proto"], "https");
        }
    }
}

#[tokio::test]
async fn a_load_balancer_speaks_before_tls() {
    let lab = Lab::new(&[]).await;
    let certificate = certify(lab.dir.path());
    encrypt(&lab, proxied(&[]));
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    stream.write_all(&v2(CLIENT.parse().ok())).await.unwrap();
    let stream = secure(stream, certificate.clone(), b"http/1.1").await.unwrap();
    let seen = seen(stream, b"").await;
    assert_eq!((&seen["x-forwarded-for"], &seen["x-forwarded-proto"]), (&CLIENT.into(), &"https".into()));
    let stream = TcpStream::connect(lab.address).await.unwrap();
    assert!(secure(stream, certificate, b"http/1.1").await.is_err());
}
