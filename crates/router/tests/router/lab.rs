//! A router with upstreams that do as they are told, and a client that looks closely.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use model::{Address, Preset, Role, ServerName, Stack, Topology, WorkerGroup};
use router::{AccessLog, Options, Router, Settings, Snapshot};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::AbortHandle;

/// Groups of workers: name, roles, count.
pub(crate) type Workers<'a> = &'a [(&'a str, &'a [Role], u16)];

/// Short times, so that what must run into one does so soon.
pub(crate) fn quick() -> Settings {
    Settings {
        health_interval: Duration::from_millis(200),
        health_interval_down: Duration::from_millis(10),
        health_timeout: Duration::from_secs(1),
        ..Settings::default()
    }
}

pub(crate) struct Lab {
    pub dir: tempfile::TempDir,
    pub topology: Topology,
    pub router: Router,
    pub address: SocketAddr,
    upstreams: Mutex<HashMap<String, Upstream>>,
}

pub(crate) fn topology(stack: &Stack, dir: &std::path::Path) -> Topology {
    model::plan(stack, dir, Preset::Custom).unwrap()
}

pub(crate) fn stack(workers: Workers<'_>) -> Stack {
    let mut stack = Stack::new(ServerName::try_from("test.example".to_owned()).unwrap());
    stack.preset = Some(Preset::Custom);
    stack.database.max_connections = Some(1000);
    for (name, roles, count) in workers {
        let group =
            WorkerGroup { roles: Some(roles.to_vec()), count: Some(*count), ..WorkerGroup::default() };
        stack.workers.insert((*name).to_owned(), group);
    }
    stack
}

impl Lab {
    /// A router in front of main and these workers, each of which echoes.
    pub(crate) async fn new(workers: Workers<'_>) -> Self {
        Self::with(workers, quick()).await
    }

    pub(crate) async fn with(workers: Workers<'_>, settings: Settings) -> Self {
        let lab = Self::without_upstreams(stack(workers), settings).await;
        for instance in lab.topology.instances() {
            lab.run(&instance.name, Behaviour::Echo);
        }
        lab
    }

    pub(crate) async fn without_upstreams(stack: Stack, settings: Settings) -> Self {
        Self::with_dns(stack, settings, None).await
    }

    /// A router that asks this server for names.
    pub(crate) async fn with_dns(stack: Stack, settings: Settings, dns_server: Option<SocketAddr>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let topology = topology(&stack, dir.path());
        let snapshot = Snapshot::new(&topology, settings).unwrap();
        let access_log = AccessLog::File(dir.path().join("access.log"));
        let router = Router::start(
            snapshot,
            Options { access_log, transport: crate::TRANSPORT, dns_server, ..Options::default() },
        )
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(router.serve(listener));
        Self { dir, topology, router, address, upstreams: Mutex::default() }
    }

    /// Runs an instance, in place of what ran there.
    pub(crate) fn run(&self, name: &str, behaviour: Behaviour) {
        self.stop(name);
        let listener = UnixListener::bind(self.socket(name)).unwrap();
        let upstream = Upstream::start(name, behaviour, listener);
        self.upstreams.lock().unwrap().insert(name.to_owned(), upstream);
    }

    /// Runs an instance, or something that is to become one, at this address.
    pub(crate) async fn run_at(&self, name: &str, address: SocketAddr, behaviour: Behaviour) {
        let listener = TcpListener::bind(address).await.unwrap();
        let upstream = Upstream::start(name, behaviour, listener);
        self.upstreams.lock().unwrap().insert(name.to_owned(), upstream);
    }

    /// Ends what [`Lab::run_at`] began.
    pub(crate) fn stop_at(&self, name: &str) {
        assert!(self.upstreams.lock().unwrap().remove(name).is_some(), "{name} runs");
    }

    fn socket(&self, name: &str) -> PathBuf {
        let instance = self.topology.instance(name).map(|instance| &instance.client);
        let companion = || self.topology.companion(name).map(|companion| &companion.address);
        match instance.or_else(companion).unwrap().clone().unwrap() {
            Address::Unix { path } => path,
            Address::Tcp { .. } => unreachable!("the stack uses unix sockets"),
        }
    }

    /// Ends an instance at once, as SIGKILL would: its connections break and nobody listens.
    pub(crate) fn stop(&self, name: &str) {
        drop(self.upstreams.lock().unwrap().remove(name));
        let _ = std::fs::remove_file(self.socket(name));
    }

