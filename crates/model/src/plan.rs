//! From a stack to its topology.

use std::net::SocketAddr;
use std::path::Path;

use indexmap::IndexMap;

use crate::topology::{connections, media_processes};
use crate::{
    Address, App, Group, Instance, ListenAddress, MAX_WORKERS_PER_GROUP, Network, OWNED_SYNAPSE_OPTIONS,
    Pool, Pools, Preset, Problem, Problems, ROLES, Replicas, Role, Stack, Stream, Topology, WorkerGroup,
    preset_groups,
};
use crate::{companion, mas};

/// The longest path that fits a unix socket's address (`sun_path` has 108 bytes, one of them the final NUL). Twisted
/// adds `.lock` to the path for a file beside the socket, which is no socket and may be longer.
const MAX_SOCKET_PATH: usize = 107;

/// Connections kept free for PostgreSQL's superuser, backups, health probes and `matrix-stack user add`.
pub const fn reserved_connections() -> u32 {
    15
}

/// What PostgreSQL allows when nobody sets `max_connections`.
const POSTGRES_DEFAULT_MAX_CONNECTIONS: u32 = 100;

/// Plans a stack: the processes, the streams they write, the addresses they listen on.
///
/// `socket_dir` is where unix sockets go (with `network: unix`); `default_preset` counts where the stack names none.
///
/// # Errors
/// All problems that the stack has, each with the field to blame and what to do.
pub fn plan(stack: &Stack, socket_dir: &Path, default_preset: Preset) -> Result<Topology, Problems> {
    let preset = stack.preset.unwrap_or(default_preset);
    let mut problems = Vec::new();

    let groups = assemble_groups(stack, preset, &mut problems);
    check_pool("database.pool", stack.database.pool, &mut problems);
    check_roles(stack, &groups, &mut problems);
    check_extra(stack, &mut problems);
    if stack.media.max_upload_bytes() == 0 {
        problems.push(Problem::UploadSize { text: stack.media.max_upload_size.clone() });
    }

    let instances = assemble_instances(stack, &groups, socket_dir, &mut problems);
    check_listen(stack, &instances, &mut problems);
    let max_connections = check_connections(stack, &instances, &mut problems);
    let mut companions = companion::plan(stack, socket_dir, &mut problems);
    let (mas, process) = mas::plan(stack, socket_dir, &mut problems);
    companions.extend(process);
    if matches!(stack.network, Network::Hosts(_)) {
        check_hosts(stack, &instances, &mut problems);
    }

    if problems.is_empty() {
        let topology =
            Topology { stack: stack.clone(), preset, groups, instances, companions, mas, max_connections };
        problems = topology.violations().into_iter().map(Problem::Broken).collect();
        if problems.is_empty() {
            return Ok(topology);
        }
    }
    Err(Problems(problems))
}

/// Puts the preset's groups and the stack's `workers` together.
fn assemble_groups(stack: &Stack, preset: Preset, problems: &mut Vec<Problem>) -> Vec<Group> {
    let mut wanted: IndexMap<String, (Vec<Role>, u16, WorkerGroup)> = preset_groups(preset)
        .into_iter()
        .map(|(name, roles, count)| (name.to_owned(), (roles, count, WorkerGroup::default())))
        .collect();
    for (name, group) in &stack.workers {
        if name == "main" || name == "master" {
            problems.push(Problem::ReservedName { group: name.clone() });
            continue;
        }
        if !is_group_name(name) {
            problems.push(Problem::BadGroupName { group: name.clone() });
            continue;
        }
        let entry = wanted
            .entry(name.clone())
            .or_insert_with(|| (Role::from_name(name).into_iter().collect(), 1, WorkerGroup::default()));
        if let Some(roles) = &group.roles {
            entry.0.clone_from(roles);
        }
        if let Some(count) = group.count {
            entry.1 = count;
        }
        entry.2 = group.clone();
        if let Some(pool) = group.pool {
            check_pool(&format!("workers.{name}.pool"), pool, problems);
        }
    }
    let mut groups = Vec::new();
    for (name, (mut roles, count, group)) in wanted {
        let max_count = group.max_count.unwrap_or(count);
        let max = MAX_WORKERS_PER_GROUP;
        if let Some((field, count)) =
            [("count", count), ("max_count", max_count)].into_iter().find(|(_, count)| *count > max)
        {
            problems.push(Problem::CountTooLarge { group: name, field, count, max });
            continue;
        }
        if count == 0 {
            continue;
        }
        if roles.is_empty() {
            problems.push(Problem::NoRoles { group: name });
            continue;
        }
        if roles.contains(&Role::Main) {
            problems.push(Problem::MainAsRole { group: name });
            continue;
        }
        roles.sort_unstable();
        if let Some(pair) = roles.windows(2).find(|pair| pair[0] == pair[1]) {
            problems.push(Problem::RoleTwice { group: name.clone(), role: pair[0] });
            roles.dedup();
        }
        if max_count < count {
            problems.push(Problem::MaxBelowCount { group: name, count, max: max_count });
            continue;
        }
        groups.push(Group {
            name,
            roles,
            count,
            max_count,
            pool: group.pool.unwrap_or(stack.database.pool),
            cache_factor: group.cache_factor,
            extra: group.extra,
        });
    }
    groups
}

