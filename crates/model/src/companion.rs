//! Companion services: what runs beside Synapse, and belongs to a complete deployment.

use std::fmt;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Address, Network, Problem, Stack};

/// The companion services of a stack on one machine. On Kubernetes each has a chart of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Companions {
    /// Tokens for calls, as Element Call asks for them (`matrix-stack serve livekit-jwt`). Its path is `/livekit/jwt` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [{"path": "/livekit/jwt"}]))]
    pub livekit_jwt: Option<Companion>,
    /// Messages from Alertmanager (`matrix-stack serve alertmanager`). Its path is `/alertmanager` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [{"path": "/alertmanager"}]))]
    pub alertmanager: Option<Companion>,
    /// Messages from Sentry (`matrix-stack serve sentry-webhook`). Its path is `/sentry` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [{"path": "/sentry"}]))]
    pub sentry_webhook: Option<Companion>,
    /// Messages from senders that know Slack, GitHub, GitLab, Grafana and others (`matrix-stack serve webhook`). Its path is
    /// `/webhook` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [{"path": "/webhook"}]))]
    pub webhook: Option<Companion>,
    /// A proxy in front of LDAP servers (`matrix-stack serve ldap`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ldap: Option<LdapCompanion>,
}

/// A companion service that is reached through the router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Companion {
    /// The path under which the router passes requests on to it, without that path.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(/[A-Za-z0-9_.~-]+)+$"))]
    pub path: Option<String>,
    /// The service's own settings, as in a file for `matrix-stack serve`, without where it listens.
    pub settings: Map<String, Value>,
}

/// The LDAP proxy, which is reached where its settings say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LdapCompanion {
    /// Its own settings, as in a file for `matrix-stack serve ldap`.
    pub settings: Map<String, Value>,
}

/// Which companion service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields of `Companions`, and `auth.mas`, say what each is")]
pub enum CompanionKind {
    LivekitJwt,
    Alertmanager,
    SentryWebhook,
    Webhook,
    Ldap,
    Mas,
}

impl CompanionKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::LivekitJwt, Self::Alertmanager, Self::SentryWebhook, Self::Webhook, Self::Ldap, Self::Mas];

    /// What it is called among processes and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::LivekitJwt => "livekit-jwt",
            Self::Alertmanager => "alertmanager",
            Self::SentryWebhook => "sentry-webhook",
            Self::Webhook => "webhook",
            Self::Ldap => "ldap",
            Self::Mas => "mas",
        }
    }

    /// Its field in the stack.
    pub fn field(self) -> &'static str {
        match self {
            Self::LivekitJwt => "companions.livekit_jwt",
            Self::Alertmanager => "companions.alertmanager",
            Self::SentryWebhook => "companions.sentry_webhook",
            Self::Webhook => "companions.webhook",
            Self::Ldap => "companions.ldap",
            Self::Mas => "auth.mas",
        }
    }

    /// The path that the router passes on to it unless the stack says otherwise; none for what speaks no HTTP.
    pub fn default_path(self) -> Option<&'static str> {
        match self {
            Self::LivekitJwt => Some("/livekit/jwt"),
            Self::Alertmanager => Some("/alertmanager"),
            Self::SentryWebhook => Some("/sentry"),
            Self::Webhook => Some("/webhook"),
            Self::Ldap | Self::Mas => None,
        }
    }
}

impl fmt::Display for CompanionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Companions {
    /// The settings of a companion, if the stack has it.
    pub fn settings(&self, kind: CompanionKind) -> Option<&Map<String, Value>> {
        match kind {
            CompanionKind::Ldap => self.ldap.as_ref().map(|ldap| &ldap.settings),
            kind => self.behind_the_router(kind).map(|companion| &companion.settings),
        }
    }

    /// The settings of a companion, to be changed.
    pub fn settings_mut(&mut self, kind: CompanionKind) -> Option<&mut Map<String, Value>> {
        let companion = match kind {
            CompanionKind::Ldap => return self.ldap.as_mut().map(|ldap| &mut ldap.settings),
            CompanionKind::Mas => return None,
            CompanionKind::LivekitJwt => &mut self.livekit_jwt,
            CompanionKind::Alertmanager => &mut self.alertmanager,
            CompanionKind::SentryWebhook => &mut self.sentry_webhook,
            CompanionKind::Webhook => &mut self.webhook,
        };
        companion.as_mut().map(|companion| &mut companion.settings)
    }

    /// The path of a companion in the router, if the stack has it and it is reached so.
    pub fn path(&self, kind: CompanionKind) -> Option<&str> {
        let companion = self.behind_the_router(kind)?;
        companion.path.as_deref().or_else(|| kind.default_path())
    }

    fn behind_the_router(&self, kind: CompanionKind) -> Option<&Companion> {
        match kind {
            CompanionKind::LivekitJwt => self.livekit_jwt.as_ref(),
            CompanionKind::Alertmanager => self.alertmanager.as_ref(),
            CompanionKind::SentryWebhook => self.sentry_webhook.as_ref(),
            CompanionKind::Webhook => self.webhook.as_ref(),
            CompanionKind::Ldap | CompanionKind::Mas => None,
        }
    }
}

