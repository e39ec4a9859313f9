//! A client's bytes: a request's head, its body, and what follows.

use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;

use crate::http1::{Body, Framing, HeadLimits, RequestHead};
use crate::strict::{self, End};
use crate::{Read, check_pieces, headers, key, read_body};

/// Small, so that they are reached.
const LIMITS: HeadLimits = HeadLimits { bytes: 2048, headers: 24 };

/// What follows a request, to see that it stays apart.
const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nhost: next\r\n\r\n";

/// A request that the router takes means the same to another reader, body included; what it passes on means the same
/// once more, whoever the client is; and it makes no difference in which pieces the bytes come.
pub fn request(text: &[u8]) {
    let mut rest = Bytes::copy_from_slice(text);
    let whole = RequestHead::parse(&mut rest, LIMITS);
    check_pieces(text, |bytes| RequestHead::parse(bytes, LIMITS).map(|head| head.is_some()));
    let Ok(Some(head)) = whole else { return };
    check_keys(&head);
    let Ok(framing) = headers::check(&head) else { return };

    let start = text.len() - rest.len() - head.length();
    assert_eq!(start, 0, "something before the head is gone");
    // Empty lines before a request are nothing (RFC 9112, section 2.2).
    let mut seen = text;
    while let Some(after) = seen.strip_prefix(b"\r\n") {
        seen = after;
    }
    let strict = strict::request(seen).expect("a head that is taken is well-formed");
    assert_eq!(text.len() - seen.len() + strict.length, head.length(), "the head ends elsewhere");
    let [method, target, version] = strict.start;
    assert_eq!(method, head.method.as_str().as_bytes());
    assert_eq!(version == b"HTTP/1.1", head.is_11);
    check_target(target, &head);
    let ours: Vec<_> = head.headers.iter().map(|header| (head.name(header), head.value(header))).collect();
    assert_eq!(strict.headers, ours);
    let end = strict.end().expect("a head that is taken says where its body ends");
    match framing {
        Framing::None => assert_eq!(end, End::Open),
        Framing::Length(length) => assert_eq!(end, End::Length(length)),
        Framing::Chunked => assert_eq!(end, End::Chunked),
        Framing::Close => panic!("a request's body ends with its connection"),
    }

    let content = match read_body(Body::new(framing), &rest, rest.len().max(1)) {
        Read::Whole(content, length) => {
            if framing != Framing::None {
                let other = strict::body(end, &rest);
                assert_eq!(other, Some((content.clone(), length)), "the body ends elsewhere");
            }
            assert_eq!(read_body(Body::new(framing), &rest, 3), Read::Whole(content.clone(), length));
            content
        }
        Read::Partial => {
            assert_eq!(strict::body(end, &rest), None, "the body has ended");
            assert_eq!(read_body(Body::new(framing), &rest, 3), Read::Partial);
            Vec::new()
        }
        Read::Bad => {
            assert_eq!(read_body(Body::new(framing), &rest, 3), Read::Bad);
            return;
        }
    };
    for believed in [0, 1, 2] {
        for peer in [None, Some(IpAddr::V4(Ipv4Addr::LOCALHOST))] {
            check_passed_on(
                &head,
                framing,
                &content,
                headers::From { peer, believed, proto: "http", request_id: "id" },
            );
        }
    }
}

/// The target of the head is what the request's line says.
fn check_target(target: &[u8], head: &RequestHead) {
    let path = head.target().as_bytes();
    match head.authority() {
        None if target.starts_with(b"/") || target == b"*" => assert_eq!(target, path),
        None => panic!("a target of no form"),
        Some(authority) => {
            let rest = target.splitn(2, |byte| *byte == b':').nth(1).expect("a scheme");
            // Whoever leaves the path out means the root.
            let path = if rest.len() == authority.len() + 2 { b"" } else { path };
            assert_eq!(rest, [b"//", authority, path].concat());
            assert!(!authority.is_empty() && !authority.iter().any(|byte| b"/?".contains(byte)));
        }
    }
}

