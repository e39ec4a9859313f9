//! nginx.
//!
//! One `map` over method and request line names the route; the request is then rewritten to a location of the route's
//! own, because timeouts and limits are a location's. Only the location is chosen by that: what goes to Synapse is
//! `$request_uri`, the target as it was sent.

use model::{Address, Balance, ListenAddress, Lookup, ProxyProtocol, Topology};
use routes::{Matcher, answers};

use super::{Outcome, Pool, Routing, Target, Unsupported, error, first_pool, line, not_found, pattern};

/// The locations that requests are rewritten to. No path of a client's gets there by itself.
const INNER: &str = "/matrix-stack/";

/// A file for nginx's `http` block: maps, upstreams and a server. Not for a topology with pools.
pub fn nginx(topology: &Topology, matcher: &Matcher) -> Result<String, Unsupported> {
    super::without_mas(topology)?;
    // nginx 1.27.3 has `resolve` for upstreams, but wants to be told a DNS server, which is not the stack's to know.
    if let Some(pool) = first_pool(topology, &[Lookup::Address, Lookup::Srv]) {
        return Err(Unsupported::Pools { pool });
    }
    let routing = Routing::new(topology, matcher);
    let mut out = String::new();
    let preamble = routing.preamble(
        "nginx",
        &[
            "This file belongs into nginx's `http` block: as /etc/nginx/conf.d/matrix.conf, or by `include`. nginx 1.19 or",
            "newer. `pcre_jit on;` and a large `worker_connections` in nginx.conf are worth it. For TLS, add `listen 443 ssl;`",
            "and the certificate to the server below.",
        ],
    );
    for text in preamble {
        line!(out, "{}", format!("# {text}").trim_end());
    }
    maps(&mut out, &routing);
    keys(&mut out, &routing);
    for pool in routing.sorted_pools() {
        upstream(&mut out, pool);
    }
    server(&mut out, &routing);
    Ok(out)
}

fn maps(out: &mut String, routing: &Routing<'_>) {
    line!(
        out,
        "
# A path with `.` or `..` in it is passed on as it is, unless it could be taken for a private one.
map $request_uri $matrix_dots {{
    default no;
    \"~^{}(?:\\?|$)\" yes;
}}
map \"$matrix_dots $request_uri\" $matrix_hidden {{
    default no;
    \"~^yes {}(?:\\?|$)\" yes;
}}

# Who answers. The path is compared as it was sent, and the first pattern that fits counts.
map \"$request_method $request_uri\" $matrix_request {{
    default not_found;",
        pattern::DOTS,
        pattern::private()
    );
    let mut last = None;
    for pattern in &routing.patterns {
        if last.replace(pattern.outcome) != Some(pattern.outcome) {
            line!(out);
            if let Outcome::Forward(target) = pattern.outcome {
                line!(out, "    # {}", describe(routing, &routing.targets[target]));
            }
        }
        let methods = match &pattern.methods[..] {
            [] => "[A-Z]+".to_owned(),
            [one] => (*one).to_owned(),
            many => format!("(?:{})", many.join("|")),
        };
        let query = match &pattern.query {
            Some(query) => format!("\\?{query}$"),
            None => "(?:\\?|$)".to_owned(),
        };
        for path in &pattern.paths {
            line!(out, "    \"~^{methods} {path}{query}\" {};", routing.name(pattern.outcome));
        }
    }
    line!(
        out,
        "}}
map $matrix_hidden $matrix_route {{
    default $matrix_request;
    yes not_found;
}}"
    );
}

/// A target's roles, and why it is there.
fn describe(routing: &Routing<'_>, target: &Target) -> String {
    let pools: Vec<_> = target.pools.iter().map(|pool| routing.pools[*pool].name.as_str()).collect();
    format!("{}: {}", target.name, pools.join(", else "))
}