/// A companion service as the plan has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedCompanion {
    /// Which.
    pub kind: CompanionKind,
    /// The path that the router passes on to it.
    pub path: Option<String>,
    /// Where it takes the router's requests; none for what speaks no HTTP, and listens where its settings say.
    pub address: Option<Address>,
    /// Where it says how it is: `/health`, `/ready` and `/metrics`.
    pub private: Address,
    /// Its settings, without where it listens.
    #[serde(skip)]
    pub settings: Map<String, Value>,
}

/// Fields of the settings that the plan settles.
const SETTLED: [&str; 2] = ["listen", "metrics"];

/// Plans the companions of a stack, with their sockets in this directory.
pub(crate) fn plan(stack: &Stack, socket_dir: &Path, problems: &mut Vec<Problem>) -> Vec<PlannedCompanion> {
    let mut planned: Vec<PlannedCompanion> = Vec::new();
    for kind in CompanionKind::ALL {
        let Some(settings) = stack.companions.settings(kind) else { continue };
        let field = kind.field();
        if matches!(stack.network, Network::Hosts(_)) {
            problems.push(Problem::CompanionElsewhere { kind });
        }
        let path = stack.companions.path(kind).map(str::to_owned);
        if let Some(path) = &path {
            let others = planned.iter().filter_map(|other| other.path.as_deref());
            if taken(path) || others.into_iter().any(|other| within(other, path) || within(path, other)) {
                problems.push(Problem::CompanionPath { field: format!("{field}.path"), path: path.clone() });
            }
        }
        for settled in SETTLED {
            let own = path.is_none() && settled == "listen";
            if settings.contains_key(settled) && !own {
                problems.push(Problem::CompanionSettled { field: format!("{field}.settings.{settled}") });
            }
        }
        let socket = |suffix: &str| Address::Unix { path: socket_dir.join(format!("{kind}{suffix}.sock")) };
        planned.push(PlannedCompanion {
            kind,
            address: path.is_some().then(|| socket("")),
            path,
            private: socket(".private"),
            settings: settings.clone(),
        });
    }
    planned
}

/// Whether one path is the other, or below it.
fn within(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a path belongs to Synapse, or to the router, or cannot be told from another.
pub(crate) fn taken(path: &str) -> bool {
    let segments = || path.split('/').skip(1);
    ["/_matrix", "/_synapse", "/.well-known"].iter().any(|own| within(path, own))
        || segments().any(|segment| matches!(segment, "" | "." | ".."))
        || !path.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Action, Preset, Topology, compare};

    fn plan(companions: &str) -> Result<Topology, Vec<String>> {
        let mut stack = Stack::new("example.org".to_owned().try_into().unwrap());
        stack.companions = serde_json::from_str(companions).unwrap();
        crate::plan(&stack, Path::new("/run/x"), Preset::Small).map_err(|problems| {
            problems.0.iter().map(|problem| format!("{}: {problem}", problem.field())).collect()
        })
    }

    #[test]
    fn companions_have_sockets_and_paths_of_their_own() {
        let topology = plan(
            r#"{"livekit_jwt": {}, "webhook": {"path": "/hooks/in"}, "ldap": {"settings": {"listen": "x"}}}"#,
        );
        let topology = topology.unwrap();
        let found: Vec<_> = topology
            .companions()
            .iter()
            .map(|companion| {
                (
                    companion.kind.name(),
                    companion.path.as_deref(),
                    companion.address.as_ref().map(Address::to_string),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("livekit-jwt", Some("/livekit/jwt"), Some("unix:/run/x/livekit-jwt.sock".to_owned())),
                ("webhook", Some("/hooks/in"), Some("unix:/run/x/webhook.sock".to_owned())),
                ("ldap", None, None),
            ]
        );
    }

    #[test]
    fn what_cannot_be_reached_is_refused() {
        let refused = plan(
            r#"{"livekit_jwt": {"path": "/_matrix/rtc"}, "webhook": {"path": "/a", "settings": {"listen": "x"}},
                "sentry_webhook": {"path": "/a/b"}, "ldap": {}}"#,
        );
        let fields: Vec<_> =
            refused.unwrap_err().iter().map(|text| text.split(": ").next().unwrap().to_owned()).collect();
        assert_eq!(
            fields,
            ["companions.livekit_jwt.path", "companions.webhook.path", "companions.webhook.settings.listen",]
        );
    }

    #[test]
    fn a_change_restarts_the_one_alone() {
        let old = plan(r#"{"livekit_jwt": {}, "webhook": {}}"#).unwrap();
        let new = plan(r#"{"livekit_jwt": {"settings": {"a": 1}}, "ldap": {}, "webhook": {"path": "/w"}}"#)
            .unwrap();
        let comparison = compare(&old, &new);
        let changed: Vec<_> = comparison
            .changes
            .iter()
            .filter(|change| change.action != Action::Keep)
            .map(|change| (change.instance.as_str(), change.action))
            .collect();
        assert_eq!(changed, [("livekit-jwt", Action::Roll), ("ldap", Action::Start)]);
        assert!(comparison.router);
    }
}
