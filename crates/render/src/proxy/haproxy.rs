//! HAProxy.
//!
//! The frontend names the route in a variable, by patterns of which the first that fits counts; backends are the pools.

use model::{Address, Balance, Listen, ListenAddress, Lookup, Topology};
use routes::{Key, Matcher, answers};

use super::{Outcome, Pool, Routing, Target, Unsupported, error, line, not_found, pattern};

/// A whole configuration file for HAProxy.
pub fn haproxy(topology: &Topology, matcher: &Matcher) -> Result<String, Unsupported> {
    super::without_mas(topology)?;
    let routing = Routing::new(topology, matcher);
    let mut out = String::new();
    let preamble = routing.preamble(
        "haproxy",
        &[
            "This is a whole configuration, for HAProxy 2.6 or newer: check it with `haproxy -c -f FILE`. For TLS, add",
            "`bind :443 ssl crt FILE` to the frontend.",
        ],
    );
    for text in preamble {
        line!(out, "{}", format!("# {text}").trim_end());
    }
    defaults(&mut out, &routing);
    resolvers(&mut out, &routing);
    frontend(&mut out, &routing);
    for pool in routing.sorted_pools() {
        backend(&mut out, pool);
    }
    Ok(out)
}

fn defaults(out: &mut String, routing: &Routing<'_>) {
    // HAProxy counts this while a request waits for Synapse as well.
    let longest = routing.targets.iter().map(Target::timeout).max().unwrap_or_default();
    line!(
        out,
        "
global
    # A request's head and what is added to it have to fit. There is no `maxconn`: HAProxy takes as many connections as
    # the limit of open files (`ulimit -n`) lets it have.
    tune.bufsize 32768

defaults
    mode http
    timeout connect {connect}s
    timeout http-request {head}s
    timeout http-keep-alive {idle}s
    timeout client {longest}s
    # Each route has its own; see below.
    timeout server {longest}s
    timeout queue {queue}s
    # A request that nobody has seen may go to another process, whatever its method.
    retries 3
    option redispatch 1",
        connect = answers::CONNECT_TIMEOUT.as_secs(),
        head = answers::HEAD_TIMEOUT.as_secs(),
        idle = answers::IDLE_TIMEOUT.as_secs(),
        longest = longest.as_secs(),
        queue = answers::QUEUE_TIMEOUT.as_secs(),
    );
    for status in [502, 503, 504] {
        let body = error("M_UNKNOWN", "No process of the homeserver can answer now");
        line!(
            out,
            "    http-error status {status} content-type application/json string {}{} hdr cache-control no-store",
            quoted(&body),
            cors()
        );
    }
}

/// Names of hosts are looked up again and again, and need not be there yet when HAProxy starts.
fn resolvers(out: &mut String, routing: &Routing<'_>) {
    if routing.pools.iter().any(Pool::named) {
        line!(out, "\nresolvers system\n    parse-resolv-conf");
    }
    if routing.pools.iter().flat_map(|pool| &pool.servers).any(|server| server.replicas.is_some()) {
        line!(out, "    # The answer for a large pool has to fit.\n    accepted_payload_size 8192");
    }
}

fn frontend(out: &mut String, routing: &Routing<'_>) {
    let listen = &routing.stack.listen;
    line!(
        out,
        "
frontend matrix
    bind {}{}

    # Who answers. The path is compared as it was sent, and the first pattern that fits counts. A path with `.` or `..`
    # in it is passed on as it is, unless it could be taken for a private one.
    acl decided var(txn.route) -m found
    http-request set-var(txn.route) str(not_found) if {{ path_reg {} }} {{ path_reg {} }}",
        bind(&listen.address),
        proxied(listen),
        whole(pattern::DOTS),
        whole(&pattern::private()),
    );
    let mut last = None;
    for (number, pattern) in routing.patterns.iter().enumerate() {
        if last.replace(pattern.outcome) != Some(pattern.outcome) {
            line!(out);
            if let Outcome::Forward(target) = pattern.outcome {
                let target = &routing.targets[target];
                let pools: Vec<_> = target.pools.iter().map(|pool| &*routing.pools[*pool].name).collect();
                line!(out, "    # {}: {}", target.name, pools.join(", else "));
            }
        }
        for path in &pattern.paths {
            line!(out, "    acl path_{number} path_reg {}", whole(path));
        }
        let methods = match &pattern.methods[..] {
            [] => String::new(),
            methods => format!(" {{ method {} }}", methods.join(" ")),
        };
        let query = match &pattern.query {
            Some(query) => format!(" {{ query -m reg {} }}", whole(query)),
            None => String::new(),
        };
        line!(
            out,
            "    http-request set-var(txn.route) str({}) if !decided{methods} path_{number}{query}",
            routing.name(pattern.outcome)
        );
    }
    own_answers(out, routing);
    limits(out, routing);
    client(out, listen);
    keys(out, routing);
    headers(out, listen.trust_forwarded_for);
    line!(out, "\n    # The best role that has a process.");
    for targets in alike(routing, |target| target.pools.clone()) {
        let Some((last, better)) = targets[0].pools.split_last() else { continue };
        let is = is(&targets);
        for pool in better.iter().map(|pool| &routing.pools[*pool].name) {
            line!(out, "    use_backend {pool} if {is} {{ nbsrv({pool}) gt 0 }}");
        }
        line!(out, "    use_backend {} if {is}", routing.pools[*last].name);
    }
}

