"""The proxies that people use today, each configured with a Matrix routing table of the kind its users run.

HAProxy: maps of regular expressions, a hash of the access token, the room or the source. nginx: regular-expression
locations, consistent hashing. Envoy: regular-expression routes, hashing by what a Lua filter found out.
"""

import json

# Role and how its servers are chosen, then the expressions, in the order in which they are tried. All but the last two
# groups are for clients.
V = "(api/v1|r0|v3|unstable)"
TABLE = [
    ("initial_sync", "user", [rf"^/_matrix/client/{V}/initialSync$", rf"^/_matrix/client/{V}/rooms/[^/]+/initialSync$"]),
    ("sync", "user", [rf"^/_matrix/client/(r0|v3)/sync$", rf"^/_matrix/client/{V}/events$", r"^/_matrix/client/unstable/org.matrix.simplified_msc3575/sync$"]),
    ("typing", "first", [rf"^/_matrix/client/{V}/rooms/.*/typing"]),
    ("to_device", "first", [r"^/_matrix/client/(r0|v3|unstable)/sendToDevice/"]),
    ("account_data", "first", [r"^/_matrix/client/(r0|v3|unstable)/.*/tags", r"^/_matrix/client/(r0|v3|unstable)/.*/account_data"]),
    ("receipts", "turns", [r"^/_matrix/client/(r0|v3|unstable)/rooms/.*/receipt", r"^/_matrix/client/(r0|v3|unstable)/rooms/.*/read_markers"]),
    ("presence", "first", [rf"^/_matrix/client/{V}/presence/"]),
    ("push_rules", "first", [rf"^/_matrix/client/{V}/pushrules/"]),
    ("device_lists", "turns", [r"^/_matrix/client/(r0|v3)/delete_devices$", r"^/_matrix/client/(r0|v3|unstable)/keys/upload", r"^/_matrix/client/(r0|v3|unstable)/keys/device_signing/upload$", r"^/_matrix/client/(r0|v3|unstable)/keys/signatures/upload$", rf"^/_matrix/client/{V}/devices(/|$)"]),
    ("room", "room", [
        rf"^/_matrix/client/{V}/createRoom$", rf"^/_matrix/client/{V}/rooms/.*/redact", rf"^/_matrix/client/{V}/rooms/.*/send", rf"^/_matrix/client/{V}/rooms/.*/state/",
        rf"^/_matrix/client/{V}/rooms/.*/(join|invite|leave|ban|unban|kick)$", rf"^/_matrix/client/{V}/join/", rf"^/_matrix/client/{V}/knock/",
        rf"^/_matrix/client/{V}/rooms/.*/joined_members$", rf"^/_matrix/client/{V}/rooms/.*/context/.*$", rf"^/_matrix/client/{V}/rooms/.*/members$", rf"^/_matrix/client/{V}/rooms/.*/state$",
        rf"^/_matrix/client/{V}/rooms/.*/messages$", rf"^/_matrix/client/{V}/rooms/.*/event/", r"^/_matrix/client/v1/rooms/.*/hierarchy$", r"^/_matrix/client/(v1|unstable)/rooms/.*/relations/", r"^/_matrix/client/v1/rooms/.*/threads$", r"^/_matrix/client/v1/rooms/.*/timestamp_to_event$",
        rf"^/_matrix/client/{V}/rooms/.*/aliases",
    ]),
    ("user_dir", "first", [r"^/_matrix/client/(r0|v3|unstable)/user_directory/search$"]),
    ("client_reader", "least", [
        rf"^/_matrix/client/{V}/publicRooms$", rf"^/_matrix/client/{V}/login$", rf"^/_matrix/client/(r0|v3|unstable)/register$", r"^/_matrix/client/(r0|v3|unstable)/register/available$", r"^/_matrix/client/(r0|v3|unstable)/auth/.*/fallback/web$",
        rf"^/_matrix/client/{V}/account/3pid$", rf"^/_matrix/client/{V}/account/whoami$", rf"^/_matrix/client/{V}/account/deactivate$", r"^/_matrix/client/versions$", rf"^/_matrix/client/{V}/voip/turnServer$",
        rf"^/_matrix/client/{V}/joined_rooms$", rf"^/_matrix/client/{V}/search$", rf"^/_matrix/client/{V}/user/.*/filter(/|$)", rf"^/_matrix/client/{V}/directory/room/.*$", rf"^/_matrix/client/{V}/capabilities$", rf"^/_matrix/client/{V}/notifications$",
        r"^/_matrix/client/(r0|v3|unstable)/keys/query$", r"^/_matrix/client/(r0|v3|unstable)/keys/changes$", r"^/_matrix/client/(r0|v3|unstable)/keys/claim$", r"^/_matrix/client/(r0|v3|unstable)/room_keys/", rf"^/_matrix/client/{V}/profile/",
    ]),
    ("media_repository", "least", [r"^/_matrix/media/", r"^/_matrix/client/v1/media/", r"^/_matrix/federation/v1/media/"]),
    ("federation_inbound", "source", [r"^/_matrix/federation/v1/send/"]),
    ("federation_reader", "source", [
        r"^/_matrix/federation/v1/version$", r"^/_matrix/federation/v1/event/", r"^/_matrix/federation/v1/state/", r"^/_matrix/federation/v1/state_ids/", r"^/_matrix/federation/v1/backfill/", r"^/_matrix/federation/v1/get_missing_events/", r"^/_matrix/federation/v1/publicRooms", r"^/_matrix/federation/v1/query/",
        r"^/_matrix/federation/v1/make_join/", r"^/_matrix/federation/v1/make_leave/", r"^/_matrix/federation/(v1|v2)/send_join/", r"^/_matrix/federation/(v1|v2)/send_leave/", r"^/_matrix/federation/v1/make_knock/", r"^/_matrix/federation/v1/send_knock/", r"^/_matrix/federation/(v1|v2)/invite/", r"^/_matrix/federation/v1/event_auth/", r"^/_matrix/federation/v1/timestamp_to_event/", r"^/_matrix/federation/v1/exchange_third_party_invite/", r"^/_matrix/federation/v1/user/devices/", r"^/_matrix/key/v2/query", r"^/_matrix/key/v2/server", r"^/_matrix/federation/v1/hierarchy/", r"^/_matrix/federation/v1/user/keys/query$",
    ]),
]


