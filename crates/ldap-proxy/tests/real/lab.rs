//! Real `slapd` servers, a proxy in front of them, and clients.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use ldap_proxy::{Proxy, Settings};
use ldap3_proto::LdapCodec;
use ldap3_proto::proto::{
    LdapBindCred, LdapBindRequest, LdapDerefAliases, LdapExtendedRequest, LdapFilter, LdapMsg, LdapOp,
    LdapSearchRequest, LdapSearchScope,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::codec::{Decoder as _, Encoder as _};

pub(crate) const ALICE: &str = "uid=alice,ou=people,dc=example,dc=org";
pub(crate) const SERVICE: &str = "cn=service,dc=example,dc=org";
pub(crate) const MARK: &str = "cn=mark,dc=example,dc=org";

/// Nothing here takes as long.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Whether there is something to test with.
pub(crate) fn installed() -> bool {
    let there = Path::new("/usr/sbin/slapd").exists() && Path::new("/usr/bin/ldapsearch").exists();
    if !there {
        eprintln!("skipped: slapd and its clients are not installed (`apt install slapd ldap-utils`)");
    }
    there
}

/// A server with an entry that says which one it is.
pub(crate) struct Slapd {
    child: Option<Child>,
    dir: TempDir,
    mark: String,
    pub(crate) port: u16,
    scheme: &'static str,
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port()
}

impl Slapd {
    pub(crate) async fn start(mark: &str) -> Self {
        Self::with(mark, "ldap", "").await
    }

    /// With more lines of configuration.
    pub(crate) async fn with(mark: &str, scheme: &'static str, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        fs::create_dir(&data).expect("own directory");
        let mut conf = String::new();
        for schema in ["core", "cosine", "inetorgperson"] {
            writeln!(conf, "include /etc/ldap/schema/{schema}.schema").expect("a string");
        }
        write!(
            conf,
            "modulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {dir}/pid\n{more}\n\
             database mdb\nsuffix dc=example,dc=org\nrootdn cn=admin,dc=example,dc=org\nrootpw admin\n\
             directory {data}\nmaxsize 16777216\n\
             access to attrs=userPassword by self write by anonymous auth by * none\naccess to * by self write by * read\n",
            dir = dir.path().display(),
            data = data.display(),
        )
        .expect("a string");
        fs::write(dir.path().join("slapd.conf"), conf).expect("own file");
        let mut ldif = format!(
            "dn: dc=example,dc=org\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: example\n\n\
             dn: ou=people,dc=example,dc=org\nobjectClass: organizationalUnit\nou: people\n\n\
             dn: {MARK}\nobjectClass: device\ncn: mark\ndescription: {mark}\n\n\
             dn: {SERVICE}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\n\
             cn: service\nuserPassword: service-secret\n\n"
        );
        for name in ["alice", "bob"] {
            write!(
                ldif,
                "dn: uid={name},ou=people,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: {name}\ncn: {name}\nsn: {name}\n\
                 mail: {name}@example.org\ntelephoneNumber: 123\nuserPassword: {name}-secret\n\n"
            )
            .expect("a string");
        }
        fs::write(dir.path().join("data.ldif"), ldif).expect("own file");
        let loaded = Command::new("/usr/sbin/slapadd")
            .arg("-f")
            .arg(dir.path().join("slapd.conf"))
            .arg("-l")
            .arg(dir.path().join("data.ldif"))
            .output()
            .expect("slapadd runs");
        assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
        let mut slapd = Self { child: None, dir, mark: mark.to_owned(), port: free_port(), scheme };
        slapd.up().await;
        slapd
    }

    /// Starts the process.
    pub(crate) async fn up(&mut self) {
        let child = Command::new("/usr/sbin/slapd")
            .arg("-f")
            .arg(self.dir.path().join("slapd.conf"))
            .args(["-d", "0", "-h", &self.url()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("slapd starts");
        self.child = Some(child);
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        until("slapd listens", async || TcpStream::connect(address).await.is_ok()).await;
    }

    /// Without a word.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("own child");
            child.wait().expect("own child");
        }
    }

    /// Sends a signal to it.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().expect("kill runs").success());
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !so().await {
        assert!(Instant::now() < end, "never: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Settings from YAML, for these servers, on ports that are free.
pub(crate) fn settings(servers: &[&Slapd], more: &str) -> Settings {
    let mut text = String::from("servers:\n");
    for server in servers {
        writeln!(text, "  - url: {}", server.url()).expect("a string");
    }
    text.push_str(more);
    let mut settings: Settings =
        config::document("ldap.yaml", &text).unwrap_or_else(|error| panic!("{error}"));
    settings.listen.ldap = Some("127.0.0.1:0".parse().expect("an address"));
    settings
}

pub(crate) async fn proxy(settings: Settings) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start(settings).await.unwrap_or_else(|error| panic!("{error}"));
    let address = proxy.addresses()[0].expect("it listens");
    (proxy, address)
}

/// The value of a metric.
pub(crate) fn metric(proxy: &Proxy, name: &str) -> f64 {
    let text = proxy.observed().metrics();
    let name = format!("matrix_stack_ldap_proxy_{name} ");
    text.lines()
        .find_map(|line| line.strip_prefix(&name))
        .map_or(0.0, |value| value.parse().expect("a number"))
}

/// Runs one of OpenLDAP's clients; its exit code is the result code.
pub(crate) async fn tool(program: &str, address: SocketAddr, arguments: &[&str]) -> (i32, String) {
    tool_at(program, &format!("ldap://{address}"), &[], arguments).await
}

pub(crate) async fn tool_at(
    program: &str,
    url: &str,
    environment: &[(&str, &str)],
    arguments: &[&str],
) -> (i32, String) {
    let run = tokio::process::Command::new(program)
        .args(["-x", "-H", url, "-o", "nettimeout=20"])
        .args(arguments)
        // Nobody's own settings count.
        .env("LDAPCONF", "/dev/null")
        .env("HOME", "/nonexistent")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let Output { status, stdout, stderr } = timeout(LONG, run).await.expect("it ends").expect("it runs");
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    (status.code().unwrap_or(-1), said)
}

/// The question which server this is.
fn mark_search() -> LdapOp {
    LdapOp::SearchRequest(LdapSearchRequest {
        base: MARK.to_owned(),
        scope: LdapSearchScope::Base,
        aliases: LdapDerefAliases::Never,
        sizelimit: 0,
        timelimit: 0,
        typesonly: false,
        filter: LdapFilter::Present("objectClass".to_owned()),
        attrs: vec!["description".to_owned()],
    })
}

/// A client that says exactly what a test wants.
pub(crate) struct Raw {
    stream: TcpStream,
    input: BytesMut,
    codec: LdapCodec,
    id: i32,
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the proxy listens");
        Self { stream, input: BytesMut::new(), codec: LdapCodec::new(None, None), id: 0 }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("it is taken");
    }

    /// Asks a hundred times at once and reads nothing. Whether that is taken.
    pub(crate) async fn floods(&mut self) -> bool {
        let mut out = BytesMut::new();
        for _ in 0..100 {
            self.id += 1;
            let message = LdapMsg { msgid: self.id, op: mark_search(), ctrl: Vec::new() };
            self.codec.encode(message, &mut out).expect("a message");
        }
        timeout(LONG, self.stream.write_all(&out)).await.expect("it is taken or refused").is_ok()
    }

    pub(crate) async fn send(&mut self, op: LdapOp) -> i32 {
        self.id += 1;
        let mut out = BytesMut::new();
        let message = LdapMsg { msgid: self.id, op, ctrl: Vec::new() };
        self.codec.encode(message, &mut out).expect("a message");
        self.write(&out).await;
        self.id
    }

    /// The next message; none at the end.
    pub(crate) async fn next(&mut self) -> Option<LdapMsg> {
        loop {
            if let Some(message) = self.codec.decode(&mut self.input).expect("a message") {
                return Some(message);
            }
            let read = timeout(LONG, self.stream.read_buf(&mut self.input)).await.expect("something comes");
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    pub(crate) async fn bind(&mut self, dn: &str, password: &str) -> i64 {
        let cred = LdapBindCred::Simple(password.to_owned());
        self.send(LdapOp::BindRequest(LdapBindRequest { version: 3, dn: dn.to_owned(), cred })).await;
        match self.next().await.map(|message| message.op) {
            Some(LdapOp::BindResponse(answer)) => answer.res.code as i64,
            other => panic!("{other:?}"),
        }
    }

    /// Asks which server this is.
    pub(crate) async fn send_search(&mut self) -> i32 {
        self.send(mark_search()).await
    }

    /// The mark in the answer to that, or the result code.
    pub(crate) async fn mark(&mut self) -> Result<String, i64> {
        let mut mark = None;
        loop {
            match self.next().await.expect("an answer").op {
                LdapOp::SearchResultEntry(entry) => {
                    let value = entry.attributes[0].vals[0].clone();
                    mark = Some(String::from_utf8(value).expect("text"));
                }
                LdapOp::SearchResultDone(done) => return mark.ok_or(done.code as i64),
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn search(&mut self) -> Result<String, i64> {
        self.send_search().await;
        self.mark().await
    }

    /// That a Notice of Disconnection with this code comes, and then the end.
    pub(crate) async fn expect_notice(&mut self, code: i64) {
        let message = self.next().await.expect("a notice");
        let LdapOp::ExtendedResponse(notice) = message.op else { panic!("{:?}", message.op) };
        assert_eq!(message.msgid, 0);
        assert_eq!(notice.name.as_deref(), Some("1.3.6.1.4.1.1466.20036"));
        assert_eq!(notice.res.code as i64, code, "{}", notice.res.message);
        assert!(self.next().await.is_none(), "the connection goes on");
    }

    pub(crate) async fn extended(&mut self, name: &str) -> i64 {
        self.send(LdapOp::ExtendedRequest(LdapExtendedRequest { name: name.to_owned(), value: None })).await;
        match self.next().await.map(|message| message.op) {
            Some(LdapOp::ExtendedResponse(answer)) => answer.res.code as i64,
            other => panic!("{other:?}"),
        }
    }
}
