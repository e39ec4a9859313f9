//! What the router routes by: an immutable value, replaced whole.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use model::{Address, Balance, Instance as Planned, Lookup, PlannedMas, ROLES, Role, Stack, Topology};
use routes::{Decision, Features, Matcher, Route, Table, WellKnown, well_known, well_known_caching};

use crate::dns::{Question, Sought};
use crate::headers;
use crate::http1::RequestHead;
use crate::instance::Instance;
use crate::names::Names;
use crate::settings::Settings;
use crate::tls::Tls;
use service::tls::TlsError;

/// The endpoint table, the instances and the settings that a router works by.
pub struct Snapshot {
    pub(crate) matcher: Matcher,
    pub(crate) settings: Settings,
    pub(crate) members: Vec<Member>,
    /// The services beside Synapse: the path, the name and the address of each.
    pub(crate) companions: Vec<(String, String, Address)>,
    /// The Matrix Authentication Service, and what has to be found out about its name.
    pub(crate) mas: Option<(PlannedMas, Option<Question>)>,
    pub(crate) well_known: BTreeMap<WellKnown, Bytes>,
    pub(crate) well_known_caching: HeaderValue,
    pub(crate) tls: Option<Tls>,
}

/// An instance that takes requests, or a pool of them.
pub(crate) struct Member {
    pub name: String,
    pub address: Address,
    pub roles: Vec<Role>,
    pub is_pool: bool,
    /// What has to be found out about its name, if it is reached by one.
    pub question: Option<Question>,
}

impl Member {
    fn new(instance: &Planned) -> Option<Self> {
        let address = instance.client.clone()?;
        let sought = match instance.replicas.map(|replicas| replicas.lookup) {
            None => Sought::One,
            Some(Lookup::Address) => Sought::Each,
            Some(Lookup::Srv) => Sought::Targets,
        };
        let question = question(&address, sought);
        Some(Self {
            name: instance.name.clone(),
            address,
            roles: instance.roles.clone(),
            is_pool: instance.is_pool(),
            question,
        })
    }
}

/// What has to be found out about an address: nothing, unless it has a name.
fn question(address: &Address, sought: Sought) -> Option<Question> {
    match address {
        Address::Tcp { host, port } if host.parse::<IpAddr>().is_err() => {
            Some(Question { host: host.clone(), port: *port, sought })
        }
        _ => None,
    }
}

/// The topology cannot be routed to.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The endpoint table has a route that no instance of the topology can serve.
    #[error("the endpoint table does not fit the stack: {0}")]
    Routes(#[from] routes::RouteError),
}

impl Snapshot {
    /// The snapshot of a topology, with the newest endpoint table.
    pub fn new(topology: &Topology, settings: Settings) -> Result<Self, SnapshotError> {
        Self::with_table(Table::newest(), topology, settings)
    }

    /// The snapshot of a topology, with the endpoint table of the Synapse version that runs.
    pub fn with_table(table: &Table, topology: &Topology, settings: Settings) -> Result<Self, SnapshotError> {
        let stack = topology.stack();
        let options = routes::Options { admin_open: settings.admin_api, features: Features::of(stack) };
        let documents = well_known(stack).into_iter();
        Ok(Self {
            matcher: Matcher::compile(table, topology, &options)?,
            settings,
            members: topology.instances().iter().filter_map(Member::new).collect(),
            companions: topology
                .companions()
                .iter()
                .filter_map(|c| Some((c.path.clone()?, c.kind.name().to_owned(), c.address.clone()?)))
                .collect(),
            mas: topology.mas().map(|mas| (mas.clone(), question(&mas.address, Sought::One))),
            well_known: documents.map(|(which, document)| (which, document.to_string().into())).collect(),
            well_known_caching: HeaderValue::from_str(&well_known_caching(stack)).expect("it is plain ASCII"),
            tls: None,
        })
    }

    /// The same with the stack's certificate, which is read from its files.
    pub fn with_tls(mut self, stack: &Stack) -> Result<Self, TlsError> {
        self.tls = stack.listen.tls.as_ref().map(Tls::load).transpose()?;
        Ok(self)
    }

    /// What has to be found out about names.
    pub(crate) fn questions(&self) -> impl Iterator<Item = &Question> {
        let mas = self.mas.iter().filter_map(|(_, question)| question.as_ref());
        self.members.iter().filter_map(|member| member.question.as_ref()).chain(mas)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.members.iter().map(|member| &member.name).collect();
        f.debug_struct("Snapshot")
            .field("instances", &names)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The rest of a target that is this path, or below it.
fn below<'t>(path: &str, target: &'t str) -> Option<Cow<'t, str>> {
    let rest = target.strip_prefix(path)?;
    match rest.as_bytes().first() {
        Some(b'/') => Some(Cow::Borrowed(rest)),
        Some(b'?') | None => Some(Cow::Owned(format!("/{rest}"))),
        Some(_) => None,
    }
}

