//! What homeservers are asked: who somebody is, and to hold up or send a delayed event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use discovery::{Answer, Discovery, Limits};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::Millis;
use crate::config::HomeserverConfig;
use crate::job::{Answered, Params};

const LIMITS: Limits = Limits { time: Duration::from_secs(10), bytes: 64 << 10 };
/// What stands for itself in a segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Homeservers.
#[derive(Debug)]
pub(crate) struct Homeservers {
    pub discovery: Arc<Discovery>,
    /// Those whose places are known.
    pub known: BTreeMap<String, HomeserverConfig>,
}

impl Homeservers {
    /// The user whom a homeserver gave an `OpenID` token.
    pub(crate) async fn user(&self, server: &str, token: &str) -> Result<String, String> {
        let token = utf8_percent_encode(token, SEGMENT);
        let path = format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
        let answer = match self.known.get(server).and_then(|known| known.federation_url.as_ref()) {
            Some(url) => {
                let url = format!("{}{path}", url.trim_end_matches('/'));
                // The error names no URL, and so no token.
                let asked = self.discovery.client().ask_own(
                    Method::GET,
                    &url,
                    HeaderMap::new(),
                    Bytes::new(),
                    LIMITS,
                );
                asked.await.map_err(|error| error.to_string())?
            }
            None => {
                self.discovery.federation(server, &path, LIMITS).await.map_err(|error| error.to_string())?
            }
        };
        if answer.status != StatusCode::OK {
            return Err(format!("{server} answers {}", answer.status));
        }
        let answer: Value = answer.json()?;
        let user = answer["sub"].as_str().ok_or_else(|| format!("{server} does not say who it is"))?;
        let (_, of) = user.strip_prefix('@').and_then(|rest| rest.split_once(':')).unwrap_or_default();
        if of != server || user.len() > 255 {
            return Err(format!("{server} speaks of a user who is not its own"));
        }
        Ok(user.to_owned())
    }

    /// The URL of a homeserver's client-server API, and whether the configuration has it.
    pub(crate) async fn client_url(&self, server: &str) -> Option<(String, bool)> {
        if let Some(url) = self.known.get(server).and_then(|known| known.client_url.as_ref()) {
            return Some((url.trim_end_matches('/').to_owned(), true));
        }
        let found = self.discovery.homeserver(server).await.ok()?;
        found.base_url.clone().map(|url| (url, false))
    }

    /// Has a homeserver `restart` or `send` a delayed event.
    pub(crate) async fn delayed(&self, job: &Params, action: &str) -> Answered {
        let Some((url, own)) = self.client_url(&job.server).await else { return Answered::NoApi };
        let id = utf8_percent_encode(&job.delay_id, SEGMENT);
        let url = format!("{url}/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{id}/{action}");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let (client, body) = (self.discovery.client(), Bytes::from_static(b"{}"));
        let asked = if own {
            client.ask_own(Method::POST, &url, headers, body, LIMITS).await
        } else {
            client.ask(Method::POST, &url, headers, body, LIMITS).await
        };
        match asked {
            Ok(answer) if answer.status.is_success() => Answered::Done,
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => Answered::NotFound,
            Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                Answered::Later(retry_after(&answer, SystemTime::now()))
            }
            Ok(answer) => {
                tracing::warn!(server = job.server, action, status = %answer.status, "a homeserver does not do what is asked of a delayed leave");
                Answered::Later(None)
            }
            Err(error) => {
                tracing::warn!(server = job.server, action, %error, "a homeserver cannot be asked about a delayed leave");
                Answered::Later(None)
            }
        }
    }
}

/// When to ask again, in milliseconds from now: by the header, in seconds or as a date, or by the body.
fn retry_after(answer: &Answer, now: SystemTime) -> Option<Millis> {
    let header = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(|text| {
        let text = text.trim();
        if let Ok(seconds) = text.parse::<u64>() {
            return Some(seconds.saturating_mul(1000));
        }
        let date = httpdate::parse_http_date(text).ok()?;
        let left = date.duration_since(now).unwrap_or_default().as_millis();
        Some(Millis::try_from(left).unwrap_or(Millis::MAX))
    });
    header.or_else(|| answer.json::<Value>().ok()?["retry_after_ms"].as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_homeserver_says_when_in_three_ways() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let after = |header: Option<&'static str>, body: &'static str| {
            let headers = header.map(|header| (RETRY_AFTER, HeaderValue::from_static(header)));
            let answer = Answer {
                status: StatusCode::TOO_MANY_REQUESTS,
                headers: headers.into_iter().collect(),
                body: Bytes::from_static(body.as_bytes()),
                address: ([127, 0, 0, 1], 1).into(),
            };
            retry_after(&answer, now)
        };
        assert_eq!(after(Some("3"), "{}"), Some(3000));
        assert_eq!(after(Some("Sun, 06 Nov 1994 08:49:47 GMT"), ""), Some(10_000));
        assert_eq!(after(Some("Sun, 06 Nov 1994 08:49:27 GMT"), ""), Some(0));
        assert_eq!(after(None, r#"{"retry_after_ms":1500}"#), Some(1500));
        assert_eq!(after(Some("soon"), r#"{"retry_after_ms":1500}"#), Some(1500));
        assert_eq!(after(None, "nothing"), None);
    }
}