/// A group's name becomes part of worker names, file names and host names.
fn is_group_name(name: &str) -> bool {
    name.len() <= 40
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !name.ends_with('_')
}

fn check_roles(stack: &Stack, groups: &[Group], problems: &mut Vec<Problem>) {
    for spec in ROLES.iter().filter(|spec| !spec.scalable) {
        let carriers: Vec<_> = groups.iter().filter(|group| group.roles.contains(&spec.role)).collect();
        let count: usize = carriers.iter().map(|group| usize::from(group.count)).sum();
        if count > 1 {
            // Blame a group that the person wrote, the last one: the preset's own are right by themselves.
            let blamed = carriers.iter().rfind(|g| stack.workers.contains_key(&g.name)).or(carriers.last());
            let field = match (blamed, carriers.len()) {
                (Some(group), 1) => format!("workers.{}.count", group.name),
                (Some(group), _) => format!("workers.{}.roles", group.name),
                (None, _) => "workers".to_owned(),
            };
            let groups = carriers.iter().map(|group| group.name.clone()).collect();
            problems.push(Problem::TooMany { role: spec.role, count, groups, field });
        }
    }
    for group in groups {
        let media = group.roles.iter().copied().find(|role| role.needs_media_process());
        let other = group.roles.iter().copied().find(|role| !role.needs_media_process());
        if let (Some(media), Some(other)) = (media, other) {
            problems.push(Problem::MediaMixed { group: group.name.clone(), media, other });
        }
    }
    let is_media = |group: &&Group| group.roles.iter().any(|role| role.needs_media_process());
    let serves = |group: &Group| group.roles.iter().any(|role| role.spec().serves_http);
    if let Some(group) = groups.iter().find(is_media)
        && !groups.iter().filter(is_media).any(serves)
    {
        problems.push(Problem::NoMediaServer { group: group.name.clone() });
    }
}

fn check_pool(field: &str, pool: Pool, problems: &mut Vec<Problem>) {
    if pool.min > pool.max || pool.max == 0 {
        problems.push(Problem::PoolUpsideDown { field: field.to_owned(), min: pool.min, max: pool.max });
    }
}

fn check_extra(stack: &Stack, problems: &mut Vec<Problem>) {
    let scopes = std::iter::once(("synapse.extra".to_owned(), &stack.synapse.extra))
        .chain(stack.workers.iter().map(|(name, group)| (format!("workers.{name}.extra"), &group.extra)));
    for (scope, extra) in scopes {
        // Synapse's `caches` may hold other things, but this one is the stack's.
        if extra.get("caches").is_some_and(|caches| caches.get("global_factor").is_some()) {
            problems.push(Problem::OwnedOption {
                option: "caches.global_factor".to_owned(),
                field: format!("{scope}.caches.global_factor"),
                mend: "set `caches.global_factor`, or `cache_factor` of a group under `workers`",
            });
        }
        for option in extra.keys() {
            if let Some((_, mend)) = OWNED_SYNAPSE_OPTIONS.iter().find(|(owned, _)| owned == option) {
                let field = format!("{scope}.{option}");
                problems.push(Problem::OwnedOption { option: option.clone(), field, mend });
            }
        }
    }
}

/// Gives out addresses, two a process.
struct Addresses<'a> {
    network: &'a Network,
    socket_dir: &'a Path,
    given: u32,
}

