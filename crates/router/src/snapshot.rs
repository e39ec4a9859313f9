//! What the router routes by: an immutable value, replaced whole.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use model::{Address, Balance, ROLES, Role, Stack, Topology};
use routes::{Features, Matcher, Route, Table, well_known};

use crate::instance::Instance;
use crate::settings::Settings;
use crate::tls::{Tls, TlsError};

/// The endpoint table, the instances and the settings that a router works by.
pub struct Snapshot {
    pub(crate) matcher: Matcher,
    pub(crate) settings: Settings,
    pub(crate) members: Vec<Member>,
    pub(crate) well_known_client: Bytes,
    pub(crate) well_known_server: Option<Bytes>,
    pub(crate) tls: Option<Tls>,
}

/// An instance that takes requests.
pub(crate) struct Member {
    pub name: String,
    pub address: Address,
    pub roles: Vec<Role>,
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
        let options = routes::Options {
            admin_open: settings.admin_api,
            features: Features::from_synapse_options(&stack.synapse.extra),
        };
        let documents = well_known(stack);
        Ok(Self {
            matcher: Matcher::compile(table, topology, &options)?,
            settings,
            members: topology
                .instances()
                .iter()
                .filter_map(|instance| {
                    let address = instance.client.clone()?;
                    Some(Member { name: instance.name.clone(), address, roles: instance.roles.clone() })
                })
                .collect(),
            well_known_client: documents.client.to_string().into(),
            well_known_server: documents.server.map(|document| document.to_string().into()),
            tls: None,
        })
    }

    /// The same with the stack's certificate, which is read from its files.
    pub fn with_tls(mut self, stack: &Stack) -> Result<Self, TlsError> {
        self.tls = stack.listen.tls.as_ref().map(Tls::load).transpose()?;
        Ok(self)
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

/// A snapshot with the living instances that it speaks of.
#[derive(Debug)]
pub(crate) struct Active {
    pub snapshot: Snapshot,
    /// In the order of the topology, with their roles.
    pub instances: Vec<(Arc<Instance>, Vec<Role>)>,
    pools: Vec<Vec<Arc<Instance>>>,
}

impl Active {
    /// Binds a snapshot, taking over the instances of the one before that have the same name and address.
    pub(crate) fn new(snapshot: Snapshot, before: Option<&Self>) -> Self {
        let known: HashMap<&str, &Arc<Instance>> = before
            .into_iter()
            .flat_map(|active| &active.instances)
            .map(|(instance, _)| (&*instance.name, instance))
            .collect();
        let instances: Vec<_> = snapshot
            .members
            .iter()
            .map(|member| {
                let instance = known
                    .get(member.name.as_str())
                    .filter(|instance| instance.address == member.address)
                    .map_or_else(
                        || Arc::new(Instance::new(&member.name, member.address.clone())),
                        |instance| Arc::clone(instance),
                    );
                (instance, member.roles.clone())
            })
            .collect();
        let pools = ROLES
            .iter()
            .map(|spec| {
                instances
                    .iter()
                    .filter(|(_, roles)| roles.contains(&spec.role))
                    .map(|(i, _)| i.clone())
                    .collect()
            })
            .collect();
        Self { snapshot, instances, pools }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.snapshot.settings
    }

    /// The instances that carry a role.
    pub(crate) fn pool(&self, role: Role) -> &[Arc<Instance>] {
        &self.pools[role as usize]
    }

    /// Whether some role of a route has several instances that a key chooses among.
    pub(crate) fn is_hashed(&self, route: &Route) -> bool {
        route.chain.iter().any(|role| {
            let balance = route.class.balance(*role);
            self.pool(*role).len() > 1
                && matches!(balance, Balance::HashRoom | Balance::HashUser | Balance::HashOrigin)
        })
    }

    pub(crate) fn instance(&self, name: &str) -> Option<&Arc<Instance>> {
        self.instances.iter().map(|(instance, _)| instance).find(|instance| &*instance.name == name)
    }
}
