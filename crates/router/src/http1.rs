//! HTTP/1.1 on the wire (RFC 9112): heads and chunked bodies, read strictly. Pure: bytes in, meaning out.
//!
//! What two programs might read in two ways is refused, so that what the router decides on is what the instance sees.

use std::ops::Range;

use bytes::{Buf as _, Bytes};
use http::{Method, StatusCode};

use crate::failure::Failure;

/// The most header lines of a response.
const MAX_RESPONSE_HEADERS: usize = 128;

/// How a message frames its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// All that comes until the connection closes; responses only.
    Close,
}

/// A head cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadError {
    /// It breaks HTTP.
    Malformed,
    /// It is too long, or has too many header lines.
    TooLarge,
}

/// What a header is to the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Authorization,
    Connection,
    ContentLength,
    Expect,
    Forwarded,
    Host,
    TraceParent,
    TransferEncoding,
    UserAgent,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XRequestId,
    /// About one connection alone (RFC 9110, section 7.6.1), beside those above and those that `Connection` names.
    HopByHop,
    Other,
}

fn kind(name: &[u8]) -> Kind {
    let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
    match name.len() {
        2 if is("te") => Kind::HopByHop,
        4 if is("host") => Kind::Host,
        6 if is("expect") => Kind::Expect,
        7 if is("upgrade") || is("trailer") => Kind::HopByHop,
        9 if is("forwarded") => Kind::Forwarded,
        10 if is("connection") => Kind::Connection,
        10 if is("user-agent") => Kind::UserAgent,
        10 if is("keep-alive") => Kind::HopByHop,
        11 if is("traceparent") => Kind::TraceParent,
        12 if is("x-request-id") => Kind::XRequestId,
        13 if is("authorization") => Kind::Authorization,
        14 if is("content-length") => Kind::ContentLength,
        15 if is("x-forwarded-for") => Kind::XForwardedFor,
        16 if is("x-forwarded-host") => Kind::XForwardedHost,
        16 if is("proxy-connection") => Kind::HopByHop,
        17 if is("transfer-encoding") => Kind::TransferEncoding,
        17 if is("x-forwarded-proto") => Kind::XForwardedProto,
        18 if is("proxy-authenticate") => Kind::HopByHop,
        19 if is("proxy-authorization") => Kind::HopByHop,
        _ => Kind::Other,
    }
}

/// A header line, as ranges of the head.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub kind: Kind,
    name: Range<u32>,
    value: Range<u32>,
}

/// Where something stands in a head.
#[expect(clippy::cast_possible_truncation, reason = "heads are far shorter than 4 GiB")]
fn range_in(whole: &[u8], part: &[u8]) -> Range<u32> {
    debug_assert!(part.is_empty() || whole.as_ptr_range().contains(&part.as_ptr()), "no part of it");
    let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize) as u32;
    start..start + part.len() as u32
}

fn slice<'a>(whole: &'a [u8], range: &Range<u32>) -> &'a [u8] {
    whole.get(range.start as usize..range.end as usize).unwrap_or_default()
}

/// The head of a request.
#[derive(Debug)]
pub(crate) struct RequestHead {
    /// All of it, up to the empty line.
    bytes: Bytes,
    pub method: Method,
    /// Path and query, as they were sent.
    target: Range<u32>,
    /// The authority, of a target in absolute form.
    authority: Option<Range<u32>>,
    /// Whether the request is of HTTP/1.1, or of 1.0.
    pub is_11: bool,
    pub headers: Vec<Header>,
    /// How the body is framed, or why the request is refused: two programs might read it in two ways.
    pub framing: Result<Framing, Failure>,
    /// Whether the client wants the connection to stay open.
    pub keep_alive: bool,
    /// Whether the client waits for leave to send its body.
    pub expects: bool,
}

/// What bounds a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    pub bytes: usize,
    pub headers: usize,
}

/// The most header lines that can be allowed.
const MAX_HEADERS: usize = 256;

