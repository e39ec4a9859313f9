//! Routing tables that are kept by hand, in the forms that people keep them in.

use routes::{Audit, Expression, Method, Table, Target};

fn found(text: &str, target: Target) -> Vec<Expression> {
    Expression::find_all("file", text, &(1..=usize::MAX), target)
}

fn audit(text: &str) -> Audit {
    Audit::of_expressions(Table::newest(), &found(text, Target::Worker))
}

/// Whether a text sends this to workers, as far as the findings tell.
#[track_caller]
fn sends(audit: &Audit, method: Method, path: &str) -> bool {
    let all = Audit::of_decisions(Table::newest(), |_, _| false);
    let mut can = all.left_on_main.iter().chain(&all.left_on_main_unstable).chain(&all.left_on_main_media);
    assert!(can.any(|call| call.method == method && call.path == path), "{method} {path} is no endpoint");
    let mut left =
        audit.left_on_main.iter().chain(&audit.left_on_main_unstable).chain(&audit.left_on_main_media);
    !left.any(|call| call.method == method && call.path == path)
}

const SYNC: (Method, &str) = (Method::Get, "/_matrix/client/v3/sync");

#[test]
fn expressions_are_read_in_every_form() {
    for text in [
        "location ~ ^/_matrix/client/(r0|v3)/sync$ {",
        "location ~* ^/_matrix/CLIENT/(r0|v3)/sync$ {",
        "location ~ ^(/_matrix/client/(r0|v3)/sync|/_synapse/client/x)$ {",
        "location ~ ^/(_matrix/client/v3/sync|x)$ {",
        "location = /_matrix/client/v3/sync {",
        "location /_matrix/client/v3/sync {",
        "    ~^/_matrix/client/v3/sync$ sync_workers;",
        "^/_matrix/client/(r0|v3)/sync$ synchrotron",
        "acl sync path_reg ^/_matrix/client/(r0|v3)/sync$",
        "acl sync path_beg /_matrix/client/v3/sync",
        "  - ^/_matrix/client/(r0|v3)/sync$",
        r#"    "endpoint_patterns": ["^/_matrix/x$", "^/_matrix/client/(r0|v3)/sync$"],"#,
        r#"  regex: "/_matrix/client/(r0|v3)/sync""#,
        r#"  safe_regex: {regex: "/_matrix/client/v\\d/sync"}"#,
        r#"  { path: "/_matrix/client/v3/sync" }"#,
        "  prefix: /_matrix/client/v3/sync",
        "rule = PathPrefix(`/_matrix/client/v3/sync`)",
        "{{/* a comment\n ^/_matrix/x */}}\n^/_matrix/client/v3/sync$",
    ] {
        let audit = audit(text);
        assert!(sends(&audit, SYNC.0, SYNC.1), "{text}: {audit}");
        assert!(!sends(&audit, Method::Get, "/_matrix/client/v3/events"), "{text}");
        assert!(audit.unreadable.is_empty() && audit.everything.is_empty(), "{text}: {audit}");
    }
}

#[test]
fn what_is_no_expression_is_left_alone() {
    for text in [
        "# - ^/_matrix/client/v3/sync$",
        "  // ^/_matrix/client/v3/sync$",
        "{{- /*\n^/_matrix/client/v3/sync$\n*/ -}}",
        "a request for `/_matrix/client/v3/sync` is long",
        "https://example.org/_matrix/client/v3/sync",
        "proxy_pass http://workers/_matrix/client/v3/sync;",
        "location /_matrixes/ {",
    ] {
        let found = found(text, Target::Worker);
        assert!(found.is_empty(), "{text}: {found:?}");
    }
}

#[test]
fn whole_paths_and_prefixes_are_told_apart() {
    const PUSH: (Method, &str) = (Method::Put, "/_matrix/client/v3/pushrules/{path...}");
    for (text, prefix) in [
        ("location /_matrix/client/v3/pushrules {", true),
        ("location = /_matrix/client/v3/pushrules {", false),
        ("path: /_matrix/client/v3/pushrules", false),
        ("path: /_matrix/client/v3/pushrules\npathType: Prefix", true),
        (r#"regex: "/_matrix/client/v3/push.""#, false),
        ("^/_matrix/client/v3/push.", true),
    ] {
        assert_eq!(sends(&audit(text), PUSH.0, PUSH.1), prefix, "{text}");
    }
}

#[test]
fn lines_methods_and_main_are_kept_apart() {
    const USER: &str = "/_synapse/admin/v2/users/{user_id}";
    let text = "^/_matrix/client/v3/sync$\n^/_synapse/admin/v2/users/[^/]+$\n";
    let everywhere = audit(text);
    let wrong: Vec<_> = everywhere.sent_to_workers.iter().map(ToString::to_string).collect();
    assert_eq!(wrong, [format!("PUT {USER}")]);

    let mut parts = Expression::find_all("file", text, &(1..=1), Target::Worker);
    parts.extend(Expression::find_all("file", text, &(2..=2), Target::WorkerForGet));
    let apart = Audit::of_expressions(Table::newest(), &parts);
    assert!(apart.sent_to_workers.is_empty(), "{apart}");
    assert!(sends(&apart, Method::Get, USER) && sends(&apart, SYNC.0, SYNC.1));

    parts.extend(found("location ~ ^/_matrix/client/.*sync$ {", Target::Main));
    assert!(!sends(&Audit::of_expressions(Table::newest(), &parts), SYNC.0, SYNC.1));
}

#[test]
fn what_is_stale_too_wide_or_unreadable_is_named() {
    let audit = audit(
        "^/_matrix/client/v3/sync$\n^/_matrix/federation/v1/groups/\nlocation ~ ^(/_matrix|/_synapse/client) {\n\
         ^/_matrix/client/(?!v3)\n",
    );
    let places = |found: &[routes::Found]| found.iter().map(|f| f.place.clone()).collect::<Vec<_>>();
    assert_eq!(audit.expressions, 4);
    assert_eq!(places(&audit.stale), ["file:2"]);
    assert_eq!(places(&audit.everything), ["file:3"]);
    assert_eq!(places(&audit.unreadable), ["file:4"]);
    assert!(!sends(&audit, Method::Get, "/_matrix/client/v3/events"));
    assert!(!audit.is_right());
}

#[test]
fn versions_of_an_endpoint_count_once() {
    let narrow = audit("^/_matrix/client/v3/sync$");
    let wide = audit("^/_matrix/client/(r0|v3|unstable)/sync$");
    assert_eq!(narrow.left_on_main, wide.left_on_main);
    let others: Vec<_> = narrow.left_on_main_by_version.iter().map(|call| &*call.path).collect();
    assert_eq!(others, ["/_matrix/client/r0/sync", "/_matrix/client/unstable/sync"]);
    assert!(wide.left_on_main_by_version.is_empty());
}
