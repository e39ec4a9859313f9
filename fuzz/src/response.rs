//! An instance's bytes: a response's head, its body, and what follows.

use bytes::Bytes;
use http::Method;

use crate::http1::{Body, Framing, LAST_CHUNK, ResponseHead, chunk};
use crate::strict::{self, End};
use crate::{Read, check_pieces, read_body};

/// A response that the router takes reaches a client with the same status and the same body, framed in one way only,
/// whatever the client's version; and it makes no difference in which pieces the bytes come.
pub fn response(text: &[u8]) {
    for method in [Method::GET, Method::HEAD] {
        let mut rest = Bytes::copy_from_slice(text);
        let whole = ResponseHead::parse(&mut rest, &method);
        check_pieces(text, |bytes| ResponseHead::parse(bytes, &method).map(|head| head.is_some()));
        let Ok(Some(head)) = whole else { return };
        assert!(!head.status.is_informational());
        let body = read_body(Body::new(head.framing), &rest, rest.len().max(1));
        assert_eq!(read_body(Body::new(head.framing), &rest, 3), body);
        for is_11 in [false, true] {
            for keep_alive in [false, true] {
                check_passed_on(&head, &method, &rest, &body, is_11, keep_alive);
            }
        }
    }
}

fn check_passed_on(
    head: &ResponseHead,
    method: &Method,
    rest: &[u8],
    body: &Read,
    is_11: bool,
    keep_alive: bool,
) {
    let framing = head.framing_for(is_11);
    // As the router does: who cannot be told where the body ends is told by the end of the connection.
    let keep_alive = keep_alive && framing != Framing::Close;
    let mut out = Vec::new();
    head.write(is_11, keep_alive, &mut out);
    let strict = strict::response(&out).expect("what a client gets is well-formed");
    assert_eq!(strict.length, out.len());
    assert_eq!(strict.start[1], head.status.as_str().as_bytes());
    for name in ["keep-alive", "te", "trailer", "upgrade", "proxy-connection"] {
        assert!(strict.values(name).is_empty(), "{name} is passed on");
    }
    let close: &[&[u8]] = if keep_alive { &[] } else { &[b"close"] };
    assert_eq!(strict.values("connection"), close);
    let end = strict.end().expect("what a client gets says where its body ends");

    let content: Vec<u8> = match (body, head.framing) {
        (Read::Whole(content, _), _) => content.clone(),
        (Read::Partial, Framing::Close) => rest.to_vec(),
        _ => return,
    };
    if framing == Framing::None {
        // Its method or status says so, whatever the headers say.
        let bodiless = *method == Method::HEAD || [204, 304].contains(&head.status.as_u16());
        assert!(bodiless && content.is_empty());
        return;
    }
    let start = out.len();
    if framing == Framing::Chunked {
        for piece in content.chunks(16) {
            chunk(piece, &mut out);
        }
        out.extend_from_slice(LAST_CHUNK);
    } else {
        out.extend_from_slice(&content);
    }
    let seen = match end {
        End::Open => (out[start..].to_vec(), out.len() - start),
        end => strict::body(end, &out[start..]).expect("a whole body"),
    };
    assert_eq!(seen, (content, out.len() - start));
    // Only to those who know them.
    assert!(end != End::Chunked || is_11);
}