def haproxy(servers, port, directory):
    """The configuration's path. `servers`: ports by role."""
    map_file = directory / "haproxy.map"
    map_file.write_text("".join(f"{regex} {role}\n" for role, _, regexes in TABLE for regex in regexes))
    out = [f"""global
  nbthread 1
  maxconn 9900
  tune.bufsize 16384
defaults
  mode http
  timeout connect 5s
  timeout client 900s
  timeout server 180s
  timeout http-keep-alive 900s
  timeout http-request 10s
  timeout queue 60s
  option redispatch
  http-reuse aggressive
  option forwardfor
frontend clients
  bind 127.0.0.1:{port}
  http-request set-var(txn.token) req.hdr(Authorization),word(2,' ')
  http-request set-header X-Access-Token %[var(txn.token)]
  http-request set-var(txn.role) path,map_reg({map_file},main)
  acl no_since url_param(since) -m len 0
  acl has_since url_param(since) -m found
  acl full_state url_param(full_state) -m str true
  acl is_sync path -m end /sync
  acl is_get method GET
  use_backend initial_sync if is_sync is_get !has_since
  use_backend initial_sync if is_sync full_state
  use_backend %[var(txn.role)]
"""]
    balance = {"user": "hdr(X-Access-Token)", "room": "hdr(X-Room)", "source": "source", "turns": "roundrobin", "least": "leastconn", "first": "first"}
    for role, how, _ in [*TABLE, ("main", "first", [])]:
        room = "  http-request set-header X-Room %[path,field(6,/)]\n" if how == "room" else ""
        lines = "".join(f"  server {role}{n} 127.0.0.1:{at} maxconn 2000\n" for n, at in enumerate(servers[role]))
        out.append(f"backend {role}\n  balance {balance[how]}\n  hash-type consistent sdbm\n{room}{lines}")
    path = directory / "haproxy.cfg"
    path.write_text("\n".join(out))
    return path