/// Whether any line ends without a carriage return, which other programs may take for no end.
fn has_bare_newline(bytes: &[u8]) -> bool {
    let mut before = 0;
    let mut bare = false;
    for byte in bytes {
        bare |= *byte == b'\n' && before != b'\r';
        before = *byte;
    }
    bare
}

impl RequestHead {
    /// Takes a request's head off the front of what has come. None: more has to come first.
    pub(crate) fn parse(bytes: &mut Bytes, limits: HeadLimits) -> Result<Option<Self>, HeadError> {
        let mut storage = [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS];
        let allowed = limits.headers.min(MAX_HEADERS);
        let mut request = httparse::Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(bytes, &mut storage[..allowed]) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() >= limits.bytes => return Err(HeadError::TooLarge),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
            Err(_) => return Err(HeadError::Malformed),
        };
        if length > limits.bytes {
            return Err(HeadError::TooLarge);
        }
        if has_bare_newline(&bytes[..length]) {
            return Err(HeadError::Malformed);
        }
        let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version)
        else {
            return Err(HeadError::Malformed);
        };
        // The target of CONNECT is an authority; the method is refused later, by its name.
        let (authority, target) = match split_target(target) {
            Some(split) => split,
            None if method == "CONNECT" => (None, target),
            None => return Err(HeadError::Malformed),
        };
        let mut head = Self {
            bytes: Bytes::new(),
            method: Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed)?,
            target: range_in(bytes, target.as_bytes()),
            authority: authority.map(|authority| range_in(bytes, authority.as_bytes())),
            is_11: version == 1,
            headers: Vec::with_capacity(request.headers.len()),
            framing: Ok(Framing::None),
            keep_alive: version == 1,
            expects: false,
        };
        let mut hosts = 0;
        let mut framing = Ok(Framings::default());
        for header in request.headers.iter() {
            let kind = kind(header.name.as_bytes());
            match kind {
                Kind::Host => hosts += 1,
                Kind::ContentLength => framing = framing.and_then(|framing| framing.length(header.value)),
                Kind::TransferEncoding => framing = framing.and_then(|framing| framing.coding(header.value)),
                Kind::Connection => {
                    head.keep_alive &= !names(header.value).any(|name| name.eq_ignore_ascii_case(b"close"));
                }
                Kind::Expect => {
                    head.expects = head.is_11 && header.value.eq_ignore_ascii_case(b"100-continue");
                }
                _ => {}
            }
            head.headers.push(Header {
                kind,
                name: range_in(bytes, header.name.as_bytes()),
                value: range_in(bytes, header.value),
            });
        }
        head.framing = match framing.and_then(|framing| framing.of_request()) {
            _ if hosts > 1 || (hosts == 0 && head.is_11) => Err(Failure::ClientMalformed),
            // Chunks came with 1.1, and a program of 1.0 in between would not know them.
            Ok(Framing::Chunked) if !head.is_11 => Err(Failure::ClientMalformed),
            framing => framing,
        };
        head.bytes = bytes.split_to(length);
        Ok(Some(head))
    }

    /// Its length in bytes.
    pub(crate) fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Path and query, as they were sent.
    pub(crate) fn target(&self) -> &str {
        std::str::from_utf8(slice(&self.bytes, &self.target)).unwrap_or_default()
    }

    /// The authority of a target in absolute form.
    pub(crate) fn authority(&self) -> Option<&[u8]> {
        self.authority.as_ref().map(|range| slice(&self.bytes, range))
    }

    pub(crate) fn name(&self, header: &Header) -> &[u8] {
        slice(&self.bytes, &header.name)
    }

    pub(crate) fn value(&self, header: &Header) -> &[u8] {
        slice(&self.bytes, &header.value)
    }

    /// The values of the headers of a kind.
    pub(crate) fn values(&self, kind: Kind) -> impl Iterator<Item = &[u8]> {
        self.headers.iter().filter(move |header| header.kind == kind).map(|header| self.value(header))
    }
}

