//! JSON documents that anybody may read, at paths of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;

use crate::Observed;

/// Documents, and what all answers have.
#[derive(Clone, Debug)]
pub struct Table {
    /// The text of each, by its path.
    pub documents: BTreeMap<String, String>,
    /// The `Cache-Control` of those that are there.
    pub caching: String,
    /// Headers of every answer.
    pub headers: &'static [(&'static str, &'static str)],
    /// For how many seconds browsers may keep what they are allowed.
    pub preflight_max_age: &'static str,
}

/// Documents that can be replaced while they are served.
#[derive(Debug)]
pub struct Documents(ArcSwap<Table>);

impl Documents {
    /// These documents.
    pub fn new(table: Table) -> Self {
        Self(ArcSwap::from_pointee(table))
    }

    /// Serves others from now on.
    pub fn replace(&self, table: Table) {
        self.0.store(Arc::new(table));
    }

    /// What answers requests. What is no document is not found, in Matrix's form, and browsers may read that as well.
    pub fn app(self: &Arc<Self>) -> Router {
        let documents = self.clone();
        Router::new()
            .fallback(move |method: Method, uri: Uri| async move { documents.answer(&method, uri.path()) })
    }

    fn answer(&self, method: &Method, path: &str) -> Response {
        let table = self.0.load();
        let document = table.documents.get(path);
        let mut headers: HeaderMap = table
            .headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let (status, body) = match (*method == Method::OPTIONS, document) {
            (true, Some(_)) => {
                let age = HeaderValue::from_static(table.preflight_max_age);
                headers.insert(header::ACCESS_CONTROL_MAX_AGE, age);
                (StatusCode::NO_CONTENT, None)
            }
            // Hyper leaves the body of the answer to a HEAD out, and keeps its length.
            (false, Some(text)) if [Method::GET, Method::HEAD].contains(method) => {
                if let Ok(caching) = HeaderValue::from_str(&table.caching) {
                    headers.insert(header::CACHE_CONTROL, caching);
                }
                (StatusCode::OK, Some(text.clone()))
            }
            (_, Some(_)) => (StatusCode::METHOD_NOT_ALLOWED, Some(UNRECOGNISED.to_owned())),
            (_, None) => (StatusCode::NOT_FOUND, Some(UNRECOGNISED.to_owned())),
        };
        if body.is_some() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let mut response = Response::new(body.map_or_else(Body::empty, Body::from));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// The same as the router and Synapse say.
const UNRECOGNISED: &str = r#"{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}"#;

impl Observed for Documents {
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_served_to_anybody() {
        let table = |text: &str| Table {
            documents: BTreeMap::from([("/a".to_owned(), text.to_owned())]),
            caching: "max-age=60".to_owned(),
            headers: &[("access-control-allow-origin", "*")],
            preflight_max_age: "10",
        };
        let documents = Documents::new(table("{}"));
        for (method, path, status, caching, age) in [
            (Method::GET, "/a", 200, true, false),
            (Method::HEAD, "/a", 200, true, false),
            (Method::OPTIONS, "/a", 204, false, true),
            (Method::POST, "/a", 405, false, false),
            (Method::GET, "/b", 404, false, false),
            (Method::GET, "/a/", 404, false, false),
            (Method::OPTIONS, "/b", 404, false, false),
        ] {
            let answer = documents.answer(&method, path);
            let has = |name: HeaderName| answer.headers().contains_key(name);
            let seen =
                (answer.status().as_u16(), has(header::CACHE_CONTROL), has(header::ACCESS_CONTROL_MAX_AGE));
            assert_eq!(seen, (status, caching, age), "{method} {path}");
            assert_eq!(answer.headers()["access-control-allow-origin"], "*");
        }
        documents.replace(Table { documents: BTreeMap::new(), ..table("") });
        assert_eq!(documents.answer(&Method::GET, "/a").status().as_u16(), 404);
    }
}
