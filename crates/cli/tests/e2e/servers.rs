//! Stacks that other servers reach: each has a real nginx in front of its router, which speaks TLS with a certificate of
//! an authority that only these stacks know. They are shared by the trials that need one, and stay up until the end.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::stack::{Stack, made, password};
use crate::system::{free_port, run, until};

/// The administrator of each.
pub(crate) const ADMIN: &str = "root";
/// Making a key, starting a proxy, adding an account.
const SHORTLY: Duration = Duration::from_secs(60);

/// A stack with TLS in front. Its name is the address and port of that, so that other servers find it without DNS.
pub(crate) struct Server {
    pub(crate) stack: Stack,
    /// Its server name.
    pub(crate) name: String,
    /// Where clients are told to get tokens for calls.
    pub(crate) livekit: u16,
}

/// One with all roles.
pub(crate) fn full() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(|| Server::up("full")).as_ref()
}

/// One without workers.
pub(crate) fn one() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(|| Server::up("custom")).as_ref()
}

/// One with few.
pub(crate) fn small() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(|| Server::up("small")).as_ref()
}

impl Server {
    /// A server that is up, or nothing, having said why, where the machine lacks a program.
    fn up(preset: &'static str) -> Option<Self> {
        let nginx = program("nginx")?;
        let authority = authority()?;
        let port = free_port();
        let (name, livekit) = (format!("127.0.0.1:{port}"), free_port());
        let stack = Stack::new(preset);
        stack.configure(|file| {
            file["server_name"] = name.as_str().into();
            file["well_known"] = serde_json::json!({
                "server": name,
                "livekit": [format!("http://127.0.0.1:{livekit}")],
                "support": { "contacts": [{ "role": "admin", "email_address": "admin@example.org" }] },
            });
            // The admin API is part of the endpoints, and so are URL previews.
            file["listen"]["admin_api"] = true.into();
            file["listen"]["trust_forwarded_for"] = true.into();
            file["media"] = serde_json::json!({ "url_previews": true });
            let extra = &mut file["synapse"]["extra"];
            extra["federation_custom_ca_list"] = vec![text(&authority.join("ca.pem"))].into();
            // By default, no server on this machine is spoken to.
            extra["federation_ip_range_blacklist"] = Vec::<String>::new().into();
            extra["trusted_key_servers"] = Vec::<String>::new().into();
            extra["allow_public_rooms_over_federation"] = true.into();
        });
        let server = Self { stack, name, livekit };
        server.front(&nginx, authority, port);
        let done = server.stack.up().good();
        println!("    {}", done.stdout.lines().next().unwrap_or_default());
        fs::write(server.password_file(), password(ADMIN)).expect("own directory");
        let mut add = server.stack.command(&["user", "add", ADMIN, "--admin", "--password-file"]);
        run(add.arg(server.password_file()), SHORTLY).good();
        Some(server)
    }

    /// A file with the administrator's password.
    pub(crate) fn password_file(&self) -> PathBuf {
        self.stack.directory.join("password")
    }

    /// Starts nginx. It names the directory in its command line, by which `clear_up` finds it.
    fn front(&self, nginx: &Path, authority: &Path, port: u16) {
        let directory = text(&self.stack.directory);
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("    {kind}_temp_path {directory}/nginx;\n"))
            .concat();
        let (authority, router) = (text(authority), self.stack.port);
        let file = format!(
            "daemon off;\n\
             master_process off;\n\
             pid {directory}/nginx.pid;\n\
             error_log {directory}/nginx.log;\n\
             events {{}}\n\
             http {{\n\
             {temporary}\
             \x20   access_log off;\n\
             \x20   client_max_body_size 0;\n\
             \x20   server {{\n\
             \x20       listen 127.0.0.1:{port} ssl;\n\
             \x20       ssl_certificate {authority}/server.pem;\n\
             \x20       ssl_certificate_key {authority}/server.key;\n\
             \x20       location / {{\n\
             \x20           proxy_pass http://127.0.0.1:{router};\n\
             \x20           proxy_http_version 1.1;\n\
             \x20           proxy_buffering off;\n\
             \x20           proxy_request_buffering off;\n\
             \x20           proxy_set_header Host $http_host;\n\
             \x20           proxy_set_header X-Forwarded-For $remote_addr;\n\
             \x20           proxy_set_header X-Forwarded-Proto https;\n\
             \x20       }}\n\
             \x20   }}\n\
             }}\n"
        );
        let path = self.stack.directory.join("nginx.conf");
        fs::write(&path, file).expect("own directory");
        let mut command = Command::new(nginx);
        command.arg("-c").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("nginx starts");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        until("nginx listens", SHORTLY, || {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                let log = fs::read_to_string(self.stack.directory.join("nginx.log")).unwrap_or_default();
                panic!("nginx ended ({status}):\n{log}");
            }
            TcpStream::connect_timeout(&address, SHORTLY).ok()
        });
    }
}

/// A directory with a throw-away authority's certificate, `ca.pem`, and one of a server, which it has signed.
pub(crate) fn authority() -> Option<&'static Path> {
    static AUTHORITY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || {
        let openssl = program("openssl")?;
        let directory = made("ms-e2e-ca-");
        let request = |name: &str, more: &[&str]| {
            let mut command = Command::new(&openssl);
            command
                .current_dir(&directory)
                .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
                .args(["-days", "2", "-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")])
                .args(more);
            run(&mut command, SHORTLY).good();
        };
        request("ca", &["-subj", "/CN=end to end"]);
        let sign = ["-CA", "ca.pem", "-CAkey", "ca.key", "-subj", "/CN=127.0.0.1"];
        let of = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
        request("server", &[&sign[..], &of[..]].concat());
        Some(directory)
    };
    AUTHORITY.get_or_init(make).as_deref()
}

/// Where a program lies, or nothing, having said so.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where Debian puts daemons, which is on root's path alone.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let found = places.map(|place| place.join(name)).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("    skipped: `{name}` is not installed (`apt install {name}`)");
    }
    found
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary directory's name")
}
