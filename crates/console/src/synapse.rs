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

/// Where a question goes: to main, which hears first of what it changed itself, unless only media processes answer it.
fn address<'a>(matcher: &Matcher, topology: &'a Topology, method: &str, path: &str) -> Option<&'a Address> {
    let explanation = matcher.explain(method, path);
    let media = explanation.role.filter(|role| role.needs_media_process());
    let first = media.and_then(|_| explanation.instances.first()).and_then(|name| topology.instance(name));
    first.unwrap_or_else(|| topology.main()).client.as_ref()
}

#[cfg(test)]
mod tests {
    use model::{Preset, Stack};

    use super::*;

    #[test]
    fn main_is_asked_unless_it_serves_no_media() {
        let stack = Stack::new("x".to_owned().try_into().unwrap());
        for (preset, media) in [(Preset::Small, "main"), (Preset::Medium, "media_1")] {
            let topology = model::plan(&stack, std::path::Path::new("/run/x"), preset).unwrap();
            let options = routes::Options { admin_open: true, features: routes::Features::default() };
            let newest = routes::Table::all().last().unwrap();
            let matcher = Matcher::compile(newest, &topology, &options).unwrap();
            for (path, name) in [
                ("/_synapse/admin/v3/users", "main"),
                ("/_synapse/admin/v2/users/%40a%3Ax", "main"),
                ("/_synapse/admin/v1/users/%40a%3Ax/media", media),
            ] {
                let expected = topology.instance(name).unwrap().client.as_ref();
                assert_eq!(address(&matcher, &topology, "GET", path), expected, "{path} in {preset}");
            }
        }
    }
}
