//! The documents under `/.well-known/matrix/`.

use std::collections::BTreeMap;

use model::{CompanionKind, Contact, Stack};
use serde_json::{Map, Value, json};

use crate::matcher::WellKnown;

/// The documents of a stack. One that it has nothing for is not there.
pub fn well_known(stack: &Stack) -> BTreeMap<WellKnown, Value> {
    let documents = [
        (WellKnown::Client, Some(client(stack))),
        (WellKnown::Server, server(stack)),
        (WellKnown::Support, support(stack)),
        (WellKnown::OpenidConfiguration, full(&stack.well_known.openid_configuration)),
    ];
    documents.into_iter().filter_map(|(which, document)| Some((which, document?))).collect()
}

/// The value of `Cache-Control` of a stack's documents.
pub fn well_known_caching(stack: &Stack) -> String {
    format!("public, max-age={}", stack.well_known.max_age)
}

fn full(map: &Map<String, Value>) -> Option<Value> {
    (!map.is_empty()).then(|| Value::Object(map.clone()))
}

/// Where the homeserver is, with what the stack adds.
fn client(stack: &Stack) -> Value {
    let settings = &stack.well_known;
    let mut members = Map::new();
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            members.insert(name.to_owned(), value);
        }
    };
    add("m.homeserver", Some(json!({ "base_url": stack.base_url() })));
    add("m.identity_server", settings.identity_server.as_ref().map(|url| json!({ "base_url": url })));
    let own = settings.authentication.as_ref().map(|at| match &at.account {
        Some(account) => json!({ "issuer": at.issuer, "account": account }),
        None => json!({ "issuer": at.issuer }),
    });
    let of_mas = || {
        let mas = stack.auth.mas.as_ref()?;
        let base = mas.public_base();
        let issuer = mas.issuer.as_ref().unwrap_or(&base);
        Some(json!({ "issuer": issuer, "account": format!("{base}account/") }))
    };
    add("org.matrix.msc2965.authentication", own.or_else(of_mas));
    let focus = |url: &String| json!({ "type": "livekit", "livekit_service_url": url });
    let mut foci: Vec<Value> = settings.livekit.iter().map(focus).collect();
    if let (true, Some(path)) = (foci.is_empty(), stack.companions.path(CompanionKind::LivekitJwt)) {
        foci.push(focus(&format!("{}{path}", stack.base_url())));
    }
    add("org.matrix.msc4143.rtc_foci", (!foci.is_empty()).then(|| foci.into()));
    // Its fields are named as in the document.
    let encryption = settings.encryption.as_ref().and_then(|hints| serde_json::to_value(hints).ok());
    add("io.element.e2ee", encryption);
    add("m.tile_server", settings.tile_server.as_ref().map(|url| json!({ "map_style_url": url })));
    add("im.vector.riot.jitsi", settings.jitsi.as_ref().map(|domain| json!({ "preferredDomain": domain })));
    for (name, value) in &settings.client {
        members.insert(name.clone(), value.clone());
    }
    Value::Object(members)
}

/// Where to send federation requests. None where federation is off.
fn server(stack: &Stack) -> Option<Value> {
    stack.federation.enabled.then(|| {
        let server = stack.well_known.server.clone().unwrap_or_else(|| host_and_port(&stack.base_url()));
        json!({ "m.server": server })
    })
}

/// Whom to turn to (MSC1929, since version 1.10 of the specification).
fn support(stack: &Stack) -> Option<Value> {
    let support = stack.well_known.support.as_ref()?;
    let contact = |contact: &Contact| {
        let role = match contact.role.as_str() {
            role @ ("admin" | "security") => format!("m.role.{role}"),
            role => role.to_owned(),
        };
        let mut value = json!({ "role": role });
        for (name, text) in [("matrix_id", &contact.matrix_id), ("email_address", &contact.email_address)] {
            if let Some(text) = text {
                value[name] = text.as_str().into();
            }
        }
        value
    };
    let mut document = Map::new();
    if !support.contacts.is_empty() {
        document.insert("contacts".to_owned(), support.contacts.iter().map(contact).collect());
    }
    if let Some(page) = &support.page {
        document.insert("support_page".to_owned(), page.as_str().into());
    }
    full(&document)
}

/// Host and port of a URL. The port is always said: without one other servers would take 8448.
fn host_and_port(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:{}", if scheme == "http" { 80 } else { 443 })
    }
}

#[cfg(test)]
mod tests {
    use model::ServerName;

    use super::*;

