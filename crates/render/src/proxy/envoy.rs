//! Envoy.
//!
//! Routes in order, each with a cluster; a cluster that others stand in for is an aggregate of them.

use model::{Address, Balance, ListenAddress, Lookup, ProxyProtocol, Sources, Topology};
use routes::{Key, Matcher, answers};
use serde_json::Value;

use super::{
    Outcome, Pattern, Pool, Routing, Server, Target, Unsupported, error, first_pool, line, not_found, pattern,
};

/// A whole configuration file for Envoy. Not for a topology whose pools are found by SRV records.
pub fn envoy(topology: &Topology, matcher: &Matcher) -> Result<String, Unsupported> {
    super::without_mas(topology)?;
    if let Some(pool) = first_pool(topology, &[Lookup::Srv]) {
        return Err(Unsupported::Srv { pool });
    }
    let routing = Routing::new(topology, matcher);
    let mut out = String::new();
    let preamble = routing.preamble(
        "envoy",
        &[
            "This is a whole configuration: check it with `envoy --mode validate -c FILE`. For TLS, add a transport_socket to",
            "the listener's filter chain.",
        ],
    );
    for text in preamble {
        line!(out, "{}", format!("# {text}").trim_end());
    }
    listener(&mut out, &routing);
    routes(&mut out, &routing);
    filters(&mut out);
    line!(out, "\n  clusters:");
    for pool in routing.sorted_pools() {
        cluster(&mut out, pool);
    }
    aggregates(&mut out, &routing);
    Ok(out)
}

fn listener(out: &mut String, routing: &Routing<'_>) {
    let listen = &routing.stack.listen;
    // Behind a proxy of one's own, what it says about the client is kept; else it is dropped before anybody looks.
    let (hops, mutation) = if listen.trust_forwarded_for {
        (listen.trusted_proxies.max(1), "\n          skip_xff_append: true")
    } else {
        (
            0,
            r#"
          skip_xff_append: true
          early_header_mutation_extensions:
          - name: envoy.http.early_header_mutation.header_mutation
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
              mutations:
              - remove: x-forwarded-for
              - remove: x-forwarded-proto
              - remove: x-forwarded-host
              - remove: x-request-id"#,
        )
    };
    line!(
        out,
        r#"
layered_runtime:
  layers:
  - name: limits
    static_layer:
      # The patterns below are longer than what Envoy allows by itself.
      re2.max_program_size.error_level: 20000
      re2.max_program_size.warn_level: 20000

static_resources:
  listeners:
  - name: matrix
    address: {address}
    per_connection_buffer_limit_bytes: 65536{proxied}
    filter_chains:
    - {from}filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: matrix
          # The path reaches Synapse as it was sent.
          normalize_path: false
          merge_slashes: false
          path_with_escaped_slashes_action: KEEP_UNCHANGED
          use_remote_address: true
          xff_num_trusted_hops: {hops}
          server_header_transformation: PASS_THROUGH
          max_request_headers_kb: 32
          request_headers_timeout: {head}s
          # How long nothing may move; each route has its own.
          stream_idle_timeout: {longest}s
          common_http_protocol_options:
            idle_timeout: {idle}s
            max_headers_count: 100{mutation}
          local_reply_config:
            mappers:"#,
        address = address(&listen.address),
        proxied = if listen.proxy_protocol.is_some() { PROXIED } else { "" },
        from = listen.proxy_protocol.as_ref().map(from).unwrap_or_default(),
        head = answers::HEAD_TIMEOUT.as_secs(),
        idle = answers::IDLE_TIMEOUT.as_secs(),
        longest = routing.targets.iter().map(Target::timeout).max().unwrap_or_default().as_secs(),
    );
    for (compare, status, body) in [
        ("EQ", 413, error("M_TOO_LARGE", "The request is too large")),
        ("GE", 500, error("M_UNKNOWN", "No process of the homeserver can answer now")),
    ] {
        line!(
            out,
            "            - filter: {{ status_code_filter: {{ comparison: {{ op: {compare}, value: {{ default_value: {status}, runtime_key: none }} }} }} }}
              body_format_override:
                text_format_source: {{ inline_string: {} }}
                content_type: application/json
              headers_to_add:",
            quoted(&body)
        );
        headers(out, 14, &[("cache-control", "no-store")]);
    }
}

/// The headers of an answer of one's own, as a list at this indentation.
fn headers(out: &mut String, indent: usize, more: &[(&str, &str)]) {
    for (name, value) in answers::CORS.iter().chain(more) {
        line!(
            out,
            "{:indent$}- {{ header: {{ key: {name}, value: {} }}, append_action: OVERWRITE_IF_EXISTS_OR_ADD }}",
            "",
            quoted(value)
        );
    }
}

