//! Synapse with matrix-synapse-ldap3 logs users in through the proxy.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::lab::{ALICE, SERVICE, Slapd, free_port, installed, metric, proxy, settings};

/// A Python with what the locks say, installed once.
fn python() -> Option<PathBuf> {
    let tree = Path::new(env!("CARGO_TARGET_TMPDIR")).join("synapse-ldap3");
    let python = tree.join("bin/python");
    let done = tree.join("installed");
    let locks = ["crates/runtime/requirements/synapse.txt", "crates/runtime/requirements/ldap.txt"]
        .map(|path| committed::root().join(path));
    let wanted = locks.each_ref().map(|lock| fs::read_to_string(lock).expect("a lock")).concat();
    if fs::read_to_string(&done).is_ok_and(|there| there == wanted) {
        return Some(python);
    }
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&tree).output();
    if !made.is_ok_and(|made| made.status.success()) {
        eprintln!("skipped: no Python with venv (`apt install python3-venv`)");
        return None;
    }
    let pip = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r"])
        .arg(&locks[0])
        .arg("-r")
        .arg(&locks[1])
        .output()
        .expect("pip runs");
    assert!(pip.status.success(), "{}", String::from_utf8_lossy(&pip.stderr));
    fs::write(done, wanted).expect("own directory");
    Some(python)
}

struct Synapse {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Drop for Synapse {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Synapse {
    async fn start(python: &Path, dir: &Path, ldap: SocketAddr) -> Self {
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let at = dir.display();
        let config = format!(
            r#"server_name: ldap.test
pid_file: {at}/pid
report_stats: false
suppress_key_server_warning: true
trusted_key_servers: []
signing_key_path: {at}/signing.key
media_store_path: {at}/media
macaroon_secret_key: not-a-secret
form_secret: not-a-secret
database: {{name: sqlite3, args: {{database: {at}/synapse.db}}}}
listeners:
  - {{port: {port}, bind_addresses: [127.0.0.1], type: http, resources: [{{names: [client]}}]}}
rc_login:
  address: {{per_second: 1000, burst_count: 1000}}
  account: {{per_second: 1000, burst_count: 1000}}
  failed_attempts: {{per_second: 1000, burst_count: 1000}}
modules:
  - module: ldap_auth_provider.LdapAuthProviderModule
    config:
      enabled: true
      mode: search
      uri: ["ldap://{ldap}"]
      start_tls: false
      base: "ou=people,dc=example,dc=org"
      attributes: {{uid: uid, mail: mail, name: cn}}
      bind_dn: "{SERVICE}"
      bind_password: service-secret
"#
        );
        let file = dir.join("homeserver.yaml");
        fs::write(&file, config).expect("own file");
        let run = |more: &[&str]| {
            let mut command = Command::new(python);
            command.args(["-m", "synapse.app.homeserver", "-c"]).arg(&file).args(more).current_dir(dir);
            // Else Synapse finds this repository around its code, and puts a branch into its version, which the module cannot
            // read.
            command.stdin(Stdio::null()).env("GIT_DIR", "/nonexistent");
            command
        };
        let keys = run(&["--generate-keys"]).output().expect("Synapse runs");
        assert!(keys.status.success(), "{}", String::from_utf8_lossy(&keys.stderr));
        let log = dir.join("synapse.log");
        let output = fs::File::create(&log).expect("own file");
        let child = run(&[])
            .stdout(output.try_clone().expect("own file"))
            .stderr(output)
            .spawn()
            .expect("Synapse starts");
        let mut synapse = Self { child, address, log };
        let end = Instant::now() + Duration::from_secs(180);
        while TcpStream::connect(address).await.is_err() {
            let gone = synapse.child.try_wait().expect("own child");
            assert!(gone.is_none() && Instant::now() < end, "{}", synapse.said());
            sleep(Duration::from_millis(100)).await;
        }
        synapse
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The status of a login, and what is answered.
    async fn login(&self, user: &str, password: &str) -> (u16, String) {
        let body = format!(
            r#"{{"type":"m.login.password","identifier":{{"type":"m.id.user","user":"{user}"}},"password":"{password}"}}"#
        );
        let request = format!(
            "POST /_matrix/client/v3/login HTTP/1.1\r\nhost: ldap.test\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).await.expect("Synapse listens");
        stream.write_all(request.as_bytes()).await.expect("it is taken");
        let mut answer = String::new();
        let read = timeout(Duration::from_secs(90), stream.read_to_string(&mut answer)).await;
        read.expect("an answer").expect("text");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("{answer}")), answer)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn synapse_logs_users_in_while_a_server_is_killed() {
    if !installed() {
        return;
    }
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let password = dir.path().join("password");
    fs::write(&password, "service-secret").expect("own file");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).expect("own file");
    let (mut one, two) = (Slapd::start("one").await, Slapd::start("two").await);
    let more = format!(
        "service: {{dn: \"{SERVICE}\", password_file: {}}}\npolicy: {{read_only: true, bases: [\"ou=people,dc=example,dc=org\"], \
         attributes: [objectClass, uid, mail, cn]}}\n",
        password.display()
    );
    let (proxy, address) = proxy(settings(&[&one, &two], &more)).await;
    let synapse = Synapse::start(&python, dir.path(), address).await;

    let (status, answer) = synapse.login("alice", "alice-secret").await;
    assert!(status == 200 && answer.contains("@alice:ldap.test"), "{answer}\n{}", synapse.said());
    let (status, answer) = synapse.login("alice", "wrong").await;
    assert_eq!(status, 403, "{answer}");
    // Killed while logins go on, of which none may fail.
    let logins = async {
        for _ in 0..8 {
            for user in ["alice", "bob"] {
                let (status, answer) = synapse.login(user, &format!("{user}-secret")).await;
                assert_eq!(status, 200, "{answer}\n{}", synapse.said());
            }
        }
    };
    let binds = || metric(&proxy, r#"operations_total{operation="bind",code="0"}"#);
    let before = binds();
    let kill = async {
        while binds() < before + 3.0 {
            sleep(Duration::from_millis(5)).await;
        }
        one.kill();
    };
    tokio::join!(logins, kill);
    let (status, _) = synapse.login(ALICE, "alice-secret").await;
    assert_eq!(status, 403, "a name is no user");
    drop(synapse);
    proxy.stop().await;
}