/// A snapshot with the living instances that it speaks of.
#[derive(Debug)]
pub(crate) struct Active {
    pub snapshot: Arc<Snapshot>,
    /// In the order of the topology, with their roles.
    pub instances: Vec<(Arc<Instance>, Vec<Role>)>,
    /// The pools, with the number of their processes.
    pub pools: Vec<(String, usize)>,
    by_role: Vec<Vec<Arc<Instance>>>,
    /// The services beside Synapse by their paths.
    companions: Vec<(String, Arc<Instance>)>,
    mas: Option<Arc<Instance>>,
    /// Those of earlier snapshots that still have requests to end.
    leaving: Vec<Arc<Instance>>,
}

impl Active {
    /// Binds a snapshot to what is known of its names, taking over the instances of the one before that have the same name
    /// and address. Those of a pool are called like it and like the process that was found: `sync@10.0.0.7`.
    pub(crate) fn new(snapshot: Arc<Snapshot>, before: Option<&Self>, names: &Names) -> Self {
        let known: HashMap<&str, &Arc<Instance>> = before
            .into_iter()
            .flat_map(|active| &active.instances)
            .map(|(instance, _)| instance)
            .chain(before.into_iter().flat_map(|active| &active.companions).map(|(_, instance)| instance))
            .chain(before.and_then(|active| active.mas.as_ref()))
            .map(|instance| (&*instance.name, instance))
            .collect();
        let take = |name: &str, address: &Address| {
            let same = known.get(name).filter(|instance| instance.address == *address);
            same.map_or_else(|| Arc::new(Instance::new(name, address.clone())), |same| Arc::clone(same))
        };
        let mut instances = Vec::new();
        let mut pools = Vec::new();
        for member in &snapshot.members {
            let found = member.question.as_ref().and_then(|question| names.get(question));
            let found = found.map_or(&[][..], |known| &known.processes);
            if member.is_pool {
                pools.push((member.name.clone(), found.len()));
                for process in found {
                    let address = Address::Tcp { host: process.host.clone(), port: process.port };
                    let instance = take(&format!("{}@{}", member.name, process.name), &address);
                    instance.set_addresses(&process.addresses);
                    instances.push((instance, member.roles.clone()));
                }
            } else {
                let instance = take(&member.name, &member.address);
                if member.question.is_some() {
                    instance.set_addresses(found.first().map_or(&[], |process| &process.addresses));
                }
                instances.push((instance, member.roles.clone()));
            }
        }
        let mut leaving = Vec::new();
        if let Some(before) = before {
            let before = before.instances.iter().map(|(instance, _)| instance).chain(&before.leaving);
            for instance in before.filter(|known| !instances.iter().any(|(kept, _)| Arc::ptr_eq(kept, known)))
            {
                instance.drain();
                if instance.in_flight() > 0 {
                    leaving.push(Arc::clone(instance));
                }
            }
        }
        let by_role = ROLES
            .iter()
            .map(|spec| {
                instances
                    .iter()
                    .filter(|(_, roles)| roles.contains(&spec.role))
                    .map(|(i, _)| i.clone())
                    .collect()
            })
            .collect();
        let companions = snapshot
            .companions
            .iter()
            .map(|(path, name, address)| (path.clone(), take(name, address)))
            .collect();
        let mas = snapshot.mas.as_ref().map(|(mas, question)| {
            let instance = take("mas", &mas.address);
            if let Some(question) = question {
                let found = names.get(question).and_then(|known| known.processes.first());
                instance.set_addresses(found.map_or(&[], |process| &process.addresses));
            }
            instance
        });
        Self { snapshot, instances, pools, by_role, companions, mas, leaving }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.snapshot.settings
    }

    /// The instances that carry a role.
    pub(crate) fn pool(&self, role: Role) -> &[Arc<Instance>] {
        &self.by_role[role as usize]
    }

    /// Whether some role of a route has several instances that a key chooses among.
    pub(crate) fn is_hashed(&self, route: &Route) -> bool {
        route.chain.iter().any(|role| {
            let balance = route.class.balance(*role);
            self.pool(*role).len() > 1
                && matches!(balance, Balance::HashRoom | Balance::HashUser | Balance::HashOrigin)
        })
    }