    fn stack() -> Stack {
        Stack::new(ServerName::try_from("example.org".to_owned()).unwrap())
    }

    #[test]
    fn documents_follow_the_stack() {
        let mut stack = stack();
        let client = |stack: &Stack| well_known(stack)[&WellKnown::Client].clone();
        let server = |stack: &Stack| well_known(stack).get(&WellKnown::Server).cloned();
        assert_eq!(client(&stack), json!({"m.homeserver": {"base_url": "http://127.0.0.1:8008"}}));
        assert_eq!(server(&stack), Some(json!({"m.server": "127.0.0.1:8008"})));
        assert_eq!(well_known(&stack).len(), 2);

        stack.public_base_url = Some("https://matrix.example.org/".into());
        stack.well_known.client.insert("org.example".into(), json!({"a": 1}));
        assert_eq!(
            client(&stack),
            json!({"m.homeserver": {"base_url": "https://matrix.example.org"}, "org.example": {"a": 1}})
        );
        assert_eq!(server(&stack), Some(json!({"m.server": "matrix.example.org:443"})));

        stack.companions.livekit_jwt = Some(model::Companion::default());
        let foci =
            |stack: &Stack| client(stack)["org.matrix.msc4143.rtc_foci"][0]["livekit_service_url"].clone();
        assert_eq!(foci(&stack), "https://matrix.example.org/livekit/jwt");
        stack.well_known.livekit.push("https://calls.example.org".into());
        assert_eq!(foci(&stack), "https://calls.example.org");

        stack.well_known.server = Some("fed.example.org:8448".into());
        assert_eq!(server(&stack), Some(json!({"m.server": "fed.example.org:8448"})));
        stack.federation.enabled = false;
        assert_eq!(server(&stack), None);
    }

    #[test]
    fn fields_become_members() {
        let mut stack = stack();
        let text = json!({
            "identity_server": "https://id.example.org",
            "livekit": ["https://calls.example.org"],
            "authentication": { "issuer": "https://auth.example.org/", "account": "https://auth.example.org/account" },
            "encryption": { "default": false, "secure_backup_required": true },
            "tile_server": "https://maps.example.org/style.json",
            "jitsi": "meet.example.org",
            "client": { "m.tile_server": { "map_style_url": "x" }, "org.example": 1 },
            "support": {
                "contacts": [
                    { "role": "admin", "matrix_id": "@a:example.org" },
                    { "role": "security", "email_address": "s@example.org" },
                    { "role": "org.example.role", "email_address": "o@example.org" },
                ],
                "page": "https://example.org/help",
            },
            "openid_configuration": { "issuer": "https://auth.example.org/" },
            "max_age": 60,
        });
        stack.well_known = serde_json::from_value(text).unwrap();
        let documents = well_known(&stack);
        assert_eq!(
            documents[&WellKnown::Client],
            json!({
                "m.homeserver": { "base_url": "http://127.0.0.1:8008" },
                "m.identity_server": { "base_url": "https://id.example.org" },
                "org.matrix.msc2965.authentication": {
                    "issuer": "https://auth.example.org/", "account": "https://auth.example.org/account",
                },
                "org.matrix.msc4143.rtc_foci": [
                    { "type": "livekit", "livekit_service_url": "https://calls.example.org" },
                ],
                "io.element.e2ee": { "default": false, "secure_backup_required": true },
                "m.tile_server": { "map_style_url": "x" },
                "im.vector.riot.jitsi": { "preferredDomain": "meet.example.org" },
                "org.example": 1,
            })
        );
        assert_eq!(
            documents[&WellKnown::Support],
            json!({
                "contacts": [
                    { "role": "m.role.admin", "matrix_id": "@a:example.org" },
                    { "role": "m.role.security", "email_address": "s@example.org" },
                    { "role": "org.example.role", "email_address": "o@example.org" },
                ],
                "support_page": "https://example.org/help",
            })
        );
        assert_eq!(
            documents[&WellKnown::OpenidConfiguration],
            json!({ "issuer": "https://auth.example.org/" })
        );
        assert_eq!(well_known_caching(&stack), "public, max-age=60");
    }

    #[test]
    fn ports_are_always_said() {
        assert_eq!(host_and_port("http://localhost:1234"), "localhost:1234");
        assert_eq!(host_and_port("https://a.b/x"), "a.b:443");
        assert_eq!(host_and_port("http://[::1]"), "[::1]:80");
        assert_eq!(host_and_port("https://[::1]:8448"), "[::1]:8448");
    }
}
