//! Truth times policy times topology: the compiled matcher.

use std::collections::BTreeMap;
use std::ops::Range;

use model::{Instance, ROLES, Role, Stream, Topology};
use percent_encoding::percent_decode_str;

use crate::features::{Condition, Features};
use crate::policy::{Class, ClassId, InitialBy, Key, classify};
use crate::table::{Endpoint, Method, Process, Segment, Table, names};
use crate::trie::Trie;

/// What a matcher depends on beside table and topology.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether `/_synapse/admin` is reachable on this listener.
    pub admin_open: bool,
    /// What the stack's configuration turns on in Synapse.
    pub features: Features,
}

/// An endpoint has no process that could answer it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No role's instances all register it and write its streams.
    #[error(
        "no process of this stack can answer {method} {path}: Synapse registers it on {registered_by}{}: \
         give a process the role `{role}`",
        describe_writes(.writes)
    )]
    NoTarget {
        /// The method.
        method: Method,
        /// The path's template.
        path: Box<str>,
        /// The kinds of process that register it.
        registered_by: String,
        /// The streams that have to be written.
        writes: Vec<Stream>,
        /// The role that policy prefers.
        role: Role,
    },
}

fn describe_writes(writes: &[Stream]) -> String {
    match writes {
        [] => String::new(),
        [stream, ..] => format!(", and only a writer of `{stream}` may answer"),
    }
}

/// An endpoint, and who answers it in this stack.
#[derive(Clone, Debug)]
pub struct Route {
    /// How its requests are treated.
    pub class: &'static Class,
    /// The roles to try, best first. Each is carried by some instance, and every instance that carries it can answer.
    /// Never empty. Where only a stream's writers can answer, main is not there, unless it is the writer.
    pub chain: Box<[Role]>,
    /// The path's template; none for what the table does not have.
    pub template: Option<Box<str>>,
    /// The method; none for what the table does not have.
    pub method: Option<Method>,
    /// The streams of which the process that answers has to be a writer.
    pub streams: Box<[Stream]>,
    /// The kinds of process that register it.
    pub registered_by: Box<[Process]>,
    /// The configuration that registers it.
    pub when: Condition,
    /// Whether this stack's configuration does.
    pub active: bool,
    /// Which segment of the path holds the room ID, for [`Key::Room`].
    room_segment: Option<usize>,
    /// The route for initial syncs, if the query can make it one.
    initial: Option<(InitialBy, u32)>,
}

impl Route {
    /// Whether the table has the path. Requests for others are counted, so that drift is seen.
    pub fn known(&self) -> bool {
        self.template.is_some()
    }

    /// Which segment of the path holds the room ID (or alias), counted from 0; there for [`Key::Room`].
    pub fn room_segment(&self) -> Option<usize> {
        self.room_segment
    }

    /// The role that answers, while one of its instances can.
    pub fn primary(&self) -> Role {
        self.chain[0]
    }
}

/// What to do with a request.
#[derive(Clone, Debug)]
pub enum Decision<'m> {
    /// Forward it.
    Forward(Forward<'m>),
    /// It is a CORS preflight, which the router answers itself.
    Preflight,
    /// The router answers with its own document.
    WellKnown(WellKnown),
    /// The Matrix Authentication Service answers it in Synapse's stead.
    Auth,
    /// `/`: the router's landing page.
    Landing,
    /// It must not be reached here. The answer is that of a path that does not exist.
    Closed(Closed),
    /// It is no path of Matrix or Synapse.
    NotFound,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Forward<'m> {
    /// The route.
    pub route: &'m Route,
    /// Where the room ID (or alias) stands in the request's target, still percent-encoded; there for [`Key::Room`].
    pub room: Option<Range<usize>>,
    /// Whether Synapse registers the request's method for the path. If not, it answers 405.
    pub method_registered: bool,
}

/// A document under `/.well-known/matrix/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WellKnown {
    /// For clients: where the homeserver is, and more.
    Client,
    /// For other servers: where this one is.
    Server,
    /// For people: whom to turn to.
    Support,
    /// For clients: where users sign in.
    OpenidConfiguration,
}

impl WellKnown {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Client, Self::Server, Self::Support, Self::OpenidConfiguration];

    /// The last segment of its path.
    pub fn segment(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Support => "support",
            Self::OpenidConfiguration => "openid-configuration",
        }
    }
}

