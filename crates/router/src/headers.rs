//! Headers: which requests are refused for them, what an instance gets to see, what the client gets back.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Version};
use percent_encoding::percent_decode_str;

use crate::body::Framing;
use crate::failure::Failure;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The headers that are about one connection alone (RFC 9110, section 7.6.1), beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Refuses what the parser lets through and two programs in a row might read in two ways; says how the body is framed.
pub(crate) fn check(parts: &Parts) -> Result<Framing, Failure> {
    match parts.method {
        Method::GET
        | Method::HEAD
        | Method::POST
        | Method::PUT
        | Method::DELETE
        | Method::OPTIONS
        | Method::PATCH => {}
        _ => return Err(Failure::Unsupported),
    }
    let hosts = parts.headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && parts.version == Version::HTTP_11) {
        return Err(Failure::ClientMalformed);
    }
    let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = parts.headers.get_all(CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(Framing::None),
        (None, Some(length)) if lengths.next().is_none() => {
            let digits = length.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            digits.and_then(|text| text.parse().ok()).map(Framing::Length).ok_or(Failure::ClientMalformed)
        }
        (Some(coding), None) if codings.next().is_none() => {
            if coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                Ok(Framing::Chunked)
            } else {
                Err(Failure::Unsupported)
            }
        }
        _ => Err(Failure::ClientMalformed),
    }
}

/// What a target would mean to a program that decodes it and resolves its dot segments, as Synapse does not but one in
/// between might: None if it has none.
pub(crate) fn without_dots(path_and_query: &str) -> Option<String> {
    let path = path_and_query.split_once('?').map_or(path_and_query, |(path, _)| path);
    // The usual case is over here.
    if !path.contains("/.") && !path.contains('%') {
        return None;
    }
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let mut segments = Vec::new();
    let mut dots = false;
    for segment in decoded.split('/').skip(1) {
        match segment {
            "." => dots = true,
            ".." => {
                dots = true;
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    dots.then(|| format!("/{}", segments.join("/")))
}

/// Where a request comes from: the peer, or what a trusted proxy says. Synapse takes the first address in
/// `X-Forwarded-For`, so the router does.
pub(crate) fn client_address(headers: &HeaderMap, peer: Option<IpAddr>, trust: bool) -> Option<IpAddr> {
    let told = || {
        let value = headers.get(&X_FORWARDED_FOR)?.to_str().ok()?;
        value.split(',').next()?.trim().parse().ok()
    };
    if trust { told().or(peer) } else { peer }
}

/// Removes what is about one connection alone.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            // What frames or addresses the message is not the client's to take away.
            .filter(|name| *name != CONTENT_LENGTH && *name != HOST)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Makes a request's headers those that an instance gets.
pub(crate) fn prepare(parts: &mut Parts, peer: Option<IpAddr>, trust: bool, request_id: &str) {
    let authority = parts.uri.authority().map(|authority| authority.as_str().to_owned());
    let headers = &mut parts.headers;
    strip_hop_by_hop(headers);
    // The router has the body, or asks for it itself.
    headers.remove(EXPECT);
    // With the target in absolute form its authority counts, not the `Host` header (RFC 9112, section 3.2.2).
    if let Some(host) = authority.and_then(|authority| HeaderValue::try_from(authority).ok()) {
        headers.insert(HOST, host);
    }
    let host = headers.entry(HOST).or_insert_with(|| HeaderValue::from_static("localhost")).clone();

    let mut route = String::new();
    if trust {
        for value in headers.get_all(&X_FORWARDED_FOR) {
            if let Ok(value) = value.to_str() {
                route.push_str(value);
                route.push_str(", ");
            }
        }
    } else {
        headers.remove(FORWARDED);
        headers.remove(&X_FORWARDED_PROTO);
        headers.remove(&X_FORWARDED_HOST);
    }
    match peer {
        Some(peer) => route.push_str(&peer.to_string()),
        // A peer on a unix socket has no address: a trusted proxy has said whose the request is.
        None => route.truncate(route.len().saturating_sub(2)),
    }
    match HeaderValue::try_from(route) {
        Ok(value) if !value.is_empty() => drop(headers.insert(X_FORWARDED_FOR, value)),
        _ => drop(headers.remove(&X_FORWARDED_FOR)),
    }
    headers.entry(X_FORWARDED_PROTO).or_insert_with(|| HeaderValue::from_static("http"));
    headers.entry(X_FORWARDED_HOST).or_insert(host);
    if let Ok(id) = HeaderValue::try_from(request_id) {
        headers.insert(X_REQUEST_ID, id);
    }
}

/// Says how long the body is, now that it is known.
pub(crate) fn set_length(headers: &mut HeaderMap, framing: Framing, length: Option<u64>) {
    match (framing, length) {
        (_, Some(length)) => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(length))),
        (Framing::None, None) => drop(headers.remove(CONTENT_LENGTH)),
        (_, None) => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(0_u64))),
    }
}

