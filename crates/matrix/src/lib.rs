//! A small client of Matrix homeservers for services that post into rooms.
//!
//! It makes each request once; [`Error`] says whether the same request can succeed later, and who retries decides when.

mod error;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use error::{Again, Error};
use transport::Transport;

/// How long a homeserver may take to answer. Synapse itself gives up on its workers after a minute.
const ANSWER: Duration = Duration::from_secs(70);

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 8 << 20;

/// A path segment, with everything encoded that could be mistaken for the path's own.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// An account on a homeserver.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    base: String,
    authorization: http::HeaderValue,
    transport: Transport,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.inner.base).finish_non_exhaustive()
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// Not the URL of a homeserver or a proxy.
    #[error("`{url}` is not a URL as `https://matrix.example.org`: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Not something that can be sent as a token.
    #[error("the access token has characters that no access token has")]
    Token,
    /// The system has no certificates to trust.
    #[error("no certificates to trust are found: {0}")]
    Certificates(std::io::Error),
}

/// Who a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Whoami {
    /// The user.
    pub user_id: String,
    /// The device, to which transaction IDs belong. Tokens of application services and of administrators have none.
    pub device_id: Option<String>,
}

/// What an alias stands for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Resolved {
    /// The room.
    pub room_id: String,
    /// Servers that are in it.
    #[serde(default)]
    pub servers: Vec<String>,
}

/// A part of a room's past.
#[derive(Clone, Debug, Deserialize)]
pub struct Messages {
    /// Events, the newest first.
    #[serde(default)]
    pub chunk: Vec<Value>,
    /// Where older ones begin; none where there are none.
    pub end: Option<String>,
}

impl Client {
    /// An account on the homeserver at a URL, by its access token, through an HTTP proxy if one is named.
    pub fn new(homeserver: &str, token: &str, proxy: Option<&str>) -> Result<Self, Unusable> {
        let base = homeserver.trim_end_matches('/');
        let wrong =
            |url: &str, reason: &str| Unusable::Url { url: url.to_owned(), reason: reason.to_owned() };
        let parse = |url: &str| -> Result<Uri, Unusable> {
            let uri: Uri =
                url.parse().map_err(|error: http::uri::InvalidUri| wrong(url, &error.to_string()))?;
            match uri.scheme_str() {
                Some("http" | "https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
                _ => Err(wrong(url, "it has to begin with `https://` or `http://` and a host")),
            }
        };
        if parse(base)?.query().is_some() {
            return Err(wrong(base, "it has a query"));
        }
        let mut authorization =
            http::HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| Unusable::Token)?;
        authorization.set_sensitive(true);
        let proxy = proxy.map(parse).transpose()?;
        let transport = Transport::new(proxy).map_err(Unusable::Certificates)?;
        Ok(Self { inner: Arc::new(Inner { base: base.to_owned(), authorization, transport }) })
    }

    /// The versions of the specification that the homeserver speaks. It needs no account.
    pub async fn versions(&self) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Versions {
            versions: Vec<String>,
        }
        self.ask::<Versions>(Method::GET, "/_matrix/client/versions", None)
            .await
            .map(|answer| answer.versions)
    }

    /// Who the token belongs to.
    pub async fn whoami(&self) -> Result<Whoami, Error> {
        self.ask(Method::GET, "/_matrix/client/v3/account/whoami", None).await
    }

    /// The room of an alias.
    pub async fn resolve(&self, alias: &str) -> Result<Resolved, Error> {
        self.ask(Method::GET, &format!("/_matrix/client/v3/directory/room/{}", segment(alias)), None).await
    }

    /// Joins a room by its ID or an alias, through these servers if it is none of the homeserver's, and says its ID.
    pub async fn join(&self, room: &str, via: &[String]) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Joined {
            room_id: String,
        }
        let query: Vec<String> =
            via.iter().map(|server| format!("via={0}&server_name={0}", segment(server))).collect();
        let path = format!("/_matrix/client/v3/join/{}?{}", segment(room), query.join("&"));
        let body = Some(Bytes::from_static(b"{}"));
        self.ask::<Joined>(Method::POST, path.trim_end_matches('?'), body).await.map(|answer| answer.room_id)
    }

    /// The content of a room's state; none where there is no such state.
    pub async fn state(&self, room_id: &str, kind: &str, key: &str) -> Result<Option<Value>, Error> {
        let path =
            format!("/_matrix/client/v3/rooms/{}/state/{}/{}", segment(room_id), segment(kind), segment(key));
        match self.ask(Method::GET, &path, None).await {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.code() == Some("M_NOT_FOUND") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends an event, whose content is JSON, and says its ID. The same transaction ID again, by the same device and soon, is the same
    /// event.
    pub async fn send(&self, room_id: &str, kind: &str, txn: &str, content: Bytes) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Sent {
            event_id: String,
        }
        let path =
            format!("/_matrix/client/v3/rooms/{}/send/{}/{}", segment(room_id), segment(kind), segment(txn));
        self.ask::<Sent>(Method::PUT, &path, Some(content)).await.map(|answer| answer.event_id)
    }

    /// A room's past from its newest event or from where a former part ended: messages that a user sent.
    pub async fn messages(&self, room_id: &str, from: Option<&str>, sender: &str) -> Result<Messages, Error> {
        let filter = json!({ "senders": [sender], "types": ["m.room.message"] }).to_string();
        let mut path = format!(
            "/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100&filter={}",
            segment(room_id),
            segment(&filter)
        );
        if let Some(from) = from {
            path.push_str("&from=");
            path.push_str(&segment(from));
        }
        self.ask(Method::GET, &path, None).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<T, Error> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.inner.base))
            .header(http::header::AUTHORIZATION, self.inner.authorization.clone())
            .header(http::header::USER_AGENT, concat!("matrix-stack/", env!("CARGO_PKG_VERSION")));
        if body.is_some() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(http_body_util::Full::new(body.unwrap_or_default()))
            .map_err(|error| Error::Unreachable(error.to_string()))?;
        let asking = self.inner.transport.ask(request, MAX_ANSWER);
        let (status, retry_after, body) = tokio::time::timeout(ANSWER, asking)
            .await
            .map_err(|_| Error::Unreachable(format!("no answer in {} s", ANSWER.as_secs())))?
            .map_err(Error::Unreachable)?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| Error::Foreign { status: status.as_u16(), reason: error.to_string() });
        }
        Err(Error::of_answer(status.as_u16(), retry_after, &body))
    }
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_of_homeservers_are_taken() {
        for good in ["https://matrix.example.org", "http://127.0.0.1:8008/", "https://example.org/base/"] {
            Client::new(good, "token", None).unwrap();
        }
        for bad in ["matrix.example.org", "ftp://example.org", "https://", "https://example.org?x", "unix:/x"]
        {
            let error = Client::new(bad, "token", None).unwrap_err();
            assert!(error.to_string().contains(bad.trim_end_matches('/')), "{error}");
        }
        assert!(matches!(Client::new("https://example.org", "a\nb", None), Err(Unusable::Token)));
        let client = Client::new("https://example.org", "sesame", Some("http://proxy:3128")).unwrap();
        assert!(!format!("{client:?}").contains("sesame"));
    }

    #[test]
    fn names_are_one_segment() {
        assert_eq!(segment("!a/b:example.org"), "%21a%2Fb%3Aexample.org");
        assert_eq!(segment("#ä?"), "%23%C3%A4%3F");
    }
}