def nginx(servers, port, directory):
    ups, locations = [], []
    methods = {"user": "hash $http_authorization consistent;", "room": "hash $room consistent;", "source": "hash $remote_addr consistent;", "least": "least_conn;"}
    for role, how, _ in [*TABLE, ("main", "first", [])]:
        lines = "".join(f"    server 127.0.0.1:{at};\n" for at in servers[role])
        ups.append(f"  upstream {role} {{\n    {methods.get(how, '')}\n{lines}    keepalive 64;\n    keepalive_requests 1000000;\n  }}")
    for role, _, regexes in TABLE:
        target = "$sync_role" if role == "sync" else role
        locations += [f"    location ~ {regex} {{ proxy_pass http://{target}; }}" for regex in regexes]
    text = f"""worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  client_max_body_size 50m;
  client_body_buffer_size 64k;
  keepalive_requests 100000000;
  keepalive_timeout 900s;
  tcp_nodelay on;
  map $request_uri $room {{ "~/(?:rooms|join|knock)/(?<found>[^/?]+)" $found; default ""; }}
  map "$arg_since:$arg_full_state" $sync_role {{ "~^:" initial_sync; "~:true$" initial_sync; default sync; }}
{chr(10).join(ups)}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    merge_slashes off;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_read_timeout 180s;
    proxy_buffers 8 16k;
    proxy_buffer_size 16k;
    proxy_busy_buffers_size 32k;
{chr(10).join(locations)}
    location / {{ proxy_pass http://main; }}
  }}
}}
"""
    path = directory / "nginx.conf"
    path.write_text(text)
    return path


LUA = """
function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  local room = string.match(path, "/rooms/([^/?]+)") or string.match(path, "/join/([^/?]+)")
  local key = room
  if key == nil then
    local auth = headers:get("authorization")
    if auth ~= nil then
      local encoded = string.match(auth, "^Bearer syt_([^_]+)_")
      key = encoded or auth
    end
  end
  if key ~= nil then headers:replace("x-hash-key", key) end
end
"""


def envoy(servers, port, directory):
    policies = {"user": "RING_HASH", "room": "RING_HASH", "source": "RING_HASH", "least": "LEAST_REQUEST"}

    def cluster(role, how):
        endpoints = [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": at}}}} for at in servers[role]]
        return {
            "name": role, "connect_timeout": "5s", "type": "STATIC", "lb_policy": policies.get(how, "ROUND_ROBIN"),
            "circuit_breakers": {"thresholds": [{"max_connections": 16384, "max_requests": 16384, "max_pending_requests": 16384}]},
            "load_assignment": {"cluster_name": role, "endpoints": [{"lb_endpoints": endpoints}]},
        }

    def route(role, how, match):
        action = {"cluster": role, "timeout": "300s"}
        if how in ("user", "room"):
            action["hash_policy"] = [{"header": {"header_name": "x-hash-key"}}]
        elif how == "source":
            action["hash_policy"] = [{"connection_properties": {"source_ip": True}}]
        return {"match": match, "route": action}

    def regex(text):
        # Envoy's expressions have to match all of the path.
        body = text.removeprefix("^")
        return {"safe_regex": {"regex": body.removesuffix("$") if body.endswith("$") else body + ".*"}}

    routes = []
    for role, how, regexes in TABLE:
        for text in regexes:
            if role == "sync":
                since = [{"name": "since", "present_match": True}]
                routes.append(route("sync", how, {**regex(text), "query_parameters": since}))
                if "msc3575" not in text:
                    routes.append(route("initial_sync", how, regex(text)))
                    continue
            routes.append(route(role, how, regex(text)))
    routes.append(route("main", "first", {"prefix": "/"}))
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients", "use_remote_address": True, "stream_idle_timeout": "0s",
        "http_filters": [
            {"name": "lua", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua", "default_source_code": {"inline_string": LUA}}},
            {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
        ],
        "route_config": {"virtual_hosts": [{"name": "matrix", "domains": ["*"], "routes": routes}]},
    }
    config = {
        "static_resources": {
            "listeners": [{
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
            }],
            "clusters": [cluster(role, how) for role, how, _ in [*TABLE, ("main", "first", [])]],
        }
    }
    path = directory / "envoy.json"
    path.write_text(json.dumps(config, indent=1))
    return path