/// Authority, if any, and path with query of a request's target: in origin form, absolute form or `*`.
fn split_target(target: &str) -> Option<(Option<&str>, &str)> {
    if target.starts_with('/') || target == "*" {
        return Some((None, target));
    }
    let (scheme, rest) = target.split_once("://")?;
    if !(scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")) {
        return None;
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // Whoever leaves the path out means the root: a part of the target too, for it is kept as a range of the head.
    let root = &target[scheme.len() + 1..scheme.len() + 2];
    (!authority.is_empty() && (path.is_empty() || path.starts_with('/')))
        .then_some((Some(authority), if path.is_empty() { root } else { path }))
}

/// The comma-separated names in a header's value.
pub(crate) fn names(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty())
}

/// What a head says about its body's framing.
#[derive(Default)]
struct Framings {
    length: Option<u64>,
    chunked: bool,
}

impl Framings {
    fn length(mut self, value: &[u8]) -> Result<Self, Failure> {
        // One header with nothing but digits: a list or a sign is read differently by different programs.
        let digits = !value.is_empty() && value.len() < 20 && value.iter().all(u8::is_ascii_digit);
        if self.length.is_some() || !digits {
            return Err(Failure::ClientMalformed);
        }
        let number =
            value.iter().try_fold(0_u64, |n, digit| n.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
        self.length = Some(number.ok_or(Failure::ClientMalformed)?);
        Ok(self)
    }

    fn coding(mut self, value: &[u8]) -> Result<Self, Failure> {
        if self.chunked {
            return Err(Failure::ClientMalformed);
        }
        let mut codings = names(value);
        let Some(first) = codings.next() else { return Err(Failure::ClientMalformed) };
        let last = codings.last();
        if !last.unwrap_or(first).eq_ignore_ascii_case(b"chunked") {
            return Err(Failure::ClientMalformed);
        }
        if last.is_some() {
            return Err(Failure::Unsupported);
        }
        self.chunked = true;
        Ok(self)
    }

    /// Both at once are how requests are smuggled (RFC 9112, section 6.1).
    fn of_request(&self) -> Result<Framing, Failure> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err(Failure::ClientMalformed),
            (Some(length), false) => Ok(Framing::Length(length)),
            (None, true) => Ok(Framing::Chunked),
            (None, false) => Ok(Framing::None),
        }
    }
}

/// The head of a response.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    /// All of it, up to the empty line.
    pub bytes: Bytes,
    pub status: StatusCode,
    reason: Range<u32>,
    headers: Vec<Header>,
    pub framing: Framing,
    /// Whether the connection can be used again.
    pub keep_alive: bool,
    /// Whether a client of HTTP/1.1 can get the head as it is.
    plain: bool,
}

/// A response's head breaks HTTP, or is ambiguous, or is none that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Garbage;

/// The largest response head that is read from an instance, in bytes.
const MAX_RESPONSE_HEAD: usize = 64 << 10;

impl ResponseHead {
    /// Takes the head of a response to a request of this method off the front of what has come, interim responses
    /// (1xx) aside. None: more has to come first.
    pub(crate) fn parse(bytes: &mut Bytes, method: &Method) -> Result<Option<Self>, Garbage> {
        loop {
            match Self::parse_one(bytes, method)? {
                Some(head) if head.status == StatusCode::SWITCHING_PROTOCOLS => return Err(Garbage),
                Some(head) if head.status.is_informational() => {}
                other => return Ok(other),
            }
        }
    }