/// What is not reachable on the public listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// `/_synapse/admin`, unless it was opened.
    Admin,
    /// `/_synapse/replication`.
    Replication,
    /// `/_synapse/metrics`.
    Metrics,
    /// `/health`.
    Health,
    /// Anything else under `/_synapse`.
    Other,
}

impl Closed {
    /// Its name, as metrics label it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Replication => "replication",
            Self::Metrics => "metrics",
            Self::Health => "health",
            Self::Other => "other",
        }
    }
}

/// Where a path belongs, before the table is asked.
enum Place {
    Table,
    WellKnown(WellKnown),
    Landing,
    Closed(Closed),
    Nowhere,
}

/// One route for each method, and the one that answers for a method that is not registered.
#[derive(Debug)]
struct Leaf {
    methods: [Option<u32>; 4],
    any: u32,
}

/// Decides requests for one stack. Immutable; deciding allocates nothing and looks at each byte a bounded number of
/// times.
#[derive(Debug)]
pub struct Matcher {
    trie: Trie,
    leaves: Box<[Leaf]>,
    /// Every path's template, as the automaton's leaves count them.
    templates: Box<[Box<str>]>,
    routes: Box<[Route]>,
    unknown: Route,
    instances: Box<[Box<[String]>]>,
    /// By role: whether several processes may take its requests.
    several: Box<[bool]>,
    admin_open: bool,
    mas: bool,
    /// Whether there is a Matrix Authentication Service that answers logins.
    auth: bool,
    version: Box<str>,
}

impl Matcher {
    /// Compiles a table for a stack. Fails if an endpoint has no process that could answer it.
    pub fn compile(table: &Table, topology: &Topology, options: &Options) -> Result<Self, RouteError> {
        let mut routes = Vec::new();
        // Endpoints of one path share a template; the same method may stand there for several configurations.
        let mut paths: BTreeMap<&str, BTreeMap<Method, Vec<&Endpoint>>> = BTreeMap::new();
        for endpoint in table.endpoints().iter().filter(|endpoint| classify(endpoint).is_some()) {
            paths.entry(&endpoint.path).or_default().entry(endpoint.method).or_default().push(endpoint);
        }
        let mut texts: Vec<Box<str>> = Vec::new();
        let mut templates = Vec::new();
        let mut by_template: Vec<[Option<u32>; 4]> = Vec::new();
        for (path, methods) in paths {
            let mut found = [None; 4];
            for (method, variants) in methods {
                let active = variants.iter().find(|endpoint| endpoint.when.holds(&options.features));
                let Some(endpoint) = active.or(variants.first()) else { continue };
                found[method as usize] = Some(add_routes(&mut routes, endpoint, active.is_some(), topology)?);
            }
            templates.push(Segment::parse_all(path).unwrap_or_default());
            texts.push(Box::from(path));
            by_template.push(found);
        }
        let trie = Trie::new(&templates);
        let leaves = trie
            .leaves()
            .iter()
            .map(|templates| {
                let first =
                    |method: usize| templates.iter().find_map(|template| by_template[*template][method]);
                let methods = [first(0), first(1), first(2), first(3)];
                Leaf { methods, any: methods.into_iter().flatten().next().unwrap_or_default() }
            })
            .collect();
        Ok(Self {
            trie,
            leaves,
            templates: texts.into(),
            routes: routes.into(),
            unknown: unknown_route(),
            instances: ROLES
                .iter()
                .map(|spec| instances_of(topology, spec.role).map(|i| i.name.clone()).collect())
                .collect(),
            several: ROLES
                .iter()
                .map(|spec| {
                    let mut instances = instances_of(topology, spec.role);
                    instances.next().is_some_and(Instance::is_pool) || instances.next().is_some()
                })
                .collect(),
            admin_open: options.admin_open,
            mas: options.features.is_on("matrix_authentication_service.enabled"),
            auth: topology.mas().is_some(),
            version: table.version().into(),
        })
    }