/// What a question about whose a token is takes over from the request that made it necessary, so that Synapse's
/// record of who was last seen where stays right.
pub(crate) fn for_whoami(headers: &HeaderMap, token: &str) -> Option<HeaderMap> {
    let mut out = HeaderMap::new();
    for name in
        [HOST, http::header::USER_AGENT, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, X_REQUEST_ID]
    {
        if let Some(value) = headers.get(&name) {
            out.insert(name, value.clone());
        }
    }
    let mut bearer = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    bearer.set_sensitive(true);
    out.insert(http::header::AUTHORIZATION, bearer);
    Some(out)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn ambiguous_requests_are_refused() {
        let check = |headers: &[(&str, &str)]| check(&parts("/", headers));
        assert_eq!(check(&[("host", "a")]), Ok(Framing::None));
        assert_eq!(check(&[("host", "a"), ("content-length", "5")]), Ok(Framing::Length(5)));
        assert_eq!(check(&[("host", "a"), ("transfer-encoding", "Chunked")]), Ok(Framing::Chunked));
        for bad in [
            &[("x", "y")][..],
            &[("host", "a"), ("host", "a")],
            &[("host", "a"), ("content-length", "5"), ("content-length", "5")],
            &[("host", "a"), ("content-length", "+5")],
            &[("host", "a"), ("content-length", "5"), ("transfer-encoding", "chunked")],
            &[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        ] {
            assert_eq!(check(bad), Err(Failure::ClientMalformed), "{bad:?}");
        }
        assert_eq!(
            check(&[("host", "a"), ("transfer-encoding", "gzip, chunked")]),
            Err(Failure::Unsupported)
        );
    }

    #[test]
    fn dot_segments_are_resolved_however_they_are_written() {
        for path in
            ["/_matrix/../_synapse/admin/x?y", "/a/%2e%2E/_synapse/./admin/x", "/a%2f..%2F_synapse/admin/x"]
        {
            assert_eq!(without_dots(path).as_deref(), Some("/_synapse/admin/x"), "{path}");
        }
        for path in ["/_matrix/client/versions", "/.well-known/x", "/a/..b/%41?x=/../y", "/a/..."] {
            assert_eq!(without_dots(path), None, "{path}");
        }
        assert_eq!(without_dots("/../..").as_deref(), Some("/"));
    }

    #[test]
    fn forwarding_headers_are_replaced_unless_trusted() {
        let told = [
            ("host", "m.example"),
            ("x-forwarded-for", "198.51.100.7"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=x"),
        ];
        let mut untrusted = parts("/", &told);
        prepare(&mut untrusted, Some(PEER), false, "id");
        let h = &untrusted.headers;
        assert_eq!(h["x-forwarded-for"], "192.0.2.1");
        assert_eq!(h["x-forwarded-proto"], "http");
        assert_eq!(h["x-forwarded-host"], "m.example");
        assert_eq!(h["x-request-id"], "id");
        assert!(!h.contains_key("forwarded"));

        let mut trusted = parts("/", &told);
        assert_eq!(client_address(&trusted.headers, Some(PEER), true), Some("198.51.100.7".parse().unwrap()));
        assert_eq!(client_address(&trusted.headers, Some(PEER), false), Some(PEER));
        prepare(&mut trusted, Some(PEER), true, "id");
        assert_eq!(trusted.headers["x-forwarded-for"], "198.51.100.7, 192.0.2.1");
        assert_eq!(trusted.headers["x-forwarded-proto"], "https");

        let mut unix = parts("/", &told);
        prepare(&mut unix, None, true, "id");
        assert_eq!(unix.headers["x-forwarded-for"], "198.51.100.7");
        let mut unix = parts("/", &told);
        prepare(&mut unix, None, false, "id");
        assert!(!unix.headers.contains_key("x-forwarded-for"));
    }

    #[test]
    fn what_is_about_one_connection_goes_no_further() {
        let mut request = parts(
            "http://other.example/x",
            &[
                ("host", "m.example"),
                ("connection", "close, X-Secret, content-length"),
                ("x-secret", "1"),
                ("content-length", "0"),
                ("upgrade", "websocket"),
                ("te", "trailers"),
                ("expect", "100-continue"),
                ("keep-alive", "timeout=5"),
                ("x-kept", "1"),
            ],
        );
        prepare(&mut request, Some(PEER), false, "id");
        let mut names: Vec<_> = request.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let kept = [
            "content-length",
            "host",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-kept",
            "x-request-id",
        ];
        assert_eq!(names, kept);
        assert_eq!(request.headers["host"], "other.example");
    }
}
