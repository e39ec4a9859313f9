//! What can go wrong with a request: who is to blame, what the client is told, and whether to try again.

use http::{Method, StatusCode};

/// Who failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// Whoever sent the request.
    Client,
    /// The router, by a rule or a limit of its own.
    Router,
    /// The Synapse process behind.
    Upstream,
}

/// Why a request got no response of Synapse's, or not a whole one. Labels the metrics and the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The client went away before it had its response.
    ClientGone,
    /// The client's request breaks HTTP.
    ClientMalformed,
    /// The client sent its request too slowly.
    ClientSlow,
    /// The request body is larger than allowed.
    BodyTooLarge,
    /// The method or transfer coding is none that the router passes on.
    Unsupported,
    /// The path is closed on this listener.
    Closed,
    /// The path is none of Matrix's or Synapse's.
    NotFound,
    /// Too many requests of this class.
    Shed,
    /// No instance could take the request, and waiting was in vain or would have been.
    NoInstance,
    /// The router is stopping.
    Stopping,
    /// The router could not keep the request body (temporary storage is full or cannot be written).
    Storage,
    /// The instance could not be connected to.
    Connect,
    /// The connection broke before anything was sent on it.
    ResetUnsent,
    /// The connection broke after something was sent, before a response.
    Reset,
    /// The instance answered something that is not HTTP.
    Garbage,
    /// No response within the class's timeout.
    Timeout,
    /// The response body broke off.
    Truncated,
}

impl Failure {
    /// Every failure.
    pub const ALL: [Self; 17] = [
        Self::ClientGone,
        Self::ClientMalformed,
        Self::ClientSlow,
        Self::BodyTooLarge,
        Self::Unsupported,
        Self::Closed,
        Self::NotFound,
        Self::Shed,
        Self::NoInstance,
        Self::Stopping,
        Self::Storage,
        Self::Connect,
        Self::ResetUnsent,
        Self::Reset,
        Self::Garbage,
        Self::Timeout,
        Self::Truncated,
    ];

    /// Its name in metrics and the access log.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::ClientMalformed => "client_malformed",
            Self::ClientSlow => "client_slow",
            Self::BodyTooLarge => "client_body_too_large",
            Self::Unsupported => "client_unsupported",
            Self::Closed => "router_closed",
            Self::NotFound => "router_not_found",
            Self::Shed => "router_shed",
            Self::NoInstance => "router_no_instance",
            Self::Stopping => "router_stopping",
            Self::Storage => "router_storage",
            Self::Connect => "upstream_connect",
            Self::ResetUnsent => "upstream_reset_unsent",
            Self::Reset => "upstream_reset",
            Self::Garbage => "upstream_garbage",
            Self::Timeout => "upstream_timeout",
            Self::Truncated => "upstream_truncated",
        }
    }

    /// Who failed.
    pub const fn blame(self) -> Blame {
        match self {
            Self::ClientGone
            | Self::ClientMalformed
            | Self::ClientSlow
            | Self::BodyTooLarge
            | Self::Unsupported => Blame::Client,
            Self::Closed
            | Self::NotFound
            | Self::Shed
            | Self::NoInstance
            | Self::Stopping
            | Self::Storage => Blame::Router,
            Self::Connect
            | Self::ResetUnsent
            | Self::Reset
            | Self::Garbage
            | Self::Timeout
            | Self::Truncated => Blame::Upstream,
        }
    }

    /// Whether any byte of the request may have reached an instance.
    pub const fn sent(self) -> bool {
        matches!(self, Self::Reset | Self::Garbage | Self::Timeout | Self::Truncated)
    }

    /// Whether a request of this method may be sent again after this failure: if nothing was sent, any; if the
    /// connection broke without a response, those that are safe by definition (RFC 9110, section 9.2.1). Garbage and
    /// timeouts are answers of a kind; asking again would meet the same or take too long.
    pub fn may_retry(self, method: &Method) -> bool {
        match self {
            Self::Connect | Self::ResetUnsent => true,
            Self::Reset => method.is_safe(),
            _ => false,
        }
    }

    /// The status that the client gets, where it can still get one.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::ClientGone | Self::ClientMalformed => StatusCode::BAD_REQUEST,
            Self::ClientSlow => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::Closed | Self::NotFound => StatusCode::NOT_FOUND,
            Self::Shed => StatusCode::TOO_MANY_REQUESTS,
            Self::NoInstance | Self::Stopping | Self::Storage => StatusCode::SERVICE_UNAVAILABLE,
            Self::Connect | Self::ResetUnsent | Self::Reset | Self::Garbage | Self::Truncated => {
                StatusCode::BAD_GATEWAY
            }
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Matrix's error code.
    pub const fn errcode(self) -> &'static str {
        match self {
            Self::Closed | Self::NotFound | Self::Unsupported => "M_UNRECOGNIZED",
            Self::BodyTooLarge => "M_TOO_LARGE",
            Self::Shed => "M_LIMIT_EXCEEDED",
            _ => "M_UNKNOWN",
        }
    }

    /// What the client is told.
    pub const fn message(self) -> &'static str {
        match self {
            Self::ClientGone => "The client closed the connection",
            Self::ClientMalformed => "The request is not well-formed HTTP",
            Self::ClientSlow => "The request body took too long to arrive",
            Self::BodyTooLarge => "The request body is too large",
            Self::Unsupported => "This method or transfer coding is not supported",
            Self::Closed | Self::NotFound => "Unrecognized request",
            Self::Shed => "Too many requests of this kind are under way; try again in a moment",
            Self::NoInstance => {
                "The process that serves this request is not available; try again in a moment"
            }
            Self::Stopping => "The server is restarting; try again in a moment",
            Self::Storage => "The server has no room for the request body; try again in a moment",
            Self::Connect | Self::ResetUnsent => "The process that serves this request could not be reached",
            Self::Reset => "The process that served this request broke off; it may have been carried out",
            Self::Garbage => "The process that served this request gave no valid answer",
            Self::Timeout => "The process that serves this request took too long",
            Self::Truncated => "The response broke off",
        }
    }

    /// After how many seconds the client may try again, where that helps.
    pub const fn retry_after(self) -> Option<u32> {
        match self {
            Self::Shed | Self::Stopping => Some(1),
            Self::NoInstance | Self::Storage => Some(2),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_and_begin_with_the_blamed() {
        for (index, failure) in Failure::ALL.iter().enumerate() {
            let prefix = match failure.blame() {
                Blame::Client => "client_",
                Blame::Router => "router_",
                Blame::Upstream => "upstream_",
            };
            assert!(failure.label().starts_with(prefix), "{failure:?}");
            assert!(Failure::ALL[..index].iter().all(|other| other.label() != failure.label()));
        }
    }

    #[test]
    fn nothing_that_may_have_arrived_is_sent_twice_unless_safe() {
        for failure in Failure::ALL {
            for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
                assert!(!(failure.sent() && failure.may_retry(&method)), "{failure:?} {method}");
            }
        }
        assert!(Failure::Reset.may_retry(&Method::GET));
        assert!(Failure::Connect.may_retry(&Method::POST));
    }
}