    /// What to do with a request. `target` is the request's target in origin form as it was sent: raw, with its query.
    /// HEAD is a GET.
    pub fn decide<'m>(&'m self, method: &str, target: &str) -> Decision<'m> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        match self.place(path) {
            Place::Closed(what) => Decision::Closed(what),
            Place::Table | Place::Landing | Place::WellKnown(_) if method == "OPTIONS" => Decision::Preflight,
            Place::Landing if Method::from_name(method) == Some(Method::Get) => Decision::Landing,
            Place::WellKnown(what) if Method::from_name(method) == Some(Method::Get) => {
                Decision::WellKnown(what)
            }
            Place::Landing | Place::WellKnown(_) | Place::Nowhere => Decision::NotFound,
            Place::Table if self.auth && is_login(path) => Decision::Auth,
            Place::Table => Decision::Forward(self.forward(method, path, query)),
        }
    }

    /// The names of the instances that carry a role and take requests.
    pub fn instances(&self, role: Role) -> &[String] {
        &self.instances[role as usize]
    }

    /// Whether several processes may take a role's requests: several instances, or one that is a pool.
    pub fn is_spread(&self, role: Role) -> bool {
        self.several[role as usize]
    }

    /// Every endpoint with who answers it, in the table's order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The route of paths that the table does not have.
    pub fn unknown(&self) -> &Route {
        &self.unknown
    }

    /// The version of Synapse whose table this is.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The first segments, decoded, of what is forwarded: [`Matcher::place`] as a list.
    pub(crate) fn open(&self) -> impl Iterator<Item = &'static [&'static str]> {
        const OPEN: [&[&str]; 4] =
            [&["_matrix"], &["_synapse", "client"], &["_synapse", "mas"], &["_synapse", "admin"]];
        OPEN.into_iter().filter(|open| match open {
            [_, "mas"] => self.mas,
            [_, "admin"] => self.admin_open,
            _ => true,
        })
    }

    /// The leaves of the automaton: the templates that fit the paths of each, the route for each method, and the one for all
    /// other methods.
    pub(crate) fn leaves(
        &self,
    ) -> impl Iterator<Item = (impl Iterator<Item = &str>, [Option<&Route>; 4], &Route)> {
        let route = |index: u32| &self.routes[index as usize];
        self.trie.leaves().iter().zip(&self.leaves).map(move |(templates, leaf)| {
            let templates = templates.iter().map(|template| &*self.templates[*template]);
            (templates, leaf.methods.map(|index| index.map(route)), route(leaf.any))
        })
    }

    /// What makes a request to this route an initial sync, and its route then.
    pub(crate) fn initial(&self, route: &Route) -> Option<(InitialBy, &Route)> {
        route.initial.map(|(by, index)| (by, &self.routes[index as usize]))
    }

    /// Synapse hangs its parts below decoded segments, so what is closed must be closed in every spelling.
    fn place(&self, path: &str) -> Place {
        let Some(path) = path.strip_prefix('/') else { return Place::Nowhere };
        let mut segments = path.split('/');
        let first = segments.next().unwrap_or_default();
        if reads(first, "_matrix") {
            return Place::Table;
        }
        if reads(first, "_synapse") {
            let second = segments.next().unwrap_or_default();
            return if reads(second, "client") || (self.mas && reads(second, "mas")) {
                Place::Table
            } else if reads(second, "admin") {
                if self.admin_open { Place::Table } else { Place::Closed(Closed::Admin) }
            } else if reads(second, "replication") {
                Place::Closed(Closed::Replication)
            } else if reads(second, "metrics") {
                Place::Closed(Closed::Metrics)
            } else {
                Place::Closed(Closed::Other)
            };
        }
        if reads(first, "health") {
            return Place::Closed(Closed::Health);
        }
        if reads(first, ".well-known") && segments.next().is_some_and(|second| reads(second, "matrix")) {
            let third = segments.next();
            let document = WellKnown::ALL
                .into_iter()
                .find(|what| third.is_some_and(|third| reads(third, what.segment())));
            return document.map_or(Place::Nowhere, Place::WellKnown);
        }
        if path.is_empty() { Place::Landing } else { Place::Nowhere }
    }

    fn forward(&self, method: &str, path: &str, query: &str) -> Forward<'_> {
        // Synapse compares the path as it was sent with its patterns, and decodes only what stands for parameters.
        let Some(leaf) = self.trie.find(path[1..].split('/')).map(|leaf| &self.leaves[leaf]) else {
            return Forward { route: &self.unknown, room: None, method_registered: true };
        };
        let registered = Method::from_name(method).and_then(|method| leaf.methods[method as usize]);
        let mut route = &self.routes[registered.unwrap_or(leaf.any) as usize];
        if let Some((by, initial)) = route.initial
            && is_initial(by, query)
        {
            route = &self.routes[initial as usize];
        }
        let room = route.room_segment.and_then(|wanted| segment_range(path, wanted));
        Forward { route, room, method_registered: registered.is_some() }
    }
}