    fn parse_one(bytes: &mut Bytes, method: &Method) -> Result<Option<Self>, Garbage> {
        let mut storage = [const { std::mem::MaybeUninit::uninit() }; MAX_RESPONSE_HEADERS];
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let length = match config.parse_response_with_uninit_headers(&mut response, bytes, &mut storage) {
            Ok(httparse::Status::Complete(length)) if length <= MAX_RESPONSE_HEAD => length,
            Ok(httparse::Status::Partial) if bytes.len() < MAX_RESPONSE_HEAD => return Ok(None),
            _ => return Err(Garbage),
        };
        let (Some(code), Some(version)) = (response.code, response.version) else { return Err(Garbage) };
        let status = StatusCode::from_u16(code).map_err(|_| Garbage)?;
        let mut head = Self {
            bytes: Bytes::new(),
            status,
            reason: range_in(bytes, response.reason.unwrap_or_default().as_bytes()),
            headers: Vec::with_capacity(response.headers.len()),
            framing: Framing::Close,
            keep_alive: version == 1,
            plain: version == 1,
        };
        let mut framing = Ok(Framings::default());
        let mut framed = false;
        for header in response.headers.iter() {
            let kind = kind(header.name.as_bytes());
            match kind {
                Kind::ContentLength => {
                    framed = true;
                    framing = framing.and_then(|framing| framing.length(header.value));
                }
                Kind::TransferEncoding => {
                    (framed, head.plain) = (true, false);
                    framing = framing.and_then(|framing| framing.coding(header.value));
                }
                Kind::Connection => {
                    head.plain = false;
                    head.keep_alive &= !names(header.value).any(|name| name.eq_ignore_ascii_case(b"close"));
                }
                Kind::HopByHop => head.plain = false,
                _ => {}
            }
            head.headers.push(Header {
                kind,
                name: range_in(bytes, header.name.as_bytes()),
                value: range_in(bytes, header.value),
            });
        }
        let framing = framing.and_then(|framing| framing.of_request()).map_err(|_| Garbage)?;
        let bodiless = *method == Method::HEAD
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        head.framing = match framing {
            _ if bodiless => Framing::None,
            Framing::None if !framed => Framing::Close,
            framing => framing,
        };
        head.keep_alive &= head.framing != Framing::Close;
        // Empty lines before it are no part of it either.
        head.plain &= head.framing != Framing::Close
            && bytes.starts_with(b"HTTP/")
            && !has_bare_newline(&bytes[..length]);
        head.bytes = bytes.split_to(length);
        Ok(Some(head))
    }

    /// How a client of this version is told where the body ends.
    pub(crate) fn framing_for(&self, is_11: bool) -> Framing {
        match self.framing {
            Framing::Chunked | Framing::Close if is_11 => Framing::Chunked,
            Framing::Chunked => Framing::Close,
            framing => framing,
        }
    }