    /// How many requests an instance has seen, health checks aside.
    pub(crate) fn seen(&self, name: &str) -> usize {
        self.upstreams.lock().unwrap()[name].seen.load(Ordering::SeqCst)
    }

    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        self.connect().await.send(request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(get(path)).await
    }

    /// What a socket answers to these bytes, until it closes or is silent for a while.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        read_all(&mut stream).await
    }

    /// The lines of the access log, once there are this many.
    pub(crate) async fn log(&self, count: usize) -> Vec<Value> {
        let path = self.dir.path().join("access.log");
        let mut lines = Vec::new();
        until("the access log is written", || {
            let text = std::fs::read_to_string(&path).unwrap();
            lines = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            lines.len() >= count
        })
        .await;
        lines
    }

    /// The value of a metric, by name and labels as they stand in the text; 0 if it is not there.
    pub(crate) fn metric(&self, start: &str) -> f64 {
        let text = self.router.metrics();
        let values = text.lines().filter(|line| line.starts_with(start)).filter_map(|l| l.rsplit(' ').next());
        values.map(|value| value.parse::<f64>().unwrap()).sum()
    }

    pub(crate) fn state(&self, name: &str) -> router::InstanceState {
        self.router.stats().instances.iter().find(|instance| instance.name == name).unwrap().state
    }
}

pub(crate) async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut out = Vec::new();
    let mut buf = [0; 4096];
    while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut buf)).await {
        if n == 0 {
            return String::from_utf8_lossy(&out).into_owned() + "<closed>";
        }
        out.extend_from_slice(&buf[..n]);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Waits until something holds, which must not take long.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it never came true that {what}");
}

pub(crate) fn request(method: &Method, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path).header("host", "matrix.test.example")
}

pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    request(&Method::GET, path).body(Full::default()).unwrap()
}

pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    request(&Method::POST, path).body(Full::new(body.into())).unwrap()
}

pub(crate) fn with_token(path: &str, token: &str) -> Request<Full<Bytes>> {
    request(&Method::GET, path)
        .header("authorization", format!("Bearer {token}"))
        .body(Full::default())
        .unwrap()
}

/// A body that comes in pieces, without a length.
#[derive(Debug)]
pub(crate) struct Pieces(pub VecDeque<Bytes>);

impl Pieces {
    /// This many pieces of this size, with changing content.
    pub(crate) fn new(count: usize, size: usize) -> Self {
        Self((0..count).map(|n| Bytes::from(vec![u8::try_from(n % 251).unwrap(); size])).collect())
    }

    pub(crate) fn concat(&self) -> Vec<u8> {
        self.0.iter().flatten().copied().collect()
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }
}

pub(crate) struct Client<B = Full<Bytes>> {
    sender: SendRequest<B>,
}

impl<B> Client<B>
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    pub(crate) async fn try_send(&mut self, request: Request<B>) -> hyper::Result<Reply> {
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        // A body that breaks off is part of what is to be seen.
        let (body, whole) = read_body(body).await;
        Ok(Reply { status: head.status, headers: head.headers, body, whole })
    }

    pub(crate) async fn send(&mut self, request: Request<B>) -> Reply {
        self.try_send(request).await.unwrap()
    }
}