/// Whether a path is one of those of the client-server API that the Matrix Authentication Service answers for clients that
/// know nothing of OAuth (its `compat` resource): logins, logouts and the refreshing of tokens, of any version.
fn is_login(path: &str) -> bool {
    let Some((_, rest)) = path.strip_prefix("/_matrix/client/").and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    matches!(rest, "login" | "logout" | "logout/all" | "refresh" | "login/sso/redirect")
        || rest.strip_prefix("login/sso/redirect/").is_some_and(|provider| !provider.contains('/'))
}

/// Adds an endpoint's route, and that of its initial syncs; the index of the first.
fn add_routes(
    routes: &mut Vec<Route>,
    endpoint: &Endpoint,
    active: bool,
    topology: &Topology,
) -> Result<u32, RouteError> {
    let class = classify(endpoint).map_or(ClassId::Main, |(class, _)| class);
    let initial = match InitialBy::path(&endpoint.path) {
        Some(by) => {
            routes.push(route(endpoint, ClassId::SyncInitial.class(), None, active, topology)?);
            Some((by, last(routes)))
        }
        None => None,
    };
    routes.push(route(endpoint, class.class(), initial, active, topology)?);
    Ok(last(routes))
}

#[expect(clippy::cast_possible_truncation, reason = "there are a few thousand endpoints at most")]
fn last(routes: &[Route]) -> u32 {
    (routes.len() - 1) as u32
}

fn route(
    endpoint: &Endpoint,
    class: &'static Class,
    initial: Option<(InitialBy, u32)>,
    active: bool,
    topology: &Topology,
) -> Result<Route, RouteError> {
    let mut chain: Vec<Role> = Vec::new();
    for role in class.roles() {
        let mut carriers = topology.with_role(role).filter(|instance| instance.client.is_some()).peekable();
        // The target is a subset of the processes that register the endpoint and write its streams.
        if carriers.peek().is_some() && carriers.all(|instance| endpoint.served_by(instance)) {
            chain.push(role);
        }
    }
    if chain.is_empty() {
        return Err(RouteError::NoTarget {
            method: endpoint.method,
            path: endpoint.path.clone(),
            registered_by: names(&endpoint.by),
            writes: endpoint.writes.clone(),
            role: class.role,
        });
    }
    let room_segment = (class.key == Key::Room)
        .then(|| {
            endpoint.segments().iter().position(|segment| {
                matches!(segment.parameter(), Some("room_id" | "room_identifier" | "room_alias"))
            })
        })
        .flatten();
    Ok(Route {
        class,
        chain: chain.into(),
        template: Some(endpoint.path.clone()),
        method: Some(endpoint.method),
        streams: endpoint.writes.clone().into(),
        registered_by: endpoint.by.clone().into(),
        when: endpoint.when.clone(),
        active,
        room_segment,
        initial,
    })
}

fn unknown_route() -> Route {
    Route {
        class: ClassId::Unknown.class(),
        chain: Box::new([Role::Main]),
        template: None,
        method: None,
        streams: Box::default(),
        registered_by: Box::default(),
        when: Condition::default(),
        active: true,
        room_segment: None,
        initial: None,
    }
}

/// The instances that carry a role and take requests.
fn instances_of(topology: &Topology, role: Role) -> impl Iterator<Item = &Instance> {
    topology.with_role(role).filter(|instance| instance.client.is_some())
}

/// Whether a segment is this word, once decoded.
fn reads(segment: &str, word: &str) -> bool {
    segment == word || (segment.contains('%') && percent_decode_str(segment).eq(word.bytes()))
}

/// Where the segment with this index stands in a path.
fn segment_range(path: &str, wanted: usize) -> Option<Range<usize>> {
    let mut start = 1;
    for (index, segment) in path[1..].split('/').enumerate() {
        if index == wanted {
            return Some(start..start + segment.len());
        }
        start += segment.len() + 1;
    }
    None
}

fn is_initial(by: InitialBy, query: &str) -> bool {
    parameter(query, by.unless()).is_none()
        || by
            .or_if()
            .is_some_and(|(name, wanted)| parameter(query, name).is_some_and(|value| reads(value, wanted)))
}

/// What separates the parameters of a query for Twisted, and so for Synapse.
pub const SEPARATORS: [char; 2] = ['&', ';'];

/// The first value of a query's parameter, still percent-encoded, found as Twisted does: a name without `=` is none, an
/// empty value is a value.
pub fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query
        .split(SEPARATORS)
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| reads(key, name))
        .map(|(_, value)| value)
}