/// Connections begin with a header of the PROXY protocol.
const PROXIED: &str = r#"
    listener_filters:
    - name: envoy.filters.listener.proxy_protocol
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"#;

/// An address to listen on.
fn address(text: &str) -> String {
    if let Ok(ListenAddress::Unix(path)) = text.parse() {
        return format!("{{ pipe: {{ path: {}, mode: 438 }} }}", quoted(&path.display().to_string()));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, "8008"));
    let host = host.trim_matches(['[', ']']);
    // All addresses, of IPv4 too.
    let both = if host == "::" { ", ipv4_compat: true" } else { "" };
    format!("{{ socket_address: {{ address: \"{host}\", port_value: {port}{both} }} }}")
}

/// Only load balancers that are named are served, if some are.
fn from(protocol: &ProxyProtocol) -> String {
    if protocol.from.is_empty() {
        return String::new();
    }
    let range = |from: &Sources| {
        let text = from.to_string();
        let (prefix, length) = text.split_once('/').unwrap_or((&text, "32"));
        format!("{{ address_prefix: \"{prefix}\", prefix_len: {length} }}")
    };
    let ranges: Vec<_> = protocol.from.iter().map(range).collect();
    format!("filter_chain_match: {{ direct_source_prefix_ranges: [{}] }}\n      ", ranges.join(", "))
}

