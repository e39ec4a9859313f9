//! Decisions in words.

use std::fmt::Write as _;

use model::{Balance, Role, Stream};
use percent_encoding::percent_decode_str;
use serde::Serialize;

use crate::matcher::{Closed, Decision, Forward, Matcher};
use crate::table::Process;

/// A decision, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The method asked about.
    pub method: String,
    /// The path asked about, with its query.
    pub path: String,
    /// What happens: `forward`, `preflight`, `well_known`, `landing`, `closed` or `not_found`.
    pub outcome: &'static str,
    /// The role that answers; none unless it is forwarded.
    pub role: Option<Role>,
    /// The roles that are tried, in this order.
    pub roles: Vec<Role>,
    /// How requests are spread over the processes of `role`; `none` where there is but one.
    pub balance: Balance,
    /// What they are spread by: `room`, `user` or `origin`.
    pub key: Option<&'static str>,
    /// The room ID (or alias) in the path, decoded.
    pub key_value: Option<String>,
    /// The instances that carry `role`, of which one may be a pool of processes.
    pub instances: Vec<String>,
    /// How long the head of the response may take.
    pub timeout_seconds: Option<u64>,
    /// The most requests in flight at one instance.
    pub cap: Option<u32>,
    /// Why, in a sentence or a few.
    pub reason: String,
    /// The class of endpoints.
    pub class: Option<&'static str>,
    /// The path's template.
    pub template: Option<String>,
    /// The streams of which the process that answers has to be a writer.
    pub streams: Vec<Stream>,
    /// The kinds of process that register it.
    pub registered_by: Vec<Process>,
    /// The configuration that registers it, if not every one does.
    pub when: Option<String>,
}

impl Matcher {
    /// The decision for a request, with its reasons.
    pub fn explain(&self, method: &str, target: &str) -> Explanation {
        let decision = self.decide(method, target);
        let (outcome, reason) = match &decision {
            Decision::Forward(forward) => ("forward", self.why(forward, method)),
            Decision::Preflight => ("preflight", "the router answers CORS preflights itself".to_owned()),
            Decision::WellKnown(which) => {
                let which = which.segment();
                (
                    "well_known",
                    format!("the router answers `/.well-known/matrix/{which}` from the configuration"),
                )
            }
            Decision::Auth => {
                ("auth", "the Matrix Authentication Service answers logins, logouts and refreshes".to_owned())
            }
            Decision::Landing => ("landing", "the router has a page of its own at `/`".to_owned()),
            Decision::Closed(closed) => ("closed", why_closed(*closed).to_owned()),
            Decision::NotFound => {
                ("not_found", "it is no path of Matrix or Synapse, so no process is asked".to_owned())
            }
        };
        let mut explanation = Explanation {
            method: method.to_owned(),
            path: target.to_owned(),
            outcome,
            role: None,
            roles: Vec::new(),
            balance: Balance::None,
            key: None,
            key_value: None,
            instances: Vec::new(),
            timeout_seconds: None,
            cap: None,
            reason,
            class: None,
            template: None,
            streams: Vec::new(),
            registered_by: Vec::new(),
            when: None,
        };
        if let Decision::Forward(forward) = decision {
            let route = forward.route;
            let role = route.primary();
            let instances = self.instances(role);
            if self.is_spread(role) {
                explanation.balance = route.class.balance(role);
            }
            if matches!(explanation.balance, Balance::HashRoom | Balance::HashUser | Balance::HashOrigin) {
                explanation.key = route.class.key.name();
                explanation.key_value = forward
                    .room
                    .map(|range| percent_decode_str(&target[range]).decode_utf8_lossy().into_owned());
            }
            explanation.role = Some(role);
            explanation.roles = route.chain.to_vec();
            explanation.instances = instances.to_vec();
            explanation.timeout_seconds = Some(route.class.timeout.as_secs());
            explanation.cap = Some(route.class.cap);
            explanation.class = Some(route.class.name);
            explanation.template = route.template.as_deref().map(str::to_owned);
            explanation.streams = route.streams.to_vec();
            explanation.registered_by = route.registered_by.to_vec();
            explanation.when = (!route.when.is_always()).then(|| route.when.as_str().to_owned());
        }
        explanation
    }

    fn why(&self, forward: &Forward<'_>, method: &str) -> String {
        let route = forward.route;
        let (role, wanted) = (route.primary(), route.class.role);
        let mut why = if !route.known() {
            format!(
                "`main` answers, because the endpoint table of Synapse {} does not have the path and main serves \
                 whatever there is; such requests are counted",
                self.version()
            )
        } else if role == wanted {
            format!("`{role}` answers, because {}", route.class.why)
        } else {
            format!(
                "`{role}` answers: `{wanted}` would, because {}, but no process of this stack that could carries it",
                route.class.why
            )
        };
        if !forward.method_registered {
            let _ = write!(why, ". Synapse does not register {method} for this path and answers 405");
        }
        if let [stream, ..] = &*route.streams
            && route.chain.len() == 1
        {
            let _ =
                write!(why, ". Nobody else may: Synapse fails where the process does not write `{stream}`");
        }
        if !route.active {
            let _ = write!(
                why,
                ". This configuration does not register it, so Synapse says 404: it needs {}",
                route.when.as_str()
            );
        }
        why
    }
}

fn why_closed(closed: Closed) -> &'static str {
    match closed {
        Closed::Admin => "the admin API is closed on this listener; `listen.admin_api` opens it",
        Closed::Replication => {
            "replication is for Synapse's own processes and never reachable through the router"
        }
        Closed::Metrics => "metrics are on the router's private listener",
        Closed::Health => "health checks are on the router's private listener",
        Closed::Other => "nothing of Synapse's that the public may reach is there",
    }
}
