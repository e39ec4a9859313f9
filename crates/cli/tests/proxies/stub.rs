//! Stand-ins for Synapse's processes: each says who it is and what it saw.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use model::Address;

/// A request that a stub saw.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: usize,
}

/// What all stubs saw.
pub(crate) type Log = Arc<Mutex<Vec<Seen>>>;

/// The header with which a request asks to be read and then dropped.
pub(crate) const DROP: &str = "x-test-drop";

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    fn shut_down(&self) {
        // The other side may have closed already.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buf),
            Self::Tcp(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One instance.
pub(crate) struct Stub {
    address: Address,
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<Stream>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Stub {
    /// Listens.
    pub(crate) fn start(name: &str, address: &Address, log: &Log) -> Self {
        let listener = match address {
            Address::Unix { path } => {
                let _ = std::fs::remove_file(path);
                let listener = UnixListener::bind(path).expect("a socket");
                listener.set_nonblocking(true).expect("a socket");
                Listener::Unix(listener)
            }
            Address::Tcp { host, port } => {
                let listener = TcpListener::bind((host.as_str(), *port)).expect("a port");
                listener.set_nonblocking(true).expect("a port");
                Listener::Tcp(listener)
            }
        };
        let stop = Arc::new(AtomicBool::new(false));
        let open = Arc::new(Mutex::new(Vec::new()));
        let accepting = thread::spawn({
            let (stop, open, log, name) = (stop.clone(), open.clone(), log.clone(), name.to_owned());
            move || {
                while !stop.load(Ordering::Acquire) {
                    let accepted = match &listener {
                        Listener::Unix(listener) => listener.accept().map(|(stream, _)| {
                            stream.set_nonblocking(false).expect("a stream");
                            Stream::Unix(stream)
                        }),
                        Listener::Tcp(listener) => listener.accept().map(|(stream, _)| {
                            stream.set_nonblocking(false).expect("a stream");
                            let _ = stream.set_nodelay(true);
                            Stream::Tcp(stream)
                        }),
                    };
                    let Ok(stream) = accepted else {
                        thread::sleep(Duration::from_millis(2));
                        continue;
                    };
                    let copy = stream.try_clone().expect("a file descriptor");
                    open.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
                    let (log, name) = (log.clone(), name.clone());
                    thread::spawn(move || serve(&name, stream, &log));
                }
            }
        });
        Self { address: address.clone(), stop, open, accepting: Some(accepting) }
    }
}

/// Ends at once, as a process does that is killed.
impl Drop for Stub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            stream.shut_down();
        }
        if let Address::Unix { path } = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn serve(name: &str, stream: Stream, log: &Log) {
    let mut out = stream.try_clone().expect("a file descriptor");
    let mut reader = BufReader::new(stream);
    while let Some(seen) = read(&mut reader) {
        let dropped = seen.headers.contains_key(DROP);
        let health = seen.target == "/health";
        let body = format!("{{\"instance\":\"{name}\"}}");
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Stub-Instance: {name}\r\nX-Stub-Target: {}\r\n\
             Content-Length: {}\r\n\r\n",
            seen.target,
            body.len()
        );
        let is_head = seen.method == "HEAD";
        if !health {
            log.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        }
        let body = if is_head { "" } else { &body };
        if dropped || out.write_all(format!("{head}{body}").as_bytes()).is_err() {
            break;
        }
    }
    out.shut_down();
}

fn read(reader: &mut BufReader<Stream>) -> Option<Seen> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = headers(reader)?;
    let body = body(reader, &headers)?.len();
    Some(Seen { method, target, headers, body })
}

/// The headers of a message, names in lower case.
pub(crate) fn headers(reader: &mut impl io::BufRead) -> Option<BTreeMap<String, String>> {
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            return Some(headers);
        }
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

/// The body of a message whose head says how long it is.
pub(crate) fn body(reader: &mut impl io::BufRead, headers: &BTreeMap<String, String>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = headers.get("content-length") {
        body.resize(length.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    } else if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            let start = body.len();
            body.resize(start + length, 0);
            reader.read_exact(&mut body[start..]).ok()?;
            reader.read_line(&mut line).ok()?;
            if length == 0 {
                break;
            }
        }
    }
    Some(body)
}
