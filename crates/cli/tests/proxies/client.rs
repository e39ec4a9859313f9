//! A client that sends just what it is told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::stub;

/// A connection to the proxy, opened anew when it was closed.
pub(crate) struct Client {
    port: u16,
    connection: Option<BufReader<TcpStream>>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The instance that answered.
    pub(crate) fn instance(&self) -> &str {
        self.header("x-stub-instance")
    }

    /// The error code, if the body says one.
    pub(crate) fn errcode(&self) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["errcode"].as_str().unwrap_or_default().to_owned()
    }
}

impl Client {
    pub(crate) fn new(port: u16) -> Self {
        Self { port, connection: None }
    }

    /// Sends a request, with a small body where the method has one.
    pub(crate) fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        let body: &[u8] = if matches!(method, "POST" | "PUT" | "PATCH") { b"{}" } else { b"" };
        self.send_body(method, target, headers, body)
    }

    /// Sends a request with a body of known length.
    pub(crate) fn send_body(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let mut message = format!("{method} {target} HTTP/1.1\r\nHost: matrix.example.org\r\n");
        for (name, value) in headers {
            let _ = write!(message, "{name}: {value}\r\n");
        }
        if !body.is_empty() {
            let _ = write!(message, "Content-Length: {}\r\n", body.len());
        }
        message.push_str("\r\n");
        let mut message = message.into_bytes();
        message.extend_from_slice(body);
        self.exchange(method == "HEAD", &message)
            .or_else(|| self.exchange(method == "HEAD", &message))
            .unwrap_or_else(|| panic!("{method} {target}: no answer"))
    }

    /// Sends bytes and reads a response; nothing if the connection turns out to be closed.
    pub(crate) fn exchange(&mut self, is_head: bool, message: &[u8]) -> Option<Response> {
        let mut reader = if let Some(reader) = self.connection.take() {
            reader
        } else {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a stream");
            let _ = stream.set_nodelay(true);
            BufReader::new(stream)
        };
        // A proxy that refuses a body need not read it to the end; its answer is there all the same.
        let _ = reader.get_mut().write_all(message);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let headers = stub::headers(&mut reader)?;
        let body = if is_head || status == 204 { Vec::new() } else { stub::body(&mut reader, &headers)? };
        if headers.get("connection").is_none_or(|value| value != "close") {
            self.connection = Some(reader);
        }
        Some(Response { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
    }
}
