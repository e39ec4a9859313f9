//! What can go wrong between a service and its homeserver.

use std::time::Duration;

use serde::Deserialize;

/// The longest that a homeserver is believed when it asks to wait.
const LONGEST: Duration = Duration::from_secs(3600);

/// Why a request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No answer came, so nobody knows whether the request was carried out.
    #[error("the homeserver cannot be reached: {0}")]
    Unreachable(String),
    /// An answer that is not a homeserver's: a proxy's, say, while the homeserver is away.
    #[error("an answer with status {status} that is no homeserver's: {reason}")]
    Foreign {
        /// The status.
        status: u16,
        /// What is wrong with it.
        reason: String,
    },
    /// The homeserver refused.
    #[error("the homeserver answered {status} {code}: {message}")]
    Refused {
        /// The status.
        status: u16,
        /// `errcode`, as the specification lists them.
        code: String,
        /// What the homeserver says about it.
        message: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
}

/// Whether the same request can succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It can, and has nothing to do with what was asked: the homeserver is away, or busy, or the account is not in order.
    Later(Option<Duration>),
    /// It cannot.
    Never,
}

/// What else is wrong than the request, by the specification's error codes: the account, the homeserver, what is in front of it.
const NOT_THE_REQUEST: [&str; 8] = [
    "M_LIMIT_EXCEEDED",
    "M_MISSING_TOKEN",
    "M_UNKNOWN_TOKEN",
    "M_UNRECOGNIZED",
    "M_USER_DEACTIVATED",
    "M_USER_LOCKED",
    "M_USER_SUSPENDED",
    "M_RESOURCE_LIMIT_EXCEEDED",
];

impl Error {
    pub(crate) fn of_answer(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Answer {
            errcode: String,
            #[serde(default)]
            error: String,
            retry_after_ms: Option<u64>,
        }
        match serde_json::from_slice::<Answer>(body) {
            Ok(answer) => Self::Refused {
                status,
                code: answer.errcode,
                message: answer.error.chars().take(300).collect(),
                retry_after: retry_after
                    .or(answer.retry_after_ms.map(Duration::from_millis))
                    .map(|wait| wait.min(LONGEST)),
            },
            Err(_) => Self::Foreign { status, reason: "its body has no `errcode`".to_owned() },
        }
    }

    /// Whether the same request can succeed later.
    pub fn again(&self) -> Again {
        match self {
            Self::Unreachable(_) | Self::Foreign { .. } => Again::Later(None),
            Self::Refused { status, code, retry_after, .. } => {
                let elsewhere = matches!(status, 401 | 408 | 429 | 500..);
                if elsewhere || NOT_THE_REQUEST.contains(&code.as_str()) {
                    Again::Later(*retry_after)
                } else {
                    Again::Never
                }
            }
        }
    }

    /// The homeserver's error code, where it is the homeserver that refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wrong_with_the_request_is_final() {
        let of = |status, body: &str| Error::of_answer(status, None, body.as_bytes()).again();
        let soon = Again::Later(Some(Duration::from_millis(1500)));
        assert_eq!(of(429, r#"{"errcode":"M_LIMIT_EXCEEDED","error":"x","retry_after_ms":1500}"#), soon);
        for (status, body) in [
            (502, "<html>bad gateway</html>"),
            (404, "not here"),
            (403, "{}"),
            (500, r#"{"errcode":"M_UNKNOWN"}"#),
            (401, r#"{"errcode":"M_UNKNOWN_TOKEN"}"#),
            (404, r#"{"errcode":"M_UNRECOGNIZED"}"#),
            (403, r#"{"errcode":"M_RESOURCE_LIMIT_EXCEEDED"}"#),
        ] {
            assert_eq!(of(status, body), Again::Later(None), "{status} {body}");
        }
        for (status, code) in [
            (403, "M_FORBIDDEN"),
            (404, "M_NOT_FOUND"),
            (413, "M_TOO_LARGE"),
            (400, "M_BAD_JSON"),
            (400, "M_UNKNOWN"),
        ] {
            assert_eq!(of(status, &format!(r#"{{"errcode":"{code}"}}"#)), Again::Never, "{status} {code}");
        }
        let header =
            Error::of_answer(429, Some(Duration::from_secs(9999)), br#"{"errcode":"M_LIMIT_EXCEEDED"}"#);
        assert_eq!(header.again(), Again::Later(Some(LONGEST)));
    }
}
