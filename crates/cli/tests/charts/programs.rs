//! What pods start by a script is started here as well, with the real program.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use runtime::install::{InstallOptions, ensure};
use runtime::launch::Launcher;

use crate::helm::{MATRIX_STACK, rendered};

#[test]
fn valkey_asks_for_the_password_that_it_is_given() {
    let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
    let options = InstallOptions::new(&packages, Launcher::at(MATRIX_STACK));
    let program = ensure(&options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}")).valkey_server;

    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    for directory in ["bin", "data", "secrets"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    symlink(program, root.join("bin/valkey-server")).unwrap();
    let password = r#"a "word" with \ in it"#;
    fs::write(root.join("secrets/redis_password"), format!("{password}\n")).unwrap();

    let case = rendered().iter().find(|case| case.name == "minimal").unwrap();
    let set = case.object("StatefulSet", "matrix-synapse-valkey").unwrap();
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = container["args"][0]
        .as_str()
        .unwrap()
        .replace("/secrets/", &format!("{}/secrets/", root.display()))
        .replace("/data", &format!("{}/data", root.display()))
        .replace("6379", &free.to_string())
        // In a pod, all addresses are the pod's.
        .replace("'*' -::*", "127.0.0.1");
    assert_eq!(container["command"], serde_json::json!(["sh", "-c"]));
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(script)
        .env("PATH", format!("{}:{}", root.join("bin").display(), std::env::var("PATH").unwrap()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let said = |word: &str| {
        let until = Instant::now() + Duration::from_secs(30);
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", free)) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => panic!("Valkey does not listen: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        write!(stream, "*2\r\n$4\r\nAUTH\r\n${}\r\n{word}\r\n", word.len()).unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        answer
    };
    let answers = (said(password), said("another"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(answers, (*b"+OK\r\n", *b"-WRON"));
    let mode = fs::metadata(root.join("data/valkey.conf")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