impl Addresses<'_> {
    /// The next address; `pools` where the instance is one of these.
    fn next(&mut self, instance: &str, pools: Option<&Pools>, private: bool) -> Address {
        let given = self.given;
        self.given += 1;
        match self.network {
            Network::Unix => {
                let file = format!("{instance}{}.sock", if private { ".private" } else { "" });
                Address::Unix { path: self.socket_dir.join(file) }
            }
            Network::Tcp(tcp) => Address::Tcp {
                host: tcp.host.to_string(),
                // Out of range wraps here and is refused by `check_ports`.
                port: u16::try_from((u32::from(tcp.base_port) + given) & 0xffff).unwrap_or_default(),
            },
            Network::Hosts(hosts) => Address::Tcp {
                host: hosts.host(instance, pools.map_or(&hosts.suffix, |pools| &pools.suffix)),
                port: if private { hosts.private_port } else { hosts.http_port },
            },
        }
    }
}

fn assemble_instances(
    stack: &Stack,
    groups: &[Group],
    socket_dir: &Path,
    problems: &mut Vec<Problem>,
) -> Vec<Instance> {
    let media_exists = groups.iter().any(|group| group.roles.iter().any(|role| role.needs_media_process()));
    let mut addresses = Addresses { network: &stack.network, socket_dir, given: 0 };
    let carried = |role: Role| groups.iter().any(|group| group.roles.contains(&role));
    // A stream that nobody carries is written by main; quarantine by the media processes that serve media.
    let writes = |group: Option<&Group>, stream: Stream| match group {
        Some(group) if group.roles.contains(&stream.role()) => true,
        Some(group) => {
            stream == Stream::QuarantinedMediaChanges
                && !carried(Role::QuarantinedMediaChanges)
                && group.roles.contains(&Role::MediaRepository)
        }
        None => !(carried(stream.role()) || (stream == Stream::QuarantinedMediaChanges && media_exists)),
    };
    let mut make = |name: String, group: Option<&Group>, pools: Option<&Pools>| {
        let roles = group.map_or_else(|| vec![Role::Main], |group| group.roles.clone());
        let app = match group {
            None => App::Main,
            Some(group) if group.roles.iter().any(|role| role.needs_media_process()) => App::Media,
            Some(_) => App::Generic,
        };
        let writes: Vec<Stream> = Stream::ALL.into_iter().filter(|stream| writes(group, *stream)).collect();
        let serves = roles.iter().any(|role| role.spec().serves_http);
        // Both addresses are taken even where the first is not used, so that giving a process a client listener
        // moves no other process's port.
        let client = addresses.next(&name, pools, false);
        let private = addresses.next(&name, pools, true);
        Instance {
            group: group.map_or("main", |group| &group.name).to_owned(),
            roles,
            app,
            client: serves.then_some(client),
            private,
            replication: app == App::Main || !writes.is_empty(),
            writes,
            enable_media_repo: if media_exists { app == App::Media } else { app == App::Main },
            pool: group.map_or(stack.database.pool, |group| group.pool),
            cache_factor: group.and_then(|group| group.cache_factor),
            extra: group.map(|group| group.extra.clone()).unwrap_or_default(),
            replicas: group.zip(pools).map(|(group, pools)| Replicas {
                count: group.count,
                max: group.max_count,
                lookup: pools.lookup,
            }),
            name,
        }
    };
    let mut instances = vec![make("main".to_owned(), None, None)];
    for group in groups {
        let named = known_by_name(group, groups);
        match stack.network.pools() {
            Some(pools) if named.is_none() => {
                instances.push(make(group.name.clone(), Some(group), Some(pools)));
            }
            pools => {
                if group.max_count > group.count {
                    let role = named.filter(|_| pools.is_some());
                    problems.push(Problem::NoPool { group: group.name.clone(), role });
                }
                for number in 1..=group.count {
                    instances.push(make(format!("{}_{number}", group.name), Some(group), None));
                }
            }
        }
    }
    for pool in instances.iter().filter(|instance| instance.is_pool()) {
        if instances.iter().any(|other| other.name == pool.name && other.group != pool.group) {
            problems.push(Problem::NameTaken { group: pool.group.clone() });
        }
    }
    check_ports(stack, &instances, problems);
    instances
}

/// The role because of which other processes know a group's processes by name, if there is one: its own, or one that it
/// stands in for. That can only be a media process's work, which main cannot do beside media processes.
fn known_by_name(group: &Group, groups: &[Group]) -> Option<Role> {
    let carried = |role: Role| groups.iter().any(|group| group.roles.contains(&role));
    let stands_in = |role: Role| {
        let first = role.spec().fallback.iter().find(|fallback| carried(**fallback));
        role.needs_media_process() && !carried(role) && first.is_some_and(|first| group.roles.contains(first))
    };
    ROLES
        .iter()
        .find(|spec| !spec.elastic && (group.roles.contains(&spec.role) || stands_in(spec.role)))
        .map(|spec| spec.role)
}

