//! LiveKit servers, asked by Twirp: HTTP with protocol buffers.

use std::time::Duration;

use bytes::Bytes;
use discovery::{Client, Limits, RequestError};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use prost::Message;

use crate::jwt::{Key, Video};
use crate::now;

const LIMITS: Limits = Limits { time: Duration::from_secs(10), bytes: 4 << 20 };
/// How long a token for one question is good, in seconds.
const SHORT: u64 = 60;

/// One server.
#[derive(Debug)]
pub(crate) struct Sfu {
    /// What clients are given.
    pub url: String,
    /// What Twirp's paths are below, without a slash at its end.
    pub api: String,
    /// The first one signs.
    pub keys: Vec<Key>,
}

/// Why an SFU did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SfuError {
    /// It has no such room or participant.
    #[error("it is not there")]
    NotFound,
    /// It says no.
    #[error("{status}: {message}")]
    Refused { status: StatusCode, message: String },
    /// It does not answer, or not in its language.
    #[error("{0}")]
    Request(String),
}

impl From<RequestError> for SfuError {
    fn from(error: RequestError) -> Self {
        Self::Request(error.to_string())
    }
}

// The numbers of the fields are those of `livekit_room.proto` and `livekit_models.proto`. Fields that are not named are skipped.

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateRoom {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Seconds until a room goes that nobody has joined.
    #[prost(uint32, tag = "2")]
    pub empty_timeout: u32,
    /// 0: any number.
    #[prost(uint32, tag = "3")]
    pub max_participants: u32,
    /// Seconds until a room goes that everybody has left.
    #[prost(uint32, tag = "10")]
    pub departure_timeout: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ListRooms {
    #[prost(string, repeated, tag = "1")]
    names: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Rooms {
    #[prost(message, repeated, tag = "1")]
    rooms: Vec<Room>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Room {
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(uint32, tag = "9")]
    pub num_participants: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Participant {
    #[prost(string, tag = "1")]
    room: String,
    #[prost(string, tag = "2")]
    identity: String,
}

/// The URL for Twirp of a server that clients reach at `url`.
pub(crate) fn api_of(url: &str) -> String {
    let url = url.trim_end_matches('/');
    // `ws` becomes `http`, and with it `wss` becomes `https`.
    url.strip_prefix("ws").map_or_else(|| url.to_owned(), |rest| format!("http{rest}"))
}

impl Sfu {
    /// Makes a room, or leaves the one of this name as it is.
    pub(crate) async fn create_room(&self, client: &Client, name: &str) -> Result<(), SfuError> {
        let room = CreateRoom {
            name: name.to_owned(),
            empty_timeout: 300,
            departure_timeout: 20,
            max_participants: 0,
        };
        let video = Video { room_create: Some(true), ..Video::default() };
        self.call::<_, Room>(client, "CreateRoom", &room, video).await.map(drop)
    }

    /// Whether a participant is in a room.
    pub(crate) async fn has(&self, client: &Client, room: &str, identity: &str) -> Result<bool, SfuError> {
        let asked = Participant { room: room.to_owned(), identity: identity.to_owned() };
        let video = Video { room_admin: Some(true), room: Some(room), ..Video::default() };
        match self.call::<_, ()>(client, "GetParticipant", &asked, video).await {
            Ok(()) => Ok(true),
            Err(SfuError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Its rooms, or those of these names.
    pub(crate) async fn rooms(&self, client: &Client, names: &[&str]) -> Result<Vec<Room>, SfuError> {
        let asked = ListRooms { names: names.iter().map(ToString::to_string).collect() };
        let video = Video { room_list: Some(true), ..Video::default() };
        Ok(self.call::<_, Rooms>(client, "ListRooms", &asked, video).await?.rooms)
    }

    async fn call<Q: Message, A: Message + Default>(
        &self,
        client: &Client,
        method: &str,
        asked: &Q,
        video: Video<'_>,
    ) -> Result<A, SfuError> {
        let url = format!("{}/twirp/livekit.RoomService/{method}", self.api);
        let token = self.keys[0].token(None, &video, now(), SHORT);
        let token = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|error| SfuError::Request(error.to_string()))?;
        let protobuf = HeaderValue::from_static("application/protobuf");
        let headers = HeaderMap::from_iter([(AUTHORIZATION, token), (CONTENT_TYPE, protobuf)]);
        let body = Bytes::from(asked.encode_to_vec());
        let answer = client.ask_own(Method::POST, &url, headers, body, LIMITS).await?;
        match answer.status {
            StatusCode::OK => A::decode(answer.body).map_err(|error| SfuError::Request(error.to_string())),
            StatusCode::NOT_FOUND if error_code(&answer.body) == Some("not_found".to_owned()) => {
                Err(SfuError::NotFound)
            }
            status => {
                let message = String::from_utf8_lossy(&answer.body).chars().take(300).collect();
                Err(SfuError::Refused { status, message })
            }
        }
    }
}

/// The code of an error of Twirp's. A path that is not there is `bad_route`, which is no participant's absence.
fn error_code(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<serde_json::Value>(body).ok()?.get("code")?.as_str().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twirp_is_at_the_same_place_by_http() {
        for (url, api) in [
            ("wss://a.org", "https://a.org"),
            ("ws://a.org:7880/", "http://a.org:7880"),
            ("wss://a.org/livekit/sfu/", "https://a.org/livekit/sfu"),
            ("https://a.org/x", "https://a.org/x"),
        ] {
            assert_eq!(api_of(url), api);
        }
    }
}