    /// The service beside Synapse that a request belongs to unless it is Synapse's, and what the service knows its target
    /// as. Whatever is asked of a host that is MAS's own is MAS's, and so are logins.
    pub(crate) fn beside<'t>(&self, head: &'t RequestHead) -> Option<(&Arc<Instance>, Cow<'t, str>)> {
        let target = head.target();
        if let (Some((mas, _)), Some(instance)) = (&self.snapshot.mas, &self.mas) {
            let decision = || self.snapshot.matcher.decide(head.method.as_str(), target);
            let found = if self.is_at_mas(head) {
                return Some((instance, below(&mas.path, target)?));
            } else if matches!(decision(), Decision::Auth) {
                Some(Cow::Borrowed(target))
            } else if mas.host.is_none() {
                below(&mas.path, target)
            } else {
                None
            };
            if let Some(target) = found {
                return Some((instance, target));
            }
        }
        self.companions.iter().find_map(|(path, instance)| Some((instance, below(path, target)?)))
    }

    /// Whether a request is for a host that is MAS's alone.
    pub(crate) fn is_at_mas(&self, head: &RequestHead) -> bool {
        let Some(own) = self.snapshot.mas.as_ref().and_then(|(mas, _)| mas.host.as_deref()) else {
            return false;
        };
        let host = headers::host(head);
        // Some write the port that is the scheme's own.
        let plain = [":443", ":80"].into_iter().find_map(|port| host.strip_suffix(port.as_bytes()));
        host.eq_ignore_ascii_case(own.as_bytes())
            || plain.is_some_and(|host| host.eq_ignore_ascii_case(own.as_bytes()))
    }

    pub(crate) fn instance(&self, name: &str) -> Option<&Arc<Instance>> {
        self.instances.iter().map(|(instance, _)| instance).find(|instance| &*instance.name == name)
    }

    /// Every instance that may have requests in flight.
    pub(crate) fn busy(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.iter().map(|(instance, _)| instance).chain(&self.leaving)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use model::Preset;

    use super::*;
    use crate::http1::HeadLimits;

    /// Where a router of a stack with MAS takes requests: their service's name, and what it knows the target as.
    fn beside(mas: &str, host: &str, target: &str) -> Option<String> {
        let text = format!(
            r#"{{"server_name": "example.org", "public_base_url": "https://matrix.example.org",
                "companions": {{"webhook": {{}}}}, "auth": {{"mas": {{"public_base_url": "{mas}"}}}}}}"#
        );
        let stack: Stack = serde_json::from_str(&text).unwrap();
        let topology = model::plan(&stack, Path::new("/run/x"), Preset::Small).unwrap();
        let snapshot = Snapshot::new(&topology, Settings::default()).unwrap();
        let active = Active::new(Arc::new(snapshot), None, &Names::new());
        let mut text = Bytes::from(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let head = RequestHead::parse(&mut text, HeadLimits { bytes: 8192, headers: 100 }).unwrap().unwrap();
        active.beside(&head).map(|(instance, target)| format!("{} {target}", instance.name))
    }

    #[test]
    fn a_host_of_its_own_is_mass_whole() {
        let at = |host: &str, target: &str| beside("https://auth.example.org", host, target);
        let mas = |target: &str| Some(format!("mas {target}"));
        for target in
            ["/", "/account/?x=1", "/.well-known/openid-configuration", "/_synapse/admin", "/webhook"]
        {
            assert_eq!(at("auth.example.org", target), mas(target));
            assert_eq!(at("AUTH.example.org:443", target), mas(target));
        }
        assert_eq!(at("matrix.example.org", "/_matrix/client/v3/login"), mas("/_matrix/client/v3/login"));
        assert_eq!(at("auth.example.org.evil.example", "/account/"), None);
        assert_eq!(at("matrix.example.org", "/account/"), None);
        assert_eq!(at("matrix.example.org", "/webhook/a"), Some("webhook /a".to_owned()));
    }

    #[test]
    fn a_path_of_its_own_is_taken_away() {
        let at = |target: &str| beside("https://matrix.example.org/auth/", "matrix.example.org", target);
        let mas = |target: &str| Some(format!("mas {target}"));
        assert_eq!(at("/auth/account/?x=1"), mas("/account/?x=1"));
        assert_eq!(at("/auth"), mas("/"));
        assert_eq!(at("/auth?x"), mas("/?x"));
        assert_eq!(at("/authentic"), None);
        assert_eq!(at("/_matrix/client/r0/refresh"), mas("/_matrix/client/r0/refresh"));
        assert_eq!(at("/_matrix/client/v3/sync"), None);
    }
}
