//! Decisions as a reviewer reads them.

use std::fmt::Write as _;
use std::path::Path;

use model::{Preset, ServerName, Stack};
use routes::{Explanation, Features, Matcher, Options, Table};

fn matcher(preset: Preset) -> Matcher {
    let name = ServerName::try_from("example.org".to_owned()).expect("a server name");
    let topology = model::plan(&Stack::new(name), Path::new("/run/x"), preset).expect("a plan");
    let options = Options {
        admin_open: true,
        features: Features::default().with("experimental_features.msc4306_enabled"),
    };
    Matcher::compile(Table::newest(), &topology, &options).expect("a matcher")
}

const REQUESTS: &[(&str, &str)] = &[
    ("GET", "/_matrix/client/versions"),
    ("GET", "/_matrix/client/v3/login"),
    ("POST", "/_matrix/client/v3/login"),
    ("GET", "/_matrix/client/v3/login/sso/redirect/oidc?redirectUrl=x"),
    ("GET", "/_synapse/client/oidc/callback?code=x"),
    ("GET", "/_synapse/client/pick_username/account_details"),
    ("POST", "/_matrix/client/v3/register"),
    ("POST", "/_matrix/client/v3/logout"),
    ("POST", "/_matrix/client/v3/refresh"),
    ("GET", "/_matrix/client/v3/account/whoami"),
    ("GET", "/_matrix/client/v3/capabilities"),
    ("GET", "/_matrix/client/v3/sync?timeout=0"),
    ("GET", "/_matrix/client/v3/sync?since=s1_2&timeout=30000"),
    ("GET", "/_matrix/client/v3/sync?since=s1_2&full_state=true"),
    ("POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=30000"),
    ("POST", "/_matrix/client/v3/user/%40u%3Aexample.org/filter"),
    ("POST", "/_matrix/client/v3/createRoom"),
    ("POST", "/_matrix/client/v3/join/%23a%3Aexample.org?server_name=example.com"),
    ("POST", "/_matrix/client/v3/rooms/!abc:example.org/invite"),
    ("POST", "/_matrix/client/v3/rooms/!abc:example.org/forget"),
    ("POST", "/_matrix/client/v3/rooms/!abc:example.org/upgrade"),
    ("PUT", "/_matrix/client/v3/rooms/%21abc%3Aexample.org/send/m.room.message/m1"),
    ("PUT", "/_matrix/client/v3/rooms/!0k6bmEoPvSBnMcHfNuuhQaFBVJDtlEQDkyNkMfSeJb4/state/m.room.name/"),
    ("PUT", "/_matrix/client/v3/rooms/!abc:example.org/redact/$e/m2"),
    ("GET", "/_matrix/client/v3/rooms/!abc:example.org/messages?dir=b"),
    ("GET", "/_matrix/client/v1/rooms/!abc:example.org/relations/$e/m.thread"),
    ("GET", "/_matrix/client/v1/rooms/!abc:example.org/hierarchy"),
    ("PUT", "/_matrix/client/v3/rooms/!abc:example.org/typing/@u:example.org"),
    ("POST", "/_matrix/client/v3/rooms/!abc:example.org/receipt/m.read/$e"),
    ("POST", "/_matrix/client/v3/rooms/!abc:example.org/read_markers"),
    ("PUT", "/_matrix/client/v3/sendToDevice/m.room.encrypted/m3"),
    ("PUT", "/_matrix/client/v3/user/@u:example.org/account_data/m.direct"),
    ("PUT", "/_matrix/client/v3/user/@u:example.org/rooms/!abc:example.org/tags/m.favourite"),
    ("PUT", "/_matrix/client/v3/presence/@u:example.org/status"),
    ("GET", "/_matrix/client/v3/pushrules/"),
    ("PUT", "/_matrix/client/v3/pushrules/global/room/!abc:example.org"),
    ("POST", "/_matrix/client/v3/keys/upload"),
    ("POST", "/_matrix/client/v3/keys/query"),
    ("GET", "/_matrix/client/v3/devices"),
    ("PUT", "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"),
    ("PUT", "/_matrix/client/v3/room_keys/keys?version=1"),
    ("PUT", "/_matrix/client/unstable/io.element.msc4306/rooms/!abc:example.org/thread/$e/subscription"),
    ("POST", "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/d1/restart"),
    ("POST", "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/d1/send"),
    ("POST", "/_matrix/client/v3/user_directory/search"),
    ("POST", "/_matrix/client/v3/search"),
    ("GET", "/_matrix/client/v3/profile/@u:example.org"),
    ("POST", "/_matrix/client/v3/pushers/set"),
    ("GET", "/_matrix/client/v3/voip/turnServer"),
    ("POST", "/_matrix/media/v3/upload?filename=a.png"),
    ("GET", "/_matrix/client/v1/media/download/example.org/abc"),
    ("GET", "/_matrix/media/v3/thumbnail/example.org/abc?width=1&height=1"),
    ("GET", "/_matrix/client/v1/media/preview_url?url=x"),
    ("GET", "/_matrix/federation/v1/media/download/abc"),
    ("POST", "/_synapse/admin/v1/media/quarantine/example.org/abc"),
    ("GET", "/_synapse/admin/v1/room/!abc:example.org/media"),
    ("GET", "/_synapse/admin/v2/users/@u:example.org"),
    ("PUT", "/_synapse/admin/v2/users/@u:example.org"),
    ("PUT", "/_matrix/federation/v1/send/123"),
    ("PUT", "/_matrix/federation/v2/send_join/!abc:example.org/$e"),
    ("GET", "/_matrix/federation/v1/state_ids/!abc:example.org?event_id=$e"),
    ("POST", "/_matrix/federation/v1/user/keys/query"),
    ("GET", "/_matrix/key/v2/server"),
    ("PATCH", "/_matrix/client/v3/sync"),
    ("GET", "/_matrix/client/v4/sync"),
    ("OPTIONS", "/_matrix/client/v3/sync"),
    ("GET", "/.well-known/matrix/server"),
    ("GET", "/_synapse/metrics"),
    ("GET", "/_synapse/mas/query_user"),
    ("GET", "/robots.txt"),
    ("GET", "/"),
];