fn check_ports(stack: &Stack, instances: &[Instance], problems: &mut Vec<Problem>) {
    match &stack.network {
        Network::Tcp(tcp) if usize::from(tcp.base_port) + 2 * instances.len() > 65536 => {
            problems.push(Problem::PortsExhausted { processes: instances.len(), base_port: tcp.base_port });
        }
        Network::Unix => {
            let longest =
                instances.iter().map(|instance| &instance.private).max_by_key(|a| a.to_string().len());
            if let Some(Address::Unix { path }) = longest {
                let length = path.as_os_str().len();
                if length > MAX_SOCKET_PATH {
                    problems.push(Problem::SocketPathTooLong { path: path.display().to_string(), length });
                }
            }
        }
        _ => {}
    }
}

fn check_listen(stack: &Stack, instances: &[Instance], problems: &mut Vec<Problem>) {
    let own =
        [("listen.address", Some(&stack.listen.address)), ("listen.metrics", stack.listen.metrics.as_ref())];
    let mut taken: Vec<(&str, SocketAddr)> = Vec::new();
    for (field, text) in own {
        let Some(text) = text else { continue };
        let address = match text.parse() {
            Ok(ListenAddress::Tcp(address)) => address,
            Ok(ListenAddress::Unix(path)) if field == "listen.address" => {
                let length = path.as_os_str().len();
                if length > MAX_SOCKET_PATH {
                    problems.push(Problem::ListenPathTooLong { path: path.display().to_string(), length });
                }
                if stack.public_base_url.is_none() {
                    problems.push(Problem::NeedsBaseUrl { address: text.clone() });
                }
                continue;
            }
            _ => {
                problems.push(Problem::BadAddress { field, text: text.clone() });
                continue;
            }
        };
        if let Some((first, _)) = taken.iter().find(|(_, other)| overlap(*other, address)) {
            problems.push(Problem::AddressTwice {
                first: (*first).to_owned(),
                second: field.to_owned(),
                address: text.clone(),
                field: field.to_owned(),
            });
        }
        taken.push((field, address));
    }
    if !matches!(stack.network, Network::Tcp(_)) {
        return;
    }
    for instance in instances {
        for address in instance.client.iter().chain([&instance.private]) {
            let Address::Tcp { host, port } = address else { continue };
            let Ok(ip) = host.parse() else { continue };
            if let Some((field, _)) =
                taken.iter().find(|(_, other)| overlap(*other, SocketAddr::new(ip, *port)))
            {
                problems.push(Problem::AddressTwice {
                    first: (*field).to_owned(),
                    second: instance.name.clone(),
                    address: address.to_string(),
                    field: (*field).to_owned(),
                });
            }
        }
    }
}

/// Whether two listeners would get in each other's way: the same port on the same address, or on all addresses.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// What processes on several hosts need, which processes on one machine have by themselves.
fn check_hosts(stack: &Stack, instances: &[Instance], problems: &mut Vec<Problem>) {
    let media = media_processes(instances);
    if media > 1 && !stack.media.shared_storage {
        problems.push(Problem::MediaNotShared { count: media });
    }
    if stack.database.external.is_none() {
        problems.push(Problem::NeedsExternal { server: "PostgreSQL", field: "database.external" });
    }
    if stack.redis.external.is_none() {
        problems.push(Problem::NeedsExternal { server: "Valkey", field: "redis.external" });
    }
}

fn check_connections(stack: &Stack, instances: &[Instance], problems: &mut Vec<Problem>) -> u32 {
    let reserved = reserved_connections();
    // MAS's are on the same server unless it has one of its own.
    let mas = stack.auth.mas.as_ref().filter(|mas| mas.database.is_none());
    let needed = connections(instances) + mas.map_or(0, |mas| mas.max_connections.into());
    let max = match (stack.database.max_connections, &stack.database.external) {
        (Some(max), _) => max,
        (None, Some(_)) => POSTGRES_DEFAULT_MAX_CONNECTIONS,
        (None, None) => needed.max(POSTGRES_DEFAULT_MAX_CONNECTIONS),
    };
    if needed > max {
        let processes = instances.iter().map(Instance::processes).sum();
        problems.push(Problem::TooManyConnections { processes, needed, reserved, max });
    }
    max
}
