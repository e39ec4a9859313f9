//! Questions to Synapse, each with the token of the one who asks, at the process that the routing table names.

use std::time::Duration;

use axum::http::Method;
use model::{Address, Topology};
use routes::Matcher;
use serde_json::Value;

/// A query over a large table may take a while.
const LIMIT: Duration = Duration::from_secs(30);

/// Why a question was not answered as hoped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The token is none, or no longer one: Synapse answered 401.
    SignedOut,
    /// Synapse refused.
    Refused { status: u16, message: String },
    /// It did not answer.
    Unreachable(String),
}

impl Failure {
    /// In words.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::SignedOut => "the session has ended: sign in again".to_owned(),
            Self::Refused { status, message } => format!("Synapse refused: {message} (HTTP {status})"),
            Self::Unreachable(reason) => {
                format!("Synapse does not answer: {reason}; see `matrix-stack status`")
            }
        }
    }
}

/// Asks the process that serves this path, and gives its answer back if that is of success.
pub(crate) async fn ask(
    plan: &crate::Plan,
    token: Option<&str>,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Failure> {
    let Some(address) = address(&plan.all, &plan.topology, method.as_str(), path) else {
        return Err(Failure::Unreachable(format!("no process serves {path}")));
    };
    let asked = runtime::ask(address, token, method, path, body, LIMIT).await;
    let (status, answer) = asked.map_err(|error| Failure::Unreachable(format!("{address}: {error}")))?;
    match status {
        200..300 => Ok(answer),
        401 => Err(Failure::SignedOut),
        _ => {
            let words = answer["error"].as_str().unwrap_or("no reason given").to_owned();
            Err(Failure::Refused { status, message: words })
        }
    }
}

/// Where a request goes: to the first process of the role that the routing table gives it, main where it gives none.
fn address<'a>(matcher: &Matcher, topology: &'a Topology, method: &str, path: &str) -> Option<&'a Address> {
    let explanation = matcher.explain(method, path);
    let first = explanation.instances.first().and_then(|name| topology.instance(name));
    first.unwrap_or_else(|| topology.main()).client.as_ref()
}
