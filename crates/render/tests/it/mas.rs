//! The configuration of the Matrix Authentication Service: for people to read, and for MAS's own checker where there is one.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use crate::stacks::{Case, case};
use model::Layout;
use render::{mas, synapse};
use serde_json::{Value, json};

fn text(case: &Case) -> String {
    mas(&case.topology, &case.layout).expect("the stack has MAS").contents
}

fn little() -> Value {
    json!({ "preset": "small", "auth": { "mas": { "public_base_url": "https://auth.example.org" } } })
}

fn everything(secrets: &Path) -> Value {
    let secret = |name: &str| secrets.join(name);
    json!({
        "preset": "small",
        "public_base_url": "https://matrix.example.org",
        "listen": { "admin_api": true },
        "auth": { "mas": {
            "public_base_url": "https://matrix.example.org/auth",
            "issuer": "https://example.org/",
            "address": "127.0.0.1:9000",
            "program": "/opt/mas/mas-cli",
            "homeserver_url": "http://127.0.0.1:8008",
            "max_connections": 20,
            "passwords": {
                "minimum_complexity": 2,
                "schemes": [
                    { "version": 1, "algorithm": "bcrypt", "cost": 12, "unicode_normalization": true,
                      "secret_file": secret("pepper") },
                    { "version": 2, "algorithm": "argon2id" },
                ],
            },
            "upstream_providers": [{
                "id": "01HFVBY12TMNTYTBV8W921M5FA",
                "synapse_idp_id": "oidc-example",
                "issuer": "https://accounts.example.org/",
                "human_name": "Example",
                "client_id": "mas",
                "client_secret_file": secret("provider"),
                "token_endpoint_auth_method": "client_secret_basic",
                "scope": "openid profile email",
                "pkce_method": "always",
                "claims_imports": {
                    "localpart": { "action": "require", "template": "{{ user.preferred_username }}" },
                    "email": { "action": "suggest" },
                },
                "on_backchannel_logout": "logout_all",
            }],
            "clients": [{
                "client_id": "01HFVBY12TMNTYTBV8W921M5FB",
                "client_auth_method": "client_secret_post",
                "client_secret_file": secret("client"),
                "redirect_uris": ["https://console.example.org/callback"],
            }],
            "email": {
                "from": "\"Example\" <auth@example.org>",
                "reply_to": "\"Nobody\" <no-reply@example.org>",
                "transport": "smtp",
                "mode": "starttls",
                "hostname": "mail.example.org",
                "username": "auth",
                "password_file": secret("mail"),
            },
            "policy": { "data": { "admin_users": ["alice"] } },
            "branding": { "service_name": "Example", "tos_uri": "https://example.org/terms" },
            "account": { "password_registration_enabled": true, "password_recovery_enabled": true },
            "captcha": { "service": "hcaptcha", "site_key": "site", "secret_key": "known to MAS alone" },
            "rate_limiting": {
                "login": { "per_ip": { "burst": 10, "per_second": 0.5 } },
                "registration": { "burst": 3, "per_second": 0.01 },
            },
            "oauth": { "device_code_grant_enabled": false },
            "experimental": {
                "access_token_ttl": 300,
                "inactive_session_expiration": { "ttl": 2_592_000 },
                "session_limit": { "soft_limit": 10, "hard_limit": 20 },
            },
            "extra": {
                "telemetry": { "tracing": { "exporter": "otlp", "endpoint": "https://otlp.example.org/" } },
                "http": { "trusted_proxies": ["127.0.0.0/8"] },
            },
        } },
    })
}

#[test]
fn what_is_said_and_no_more() {
    let data = Path::new("/var/lib/matrix-stack/example.org");
    insta::assert_snapshot!("mas_little", text(&case("mas", data, little())));
    let everything = everything(Path::new("/etc/matrix-stack"));
    insta::assert_snapshot!("mas_everything", text(&case("mas", data, everything)));
}

#[test]
fn synapse_asks_it_over_tcp_with_the_secret_that_both_have() {
    let case = case("mas", Path::new("/data"), little());
    let shared = &synapse(&case.topology, &case.layout)[0].contents;
    let at = shared.find("matrix_authentication_service:").expect("the option");
    insta::assert_snapshot!(shared[at..].lines().take(4).collect::<Vec<_>>().join("\n"), @r#"
    matrix_authentication_service:
      enabled: true
      endpoint: "http://127.0.0.1:8090/"
      secret_path: /data/secrets/mas_shared_secret
    "#);
}

/// MAS reads what is rendered, with the keys that are generated. `mas-cli` comes from no registry of packages: name one by
/// `MAS_CLI`.
#[test]
fn mas_accepts_it() {
    let Some(program) = std::env::var_os("MAS_CLI") else {
        // Straight to stderr: what a passing test prints is otherwise not shown.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED mas_accepts_it: MAS_CLI is not set; give it the path of a `mas-cli` program"
        );
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let secrets = directory.path().join("own");
    fs::create_dir(&secrets).unwrap();
    for name in ["pepper", "provider", "client", "mail"] {
        fs::write(secrets.join(name), "secret").unwrap();
    }
    for stack in [little(), everything(&secrets)] {
        let data = directory.path().join("data");
        let case = case("mas", &data, stack);
        config::secrets::ensure(case.topology.stack(), &Layout::new(&data)).unwrap();
        let file = directory.path().join("mas.yaml");
        fs::write(&file, text(&case)).unwrap();
        let checked =
            Command::new(&program).args(["config", "check", "--config"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{said}{}", String::from_utf8_lossy(&checked.stdout));
    }
}
