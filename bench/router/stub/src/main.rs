//! Servers that answer at once: `router-bench-stub PORT…` listens on each of these ports of 127.0.0.1.
//!
//! A request is answered with as many bytes of body as its header `x-stub-bytes` says, and headers as Synapse's; with
//! `x-stub-hold` it is never answered, as a long poll would be for a while.

use std::io;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};

/// The largest body that can be asked for.
const MAX_BODY: usize = 1 << 20;
/// The largest request.
const MAX_REQUEST: usize = 64 << 10;

fn main() -> io::Result<()> {
    let ports: Vec<u16> = std::env::args().skip(1).filter_map(|port| port.parse().ok()).collect();
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async {
        for port in ports {
            let listener = TcpListener::bind(("127.0.0.1", port)).await?;
            tokio::task::spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::task::spawn_local(serve(stream));
                }
            });
        }
        println!("ready");
        std::future::pending().await
    })
}

/// What a request asks of the stub.
struct Asked {
    /// Its length, with its body.
    length: usize,
    answer: usize,
    hold: bool,
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    let mut answer = Vec::new();
    loop {
        while let Some(asked) = read(&buffer) {
            buffer.drain(..asked.length);
            if asked.hold {
                // Nothing is kept while it is held but the connection.
                buffer = Vec::new();
                continue;
            }
            answer.clear();
            write(asked.answer, &mut answer);
            stream.write_all(&answer).await?;
        }
        stream.readable().await?;
        if buffer.capacity() - buffer.len() < 4096 {
            buffer.reserve(4096);
        }
        match stream.try_read_buf(&mut buffer) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ if buffer.len() > MAX_REQUEST => return Ok(()),
            _ => {}
        }
    }
}

fn read(buffer: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = request.parse(buffer) else { return None };
    let header = |name: &str| {
        let header = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()?.parse::<usize>().ok()
    };
    let length = head + header("content-length").unwrap_or(0);
    (buffer.len() >= length).then(|| Asked {
        length,
        answer: header("x-stub-bytes").unwrap_or(2).min(MAX_BODY),
        hold: header("x-stub-hold").is_some(),
    })
}

fn write(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"HTTP/1.1 200 OK\r\nServer: Synapse/1.163.2\r\nDate: Wed, 25 Nov 2026 09:00:00 GMT\r\n\
          Content-Type: application/json\r\nCache-Control: no-cache, no-store, must-revalidate\r\n\
          Access-Control-Allow-Origin: *\r\n\
          Access-Control-Allow-Methods: GET, HEAD, POST, PUT, DELETE, OPTIONS\r\n\
          Access-Control-Allow-Headers: X-Requested-With, Content-Type, Authorization, Date\r\n\
          Access-Control-Expose-Headers: Synapse-Trace-Id, Server\r\nContent-Length: ",
    );
    out.extend_from_slice(length.to_string().as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
    out.resize(out.len() + length, b'x');
}
