//! The documents below `/.well-known/matrix/`, as others read them.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AGE, CACHE_CONTROL, LOCATION};
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;

use crate::client::{Client, Limits};
use crate::name::Name;
use crate::{Answer, Step};

/// What one document may take, each redirect counted by itself. Synapse reads up to 50 KiB.
const LIMITS: Limits = Limits { time: Duration::from_secs(10), bytes: 50 << 10 };
/// How many redirects are followed.
const REDIRECTS: usize = 5;
/// How long a document holds that does not say: what the specification recommends, and its bounds.
const STANDARD: Duration = Duration::from_secs(24 * 3600);
const LONGEST: Duration = Duration::from_secs(48 * 3600);
const SHORTEST: Duration = Duration::from_secs(300);
/// How long it holds that there is no document; the specification's bound is an hour.
const ABSENT: Duration = Duration::from_secs(3600);
/// How long it holds that nothing is known, for the server may be about to come back.
const UNKNOWN: Duration = Duration::from_secs(120);

/// Where other servers shall go for a server, if it says so, and for how long that holds.
pub(crate) async fn server(client: &Client, host: &str, steps: &mut Vec<Step>) -> (Option<Name>, Duration) {
    let url = format!("https://{host}/.well-known/matrix/server");
    let read = |document: &Value| {
        let text = document.get("m.server").and_then(Value::as_str).ok_or("there is no `m.server` in it")?;
        Name::parse(text)
            .map(|name| (name, format!("m.server: {text}")))
            .map_err(|error| format!("m.server: {error}"))
    };
    fetch(client, url, steps, read).await
}

/// The document for clients, if there is one, and for how long that holds.
pub(crate) async fn client(client: &Client, host: &str, steps: &mut Vec<Step>) -> (Option<Value>, Duration) {
    let url = format!("https://{host}/.well-known/matrix/client");
    let read = |document: &Value| {
        let url =
            base_url(document).ok_or("there is no `m.homeserver` with a `base_url` in it that is a URL")?;
        Ok((document.clone(), format!("base_url: {url}")))
    };
    let (document, valid) = fetch(client, url, steps, read).await;
    // A client asks again soon, since nobody else falls back to something without the document.
    let valid = if document.is_some() { valid } else { valid.min(SHORTEST) };
    (document, valid)
}

/// The URL of a document for clients, without a slash at its end.
pub(crate) fn base_url(document: &Value) -> Option<String> {
    let url = document.get("m.homeserver")?.get("base_url")?.as_str()?.trim_end_matches('/');
    let uri: http::Uri = url.parse().ok()?;
    let good =
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty());
    (good && uri.query().is_none()).then(|| url.to_owned())
}

async fn fetch<T>(
    client: &Client,
    mut url: String,
    steps: &mut Vec<Step>,
    read: impl Fn(&Value) -> Result<(T, String), String>,
) -> (Option<T>, Duration) {
    for _ in 0..=REDIRECTS {
        let asked = url.clone();
        let mut step = |found: String, used| steps.push(Step { asked: asked.clone(), found, used });
        let answer = match client.ask(Method::GET, &url, HeaderMap::new(), Bytes::new(), LIMITS).await {
            Ok(answer) => answer,
            Err(error) => {
                step(error.to_string(), false);
                return (None, UNKNOWN);
            }
        };
        match answer.status {
            StatusCode::OK => {
                let value = answer.json::<Value>().and_then(|document| read(&document));
                return match value {
                    Ok((value, found)) => {
                        step(found, true);
                        (Some(value), lifetime(&answer))
                    }
                    Err(error) => {
                        step(error, false);
                        (None, ABSENT)
                    }
                };
            }
            status if status.is_redirection() => match redirected(&url, &answer) {
                Ok(next) => {
                    step(format!("{status} to {next}"), true);
                    url = next;
                }
                Err(error) => {
                    step(error, false);
                    return (None, ABSENT);
                }
            },
            status => {
                step(status.to_string(), false);
                return (None, if status.is_client_error() { ABSENT } else { UNKNOWN });
            }
        }
    }
    steps.push(Step { asked: url, found: format!("more than {REDIRECTS} redirects"), used: false });
    (None, ABSENT)
}