/// One decision in a few lines.
fn show(e: &Explanation) -> String {
    let mut out = format!("{} {}\n  {}", e.method, e.path, e.outcome);
    if let (Some(class), Some(seconds), Some(cap)) = (e.class, e.timeout_seconds, e.cap) {
        let roles: Vec<_> = e.roles.iter().map(|role| role.name()).collect();
        let _ = write!(
            out,
            " {class}: {} at {}, {:?}",
            roles.join(" > "),
            e.instances.join(" "),
            serde_json::to_value(e.balance).unwrap_or_default().as_str().unwrap_or_default(),
        );
        if let Some(key) = e.key {
            let _ = write!(out, " by {key} {}", e.key_value.as_deref().unwrap_or_default());
        }
        let _ = write!(out, ", {seconds} s, at most {cap}");
    }
    let _ = write!(out, "\n  {}\n", e.reason);
    out
}

#[test]
fn realistic_requests_in_the_full_layout() {
    let matcher = matcher(Preset::Full);
    let shown: Vec<_> =
        REQUESTS.iter().map(|(method, target)| show(&matcher.explain(method, target))).collect();
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn realistic_requests_in_the_small_layout() {
    let matcher = matcher(Preset::Small);
    let shown: Vec<_> =
        REQUESTS.iter().map(|(method, target)| show(&matcher.explain(method, target))).collect();
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn explanations_are_json() {
    let matcher = matcher(Preset::Full);
    let explain = |method, target| matcher.explain(method, target);
    insta::assert_json_snapshot!([
        explain("PUT", "/_matrix/client/v3/rooms/%21abc%3Aexample.org/send/m.room.message/m1"),
        explain("POST", "/_matrix/client/v3/rooms/!abc:example.org/receipt/m.read/$e"),
        explain("GET", "/_synapse/metrics"),
    ]);
}
