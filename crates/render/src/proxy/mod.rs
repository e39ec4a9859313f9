//! The router's decisions as configuration of other proxies, for people who keep their own.
//!
//! [`Routing`] turns the compiled matcher into an ordered list of patterns over the path *as it was sent*, the first
//! that fits deciding, and the topology into pools of instances. Each proxy's module writes that down in its language
//! and decides nothing itself.

mod envoy;
mod haproxy;
mod nginx;
mod pattern;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use model::{Address, Balance, Lookup, Replicas, Role, Stack, Topology};
use routes::{Class, Key, Matcher, Method, Route, Rule, Segment, WellKnown, well_known, well_known_caching};

pub use envoy::envoy;
pub use haproxy::haproxy;
pub use nginx::nginx;

/// Appends a line to a text. Writing to a string cannot fail.
macro_rules! line {
    ($out:expr) => { $out.push('\n') };
    ($out:expr, $($arg:tt)*) => {{
        use std::fmt::Write as _;
        let _ = writeln!($out, $($arg)*);
    }};
}
use line;

/// What is done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// As if nothing were there.
    NotFound,
    /// The answer to a CORS preflight.
    Preflight,
    /// The page at `/`.
    Landing,
    /// A document under `/.well-known/matrix/`.
    WellKnown(WellKnown),
    /// Forwarded to a target: an index of [`Routing::targets`].
    Forward(usize),
}

/// Some requests, and what is done with them.
#[derive(Clone, Debug)]
struct Pattern {
    /// The methods; none for all.
    methods: Vec<&'static str>,
    /// Regular expressions, of which one has to fit the whole path.
    paths: Vec<String>,
    /// A regular expression that has to fit the whole query, which has to be there.
    query: Option<String>,
    /// What is done.
    outcome: Outcome,
}

/// Endpoints that are treated alike: a class, as far as the same processes can answer it.
#[derive(Clone, Debug)]
struct Target {
    /// The class's name; with a number where a class has several targets.
    name: String,
    class: &'static Class,
    chain: Box<[Role]>,
    /// Who answers, best first: indices of [`Routing::pools`]. Those behind the first stand in for it.
    pools: Vec<usize>,
}

impl Target {
    fn timeout(&self) -> Duration {
        self.class.timeout
    }
}

/// The instances of a role, and how requests are spread over them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pool {
    /// The role's name, with the key if they are spread by one.
    name: String,
    balance: Balance,
    servers: Vec<Server>,
    /// The most requests in flight at one instance: the highest cap of the classes that prefer it.
    cap: u32,
}

/// An instance, as far as a proxy goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    name: String,
    address: Address,
    /// Where it is a name with several processes behind it.
    replicas: Option<Replicas>,
}

impl Server {
    /// How many processes it is at most.
    fn processes(&self) -> u32 {
        self.replicas.map_or(1, |replicas| replicas.max.into())
    }
}

/// What a proxy cannot do for a stack.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// Its upstreams are fixed when it starts.
    #[error(
        "nginx looks up the names of its upstreams only when it starts, so it would not see the processes of the pool \
         `{pool}` come and go; use `render haproxy`, `render envoy` or `matrix-stack router`, or remove \
         `network.hosts.pools`"
    )]
    Pools {
        /// A pool of the stack.
        pool: String,
    },
    /// Requests for MAS go by host names or to another service, which these configurations know nothing of.
    #[error(
        "the configuration of another proxy knows nothing of the Matrix Authentication Service, to which logins and its own \
         pages belong; use `matrix-stack router` behind that proxy, which takes everything where it belongs"
    )]
    Mas,
    /// It looks up addresses alone.
    #[error(
        "Envoy looks up addresses and not SRV records, by which the pool `{pool}` is found; set \
         `network.hosts.pools.lookup: address`, or use `render haproxy` or `matrix-stack router`"
    )]
    Srv {
        /// A pool of the stack.
        pool: String,
    },
}

/// Refuses a stack with MAS.
fn without_mas(topology: &Topology) -> Result<(), Unsupported> {
    if topology.mas().is_some() { Err(Unsupported::Mas) } else { Ok(()) }
}