/// Keys are read from any head, and what may be logged holds no secret as Synapse reads queries.
fn check_keys(head: &RequestHead) {
    let _ = key::origin(head);
    let _ = headers::client_address(head, None, 1);
    if let Some(trace) = headers::trace_id(head) {
        assert!(trace.as_str().len() == 32 && trace.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    if let Some(token) = key::access_token(head) {
        assert!(!token.is_empty());
        let _ = key::user_of_token(&token);
    }
    let logged = key::loggable(head.target());
    if let Some((_, query)) = logged.split_once('?') {
        for pair in query.split(['&', ';']).filter(|pair| pair.contains('=')) {
            let name = pair.split('=').next().unwrap_or_default();
            let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
            assert!(name != "access_token" && name != "loginToken", "a secret is logged: {logged}");
        }
    }
    // Where Synapse finds a token in the query, so does the router.
    if head.values(crate::http1::Kind::Authorization).next().is_none()
        && let Some((_, query)) = head.target().split_once('?')
    {
        let first = query
            .split(['&', ';'])
            .filter_map(|pair| pair.split_once('='))
            .find(|(name, _)| percent_encoding::percent_decode_str(name).eq("access_token".bytes()));
        let token = first.map(|(_, value)| percent_encoding::percent_decode_str(value).decode_utf8_lossy());
        assert_eq!(token.filter(|token| !token.is_empty()), key::access_token(head));
    }
}

/// The question of whose the token is asks about that token, and is one request.
fn check_question(head: &RequestHead, from: headers::From<'_>) {
    let Some(token) = key::access_token(head) else { return };
    // As the router asks.
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return;
    }
    let mut out = Vec::new();
    headers::write_whoami(head, from, "/whoami", &token, &mut out);
    let strict = strict::request(&out).expect("the question is well-formed");
    assert_eq!(strict.length, out.len());
    assert_eq!((strict.start, strict.end()), ([&b"GET"[..], b"/whoami", b"HTTP/1.1"], Some(End::Open)));
    assert_eq!(strict.values("authorization"), [format!("Bearer {token}").as_bytes()]);
}

/// What an instance gets is one request, read in one way, with what the client sent to the other end and nothing that is
/// about its own connection.
fn check_passed_on(head: &RequestHead, framing: Framing, content: &[u8], from: headers::From<'_>) {
    let told = match framing {
        Framing::None => None,
        _ => Some(content.len() as u64),
    };
    let mut out = Vec::new();
    headers::write_request(head, head.target(), from, headers::length_to_tell(framing, told), &mut out);
    let written = out.len();
    out.extend_from_slice(content);
    out.extend_from_slice(NEXT);

    let strict = strict::request(&out).expect("what is passed on is well-formed");
    assert_eq!(strict.length, written);
    assert_eq!(strict.start, [head.method.as_str().as_bytes(), head.target().as_bytes(), b"HTTP/1.1"]);
    let end = strict.end().expect("what is passed on says where its body ends");
    assert_eq!(end, told.map_or(End::Open, End::Length));
    assert_eq!(&out[strict.length + content.len()..], NEXT);

    // The router itself reads it as it was.
    let mut rest = Bytes::copy_from_slice(&out);
    let limits = HeadLimits { bytes: 2 * LIMITS.bytes, headers: 100 };
    let again = RequestHead::parse(&mut rest, limits).expect("well-formed").expect("whole");
    assert_eq!((&again.method, again.target(), again.authority()), (&head.method, head.target(), None));
    assert_eq!(again.framing, Ok(told.map_or(Framing::None, Framing::Length)));
    assert_eq!(key::access_token(&again), key::access_token(head), "another token");
    assert_eq!(key::origin(&again), key::origin(head), "another origin");

    check_question(head, from);

    for name in ["connection", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect"] {
        assert!(strict.values(name).is_empty(), "{name} is passed on");
    }
    let host =
        head.authority().or_else(|| head.values(crate::http1::Kind::Host).next()).unwrap_or(b"localhost");
    assert_eq!(strict.values("host"), [host]);
    assert_eq!(strict.values("x-request-id"), [b"id"]);
    assert!(strict.values("forwarded").is_empty());
    if from.believed == 0 {
        let address: &[&[u8]] = if from.peer.is_some() { &[b"127.0.0.1"] } else { &[] };
        assert_eq!(strict.values("x-forwarded-for"), address);
        assert_eq!(strict.values("x-forwarded-proto"), [b"http"]);
        assert_eq!(strict.values("x-forwarded-host"), [host]);
    }
    // All that is for the other end is there, in its order.
    let named: Vec<&[u8]> = head
        .values(crate::http1::Kind::Connection)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .collect();
    let mut passed = strict.headers.iter();
    for header in &head.headers {
        let (name, value) = (head.name(header), head.value(header));
        let own =
            header.kind != crate::http1::Kind::Other || named.iter().any(|n| n.eq_ignore_ascii_case(name));
        assert!(own || passed.any(|passed| *passed == (name, value)), "a header is lost");
    }
}