/// The URL that a redirect leads to: of https, as all of them.
fn redirected(url: &str, answer: &Answer) -> Result<String, String> {
    let to = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if to.starts_with("https://") {
        return Ok(to.to_owned());
    }
    let end = url["https://".len()..].find('/').map_or(url.len(), |at| at + "https://".len());
    if to.starts_with('/') && !to.starts_with("//") {
        return Ok(format!("{}{to}", &url[..end]));
    }
    Err(format!("{} to `{}`, which is not of https", answer.status, to.chars().take(200).collect::<String>()))
}

/// For how long an answer holds, by its `Cache-Control`.
fn lifetime(answer: &Answer) -> Duration {
    let number = |text: &str| text.trim().trim_matches('"').parse().ok().map(Duration::from_secs);
    let mut valid = STANDARD;
    for value in answer.headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok()) {
        for directive in value.split(',').map(str::trim) {
            match directive.split_once('=') {
                Some((name, age)) if name.eq_ignore_ascii_case("max-age") => {
                    valid = number(age).unwrap_or(STANDARD);
                }
                None if ["no-store", "no-cache"].iter().any(|name| directive.eq_ignore_ascii_case(name)) => {
                    return SHORTEST;
                }
                _ => {}
            }
        }
    }
    let age = answer.headers.get(AGE).and_then(|value| number(value.to_str().ok()?)).unwrap_or_default();
    valid.saturating_sub(age).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn answer(headers: &[(http::HeaderName, &'static str)]) -> Answer {
        let headers =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        let address = ([127, 0, 0, 1], 1).into();
        Answer { status: StatusCode::FOUND, headers, body: Bytes::new(), address }
    }

    #[test]
    fn documents_hold_as_long_as_they_say_within_bounds() {
        for (headers, seconds) in [
            (&[][..], 24 * 3600),
            (&[(CACHE_CONTROL, "public, max-age=7200")], 7200),
            (&[(CACHE_CONTROL, "Max-Age=\"7200\"")], 7200),
            (&[(CACHE_CONTROL, "max-age=7200"), (AGE, "200")], 7000),
            (&[(CACHE_CONTROL, "max-age=1")], 300),
            (&[(CACHE_CONTROL, "max-age=99999999999")], 48 * 3600),
            (&[(CACHE_CONTROL, "max-age=x")], 24 * 3600),
            (&[(CACHE_CONTROL, "no-store, max-age=7200")], 300),
        ] {
            assert_eq!(lifetime(&answer(headers)).as_secs(), seconds, "{headers:?}");
        }
    }

    #[test]
    fn redirects_stay_with_https() {
        let to = |location| {
            redirected("https://a.org/.well-known/matrix/server", &answer(&[(LOCATION, location)])).ok()
        };
        assert_eq!(to("https://b.org/x").as_deref(), Some("https://b.org/x"));
        assert_eq!(to("/x").as_deref(), Some("https://a.org/x"));
        for bad in ["http://b.org/x", "//b.org/x", "x", "", "file:///etc/passwd"] {
            assert_eq!(to(bad), None, "{bad}");
        }
    }

    #[test]
    fn base_urls_are_urls() {
        let url = |url: &str| base_url(&json!({ "m.homeserver": { "base_url": url } }));
        assert_eq!(url("https://a.org/").as_deref(), Some("https://a.org"));
        assert_eq!(url("http://127.0.0.1:8008/x/").as_deref(), Some("http://127.0.0.1:8008/x"));
        for bad in ["a.org", "ftp://a.org", "https://", "", "https://a.org?x"] {
            assert_eq!(url(bad), None, "{bad}");
        }
        assert_eq!(base_url(&json!({ "m.homeserver": {} })), None);
    }
}
