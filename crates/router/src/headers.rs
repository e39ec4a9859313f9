//! Headers: what an instance gets to see of a request, and where a request comes from.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::Method;
use percent_encoding::percent_decode_str;
use routes::{Closed, Decision, Matcher};
use smallvec::SmallVec;

use crate::failure::Failure;
use crate::http1::{Framing, Kind, RequestHead, line, names};

/// Refuses what is never passed on; says how the body is framed.
pub(crate) fn check(head: &RequestHead) -> Result<Framing, Failure> {
    match head.method {
        Method::GET
        | Method::HEAD
        | Method::POST
        | Method::PUT
        | Method::DELETE
        | Method::OPTIONS
        | Method::PATCH => head.framing,
        _ => Err(Failure::Unsupported),
    }
}

/// What of the closed a path with dot segments names. Synapse does not resolve them, but a program in between might, in one
/// of several ways (decoding before or after, with empty segments or without): so anywhere in the path counts.
fn closed_by_dots(path_and_query: &str) -> Option<Closed> {
    let path = path_and_query.split_once('?').map_or(path_and_query, |(path, _)| path);
    // The usual case is over here: a dot segment begins with a dot behind a slash, each of which may be encoded.
    if !path.contains("/.") && !escapes_a_dot(path) {
        return None;
    }
    let (mut dots, mut closed) = (false, None);
    // The segment so far; what is longer than all of those that count is none of them.
    let (mut segment, mut length) = ([0; 9], 0);
    for byte in percent_decode_str(path).chain([b'/']) {
        if byte != b'/' {
            if let Some(place) = segment.get_mut(length) {
                *place = byte;
            }
            length += 1;
            continue;
        }
        match segment.get(..length) {
            Some(b"." | b"..") => dots = true,
            Some(b"_synapse") => closed = closed.or(Some(Closed::Other)),
            Some(b"health") => closed = closed.or(Some(Closed::Health)),
            _ => {}
        }
        length = 0;
    }
    closed.filter(|_| dots)
}

/// Whether a path has an encoded dot, or a dot behind an encoded slash.
fn escapes_a_dot(path: &str) -> bool {
    let mut rest = path.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        rest = &rest[at + 1..];
        match rest {
            [b'2', b'e' | b'E', ..] | [b'2', b'f' | b'F', b'.', ..] => return true,
            _ => {}
        }
    }
    false
}

/// The host that a request is for, with the port if it says one. With the target in absolute form its authority counts, not
/// the `Host` header (RFC 9112, section 3.2.2).
pub(crate) fn host(head: &RequestHead) -> &[u8] {
    head.authority().or_else(|| head.values(Kind::Host).next()).unwrap_or(b"localhost")
}

/// What is to be done with a request, by its method and target alone.
pub(crate) fn decide<'m>(matcher: &'m Matcher, method: &str, target: &str) -> Decision<'m> {
    closed_by_dots(target).map_or_else(|| matcher.decide(method, target), Decision::Closed)
}

/// What the believed proxies in front say of a request's way, the client first. Each adds whom it was asked by at the end
/// of `X-Forwarded-For`, so what comes before their words is whatever the client liked to write.
fn told(head: &RequestHead, believed: usize) -> SmallVec<[&[u8]; 4]> {
    if believed == 0 {
        return SmallVec::new();
    }
    let mut told: SmallVec<[&[u8]; 4]> = head.values(Kind::XForwardedFor).flat_map(names).collect();
    told.drain(..told.len().saturating_sub(believed));
    told
}

/// Where a request comes from: what the outermost of so many believed proxies says, else the peer.
pub(crate) fn client_address(head: &RequestHead, peer: Option<IpAddr>, believed: usize) -> Option<IpAddr> {
    // Some name the port as well.
    let address = |text: &str| text.parse().or_else(|_| text.parse().map(|peer: SocketAddr| peer.ip())).ok();
    let told = told(head, believed);
    told.first().and_then(|first| std::str::from_utf8(first).ok()).and_then(address).or(peer)
}

