//! What is answered in front of Synapse, without asking a process, and the limits that hold there: the same for the
//! router and for the configuration of other proxies.

use std::time::Duration;

use model::Stack;

use crate::policy::{Class, ClassId};

/// The headers of every answer of one's own. Those that the client-server API recommends ("Web Browser Clients"), and
/// those that Synapse allows or shows beyond them: `Date`; `If-Match`, `If-None-Match` and `ETag` for rendezvous
/// sessions (MSC4108); its trace ID.
pub const CORS: [(&str, &str); 4] = [
    ("access-control-allow-origin", "*"),
    ("access-control-allow-methods", "GET, HEAD, POST, PUT, DELETE, OPTIONS"),
    (
        "access-control-allow-headers",
        "X-Requested-With, Content-Type, Authorization, Date, If-Match, If-None-Match",
    ),
    ("access-control-expose-headers", "Synapse-Trace-Id, Server, ETag, Retry-After"),
];

/// How long browsers may keep the answer to a CORS preflight, in seconds: a day.
pub const PREFLIGHT_MAX_AGE: &str = "86400";

/// The page at `/`, for people who open the homeserver's address in a browser.
pub const LANDING: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Matrix homeserver</title>\
    <h1>A Matrix homeserver</h1><p>This address is for Matrix clients: enter it as the homeserver in yours. \
    <a href=\"/_matrix/client/versions\">What it speaks</a>.</p></html>\n";

/// Synapse's limit for request bodies that are not uploads: 200 events of 64 KiB (`MAX_REQUEST_SIZE` in
/// `synapse/api/constants.py`). A full federation transaction fits.
pub const MAX_REQUEST_BYTES: u64 = 200 * 65_536;

/// From a request's first byte to the end of its headers.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a client's connection may be open without a request. Longer than the 60 s after which common load
/// balancers close theirs, so that it is never we who close a connection under a request.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a client may send nothing while its request body is awaited.
pub const BODY_STALL: Duration = Duration::from_secs(30);

/// How long connecting to an instance may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection to an instance is kept without a request. Synapse closes its own after 60 s.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(30);

/// How long a request waits for a place at a busy instance.
pub const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between health checks of an instance.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// How long a health check may take. A busy Synapse answers late: its interpreter runs one thing at a time.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// How many health checks in a row must fail before an instance counts as sick.
pub const HEALTH_FAILURES: u32 = 3;

impl Class {
    /// The largest request body, in bytes: `upload` for uploads of media, `other` for all else. Some uploads are no
    /// larger than other requests, so `other` is the least.
    pub fn max_body(&self, upload: u64, other: u64) -> u64 {
        if self.id == ClassId::MediaUpload { upload.max(other) } else { other }
    }

    /// The largest request body in this stack, in bytes.
    pub fn max_body_of(&self, stack: &Stack) -> u64 {
        self.max_body(stack.media.max_upload_bytes(), MAX_REQUEST_BYTES)
    }
}
