//! The documents under `/.well-known/matrix/`.

use model::Stack;
use serde_json::{Value, json};

/// What `/.well-known/matrix/client` and `/.well-known/matrix/server` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WellKnownDocuments {
    /// For clients: where the homeserver is, with what the stack adds.
    pub client: Value,
    /// For other servers: where to send federation requests. None where federation is off.
    pub server: Option<Value>,
}

/// The documents of a stack.
pub fn well_known(stack: &Stack) -> WellKnownDocuments {
    let base_url = stack.base_url();
    let mut client = json!({ "m.homeserver": { "base_url": base_url } });
    if let Some(mas) = &stack.auth.mas {
        let base = mas.public_base();
        let issuer = mas.issuer.as_ref().unwrap_or(&base);
        client["org.matrix.msc2965.authentication"] =
            json!({ "issuer": issuer, "account": format!("{base}account/") });
    }
    if let Some(members) = client.as_object_mut() {
        for (name, value) in &stack.well_known.client {
            members.insert(name.clone(), value.clone());
        }
    }
    let server = stack.federation.enabled.then(|| {
        let server = stack.well_known.server.clone().unwrap_or_else(|| host_and_port(&base_url));
        json!({ "m.server": server })
    });
    WellKnownDocuments { client, server }
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
        assert_eq!(well_known(&stack).client, json!({"m.homeserver": {"base_url": "http://127.0.0.1:8008"}}));
        assert_eq!(well_known(&stack).server, Some(json!({"m.server": "127.0.0.1:8008"})));

        stack.public_base_url = Some("https://matrix.example.org/".into());
        stack.well_known.client.insert("org.example".into(), json!({"a": 1}));
        let documents = well_known(&stack);
        assert_eq!(
            documents.client,
            json!({"m.homeserver": {"base_url": "https://matrix.example.org"}, "org.example": {"a": 1}})
        );
        assert_eq!(documents.server, Some(json!({"m.server": "matrix.example.org:443"})));

        stack.well_known.server = Some("fed.example.org:8448".into());
        assert_eq!(well_known(&stack).server, Some(json!({"m.server": "fed.example.org:8448"})));
        stack.federation.enabled = false;
        assert_eq!(well_known(&stack).server, None);
    }

    #[test]
    fn ports_are_always_said() {
        assert_eq!(host_and_port("http://localhost:1234"), "localhost:1234");
        assert_eq!(host_and_port("https://a.b/x"), "a.b:443");
        assert_eq!(host_and_port("http://[::1]"), "[::1]:80");
        assert_eq!(host_and_port("https://[::1]:8448"), "[::1]:8448");
    }
}