/// The targets in groups that have something in common.
fn alike<'r, T: Ord>(routing: &'r Routing<'_>, by: impl Fn(&Target) -> T) -> Vec<Vec<&'r Target>> {
    let mut targets = routing.sorted_targets();
    targets.sort_by_key(|target| by(target));
    targets.chunk_by(|a, b| by(a) == by(b)).map(<[_]>::to_vec).collect()
}

/// The condition that a request's route is one of these.
fn is(targets: &[&Target]) -> String {
    let names: Vec<_> = targets.iter().map(|target| target.name.as_str()).collect();
    format!("{{ var(txn.route) -m str {} }}", names.join(" "))
}

fn own_answers(out: &mut String, routing: &Routing<'_>) {
    line!(out, "\n    # What Synapse is not asked for.");
    let mut answer = |condition: &str, status: u16, content: &str, more: &str| {
        line!(out, "    http-request return status {status}{content}{}{more} if {condition}", cors());
    };
    let json = |text: &str| format!(" content-type application/json string {}", quoted(text));
    let at = |outcome| format!("{{ var(txn.route) -m str {} }}", routing.name(outcome));
    answer("!decided", 404, &json(&not_found()), "");
    answer(&at(Outcome::NotFound), 404, &json(&not_found()), "");
    let age = format!(" hdr access-control-max-age {}", answers::PREFLIGHT_MAX_AGE);
    answer(&at(Outcome::Preflight), 204, "", &age);
    let page =
        format!(" content-type 'text/html; charset=utf-8' string {}", quoted(answers::LANDING.trim_end()));
    answer(&at(Outcome::Landing), 200, &page, "");
    let caching = format!(" hdr cache-control {}", quoted(&routing.caching));
    for (which, document) in &routing.documents {
        answer(&at(Outcome::WellKnown(*which)), 200, &json(document), &caching);
    }
}

fn limits(out: &mut String, routing: &Routing<'_>) {
    line!(out, "\n    # The largest bodies, and how long the head of the response may take.");
    let most = |target: &Target| target.class.max_body_of(routing.stack);
    line!(out, "    http-request set-var(txn.most) int({})", answers::MAX_REQUEST_BYTES);
    for targets in alike(routing, most) {
        if most(targets[0]) != answers::MAX_REQUEST_BYTES {
            line!(out, "    http-request set-var(txn.most) int({}) if {}", most(targets[0]), is(&targets));
        }
    }
    line!(
        out,
        "    http-request return status 413 content-type application/json string {}{} if {{ req.hdr_val(content-length),sub(txn.most) gt 0 }}",
        quoted(&error("M_TOO_LARGE", "The request is too large")),
        cors(),
    );
    for targets in alike(routing, Target::timeout) {
        let milliseconds = targets[0].timeout().as_millis();
        line!(out, "    http-request set-var(txn.timeout) int({milliseconds}) if {}", is(&targets));
    }
}

/// What requests are spread by.
fn keys(out: &mut String, routing: &Routing<'_>) {
    if !routing.pools.iter().any(Pool::hashed) {
        return;
    }
    line!(out, "\n    # What requests are spread by; anything where there is nothing.");
    line!(out, "    http-request set-var(txn.key) uuid");
    let keyed = |key| {
        let mut targets = routing.sorted_targets();
        targets.retain(|target| routing.is_keyed(target, key));
        (!targets.is_empty()).then(|| is(&targets))
    };
    if let Some(is) = keyed(Key::Room) {
        line!(out, "    # The room in the path, decoded, so that its spelling does not matter.");
        for (at, paths) in &routing.rooms {
            for path in paths {
                line!(out, "    acl room_{at} path_reg '^{path}/'");
            }
            line!(
                out,
                "    http-request set-var(txn.key) path,field({},/),url_dec if {is} room_{at}",
                // The first field is what stands before the first slash.
                at + 2
            );
        }
    }
    if let Some(is) = keyed(Key::User) {
        line!(out, "    # The user's name from a token of Synapse's own kind, else the token.");
        line!(out, "    acl token var(txn.token) -m found");
        line!(out, "    http-request set-var(txn.token) http_auth_bearer if {is}");
        line!(out, "    http-request set-var(txn.token) url_param(access_token) if {is} !token");
        line!(out, "    http-request set-var(txn.key) var(txn.token) if {is} token");
        line!(
            out,
            "    http-request set-var(txn.key) var(txn.token),field(2,_) if {is} {{ var(txn.token) -m reg '^syt_[^_]+_[^_]*_' }}"
        );
    }
    if let Some(is) = keyed(Key::Origin) {
        line!(out, "    # The server that signed the request, else the client's address.");
        line!(out, "    http-request set-var(txn.key) var(txn.client) if {is}");
        line!(
            out,
            r#"    http-request set-var(txn.key) 'req.fhdr(authorization),regsub("^[^ ]+[ \t](.*[ \t,])?origin[ \t]*=[ \t]*\"?([^\", \t]+).*$","\2",i)' if {is} {{ req.fhdr(authorization) -m reg -i '^x-matrix[ \t](.*[ \t,])?origin[ \t]*=' }}"#
        );
    }
}

