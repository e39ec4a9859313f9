//! What can be set about the router, with a reason for each default.

use std::time::Duration;

use model::{ProxyProtocol, Stack};
use routes::answers;

/// Limits, timeouts and patience of a router.
///
/// Part of a [`crate::Snapshot`], so a reload changes them. What holds for one class of requests alone (its timeout,
/// its cap) is in [`routes::Class`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether `/_synapse/admin` can be reached.
    pub admin_api: bool,
    /// Whether `X-Forwarded-For`, `-Proto` and `-Host` of a request are believed and added to; else they are replaced.
    pub trust_forwarded_for: bool,
    /// How many proxies in front add to `X-Forwarded-For` where that is believed. At least 1.
    pub trusted_proxies: u8,
    /// Whether connections begin with a header of the PROXY protocol, and whose may.
    pub proxy_protocol: Option<ProxyProtocol>,

    /// The most client connections at once. More wait in the listener's backlog. At least 1.
    pub max_connections: usize,
    /// The longest request line with all headers, in bytes; hyper needs at least 8192. Longer ones get 431.
    pub max_head_bytes: usize,
    /// The most header lines of a request. More get 431.
    pub max_headers: usize,
    /// [`answers::HEAD_TIMEOUT`].
    pub head_timeout: Duration,
    /// [`answers::IDLE_TIMEOUT`].
    pub idle_timeout: Duration,
    /// [`answers::BODY_STALL`].
    pub body_stall: Duration,
    /// How long a client may read nothing while response bytes wait for it.
    pub write_stall: Duration,

    /// The largest request body, in bytes.
    pub max_body_bytes: u64,
    /// The largest body of an upload of media, in bytes.
    pub max_upload_bytes: u64,
    /// Request bodies up to this size are read whole before an instance is asked, so that slow clients cost it
    /// nothing and the request can be sent again; longer ones with a length are streamed. In bytes.
    pub buffer_bytes: usize,

    /// [`answers::CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// [`answers::UPSTREAM_IDLE`].
    pub upstream_idle: Duration,
    /// The most idle connections kept to each instance.
    pub upstream_idle_max: usize,
    /// How long the head of a response may take at most, whatever the class allows.
    pub max_response_time: Duration,
    /// How long an instance may pause within a response body.
    pub response_stall: Duration,
    /// How often one request is sent at most, first attempt included. Attempts that found nobody listening do not
    /// count: [`Settings::patience`] bounds those.
    pub attempts: u32,

    /// The most requests that wait for a place, for each class and role. More get 429.
    pub queue_length: usize,
    /// How long a request waits for a place before it gets 429: [`answers::QUEUE_TIMEOUT`].
    pub queue_timeout: Duration,

    /// The most requests of each role that wait for an instance that is about to come back, long polls that were on it
    /// among them. More get 503.
    pub max_waiting: usize,
    /// How long a request waits for an instance that is about to come back, if nobody else can serve it.
    pub patience: Duration,
    /// The same where another role could serve it: long enough for a local restart, too short to be a nuisance.
    pub fallback_patience: Duration,
    /// How long a request waits while the router is paused ([`crate::Router::pause`]): as long as a whole stack takes
    /// to start, and shorter than clients wait.
    pub pause_patience: Duration,
    /// For how long an instance that went away counts as about to come back.
    pub restart_grace: Duration,

    /// Time between health checks of an instance that is well: [`answers::HEALTH_INTERVAL`].
    pub health_interval: Duration,
    /// Time between health checks of an instance that is not.
    pub health_interval_down: Duration,
    /// [`answers::HEALTH_TIMEOUT`].
    pub health_timeout: Duration,
    /// How many health checks in a row must time out before the instance counts as sick. A refused connection
    /// counts at once.
    pub health_failures: u32,
    /// How many requests in a row must end without a response before the instance counts as sick.
    pub eject_after: u32,
    /// How long an instance that was ejected so stays sick.
    pub eject_for: Duration,

    /// How long it is remembered whose an access token is.
    pub whoami_ttl: Duration,
    /// The most access tokens (as hashes) whose users are remembered.
    pub whoami_entries: usize,
    /// How long Synapse may take to say whose an access token is, before the token itself is the key.
    pub whoami_timeout: Duration,
    /// The most such questions at once.
    pub whoami_concurrency: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            admin_api: false,
            trust_forwarded_for: false,
            trusted_proxies: 1,
            proxy_protocol: None,
            max_connections: 20_000,
            max_head_bytes: 32 << 10,
            max_headers: 100,
            head_timeout: answers::HEAD_TIMEOUT,
            idle_timeout: answers::IDLE_TIMEOUT,
            body_stall: answers::BODY_STALL,
            write_stall: Duration::from_secs(60),
            max_body_bytes: answers::MAX_REQUEST_BYTES,
            max_upload_bytes: 50 << 20,
            buffer_bytes: 64 << 10,
            connect_timeout: answers::CONNECT_TIMEOUT,
            upstream_idle: answers::UPSTREAM_IDLE,
            upstream_idle_max: 64,
            max_response_time: Duration::from_secs(900),
            response_stall: Duration::from_secs(120),
            attempts: 3,
            queue_length: 128,
            queue_timeout: answers::QUEUE_TIMEOUT,
            max_waiting: 4096,
            patience: Duration::from_secs(15),
            fallback_patience: Duration::from_secs(2),
            pause_patience: Duration::from_secs(60),
            restart_grace: Duration::from_secs(20),
            health_interval: answers::HEALTH_INTERVAL,
            health_interval_down: Duration::from_millis(100),
            health_timeout: answers::HEALTH_TIMEOUT,
            health_failures: answers::HEALTH_FAILURES,
            eject_after: 5,
            eject_for: Duration::from_secs(5),
            whoami_ttl: Duration::from_secs(3600),
            whoami_entries: 100_000,
            whoami_timeout: Duration::from_secs(2),
            whoami_concurrency: 32,
        }
    }
}

impl Settings {
    /// How many proxies in front are believed in what they say of the client.
    pub(crate) fn believed(&self) -> usize {
        if self.trust_forwarded_for { usize::from(self.trusted_proxies.max(1)) } else { 0 }
    }

    /// The defaults, with what the stack says.
    pub fn from_stack(stack: &Stack) -> Self {
        Self {
            admin_api: stack.listen.admin_api,
            trust_forwarded_for: stack.listen.trust_forwarded_for,
            trusted_proxies: stack.listen.trusted_proxies,
            proxy_protocol: stack.listen.proxy_protocol.clone(),
            max_upload_bytes: stack.media.max_upload_bytes(),
            ..Self::default()
        }
    }
}