/// What requests are spread by.
fn keys(out: &mut String, routing: &Routing<'_>) {
    if routing.spreads(Balance::HashRoom) {
        line!(
            out,
            "
# The room, from the decoded path, so that its spelling does not matter.
map $matrix_path $matrix_room {{
    default $request_id;"
        );
        for path in routing.rooms.values().flatten() {
            line!(out, "    \"~^{path}/(?<matrix_room_id>[^/]*)\" $matrix_room_id;");
        }
        line!(out, "}}");
    }
    if routing.spreads(Balance::HashUser) {
        line!(
            out,
            r#"
# The user's name from a token of Synapse's own kind, else the token.
map $http_authorization $matrix_token {{
    default "";
    "" $arg_access_token;
    "~*^bearer +(?<matrix_bearer>[^ ]+)" $matrix_bearer;
}}
map $matrix_token $matrix_user {{
    default $matrix_token;
    "" $request_id;
    "~^syt_(?<matrix_localpart>[^_]+)_[^_]*_" $matrix_localpart;
}}"#
        );
    }
    if routing.spreads(Balance::HashOrigin) {
        line!(
            out,
            r#"
# The server that signed the request, else the client's address.
map $http_authorization $matrix_origin {{
    default {client};
    "~*^x-matrix[ \t](?:.*[ \t,])?origin[ \t]*=[ \t]*\"?(?<matrix_server>[^\", \t]+)" $matrix_server;
}}"#,
            client = if routing.stack.listen.trust_forwarded_for { "$matrix_client" } else { "$remote_addr" },
        );
    }
    line!(
        out,
        r#"
# Whether an attempt may be followed by one at another role: nothing was sent, or the method is safe and the process
# went away. nginx itself looks at this as well before it tries another process of the same role, but counts PUT and
# DELETE among what may be sent again, as HTTP does.
map "$request_method $upstream_bytes_sent $upstream_status" $matrix_spent {{
    volatile;
    default yes;
    "~^[A-Z]+ [-0,: ]* [-0-9,: ]*$" no;
    "~^(?:GET|HEAD) .*502$" no;
}}"#
    );
    if routing.stack.listen.trust_forwarded_for {
        let believed = routing.stack.listen.trusted_proxies.max(1);
        line!(
            out,
            r#"
# The proxies in front, {believed} of them, are believed: each adds whom it was asked by at the end, so the client is the one
# that the first of them added.
map $http_x_forwarded_for $matrix_client {{
    default $remote_addr;
    "~(?<matrix_address>[^, ]+)(?:[, ]+[^, ]+){{{inner}}}[, ]*$" $matrix_address;
    "~^[, ]*(?<matrix_first_address>[^, ]+)" $matrix_first_address;
}}
map $http_x_forwarded_proto $matrix_proto {{
    default $http_x_forwarded_proto;
    "" $scheme;
}}
map $http_x_forwarded_host $matrix_host {{
    default $http_x_forwarded_host;
    "" $http_host;
}}"#,
            inner = believed - 1,
        );
    }
}

fn upstream(out: &mut String, pool: &Pool) {
    line!(out, "\nupstream matrix_{} {{", pool.name);
    line!(out, "    zone matrix_{} 64k;", pool.name);
    match pool.balance {
        Balance::HashRoom => line!(out, "    hash $matrix_room consistent;"),
        Balance::HashUser => line!(out, "    hash $matrix_user consistent;"),
        Balance::HashOrigin => line!(out, "    hash $matrix_origin consistent;"),
        Balance::LeastConnections => line!(out, "    least_conn;"),
        Balance::None | Balance::RoundRobin | Balance::BySynapse(_) => {}
    }
    for server in &pool.servers {
        let address = match &server.address {
            Address::Unix { path } => format!("\"unix:{}\"", path.display()),
            address @ Address::Tcp { .. } => address.to_string(),
        };
        line!(out, "    server {address} max_fails=1 fail_timeout=2s; # {}", server.name);
    }
    line!(out, "    keepalive 64;");
    line!(out, "    keepalive_timeout {}s;", answers::UPSTREAM_IDLE.as_secs());
    line!(out, "}}");
}

fn server(out: &mut String, routing: &Routing<'_>) {
    let listen = &routing.stack.listen;
    let trust = listen.trust_forwarded_for;
    line!(
        out,
        "
server {{
    listen {address}{both}{proxied};
    server_name {name};
{real}
    merge_slashes off;
    server_tokens off;
    large_client_header_buffers 4 32k;
    client_header_timeout {head}s;
    client_body_timeout {body}s;
    client_body_buffer_size 64k;
    client_max_body_size {most};
    keepalive_timeout {idle}s;

    # Bodies are taken in whole before Synapse is asked, which wants to know their length; answers are not stored.
    proxy_http_version 1.1;
    proxy_request_buffering on;
    proxy_max_temp_file_size 0;
    proxy_connect_timeout {connect}s;
    proxy_send_timeout {body}s;
    proxy_next_upstream error timeout;
    # Long enough for processes that cannot be reached, too short for those that took the request and say nothing.
    proxy_next_upstream_timeout 10s;
    proxy_next_upstream_tries 3;
    proxy_set_header Connection \"\";
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For {forwarded};
    proxy_set_header X-Forwarded-Proto {proto};
    proxy_set_header X-Forwarded-Host {host};
    proxy_set_header X-Request-ID $request_id;
    recursive_error_pages on;

    # The decoded path, for the room in it, before the request goes to its route's location.
    set $matrix_path $uri;
    rewrite ^ {INNER}$matrix_route last;",
        address = match listen.address.parse() {
            Ok(ListenAddress::Unix(path)) => format!("\"unix:{}\"", path.display()),
            _ => listen.address.clone(),
        },
        proxied = if listen.proxy_protocol.is_some() { " proxy_protocol" } else { "" },
        real = listen.proxy_protocol.as_ref().map(real_address).unwrap_or_default(),
        // All addresses, of IPv4 too.
        both = if listen.address.starts_with("[::]") { " ipv6only=off" } else { "" },
        name = host(&routing.stack.base_url()),
        head = answers::HEAD_TIMEOUT.as_secs(),
        body = answers::BODY_STALL.as_secs(),
        most = answers::MAX_REQUEST_BYTES,
        idle = answers::IDLE_TIMEOUT.as_secs(),
        connect = answers::CONNECT_TIMEOUT.as_secs(),
        forwarded = if trust { "$matrix_client" } else { "$remote_addr" },
        proto = if trust { "$matrix_proto" } else { "$scheme" },
        host = if trust { "$matrix_host" } else { "$http_host" },
    );
    own_answers(out, routing);
    for target in routing.sorted_targets() {
        locations(out, routing, target);
    }
    line!(out, "}}");
}

/// The client is whom a load balancer names, if it is one that may.
fn real_address(protocol: &ProxyProtocol) -> String {
    let mut from: Vec<String> = protocol.from.iter().map(ToString::to_string).collect();
    if from.is_empty() {
        from = ["0.0.0.0/0", "::/0"].map(str::to_owned).into();
    }
    from.push("unix:".to_owned());
    let set = "\n    set_real_ip_from ";
    format!("    real_ip_header proxy_protocol;{set}{};\n", from.join(&format!(";{set}")))
}

/// The name under which clients reach the server.
fn host(url: &str) -> &str {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let port = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    port.map_or(authority, |(host, _)| host)
}

fn own_answers(out: &mut String, routing: &Routing<'_>) {
    let json = "application/json";
    let mut answer = |name: &str, kind: &str, status: u16, body: &str, more: &str| {
        line!(out, "\n    location {name} {{");
        if !body.is_empty() {
            line!(out, "        default_type {kind};");
        }
        for (header, value) in answers::CORS {
            line!(out, "        add_header {header} {} always;", quoted(value));
        }
        out.push_str(more);
        match body {
            "" => line!(out, "        return {status};"),
            body => line!(out, "        return {status} {};", quoted(body)),
        }
        line!(out, "    }}");
    };
    let at = |outcome| format!("= {INNER}{}", routing.name(outcome));
    answer(&at(Outcome::NotFound), json, 404, &not_found(), "");
    let age = format!("        add_header access-control-max-age {} always;\n", answers::PREFLIGHT_MAX_AGE);
    answer(&at(Outcome::Preflight), "", 204, "", &age);
    answer(&at(Outcome::Landing), "text/html", 200, answers::LANDING.trim_end(), "        charset utf-8;\n");
    let caching = format!("        add_header cache-control {};\n", quoted(&routing.caching));
    for (which, document) in &routing.documents {
        answer(&at(Outcome::WellKnown(*which)), json, 200, document, &caching);
    }
    // A status of 200 here leaves the failure's own.
    let no_store = "        add_header cache-control no-store always;\n";
    answer("@matrix_too_large", json, 200, &error("M_TOO_LARGE", "The request is too large"), no_store);
    answer(
        "@matrix_unavailable",
        json,
        200,
        &error("M_UNKNOWN", "No process of the homeserver can answer now"),
        no_store,
    );
}

/// A target's location, and one for each role that may stand in.
fn locations(out: &mut String, routing: &Routing<'_>, target: &Target) {
    line!(out);
    for (position, pool) in target.pools.iter().enumerate() {
        let next = if position + 1 < target.pools.len() {
            format!("@{}_{}", target.name, position + 1)
        } else {
            "@matrix_unavailable".to_owned()
        };
        if position == 0 {
            line!(out, "    location = {INNER}{} {{", target.name);
            let most = target.class.max_body_of(routing.stack);
            if most != answers::MAX_REQUEST_BYTES {
                line!(out, "        client_max_body_size {most};");
            }
        } else {
            line!(out, "    location @{}_{position} {{", target.name);
            line!(out, "        if ($matrix_spent = yes) {{ return 502; }}");
        }
        line!(out, "        proxy_read_timeout {}s;", target.timeout().as_secs());
        line!(out, "        error_page 413 @matrix_too_large;");
        line!(out, "        error_page 502 503 504 {next};");
        line!(out, "        proxy_pass http://matrix_{}$request_uri;", routing.pools[*pool].name);
        line!(out, "    }}");
    }
}

/// A string of nginx's, without variables in it.
fn quoted(text: &str) -> String {
    // There is no way to write a dollar sign but in a variable.
    let text = text.replace('\\', "\\\\").replace('\'', "\\'").replace('$', "\\u0024");
    format!("'{text}'")
}