/// Whose the request is.
fn client(out: &mut String, listen: &Listen) {
    line!(out, "\n    http-request set-var(txn.client) src");
    if listen.trust_forwarded_for {
        line!(
            out,
            "    # The proxies in front are believed: each adds whom it was asked by at the end, so the client is the one that the
    # first of them added."
        );
        for place in [1, -i16::from(listen.trusted_proxies.max(1))] {
            let told = format!("req.hdr(x-forwarded-for,{place})");
            line!(out, "    http-request set-var(txn.client) {told} if {{ {told} -m found }}");
        }
    }
}

fn headers(out: &mut String, trust: bool) {
    if trust {
        line!(
            out,
            "
    # The proxy in front is believed.
    http-request set-header X-Forwarded-For %[var(txn.client)]
    http-request set-header X-Forwarded-Proto http if !{{ req.hdr(X-Forwarded-Proto) -m found }} !{{ ssl_fc }}
    http-request set-header X-Forwarded-Proto https if !{{ req.hdr(X-Forwarded-Proto) -m found }} {{ ssl_fc }}"
        );
    } else {
        line!(
            out,
            "
    # What clients claim about themselves is replaced.
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Proto http if !{{ ssl_fc }}
    http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
    http-request set-header X-Forwarded-Host %[req.hdr(host)]"
        );
    }
    line!(out, "    http-request set-header X-Request-ID %[uuid]");
}

fn backend(out: &mut String, pool: &Pool) {
    line!(out, "\nbackend {}", pool.name);
    match pool.balance {
        Balance::HashRoom | Balance::HashUser | Balance::HashOrigin => {
            line!(out, "    balance hash var(txn.key)");
            line!(out, "    hash-type consistent sdbm avalanche");
        }
        Balance::LeastConnections => line!(out, "    balance leastconn"),
        Balance::None | Balance::RoundRobin | Balance::BySynapse(_) => line!(out, "    balance roundrobin"),
    }
    line!(out, "    http-request set-timeout server var(txn.timeout)");
    line!(out, "    # What was sent is sent again only if that cannot do anything twice.");
    line!(out, "    retry-on conn-failure empty-response");
    line!(out, "    http-request disable-l7-retry unless METH_GET");
    line!(out, "    option httpchk GET /health");
    line!(out, "    timeout check {}s", answers::HEALTH_TIMEOUT.as_secs());
    line!(
        out,
        "    default-server check inter {}s fall {} rise 1 observe layer4 error-limit 1 on-error mark-down maxconn {}{}",
        answers::HEALTH_INTERVAL.as_secs(),
        answers::HEALTH_FAILURES,
        pool.cap,
        if pool.named() { " resolvers system init-addr libc,none" } else { "" },
    );
    for server in &pool.servers {
        let address = match (&server.address, server.replicas.map(|replicas| replicas.lookup)) {
            (Address::Unix { path }, _) => format!("'unix@{}'", path.display()),
            (Address::Tcp { host, .. }, Some(Lookup::Srv)) => format!("_http._tcp.{host}"),
            (address, _) => address.to_string(),
        };
        let name = &server.name;
        if server.replicas.is_some() {
            // As many as there may be; those that have no address count as not there.
            // Without `init-addr none`, all of them would begin as the same process.
            let most = server.processes();
            line!(out, "    server-template {name}_ 1-{most} {address} init-addr none");
        } else {
            line!(out, "    server {name} {address}");
        }
    }
}

/// How connections begin: what follows the address.
fn proxied(listen: &Listen) -> String {
    let Some(protocol) = &listen.proxy_protocol else { return String::new() };
    let is_unix = matches!(listen.address.parse(), Ok(ListenAddress::Unix(_)));
    if protocol.from.is_empty() || is_unix {
        return " accept-proxy".to_owned();
    }
    let from: Vec<_> = protocol.from.iter().map(ToString::to_string).collect();
    format!(
        "\n    acl load_balancer src {}\n    tcp-request connection reject if !load_balancer\n    tcp-request \
         connection expect-proxy layer4",
        from.join(" ")
    )
}

/// An address to listen on.
fn bind(address: &str) -> String {
    if let Ok(ListenAddress::Unix(path)) = address.parse() {
        return format!("'unix@{}' mode 666", path.display());
    }
    address.strip_prefix("[::]").map_or_else(|| address.to_owned(), |port| format!(":::{}", &port[1..]))
}

/// A regular expression for a whole text.
fn whole(pattern: &str) -> String {
    quoted(&format!("^{pattern}$"))
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The headers of an answer of one's own.
fn cors() -> String {
    answers::CORS
        .iter()
        .fold(String::new(), |out, (name, value)| format!("{out} hdr {name} {}", quoted(value)))
}
