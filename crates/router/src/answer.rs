//! Responses that the router gives itself.

use std::io::Write as _;

use bytes::Bytes;
use http::header::{ACCESS_CONTROL_MAX_AGE, CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use routes::answers;
use serde_json::json;

use crate::failure::Failure;
use crate::http1::line;

/// The headers that let web clients read an answer.
pub(crate) fn cors(headers: &mut HeaderMap) {
    for (name, value) in answers::CORS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
}

/// A JSON document.
pub(crate) fn document(status: StatusCode, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    cors(response.headers_mut());
    response
}

/// The answer to a CORS preflight. Browsers may keep it for a day.
pub(crate) fn preflight() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    cors(response.headers_mut());
    response
        .headers_mut()
        .insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(answers::PREFLIGHT_MAX_AGE));
    response
}

/// The page at `/`, for people who open the homeserver's address in a browser.
pub(crate) fn landing() -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(answers::LANDING.as_bytes()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

/// The answer to a request whose head cannot be read.
pub(crate) fn bad_head(status: StatusCode) -> Response<Bytes> {
    let body = json!({ "errcode": "M_UNKNOWN", "error": "The request's head is malformed or too large" });
    document(status, body.to_string())
}

/// A failure, in Matrix's JSON.
pub(crate) fn failure(failure: Failure) -> Response<Bytes> {
    let mut body = json!({ "errcode": failure.errcode(), "error": failure.message() });
    if failure == Failure::Shed
        && let Some(seconds) = failure.retry_after()
    {
        body["retry_after_ms"] = json!(seconds * 1000);
    }
    let mut response = document(failure.status(), body.to_string());
    if let Some(seconds) = failure.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A response as it goes over the wire.
pub(crate) fn write(response: &Response<Bytes>, head_only: bool, is_11: bool, keep_alive: bool) -> Bytes {
    let (status, body) = (response.status(), response.body());
    let mut out = Vec::with_capacity(512 + body.len());
    out.extend_from_slice(if is_11 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
    // Writing to memory cannot fail.
    let _ = write!(out, "{} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default());
    for (name, value) in response.headers() {
        line(name.as_str().as_bytes(), value.as_bytes(), &mut out);
    }
    if status != StatusCode::NO_CONTENT {
        let _ = write!(out, "content-length: {}\r\n", body.len());
    }
    if !keep_alive {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if !head_only {
        out.extend_from_slice(body);
    }
    out.into()
}
