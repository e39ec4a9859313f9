//! Responses that the router gives itself.

use bytes::Bytes;
use http::header::{ACCESS_CONTROL_MAX_AGE, CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use routes::answers;
use serde_json::json;

use crate::failure::Failure;

/// The headers that let web clients read an answer.
pub(crate) fn cors(headers: &mut HeaderMap) {
    for (name, value) in answers::CORS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
}

/// A JSON document.
pub(crate) fn document(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    cors(response.headers_mut());
    response
}

/// The answer to a CORS preflight. Browsers may keep it for a day.
pub(crate) fn preflight() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    cors(response.headers_mut());
    response
        .headers_mut()
        .insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(answers::PREFLIGHT_MAX_AGE));
    response
}

/// The page at `/`, for people who open the homeserver's address in a browser.
pub(crate) fn landing() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(answers::LANDING.as_bytes())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

/// A failure, in Matrix's JSON.
pub(crate) fn failure(failure: Failure) -> Response<Full<Bytes>> {
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