async fn read_body(mut body: Incoming) -> (Bytes, bool) {
    let mut out = Vec::new();
    loop {
        match body.frame().await {
            None => return (out.into(), true),
            Some(Err(_)) => return (out.into(), false),
            Some(Ok(frame)) => out.extend_from_slice(frame.data_ref().unwrap()),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Whether the body came to its end.
    pub whole: bool,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The name of the instance that echoed.
    pub(crate) fn instance(&self) -> String {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        self.json()["instance"].as_str().unwrap().to_owned()
    }

    pub(crate) fn error(&self) -> (u16, String) {
        (
            self.status.as_u16(),
            self.json()["errcode"].as_str().unwrap_or_else(|| panic!("no error: {self:?}")).to_owned(),
        )
    }
}

type Answering = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

/// What an upstream does with requests. `GET /health` always succeeds.
#[derive(Clone)]
pub(crate) enum Behaviour {
    /// Answers with what it got, as JSON.
    Echo,
    /// Answers so.
    Answer(Arc<dyn Fn(Request<Incoming>) -> Answering + Send + Sync>),
    /// Does this with the connection once it has read the head of a request.
    Raw(Raw),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Raw {
    /// Closes the connection.
    Reset,
    /// Closes its half of the connection without having said anything.
    HalfClose,
    /// Sends half a head and closes.
    HalfHead,
    /// Sends something that is not HTTP.
    Garbage,
    /// Sends a head that does not end.
    LongHead,
    /// Wants to speak another protocol.
    Switching,
    /// Promises more than it sends.
    Truncated,
    /// Sends a chunk, and no more.
    TruncatedChunks,
    /// Sends a chunk, and then something that is none.
    BadChunks,
    /// Says nothing, ever, and reads nothing.
    Hang,
    /// Refuses before it has read the body, and reads nothing.
    Early,
    /// Answers, and closes without having said so.
    Fickle,
}

/// Answers with a function.
pub(crate) fn answer<F>(with: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Behaviour
where
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    Behaviour::Answer(Arc::new(move |request| Box::pin(with(request))))
}

struct Upstream {
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
    seen: Arc<AtomicUsize>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        for task in self.tasks.lock().unwrap().iter() {
            task.abort();
        }
    }
}

/// A listener of either kind.
trait Accept: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> std::io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> std::io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

impl Upstream {
    fn start(name: &str, behaviour: Behaviour, listener: impl Accept) -> Self {
        let (tasks, seen) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let name: Arc<str> = name.into();
        let (connections, count) = (tasks.clone(), seen.clone());
        let accepting = tokio::spawn(async move {
            loop {
                let stream = listener.accept().await.unwrap();
                let (name, count, behaviour) = (name.clone(), count.clone(), behaviour.clone());
                let task = tokio::spawn(async move {
                    match behaviour {
                        Behaviour::Raw(raw) => be_raw(stream, raw, &count).await,
                        behaviour => be_polite(stream, name, behaviour, count).await,
                    }
                });
                connections.lock().unwrap().push(task.abort_handle());
            }
        });
        tasks.lock().unwrap().push(accepting.abort_handle());
        Self { tasks, seen }
    }
}

async fn be_polite<S>(stream: S, name: Arc<str>, behaviour: Behaviour, seen: Arc<AtomicUsize>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let (name, behaviour, seen) = (name.clone(), behaviour.clone(), seen.clone());
        async move {
            if request.uri().path() == "/health" {
                return Ok::<_, hyper::Error>(Response::new(Full::from("OK")));
            }
            seen.fetch_add(1, Ordering::SeqCst);
            match behaviour {
                Behaviour::Answer(with) => Ok(with(request).await),
                _ => echo(&name, request).await,
            }
        }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

pub(crate) async fn echo(name: &str, request: Request<Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let headers: HashMap<_, _> = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    let json = json!({
        "instance": name,
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "headers": headers,
        "length": body.len(),
        "sum": checksum(&body),
    });
    Ok(Response::new(Full::from(json.to_string())))
}

pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

async fn be_raw<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, raw: Raw, seen: &AtomicUsize) {
    let mut head = Vec::new();
    loop {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        if head.starts_with(b"GET /health ") {
            head.clear();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK").await;
            continue;
        }
        seen.fetch_add(1, Ordering::SeqCst);
        let long = b"x: y\r\n".repeat(20_000);
        let bytes: &[u8] = match raw {
            Raw::Reset | Raw::HalfClose => b"",
            Raw::HalfHead => b"HTTP/1.1 200 OK\r\ncontent-le",
            Raw::Garbage => b"This is no HTTP\r\n\r\n",
            Raw::LongHead => &[b"HTTP/1.1 200 OK\r\n", &long[..]].concat(),
            Raw::Switching => b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
            Raw::Truncated => b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nten bytes.",
            Raw::TruncatedChunks => {
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nten bytes.\r\n"
            }
            Raw::BadChunks => {
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nten bytes.\r\nnone\r\n"
            }
            Raw::Early => b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}",
            Raw::Fickle => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
            Raw::Hang => return std::future::pending().await,
        };
        let _ = stream.write_all(bytes).await;
        if matches!(raw, Raw::HalfClose) {
            let _ = stream.shutdown().await;
            return std::future::pending().await;
        }
        return;
    }
}