/// The client, alone, whoever else stood in between.
const CLIENT: &str = r#"
            request_headers_to_add:
            - header: { key: x-forwarded-for, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" }
              append_action: OVERWRITE_IF_EXISTS_OR_ADD"#;

/// What clients claim about themselves is replaced.
const FORWARDED: &str = r#"
            request_headers_to_add:
            - header: { key: x-forwarded-for, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" }
              append_action: OVERWRITE_IF_EXISTS_OR_ADD
            - header: { key: x-forwarded-host, value: "%REQ(:AUTHORITY)%" }
              append_action: OVERWRITE_IF_EXISTS_OR_ADD"#;

fn routes(out: &mut String, routing: &Routing<'_>) {
    line!(
        out,
        r#"          route_config:
            request_headers_to_remove: [x-envoy-external-address, x-envoy-internal]{forwarded}
            virtual_hosts:
            - name: matrix
              domains: ["*"]
              # A request that nobody has seen may go to another process, whatever its method. Nothing else is repeated.
              retry_policy:
                retry_on: connect-failure,refused-stream,reset-before-request
                num_retries: 4
                retry_back_off: {{ base_interval: 0.02s, max_interval: 0.2s }}
                retry_host_predicate:
                - name: envoy.retry_host_predicates.previous_hosts
                  typed_config:
                    "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
                host_selection_retry_max_attempts: 3
              # The first route that fits counts. It is compared with the path as it was sent.
              routes:
              # A path with `.` or `..` in it is passed on as it is, unless it could be taken for a private one."#,
        forwarded = if routing.stack.listen.trust_forwarded_for { CLIENT } else { FORWARDED },
    );
    let hidden = Pattern {
        methods: Vec::new(),
        paths: vec![pattern::DOTS.to_owned()],
        query: None,
        outcome: Outcome::NotFound,
    };
    let private = format!("{}(?:\\?.*)?", pattern::private());
    matching(out, &hidden.paths, &[(":path", private)]);
    answer(out, routing, Outcome::NotFound);
    for pattern in &routing.patterns {
        if let Outcome::Forward(target) = pattern.outcome {
            let target = &routing.targets[target];
            let most = target.class.max_body_of(routing.stack);
            if most != answers::MAX_REQUEST_BYTES {
                too_large(out, pattern, most);
            }
        }
        let mut conditions: Vec<(&str, String)> = Vec::new();
        if !pattern.methods.is_empty() {
            conditions.push((":method", pattern.methods.join("|")));
        }
        if let Some(query) = &pattern.query {
            conditions.push((":path", format!("[^?]*\\?{query}")));
        }
        matching(out, &pattern.paths, &conditions);
        match pattern.outcome {
            Outcome::Forward(target) => forward(out, routing, &routing.targets[target]),
            outcome => answer(out, routing, outcome),
        }
    }
    matching(out, &["[^?]*".to_owned()], &[]);
    answer(out, routing, Outcome::NotFound);
}

/// The beginning of a route.
fn matching(out: &mut String, paths: &[String], headers: &[(&str, String)]) {
    line!(out, "              - match:");
    // In double quotes, a backslash at the end of a line takes the line break out.
    let lines: Vec<String> =
        paths.iter().map(|path| path.replace('\\', "\\\\").replace('"', "\\\"")).collect();
    line!(out, "                  safe_regex:");
    line!(out, "                    regex: \"{}\"", lines.join("|\\\n                      "));
    if !headers.is_empty() {
        line!(out, "                  headers:");
    }
    for (name, regex) in headers {
        line!(
            out,
            "                  - {{ name: \"{name}\", string_match: {{ safe_regex: {{ regex: {} }} }} }}",
            quoted(regex)
        );
    }
}

/// What is answered without asking Synapse.
fn answer(out: &mut String, routing: &Routing<'_>, outcome: Outcome) {
    let json = ("content-type", "application/json");
    let (status, body, more) = match outcome {
        Outcome::Preflight => (204, String::new(), ("access-control-max-age", answers::PREFLIGHT_MAX_AGE)),
        Outcome::Landing => {
            (200, answers::LANDING.trim_end().to_owned(), ("content-type", "text/html; charset=utf-8"))
        }
        Outcome::WellKnown(which) => (200, routing.documents[&which].clone(), json),
        Outcome::NotFound | Outcome::Forward(_) => (404, not_found(), json),
    };
    line!(out, "                name: {}", routing.name(outcome));
    let body = if body.is_empty() {
        String::new()
    } else {
        format!(", body: {{ inline_string: {} }}", quoted(&body))
    };
    line!(out, "                direct_response: {{ status: {status}{body} }}");
    line!(out, "                response_headers_to_add:");
    let caching =
        matches!(outcome, Outcome::WellKnown(_)).then_some(("cache-control", routing.caching.as_str()));
    let more: Vec<_> = [more].into_iter().chain(caching).collect();
    headers(out, 16, &more);
}

/// The buffer filter bounds all other bodies.
fn too_large(out: &mut String, pattern: &Pattern, most: u64) {
    line!(out, "              - match:");
    let from = most + 1;
    let mut text = String::new();
    matching(&mut text, &pattern.paths, &[]);
    out.push_str(text.split_once('\n').map_or("", |(_, rest)| rest));
    line!(
        out,
        "                  headers:
                  - {{ name: content-length, range_match: {{ start: {from}, end: {} }} }}
                name: too_large
                direct_response: {{ status: 413, body: {{ inline_string: {} }} }}
                response_headers_to_add:",
        i64::MAX,
        quoted(&error("M_TOO_LARGE", "The request is too large"))
    );
    headers(out, 16, &[("content-type", "application/json")]);
}

fn forward(out: &mut String, routing: &Routing<'_>, target: &Target) {
    line!(out, "                name: {}", target.name);
    line!(
        out,
        "                route:
                  cluster: {}
                  # For the head of the response, and between parts of it; the whole may take longer.
                  timeout: 0s
                  idle_timeout: {}s",
        cluster_of(routing, target),
        target.timeout().as_secs()
    );
    let policies: &[String] = &match target.class.key {
        Key::Room if routing.is_keyed(target, Key::Room) => {
            // Envoy decodes nothing. The part of a room ID between the sigil and the colon needs no encoding, so taking
            // that alone gives a room one key in whatever way its sigil and colon are spelt.
            let paths: Vec<_> = routing.rooms.values().flatten().map(String::as_str).collect();
            vec![rewritten(
                ":path",
                &format!("^(?:{})/(?:!|#|%21|%23)?([^/?:%]*).*$", paths.join("|")),
                r"\1",
            )]
        }
        Key::User if routing.is_keyed(target, Key::User) => vec![
            rewritten("authorization", r"^[Bb][Ee][Aa][Rr][Ee][Rr] +(?:syt_([^_]+)_[^_]*_.*|(.*))$", r"\1\2"),
            "query_parameter: { name: access_token }".to_owned(),
        ],
        Key::Origin if routing.is_keyed(target, Key::Origin) => vec![
            rewritten(
                "authorization",
                r#"^[Xx]-[Mm][Aa][Tt][Rr][Ii][Xx][ \t](?:.*[ \t,])?[Oo]rigin[ \t]*=[ \t]*"?([^", \t]+).*$"#,
                r"\1",
            ),
            "connection_properties: { source_ip: true }".to_owned(),
        ],
        _ => Vec::new(),
    };
    if !policies.is_empty() {
        line!(out, "                  hash_policy:");
    }
    for policy in policies {
        line!(out, "                  - {policy}");
    }
    if target.class.max_body_of(routing.stack) != answers::MAX_REQUEST_BYTES {
        line!(
            out,
            r#"                typed_per_filter_config:
                  envoy.filters.http.buffer:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute
                    disabled: true"#
        );
    }
}

/// A hash policy: a header's value, rewritten.
fn rewritten(header: &str, regex: &str, substitution: &str) -> String {
    format!(
        "header: {{ header_name: \"{header}\", regex_rewrite: {{ pattern: {{ regex: {} }}, substitution: {} }} }}\n                    terminal: true",
        quoted(regex),
        quoted(substitution)
    )
}

fn filters(out: &mut String) {
    line!(
        out,
        r#"          http_filters:
          # Bodies are taken in whole before Synapse is asked, which wants to know their length.
          - name: envoy.filters.http.buffer
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer
              max_request_bytes: {}
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true"#,
        answers::MAX_REQUEST_BYTES
    );
}

/// The cluster that a target's requests go to.
fn cluster_of(routing: &Routing<'_>, target: &Target) -> String {
    let names: Vec<&str> = target.pools.iter().map(|pool| routing.pools[*pool].name.as_str()).collect();
    names.join("_or_")
}

fn cluster(out: &mut String, pool: &Pool) {
    let policy = match pool.balance {
        Balance::HashRoom | Balance::HashUser | Balance::HashOrigin => "RING_HASH",
        Balance::LeastConnections => "LEAST_REQUEST",
        Balance::None | Balance::RoundRobin | Balance::BySynapse(_) => "ROUND_ROBIN",
    };
    let most = u64::from(pool.cap) * u64::from(pool.servers.iter().map(Server::processes).sum::<u32>());
    let has_pools = pool.servers.iter().any(|server| server.replicas.is_some());
    line!(
        out,
        r#"  - name: {name}
    type: {kind}{ttl}
    connect_timeout: {connect}s
    lb_policy: {policy}
    common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}
    circuit_breakers:
      thresholds:
      - {{ max_connections: {most}, max_pending_requests: {most}, max_requests: {most}, max_retries: 100 }}
    health_checks:
    - timeout: {timeout}s
      interval: {interval}s
      no_traffic_interval: {interval}s
      unhealthy_threshold: {failures}
      healthy_threshold: 1
      http_health_check: {{ path: /health }}
    outlier_detection:
      # A process that cannot be reached is left out at once, for a second.
      split_external_local_origin_errors: true
      consecutive_local_origin_failure: 2
      consecutive_5xx: 1000000
      enforcing_consecutive_5xx: 0
      enforcing_success_rate: 0
      enforcing_local_origin_success_rate: 0
      interval: 0.5s
      base_ejection_time: 1s
      max_ejection_time: 1s
      max_ejection_percent: 100
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{ idle_timeout: {idle}s }}
        explicit_http_config: {{ http_protocol_options: {{}} }}
    load_assignment:
      cluster_name: {name}
      # While one process is well, none of another role stands in.
      policy: {{ overprovisioning_factor: 100000 }}
      endpoints:
      - lb_endpoints:"#,
        name = pool.name,
        kind = if pool.named() { "STRICT_DNS" } else { "STATIC" },
        // Else Envoy asks every five seconds.
        ttl = if has_pools { "\n    respect_dns_ttl: true" } else { "" },
        connect = answers::CONNECT_TIMEOUT.as_secs(),
        timeout = answers::HEALTH_TIMEOUT.as_secs(),
        interval = answers::HEALTH_INTERVAL.as_secs(),
        failures = answers::HEALTH_FAILURES,
        idle = answers::UPSTREAM_IDLE.as_secs(),
    );
    for server in &pool.servers {
        let address = match &server.address {
            Address::Unix { path } => format!("pipe: {{ path: {} }}", quoted(&path.to_string_lossy())),
            Address::Tcp { host, port } => {
                format!("socket_address: {{ address: {}, port_value: {port} }}", quoted(host))
            }
        };
        line!(out, "        - endpoint: {{ address: {{ {address} }} }} # {}", server.name);
    }
}

/// The roles of each chain as one cluster.
fn aggregates(out: &mut String, routing: &Routing<'_>) {
    let mut chains: Vec<(String, &Target)> = routing
        .targets
        .iter()
        .filter(|target| target.pools.len() > 1)
        .map(|target| (cluster_of(routing, target), target))
        .collect();
    chains.sort_by(|a, b| a.0.cmp(&b.0));
    chains.dedup_by(|a, b| a.0 == b.0);
    if !chains.is_empty() {
        line!(out, "\n  # Roles and those that stand in for them while none of their processes is well.");
    }
    for (name, target) in chains {
        let pools: Vec<_> = target.pools.iter().map(|pool| routing.pools[*pool].name.as_str()).collect();
        line!(
            out,
            r#"  - name: {name}
    connect_timeout: {}s
    lb_policy: CLUSTER_PROVIDED
    cluster_type:
      name: envoy.clusters.aggregate
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig
        clusters: [{}]"#,
            answers::CONNECT_TIMEOUT.as_secs(),
            pools.join(", ")
        );
    }
}

/// A string of YAML's: JSON writes strings so that YAML reads the same.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