    /// The head as a client gets it.
    pub(crate) fn write(&self, is_11: bool, keep_alive: bool, out: &mut Vec<u8>) {
        if self.plain && is_11 && keep_alive {
            out.extend_from_slice(&self.bytes);
            return;
        }
        let slice = |range| slice(&self.bytes, range);
        out.extend_from_slice(if is_11 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
        out.extend_from_slice(self.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(slice(&self.reason));
        out.extend_from_slice(b"\r\n");
        let dropped: Vec<&[u8]> = self
            .headers
            .iter()
            .filter(|header| header.kind == Kind::Connection)
            .flat_map(|header| names(slice(&header.value)))
            .collect();
        for header in &self.headers {
            let name = slice(&header.name);
            let hop_by_hop =
                matches!(header.kind, Kind::Connection | Kind::HopByHop | Kind::TransferEncoding);
            // What frames the message is not the instance's to take away.
            let named = header.kind != Kind::ContentLength
                && dropped.iter().any(|drop| drop.eq_ignore_ascii_case(name));
            if !hop_by_hop && !named {
                line(name, slice(&header.value), out);
            }
        }
        if self.framing_for(is_11) == Framing::Chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        if !keep_alive {
            out.extend_from_slice(b"connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes a header line.
pub(crate) fn line(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes one chunk.
pub(crate) fn chunk(data: &[u8], out: &mut Vec<u8>) {
    use std::io::Write as _;
    // Writing to memory cannot fail.
    let _ = write!(out, "{:x}\r\n", data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// The end of a chunked body, without trailers: nobody was promised any.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A body that is being read: what is left of it.
#[derive(Debug)]
pub(crate) enum Body {
    Length(u64),
    Chunked(Chunks),
    Close,
}

/// A body breaks HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadBody;

impl Body {
    pub(crate) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks::default()),
            Framing::Close => Self::Close,
        }
    }

    /// Whether nothing more of it can come.
    pub(crate) fn is_over(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.state == Chunk::Over,
            Self::Close => false,
        }
    }

    /// Takes the next piece off the front of what has come. Empty: more has to come first, or it is over.
    pub(crate) fn take(&mut self, bytes: &mut Bytes) -> Result<Bytes, BadBody> {
        match self {
            Self::Length(left) => {
                let size = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= size as u64;
                Ok(bytes.split_to(size))
            }
            Self::Chunked(chunks) => chunks.take(bytes),
            Self::Close => Ok(std::mem::take(bytes)),
        }
    }
}

/// Reads chunks (RFC 9112, section 7.1).
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    state: Chunk,
    /// Bytes of extensions and trailers so far, which mean nothing here and are bounded.
    ignored: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Chunk {
    /// Before a chunk's size.
    #[default]
    Start,
    /// In the size.
    Size {
        size: u64,
        digits: u8,
    },
    /// Behind the size: blanks, behind which extensions may begin.
    Blank {
        size: u64,
    },
    /// In the extensions.
    Extension {
        size: u64,
    },
    /// Behind the carriage return of the size's line.
    SizeEnd {
        size: u64,
    },
    /// In the data.
    Data {
        left: u64,
    },
    /// Behind the data; whether the carriage return was there.
    DataEnd {
        returned: bool,
    },
    /// In the name of a trailer; whether anything of it was there.
    TrailerName {
        begun: bool,
    },
    /// In the value of a trailer.
    TrailerValue,
    /// Behind the carriage return of a trailer's line; whether the line was empty.
    TrailerEnd {
        empty: bool,
    },
    Over,
}

/// The most bytes of extensions and trailers.
const MAX_IGNORED: usize = 8 << 10;

impl Chunks {
    fn take(&mut self, bytes: &mut Bytes) -> Result<Bytes, BadBody> {
        while let Some(&byte) = bytes.first() {
            self.state = match self.state {
                Chunk::Over => break,
                Chunk::Data { left } => {
                    let size = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let left = left - size as u64;
                    self.state =
                        if left == 0 { Chunk::DataEnd { returned: false } } else { Chunk::Data { left } };
                    return Ok(bytes.split_to(size));
                }
                state => self.step(state, byte)?,
            };
            bytes.advance(1);
        }
        Ok(Bytes::new())
    }

    /// One byte that is not data.
    fn step(&mut self, state: Chunk, byte: u8) -> Result<Chunk, BadBody> {
        Ok(match (state, byte) {
            (Chunk::Start, digit) if digit.is_ascii_hexdigit() => {
                Chunk::Size { size: u64::from(hex(digit)), digits: 1 }
            }
            // Fifteen digits are more than anybody sends, and cannot overflow.
            (Chunk::Size { size, digits }, digit) if digit.is_ascii_hexdigit() && digits < 15 => {
                Chunk::Size { size: size * 16 + u64::from(hex(digit)), digits: digits + 1 }
            }
            (Chunk::Size { size, .. } | Chunk::Blank { size } | Chunk::Extension { size }, b'\r') => {
                Chunk::SizeEnd { size }
            }
            (Chunk::Size { size, .. } | Chunk::Blank { size }, b' ' | b'\t') => {
                self.ignore()?;
                Chunk::Blank { size }
            }
            (Chunk::Size { size, .. } | Chunk::Blank { size }, b';') => Chunk::Extension { size },
            (Chunk::Extension { size }, byte) if is_text(byte) => {
                self.ignore()?;
                Chunk::Extension { size }
            }
            (Chunk::SizeEnd { size: 0 } | Chunk::TrailerEnd { empty: false }, b'\n') => {
                Chunk::TrailerName { begun: false }
            }
            (Chunk::SizeEnd { size }, b'\n') => Chunk::Data { left: size },
            (Chunk::DataEnd { returned: false }, b'\r') => Chunk::DataEnd { returned: true },
            (Chunk::DataEnd { returned: true }, b'\n') => Chunk::Start,
            (Chunk::TrailerName { begun: false }, b'\r') => Chunk::TrailerEnd { empty: true },
            (Chunk::TrailerName { begun: true }, b':') => Chunk::TrailerValue,
            (Chunk::TrailerName { .. }, byte) if is_token(byte) => {
                self.ignore()?;
                Chunk::TrailerName { begun: true }
            }
            (Chunk::TrailerValue, b'\r') => Chunk::TrailerEnd { empty: false },
            (Chunk::TrailerValue, byte) if is_text(byte) => {
                self.ignore()?;
                Chunk::TrailerValue
            }
            (Chunk::TrailerEnd { empty: true }, b'\n') => Chunk::Over,
            _ => return Err(BadBody),
        })
    }

    fn ignore(&mut self) -> Result<(), BadBody> {
        self.ignored += 1;
        if self.ignored > MAX_IGNORED { Err(BadBody) } else { Ok(()) }
    }
}

/// Whether a byte may stand in a value: not a control character, but for the tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

/// Whether a byte may stand in a name (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::headers::{From, length_to_tell, write_request};

    const LIMITS: HeadLimits = HeadLimits { bytes: 8192, headers: 64 };

    fn parse(text: &[u8]) -> Result<Option<RequestHead>, HeadError> {
        RequestHead::parse(&mut Bytes::copy_from_slice(text), LIMITS)
    }

    fn response(text: &str, method: &Method) -> Result<Option<ResponseHead>, Garbage> {
        ResponseHead::parse(&mut Bytes::copy_from_slice(text.as_bytes()), method)
    }

    #[test]
    fn targets_are_taken_apart() {
        for (target, authority, path) in [
            ("/a?b#c", None, "/a?b#c"),
            ("*", None, "*"),
            ("http://h:1/a//b", Some("h:1"), "/a//b"),
            ("HTTPS://h", Some("h"), "/"),
        ] {
            assert_eq!(split_target(target), Some((authority, path)), "{target}");
        }
        for bad in ["a", "http://", "http:///a", "ftp://h/a", "h:443", "http://h?a"] {
            assert_eq!(split_target(bad), None, "{bad}");
        }
    }

    #[test]
    fn connections_stay_open_as_the_version_says() {
        let keeps = |text: &str| parse(text.as_bytes()).expect("well-formed").expect("whole").keep_alive;
        assert!(keeps("GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert!(!keeps("GET / HTTP/1.1\r\nhost: a\r\nConnection: x, Close\r\n\r\n"));
        assert!(!keeps("GET / HTTP/1.0\r\n\r\n"));
    }

    #[test]
    fn responses_say_where_they_end() {
        let framing = |rest: &str, method: &Method| {
            response(&format!("HTTP/1.1 {rest}\r\n\r\n"), method).map(|head| head.expect("whole").framing)
        };
        let get = &Method::GET;
        assert_eq!(framing("200 OK\r\ncontent-length: 5", get), Ok(Framing::Length(5)));
        assert_eq!(framing("200 OK\r\ntransfer-encoding: chunked", get), Ok(Framing::Chunked));
        assert_eq!(framing("200 OK", get), Ok(Framing::Close));
        assert_eq!(framing("200 OK\r\ncontent-length: 5", &Method::HEAD), Ok(Framing::None));
        assert_eq!(framing("204 No Content", get), Ok(Framing::None));
        assert_eq!(framing("304 Not Modified\r\ncontent-length: 5", get), Ok(Framing::None));
        for bad in [
            "200 OK\r\ncontent-length: 5\r\ncontent-length: 5",
            "200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked",
            "200 OK\r\ntransfer-encoding: gzip",
            "101 Switching Protocols",
        ] {
            assert_eq!(framing(bad, get), Err(Garbage), "{bad}");
        }
        // Interim responses are not the answer.
        let text =
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 404 No\r\n\r\n";
        assert_eq!(response(text, get).expect("good").expect("whole").status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn clients_get_what_their_version_knows() {
        let written = |rest: &str, is_11: bool, keep_alive: bool| {
            let head = response(&format!("HTTP/1.1 200 Fine\r\n{rest}\r\n"), &Method::GET);
            let mut out = Vec::new();
            head.expect("good").expect("whole").write(is_11, keep_alive, &mut out);
            String::from_utf8(out).expect("text")
        };
        let plain = "Server: x\r\nContent-Length: 5\r\n";
        assert_eq!(written(plain, true, true), format!("HTTP/1.1 200 Fine\r\n{plain}\r\n"));
        let late = format!("\r\n\r\nHTTP/1.1 200 Fine\r\n{plain}\r\n");
        let mut out = Vec::new();
        let head = response(&late, &Method::GET).expect("good").expect("whole");
        head.write(true, true, &mut out);
        assert!(out.starts_with(b"HTTP/1.1 200 Fine\r\n"), "without the lines before it");
        assert_eq!(
            written(plain, false, false),
            "HTTP/1.0 200 Fine\r\nServer: x\r\nContent-Length: 5\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(
            written(
                "Transfer-Encoding: chunked\r\nConnection: X-A\r\nX-A: 1\r\nKeep-Alive: 1\r\n",
                true,
                true
            ),
            "HTTP/1.1 200 Fine\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        assert_eq!(
            written("Transfer-Encoding: chunked\r\n", false, false),
            "HTTP/1.0 200 Fine\r\nconnection: close\r\n\r\n"
        );
    }

    /// Reads a body that comes in pieces; nothing if it breaks HTTP or does not end.
    fn read(framing: Framing, text: &[u8], cuts: &[usize]) -> Option<(Vec<u8>, usize)> {
        let (mut body, mut out, mut buffer, mut at) = (Body::new(framing), Vec::new(), Bytes::new(), 0);
        let mut cuts = cuts.iter().copied().chain(std::iter::repeat(usize::MAX));
        loop {
            while !body.is_over() {
                let piece = body.take(&mut buffer).ok()?;
                if piece.is_empty() {
                    break;
                }
                out.extend_from_slice(&piece);
            }
            if body.is_over() {
                return Some((out, at - buffer.len()));
            }
            assert!(buffer.is_empty(), "something was left without need");
            if at == text.len() {
                return None;
            }
            let end = (at + cuts.next()?.clamp(1, text.len())).min(text.len());
            buffer = Bytes::copy_from_slice(&text[at..end]);
            at = end;
        }
    }

    #[test]
    fn chunks_are_read_strictly() {
        let good = b"5;ext=\"x\"\r\nhello\r\n0A\r\n, world...\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\nrest";
        assert_eq!(read(Framing::Chunked, good, &[]), Some((b"hello, world...".to_vec(), good.len() - 4)));
        for bad in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "\r\n5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "5 \n\r\nhello\r\n0\r\n\r\n",
            "fffffffffffffffff\r\n",
            "5 hello\r\nhello\r\n0\r\n\r\n",
            "5;\0\r\nhello\r\n0\r\n\r\n",
            "0\r\nTrailer: x\n\r\n",
            "0\r\nTrailer\r\n\r\n",
            "0\r\n: x\r\n\r\n",
            "0\r\n Trailer: x\r\n\r\n",
            "0\r\nTrailer: \0\r\n\r\n",
            "0\r\r\n",
        ] {
            assert_eq!(read(Framing::Chunked, bad.as_bytes(), &[]), None, "{bad:?}");
        }
    }

    /// Pieces of requests that are likely to be misread.
    fn odd_text() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            prop::sample::select(vec![
                "GET ",
                "POST /x HTTP/1.1",
                " HTTP/1.1",
                "\r\n",
                "\n",
                "\r",
                "\r\n\r\n",
                "Host: a",
                "host:a",
                " ",
                "\t",
                ":",
                "Content-Length: 5",
                "content-length:0",
                "Transfer-Encoding: chunked",
                "transfer-encoding: x,chunked",
                "Connection: close, host",
                "0\r\n\r\n",
                "5\r\nhello\r\n",
                "/_matrix/client/v3/sync",
                "\0",
                "é",
                ",",
                "X-Forwarded-For: 1.2.3.4",
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..6),
        ];
        prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn nothing_that_comes_breaks_the_parser(text in odd_text()) {
            let _ = parse(&text);
            let _ = response(&String::from_utf8_lossy(&text), &Method::GET);
            let _ = read(Framing::Chunked, &text, &[1, 2, 3]);
        }

        /// What is taken is said again in one way only: another parser finds the same request in what is written, framed
        /// as it was, with nothing that is about one connection.
        #[test]
        fn what_is_taken_is_passed_on_unambiguously(text in odd_text()) {
            let with_host = [b"POST /_matrix/x HTTP/1.1\r\nHost: a\r\n".to_vec(), text.clone(), b"\r\n\r\n".to_vec()].concat();
            for text in [text, with_host] {
                let Ok(Some(head)) = parse(&text) else { continue };
                let Ok(framing) = head.framing else { continue };
                let from = From { peer: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), believed: 0, proto: "http", request_id: "id" };
                let mut out = Vec::new();
                let length = match framing { Framing::Length(length) => Some(length), Framing::Chunked => Some(7), _ => None };
                write_request(&head, head.target(), from, length_to_tell(framing, length), &mut out);
                let mut headers = [httparse::EMPTY_HEADER; 100];
                let mut again = httparse::Request::new(&mut headers);
                let whole = again.parse(&out).expect("well-formed");
                prop_assert_eq!(whole, httparse::Status::Complete(out.len()));
                prop_assert_eq!(again.method, Some(head.method.as_str()));
                prop_assert_eq!(again.path, Some(head.target()));
                let count = |name: &str| again.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).count();
                prop_assert_eq!(count("host"), 1);
                prop_assert_eq!(count("x-forwarded-for"), 1);
                prop_assert_eq!(count("content-length"), usize::from(framing != Framing::None));
                for name in ["transfer-encoding", "connection", "upgrade", "te", "expect"] {
                    prop_assert_eq!(count(name), 0, "{}", name);
                }
                prop_assert!(!has_bare_newline(&out));
            }
        }

        /// However it is cut, a head is the same, and a body too.
        #[test]
        fn pieces_make_no_difference(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..6),
            cuts in prop::collection::vec(1_usize..20, 0..60),
        ) {
            let mut text = Vec::new();
            for piece in &pieces {
                chunk(piece, &mut text);
            }
            text.extend_from_slice(LAST_CHUNK);
            prop_assert_eq!(read(Framing::Chunked, &text, &cuts), Some((pieces.concat(), text.len())));
            let head = b"GET /_matrix/x HTTP/1.1\r\nhost: a\r\nx: y\r\n\r\n";
            let mut buffer = Bytes::new();
            let mut came = 0;
            for cut in cuts.iter().copied().chain([head.len()]) {
                let end = (came + cut).min(head.len());
                crate::upstream::append(&mut buffer, Bytes::copy_from_slice(&head[came..end]));
                came = end;
                if let Some(head) = RequestHead::parse(&mut buffer, LIMITS).expect("well-formed") {
                    prop_assert_eq!(head.target(), "/_matrix/x");
                    break;
                }
                prop_assert!(came < text.len().max(head.len()));
            }
            prop_assert!(buffer.is_empty());
        }
    }
}
