//! The router behind other programs, over a unix socket and with the PROXY protocol.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Program, free_port, main_process, until, write_stack};

/// An address of this machine that nobody else uses.
const FROM: &str = "127.0.0.9";

const PATH: &str = "/_matrix/client/versions";

/// The status that curl gets over a unix socket.
fn curl(socket: &Path, more: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket"]);
    let done =
        command.arg(socket).args(more).arg(format!("http://m.example{PATH}")).output().expect("curl runs");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// The clients in an access log.
fn clients(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter_map(|line| Some(line["client"].as_str()?.to_owned())).collect()
}

#[test]
fn the_public_address_may_be_a_unix_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("router.sock");
    let stack = |more: &str| {
        let listen = format!("listen: {{address: 'unix:{}'{more}}}\n", socket.display());
        write_stack(dir.path(), main_process(), &format!("public_base_url: https://m.example\n{listen}"));
    };
    stack("");
    let router = Program::start(&mut Program::router(dir.path(), 0, &[]));
    assert_eq!(std::fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o666);
    assert_eq!(curl(&socket, &[]), "200");

    // Whoever is there stays there, and is named.
    let second = Program::router(dir.path(), 0, &[]).output().expect("it runs");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains(&format!("by process {}", router.0.id())), "{said}");
    assert_eq!(curl(&socket, &[]), "200");
    // What a killed one leaves is in nobody's way.
    drop(router);
    assert_eq!(curl(&socket, &[]), "000");
    stack(", proxy_protocol: {}");
    let _router = Program::start(&mut Program::router(dir.path(), 0, &[]));
    assert_eq!(curl(&socket, &["--haproxy-protocol"]), "200");
    assert_eq!(curl(&socket, &[]), "000");
}

#[test]
fn haproxy_says_whose_a_connection_is() {
    let haproxy = ["/usr/sbin/haproxy", "/usr/bin/haproxy", "/usr/local/sbin/haproxy"];
    let Some(haproxy) = haproxy.into_iter().find(|path| Path::new(path).exists()) else {
        eprintln!("skipped: there is no haproxy on this machine");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let (port, fronts) = (free_port(), [free_port(), free_port(), free_port()]);
    let socket = dir.path().join("router.sock");
    let log = dir.path().join("access.log");
    let log_to = ["--access-log", log.to_str().expect("text")];
    let main = main_process();
    // One router on TCP that knows its load balancers, one on a unix socket.
    let listen = "listen: {proxy_protocol: {from: [127.0.0.0/8]}}\n";
    write_stack(dir.path(), main, listen);
    let _tcp = Program::start(&mut Program::router(dir.path(), port, &log_to));
    let listen = format!(
        "public_base_url: https://m.example\nlisten: {{address: 'unix:{}', proxy_protocol: {{}}}}\n",
        socket.display()
    );
    write_stack(dir.path(), main, &listen);
    let _unix = Program::start(&mut Program::router(dir.path(), 0, &log_to));

    let mut text = "global\n    maxconn 100\ndefaults\n    mode tcp\n    timeout connect 5s\n    timeout client 20s\n    \
                    timeout server 20s\n"
        .to_owned();
    let servers = [
        format!("127.0.0.1:{port} send-proxy check inter 100ms check-send-proxy"),
        format!(
            "127.0.0.1:{port} send-proxy-v2 proxy-v2-options unique-id check inter 100ms check-send-proxy"
        ),
        format!("'unix@{}' send-proxy-v2", socket.display()),
    ];
    for (front, server) in fronts.iter().zip(servers) {
        let listen = format!("listen l{front}\n    bind 127.0.0.1:{front}\n    unique-id-format %[uuid]\n");
        text.extend([&listen, "    server s ", &server, "\n"]);
    }
    let file = dir.path().join("haproxy.cfg");
    std::fs::write(&file, text).expect("own directory");
    let mut command = Command::new(haproxy);
    command.arg("-db").arg("-f").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let _haproxy = Program(command.spawn().expect("haproxy runs"));
    for (number, front) in fronts.into_iter().enumerate() {
        until("haproxy forwards", || {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "-m", "20", "-f", "--interface", FROM])
                .arg(format!("http://127.0.0.1:{front}{PATH}"));
            curl.output().expect("curl runs").status.success()
        });
        // The router alone knows the address only from HAProxy, whose own is another.
        until("the log is written", || {
            clients(&log).iter().filter(|client| *client == FROM).count() > number
        });
    }
    assert!(clients(&log).iter().all(|client| client == FROM));
}