/// The first pool of a topology's that is found in one of these ways, by its name.
fn first_pool(topology: &Topology, lookups: &[Lookup]) -> Option<String> {
    let found = |replicas: Replicas| lookups.contains(&replicas.lookup);
    topology.instances().iter().find(|i| i.replicas.is_some_and(found)).map(|i| i.name.clone())
}

impl Pool {
    /// Whether instances are reached by the names of their hosts, rather than by addresses.
    fn named(&self) -> bool {
        let named = |host: &str| host.parse::<IpAddr>().is_err();
        self.servers.iter().any(|s| matches!(&s.address, Address::Tcp { host, .. } if named(host)))
    }

    fn hashed(&self) -> bool {
        matches!(self.balance, Balance::HashRoom | Balance::HashUser | Balance::HashOrigin)
    }
}

/// What a proxy has to do.
struct Routing<'a> {
    topology: &'a Topology,
    stack: &'a Stack,
    version: &'a str,
    patterns: Vec<Pattern>,
    targets: Vec<Target>,
    pools: Vec<Pool>,
    /// Regular expressions for the beginning of paths that hold a room, before the slash and the room's segment; by
    /// that segment's index.
    rooms: BTreeMap<usize, Vec<String>>,
    /// What stands under `/.well-known/matrix/`, and for how long that holds.
    documents: BTreeMap<WellKnown, String>,
    caching: String,
}

/// How a request to a target is decided on: by the target alone, or by its query too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Choice {
    target: usize,
    initial: Option<ByQuery>,
}

/// Another target, unless the query has a parameter, and even then if another has a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ByQuery {
    unless: &'static str,
    or_if: Option<(&'static str, &'static str)>,
    target: usize,
}

/// For each method, and for all others.
type Choices = ([Choice; 4], Choice);

/// Rules that are decided alike, in a place of the order where that is all that counts.
#[derive(Default)]
struct Group<'m> {
    templates: Vec<Vec<Segment<'m>>>,
}

impl<'a> Routing<'a> {
    fn new(topology: &'a Topology, matcher: &'a Matcher) -> Self {
        let stack = topology.stack();
        let documents = well_known(stack).into_iter();
        let mut routing = Self {
            topology,
            stack,
            version: matcher.version(),
            patterns: Vec::new(),
            targets: Vec::new(),
            pools: Vec::new(),
            rooms: BTreeMap::new(),
            documents: documents.map(|(which, document)| (which, document.to_string())).collect(),
            caching: well_known_caching(stack),
        };
        let rules = matcher.rules();
        routing.add_answers(matcher);
        routing.add_rules(topology, matcher, &rules);
        let unknown = routing.target(topology, matcher, matcher.unknown());
        routing.patterns.push(Pattern {
            methods: Vec::new(),
            paths: matcher.open_places().map(pattern::below).collect(),
            query: None,
            outcome: Outcome::Forward(unknown),
        });
        routing.add_rooms(&rules);
        routing.name_targets();
        // What only ever stands in takes as much as main.
        let main =
            routing.pools.iter().find(|pool| pool.name == Role::Main.name()).map_or(1, |pool| pool.cap);
        for pool in routing.pools.iter_mut().filter(|pool| pool.cap == 0) {
            pool.cap = main;
        }
        routing
    }

    /// What is answered here. It stands first, so that what follows need not look at `OPTIONS`.
    fn add_answers(&mut self, matcher: &Matcher) {
        let at = |which: WellKnown| pattern::below(&[".well-known", "matrix", which.segment()]);
        let get = methods(Method::Get);
        let mut add = |methods: &[&'static str], paths, outcome| {
            self.patterns.push(Pattern { methods: methods.to_vec(), paths, query: None, outcome });
        };
        let own = ["/".to_owned()].into_iter().chain(WellKnown::ALL.map(at));
        add(&["OPTIONS"], matcher.open_places().map(pattern::below).chain(own).collect(), Outcome::Preflight);
        add(get, vec!["/".to_owned()], Outcome::Landing);
        for which in self.documents.keys() {
            add(get, vec![at(*which)], Outcome::WellKnown(*which));
        }
    }