/// The trace that a request belongs to, if it says so as it must (W3C Trace Context, section 3.2).
pub(crate) fn trace_id(head: &RequestHead) -> Option<TraceId> {
    let mut values = head.values(Kind::TraceParent);
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (parent, later) = value.split_at_checked(55)?;
    let [version, trace, span, flags] =
        parent.split(|byte| *byte == b'-').collect::<SmallVec<[_; 4]>>().into_inner().ok()?;
    let is_hex = |part: &[u8], length: usize| {
        part.len() == length && part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_some = |part: &[u8]| part.iter().any(|byte| *byte != b'0');
    // Later versions may have more to say.
    let ends = later.is_empty() || (version != b"00" && later[0] == b'-');
    let fits = is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
    let valid = fits && ends && version != b"ff" && is_some(trace) && is_some(span);
    if valid { trace.try_into().ok().map(TraceId) } else { None }
}

/// The ID of a trace: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceId([u8; 32]);

impl TraceId {
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Who a request comes from, as instances are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From<'a> {
    /// The address at the other end of the connection; a unix socket has none.
    pub peer: Option<IpAddr>,
    /// How many proxies, of which that is the last, are believed in what they say of the client.
    pub believed: usize,
    /// How the client reached this end: `http` or `https`.
    pub proto: &'static str,
    /// The request's ID in the access log.
    pub request_id: &'a str,
}

/// Writes the head that an instance gets, with the length of the body that follows: the target byte for byte, without
/// what is about one connection alone, and with what is known of the client.
pub(crate) fn write_request(
    head: &RequestHead,
    target: &str,
    from: From<'_>,
    length: Option<u64>,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let host = host(head);
    line(b"host", host, out);
    let dropped: Vec<&[u8]> = head.values(Kind::Connection).flat_map(names).collect();
    let (mut proto, mut forwarded_host) = (false, false);
    for header in &head.headers {
        match header.kind {
            Kind::Connection
            | Kind::ContentLength
            // The router has the body, or asks for it itself.
            | Kind::Expect
            // Nobody behind reads it, and half of the way would be missing in it.
            | Kind::Forwarded
            | Kind::HopByHop
            | Kind::Host
            | Kind::TransferEncoding
            | Kind::XForwardedFor
            | Kind::XRequestId => continue,
            Kind::XForwardedHost | Kind::XForwardedProto if from.believed == 0 => continue,
            _ => {}
        }
        let name = head.name(header);
        // What the router reads itself is not the client's to take away: an instance decides on it too.
        if header.kind == Kind::Other && dropped.iter().any(|dropped| dropped.eq_ignore_ascii_case(name)) {
            continue;
        }
        proto |= header.kind == Kind::XForwardedProto;
        forwarded_host |= header.kind == Kind::XForwardedHost;
        line(name, head.value(header), out);
    }
    write_route(head, from, out);
    if !proto {
        line(b"x-forwarded-proto", from.proto.as_bytes(), out);
    }
    if !forwarded_host {
        line(b"x-forwarded-host", host, out);
    }
    line(b"x-request-id", from.request_id.as_bytes(), out);
    if let Some(length) = length {
        // Writing to memory cannot fail.
        let _ = write!(out, "content-length: {length}\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// `X-Forwarded-For`: the peer, behind those that believed proxies name. Synapse takes the first for the client.
fn write_route(head: &RequestHead, from: From<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(b"x-forwarded-for: ");
    let named = out.len();
    for value in told(head, from.believed) {
        if out.len() > named {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(value);
    }
    if let Some(peer) = from.peer {
        if out.len() > named {
            out.extend_from_slice(b", ");
        }
        let _ = write!(out, "{peer}");
    }
    if out.len() == named {
        // A peer on a unix socket has no address, and nobody said whose the request is.
        out.truncate(start);
    } else {
        out.extend_from_slice(b"\r\n");
    }
}

/// The length that an instance is told of: that of the body, if it has one or the client said that it has none.
pub(crate) fn length_to_tell(framing: Framing, length: Option<u64>) -> Option<u64> {
    length.or((framing != Framing::None).then_some(0))
}

/// The question of whose a token is, with what makes Synapse's record of who was last seen where stay right.
pub(crate) fn write_whoami(head: &RequestHead, from: From<'_>, path: &str, token: &str, out: &mut Vec<u8>) {
    let _ = write!(out, "GET {path} HTTP/1.1\r\n");
    line(b"host", head.values(Kind::Host).next().unwrap_or(b"localhost"), out);
    if let Some(agent) = head.values(Kind::UserAgent).next() {
        line(b"user-agent", agent, out);
    }
    write_route(head, from, out);
    let proto = if from.believed > 0 { head.values(Kind::XForwardedProto).next() } else { None };
    line(b"x-forwarded-proto", proto.unwrap_or(from.proto.as_bytes()), out);
    line(b"x-request-id", from.request_id.as_bytes(), out);
    let _ = write!(out, "authorization: Bearer {token}\r\n\r\n");
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::http1::HeadLimits;

    const LIMITS: HeadLimits = HeadLimits { bytes: 8192, headers: 100 };

    fn head(target: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut text = format!("GET {target} HTTP/1.1\r\n");
        for (name, value) in headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        text.push_str("\r\n");
        RequestHead::parse(&mut Bytes::from(text), LIMITS).expect("well-formed").expect("whole")
    }

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn from(peer: Option<IpAddr>, believed: usize) -> From<'static> {
        From { peer, believed, proto: "http", request_id: "id" }
    }

    fn written(head: &RequestHead, from: From<'_>, length: Option<u64>) -> String {
        let mut out = Vec::new();
        write_request(head, head.target(), from, length, &mut out);
        String::from_utf8(out).expect("text")
    }

    fn header<'a>(written: &'a str, name: &str) -> Option<&'a str> {
        written.lines().filter_map(|line| line.split_once(": ")).find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        let check = |headers: &[(&str, &str)]| check(&head("/", headers));
        assert_eq!(check(&[("host", "a")]), Ok(Framing::None));
        assert_eq!(check(&[("host", "a"), ("content-length", "5")]), Ok(Framing::Length(5)));
        assert_eq!(check(&[("host", "a"), ("transfer-encoding", "Chunked")]), Ok(Framing::Chunked));
        for bad in [
            &[("x", "y")][..],
            &[("host", "a"), ("host", "a")],
            &[("host", "a"), ("content-length", "5"), ("content-length", "5")],
            &[("host", "a"), ("content-length", "+5")],
            &[("host", "a"), ("content-length", "")],
            &[("host", "a"), ("content-length", "99999999999999999999")],
            &[("host", "a"), ("content-length", "5"), ("transfer-encoding", "chunked")],
            &[("host", "a"), ("transfer-encoding", "chunked"), ("content-length", "5")],
            &[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("host", "a"), ("transfer-encoding", "")],
        ] {
            assert_eq!(check(bad), Err(Failure::ClientMalformed), "{bad:?}");
        }
        assert_eq!(
            check(&[("host", "a"), ("transfer-encoding", "gzip, chunked")]),
            Err(Failure::Unsupported)
        );
    }

    #[test]
    fn dot_segments_open_nothing_however_they_are_written() {
        for (path, closed) in [
            ("/_matrix/../_synapse/admin/x?y", Closed::Other),
            ("/_matrix/%2e%2E/_synapse/./admin/x", Closed::Other),
            ("/_matrix%2f..%2F_synaps%65/admin/x", Closed::Other),
            ("/_matrix/a%2fb/../../_synapse/admin/x", Closed::Other),
            ("/_matrix///../he%61lth", Closed::Health),
            ("/_synapse/client/../admin", Closed::Other),
            ("/_matrix/../health/.", Closed::Health),
        ] {
            assert_eq!(closed_by_dots(path), Some(closed), "{path}");
        }
        for path in [
            "/_matrix/client/versions",
            "/_matrix/../client/versions",
            "/.well-known/health",
            "/_synapse/client/..b/%41?x=/../y",
            "/_synapse/client/...",
            "/_matrix/../_synapse_and_more/healthy",
        ] {
            assert_eq!(closed_by_dots(path), None, "{path}");
        }
    }

    #[test]
    fn forwarding_headers_are_replaced_unless_trusted() {
        let told = [
            ("host", "m.example"),
            ("x-forwarded-for", "198.51.100.7"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=x"),
        ];
        let head = head("/", &told);
        let untrusted = written(&head, from(Some(PEER), 0), None);
        assert_eq!(header(&untrusted, "x-forwarded-for"), Some("192.0.2.1"));
        assert_eq!(header(&untrusted, "x-forwarded-proto"), Some("http"));
        assert_eq!(header(&untrusted, "x-forwarded-host"), Some("m.example"));
        assert_eq!(header(&untrusted, "x-request-id"), Some("id"));
        assert_eq!(header(&untrusted, "forwarded"), None);

        let trusted = written(&head, from(Some(PEER), 1), None);
        assert_eq!(header(&trusted, "x-forwarded-for"), Some("198.51.100.7, 192.0.2.1"));
        assert_eq!(header(&trusted, "x-forwarded-proto"), Some("https"));
        assert_eq!(header(&trusted, "forwarded"), None);

        let unix = written(&head, from(None, 1), None);
        assert_eq!(header(&unix, "x-forwarded-for"), Some("198.51.100.7"));
        assert_eq!(header(&written(&head, from(None, 0), None), "x-forwarded-for"), None);
    }

    #[test]
    fn only_what_believed_proxies_added_counts() {
        // The client wrote the first two, in lines of its own.
        let told = [
            ("host", "a"),
            ("x-forwarded-for", "203.0.113.66, 10.0.0.66"),
            ("x-forwarded-for", "198.51.100.7,10.0.0.1"),
        ];
        let spoofed = head("/", &told);
        for (believed, client, way) in [
            (0, "192.0.2.1", "192.0.2.1"),
            (1, "10.0.0.1", "10.0.0.1, 192.0.2.1"),
            (2, "198.51.100.7", "198.51.100.7, 10.0.0.1, 192.0.2.1"),
            (9, "203.0.113.66", "203.0.113.66, 10.0.0.66, 198.51.100.7, 10.0.0.1, 192.0.2.1"),
        ] {
            assert_eq!(client_address(&spoofed, Some(PEER), believed), client.parse().ok(), "{believed}");
            let written = written(&spoofed, from(Some(PEER), believed), None);
            assert_eq!(header(&written, "x-forwarded-for"), Some(way), "{believed}");
            assert_eq!(written.matches("x-forwarded-for").count(), 1);
        }
        for (value, client) in [
            ("198.51.100.7:1234", "198.51.100.7"),
            ("[2001:db8::1]:1234", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("unknown", "192.0.2.1"),
            ("198.51.100.7, ", "198.51.100.7"),
            ("", "192.0.2.1"),
        ] {
            let head = head("/", &[("host", "a"), ("x-forwarded-for", value)]);
            assert_eq!(client_address(&head, Some(PEER), 1), client.parse().ok(), "{value}");
        }
    }

    #[test]
    fn traces_are_named_as_the_standard_has_it() {
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        let id = |values: &[&str]| {
            let mut headers = vec![("host", "a")];
            headers.extend(values.iter().map(|value| ("TraceParent", *value)));
            trace_id(&head("/", &headers)).map(|id| id.as_str().to_owned())
        };
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let later = format!("cc-{TRACE}-00f067aa0ba902b7-01-what-will-be");
        for value in [good.as_str(), &later] {
            assert_eq!(id(&[value]).as_deref(), Some(TRACE), "{value}");
        }
        for bad in [
            String::new(),
            format!("{good}-more"),
            format!("{later}x").replace("01-what", "01xwhat"),
            good.replace("00-4", "ff-4"),
            good.to_uppercase(),
            good.replace(TRACE, &"0".repeat(32)),
            good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            good.replace(TRACE, &TRACE[1..]),
            good[..54].to_owned(),
            good.replace('-', "_"),
        ] {
            assert_eq!(id(&[&bad]), None, "{bad}");
        }
        assert_eq!(id(&[&good, &good]), None);
        assert_eq!(id(&[]), None);
    }

    #[test]
    fn what_is_about_one_connection_goes_no_further() {
        let request = head(
            "http://other.example/x",
            &[
                ("host", "m.example"),
                ("connection", "close, X-Secret, content-length, authorization"),
                ("x-secret", "1"),
                ("authorization", "Bearer x"),
                ("content-length", "0"),
                ("upgrade", "websocket"),
                ("te", "trailers"),
                ("expect", "100-continue"),
                ("keep-alive", "timeout=5"),
                ("X-Kept", "1"),
            ],
        );
        let written = written(&request, from(Some(PEER), 0), length_to_tell(Framing::Length(0), None));
        let expected = "GET /x HTTP/1.1\r\nhost: other.example\r\nauthorization: Bearer x\r\nX-Kept: 1\r\nx-forwarded-for: 192.0.2.1\r\n\
                        x-forwarded-proto: http\r\nx-forwarded-host: other.example\r\nx-request-id: id\r\n\
                        content-length: 0\r\n\r\n";
        assert_eq!(written, expected);
    }
}