    fn add_rules(&mut self, topology: &Topology, matcher: &Matcher, rules: &[Rule<'_>]) {
        // A rule's rank says how many rules have to be tried before it, because they share paths with it and decide
        // otherwise. Within a rank order does not matter, so rules that decide alike go together.
        let mut ranked: Vec<(usize, Choices, &[Segment<'_>])> = Vec::new();
        let mut groups: BTreeMap<(usize, Choices), Group<'_>> = BTreeMap::new();
        for rule in rules {
            let choices = self.choices(topology, matcher, rule);
            let before = ranked.iter().filter(|(_, other, segments)| {
                *other != choices && pattern::share_a_path(segments, &rule.segments)
            });
            let rank = before.map(|(rank, ..)| rank + 1).max().unwrap_or_default();
            ranked.push((rank, choices, &rule.segments));
            groups.entry((rank, choices)).or_default().templates.push(rule.segments.clone());
        }
        for ((_, (by_method, other)), group) in groups {
            let paths = pattern::templates(&group.templates);
            let mut done: Vec<Choice> = vec![other];
            for choice in by_method {
                if !done.contains(&choice) {
                    let same = Method::ALL.into_iter().filter(|m| by_method[*m as usize] == choice);
                    let methods: Vec<_> = same.flat_map(methods).copied().collect();
                    self.add_choice(&methods, &paths, choice);
                    done.push(choice);
                }
            }
            self.add_choice(&[], &paths, other);
        }
    }

    fn add_choice(&mut self, methods: &[&'static str], paths: &[String], choice: Choice) {
        let mut add = |query, target| {
            self.patterns.push(Pattern {
                methods: methods.to_vec(),
                paths: paths.to_vec(),
                query,
                outcome: Outcome::Forward(target),
            });
        };
        let Some(initial) = choice.initial else { return add(None, choice.target) };
        if let Some((name, value)) = initial.or_if {
            add(Some(pattern::query_value(name, value)), initial.target);
        }
        add(Some(pattern::query_has(initial.unless)), choice.target);
        add(None, initial.target);
    }

    fn choices(&mut self, topology: &Topology, matcher: &Matcher, rule: &Rule<'_>) -> Choices {
        let mut choice = |method| {
            let route = rule.route(method);
            Choice {
                target: self.target(topology, matcher, route),
                initial: matcher.initial_of(route).map(|initial| ByQuery {
                    unless: initial.unless,
                    or_if: initial.or_if,
                    target: self.target(topology, matcher, initial.route),
                }),
            }
        };
        (Method::ALL.map(|method| choice(Some(method))), choice(None))
    }

    /// The index of a route's target.
    fn target(&mut self, topology: &Topology, matcher: &Matcher, route: &Route) -> usize {
        let class = route.class;
        let same = |target: &Target| target.class.id == class.id && target.chain == route.chain;
        if let Some(found) = self.targets.iter().position(same) {
            return found;
        }
        let pools = route
            .chain
            .iter()
            .enumerate()
            .map(|(position, role)| {
                let cap = if position == 0 { class.cap } else { 0 };
                self.pool(topology, matcher, *role, class.balance(*role), cap)
            })
            .collect();
        self.targets.push(Target { name: class.name.to_owned(), class, chain: route.chain.clone(), pools });
        self.targets.len() - 1
    }

    fn pool(
        &mut self,
        topology: &Topology,
        matcher: &Matcher,
        role: Role,
        balance: Balance,
        cap: u32,
    ) -> usize {
        let balance = if matcher.is_spread(role) { balance } else { Balance::None };
        let name = match balance {
            Balance::HashRoom => format!("{role}_by_room"),
            Balance::HashUser => format!("{role}_by_user"),
            Balance::HashOrigin => format!("{role}_by_origin"),
            _ => role.name().to_owned(),
        };
        if let Some(found) = self.pools.iter().position(|pool| pool.name == name) {
            self.pools[found].cap = self.pools[found].cap.max(cap);
            return found;
        }
        let servers = matcher.instances(role).iter().filter_map(|name| {
            let instance = topology.instance(name)?;
            Some(Server {
                name: name.clone(),
                address: instance.client.clone()?,
                replicas: instance.replicas,
            })
        });
        self.pools.push(Pool { name, balance, servers: servers.collect(), cap });
        self.pools.len() - 1
    }

    fn add_rooms(&mut self, rules: &[Rule<'_>]) {
        let mut prefixes: BTreeMap<usize, Vec<Vec<Segment<'_>>>> = BTreeMap::new();
        for rule in rules {
            let all = Method::ALL.map(|method| rule.route(Some(method)));
            for at in all.into_iter().filter_map(Route::room_segment) {
                let prefix = rule.segments[..at].to_vec();
                let known = prefixes.entry(at).or_default();
                if !known.contains(&prefix) {
                    known.push(prefix);
                }
            }
        }
        self.rooms = prefixes.into_iter().map(|(at, list)| (at, pattern::templates(&list))).collect();
    }

    /// Gives the targets of one class different names: the one with the longest chain has the class's own.
    fn name_targets(&mut self) {
        for class in &routes::CLASSES {
            let mut same: Vec<_> = self.targets.iter_mut().filter(|t| t.class.id == class.id).collect();
            same.sort_by_key(|target| std::cmp::Reverse(target.chain.len()));
            for (number, target) in same.into_iter().enumerate().skip(1) {
                let _ = write!(target.name, "_{}", number + 1);
            }
        }
    }

    /// The targets in the order of their classes.
    fn sorted_targets(&self) -> Vec<&Target> {
        let mut targets: Vec<_> = self.targets.iter().collect();
        targets.sort_by_key(|target| (target.class.id, target.chain.len()));
        targets
    }

    /// The pools in the order of their names.
    fn sorted_pools(&self) -> Vec<&Pool> {
        let mut pools: Vec<_> = self.pools.iter().collect();
        pools.sort_by(|a, b| a.name.cmp(&b.name));
        pools
    }

    /// The name of an outcome in a configuration.
    fn name(&self, outcome: Outcome) -> &str {
        match outcome {
            Outcome::NotFound => "not_found",
            Outcome::Preflight => "preflight",
            Outcome::Landing => "landing",
            Outcome::WellKnown(WellKnown::Client) => "well_known_client",
            Outcome::WellKnown(WellKnown::Server) => "well_known_server",
            Outcome::WellKnown(WellKnown::Support) => "well_known_support",
            Outcome::WellKnown(WellKnown::OpenidConfiguration) => "well_known_openid_configuration",
            Outcome::Forward(target) => &self.targets[target].name,
        }
    }

    /// Whether some pool's requests are spread so.
    fn spreads(&self, by: Balance) -> bool {
        self.pools.iter().any(|pool| pool.balance == by)
    }

    /// Whether requests of this target are spread by this key somewhere.
    fn is_keyed(&self, target: &Target, key: Key) -> bool {
        target.class.key == key && target.pools.iter().any(|pool| self.pools[*pool].hashed())
    }

    /// The lines at the top of a file, without comment signs.
    fn preamble(&self, program: &str, use_it: &[&str]) -> Vec<String> {
        let mut lines = vec![
            format!(
                "Matrix homeserver {}: every request to a Synapse process that can serve it.",
                self.stack.server_name
            ),
            String::new(),
            format!(
                "Made by `matrix-stack render {program}` from the stack's configuration and the endpoint table of Synapse {}.",
                self.version
            ),
            "Make it anew when either changes, rather than edit it. `matrix-stack routes explain METHOD PATH` says why a"
                .to_owned(),
            "request goes where it goes.".to_owned(),
            String::new(),
        ];
        lines.extend(use_it.iter().map(|line| (*line).to_owned()));
        for companion in self.topology.companions() {
            if let (Some(path), Some(address)) = (&companion.path, &companion.address) {
                lines.push(String::new());
                lines.push(format!(
                    "Not in here: {path}/, which `matrix-stack router` passes on to {} at {address}, without that path.",
                    companion.kind
                ));
            }
        }
        lines
    }
}

/// The methods that mean this one.
fn methods(method: Method) -> &'static [&'static str] {
    match method {
        Method::Get => &["GET", "HEAD"],
        Method::Post => &["POST"],
        Method::Put => &["PUT"],
        Method::Delete => &["DELETE"],
    }
}

/// A Matrix error, as JSON.
fn error(errcode: &str, message: &str) -> String {
    serde_json::json!({ "errcode": errcode, "error": message }).to_string()
}

/// The answer to what is closed or is not there.
fn not_found() -> String {
    error("M_UNRECOGNIZED", "Unrecognized request")
}

#[cfg(test)]
mod tests;
