//! Discovery on a network of its own, where the ports that the specification names are free: a real DNS server (knotd), and servers
//! with certificates of an authority that only this test knows, which say who they were taken for.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::fs;
use std::future::ready;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use discovery::{Discovery, FederationError, Limits, RequestError, Rule, Settings};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

const LIMITS: Limits = Limits { time: Duration::from_secs(30), bytes: 100 << 10 };
/// Set in the process that has the network.
const INSIDE: &str = "DISCOVERY_TEST_NETWORK";

/// What `/.well-known/matrix/server` and `/.well-known/matrix/client` of a name are: status, header, body.
fn documents(host: &str) -> (u16, &'static str, String) {
    let to = |server: &str| (200, "", json!({ "m.server": server }).to_string());
    let moved = |place: &'static str| (302, place, String::new());
    match host {
        "wk-ip.test" => to("127.0.1.1"),
        "wk-ip-port.test" => to("127.0.1.1:9000"),
        "wk-port.test" => to("Target.test:9000"),
        "wk-srv.test" => to("srvd.test"),
        "wk-old.test" => to("oldsrvd.test"),
        "wk-plain.test" | "moved.test" => to("target.test"),
        "moves.test" => moved("https://moved.test/.well-known/matrix/server"),
        "loops.test" => moved("/.well-known/matrix/server"),
        "moves-to-http.test" => moved("http://moved.test/.well-known/matrix/server"),
        "moves-inside.test" => moved("https://private.test/.well-known/matrix/server"),
        "large.test" => {
            (200, "", json!({ "m.server": "target.test", "x": "x".repeat(51 << 10) }).to_string())
        }
        "broken.test" => (200, "", "{".to_owned()),
        "nonsense.test" => to("https://target.test"),
        "failing.test" => (500, "", String::new()),
        "wk-private.test" => to("private.test:9000"),
        "wk-private-ip.test" => to("127.0.2.1:9000"),
        _ => (404, "", String::new()),
    }
}

const ZONE: &str = "$ORIGIN test.\n$TTL 300\n@ SOA ns admin 1 60 60 60 1\n@ NS ns\nns A 127.0.0.1\n\
    * A 127.0.1.1\nprivate A 127.0.2.1\nnowhere TXT nothing\nmixed A 127.0.2.1\nmixed A 127.0.1.1\nbox A 127.0.1.2\n\
    srvd A 127.0.1.1\n_matrix-fed._tcp.srvd SRV 10 5 9001 box\n\
    oldsrvd A 127.0.1.1\n_matrix._tcp.oldsrvd SRV 10 5 9001 box\n\
    srv A 127.0.1.1\n_matrix-fed._tcp.srv SRV 10 5 9001 box\n_matrix._tcp.srv SRV 10 5 9000 box\n\
    old A 127.0.1.1\n_matrix._tcp.old SRV 10 5 9001 box\n\
    two A 127.0.1.1\n_matrix-fed._tcp.two SRV 10 5 9999 box\n_matrix-fed._tcp.two SRV 20 5 9001 box\n\
    root A 127.0.1.1\n_matrix-fed._tcp.root SRV 0 0 0 .\n\
    srv-private A 127.0.1.1\n_matrix-fed._tcp.srv-private SRV 10 5 9000 private\n\
    wk-plain A 127.0.1.1\n_matrix-fed._tcp.wk-plain SRV 10 5 9001 box\n";

/// Whom the certificate of most servers here names.
const NAMES: &[&str] = &[
    "127.0.1.1",
    "127.0.2.1",
    "wk-ip.test",
    "wk-ip-port.test",
    "wk-port.test",
    "wk-srv.test",
    "wk-old.test",
    "wk-plain.test",
    "moved.test",
    "moves.test",
    "loops.test",
    "moves-to-http.test",
    "moves-inside.test",
    "large.test",
    "broken.test",
    "nonsense.test",
    "failing.test",
    "wk-private.test",
    "wk-private-ip.test",
    "private.test",
    "port.test",
    "target.test",
    "root.test",
    "plain.test",
    "mixed.test",
];

/// Servers that answer every name, and say by which they were asked.
struct Servers {
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Servers {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { authority: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    async fn start(&self, address: &str, names: &[&str]) {
        let address: SocketAddr = address.parse().unwrap();
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.authority).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let tls = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(address).await.unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let tls = tls.clone();
                tokio::spawn(async move {
                    // One that does not believe the certificate goes away.
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let sni = stream.get_ref().1.server_name().map(ToOwned::to_owned);
                    let service = service_fn(move |request| {
                        ready(Ok::<_, Infallible>(answer(address, sni.as_deref(), &request)))
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    }
}

fn answer(address: SocketAddr, sni: Option<&str>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let host = request.headers()["host"].to_str().unwrap();
    let mut response = Response::new(Full::new(Bytes::new()));
    if request.uri().path().starts_with("/.well-known/matrix/") {
        let (status, location, body) = documents(host);
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if !location.is_empty() {
            response.headers_mut().insert("location", location.parse().unwrap());
        }
        *response.body_mut() = Full::new(body.into());
    } else {
        let said = json!({ "host": host, "sni": sni, "address": address.to_string(), "path": request.uri().to_string() });
        *response.body_mut() = Full::new(said.to_string().into());
    }
    response
}

/// A DNS server on port 53, and everything gone when it is dropped.
struct Dns(Child);

impl Dns {
    fn start(directory: &Path) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
        let knotd = places.find_map(|place| Some(place.join("knotd")).filter(|file| file.is_file()));
        let Some(knotd) = knotd else {
            println!("SKIPPED: knotd (Debian's package `knot`) is not installed");
            return None;
        };
        fs::write(directory.join("test.zone"), ZONE).unwrap();
        let dir = directory.to_str().unwrap();
        let conf = format!(
            "server:\n    rundir: {dir}\n    listen: 127.0.0.1@53\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
             log:\n  - target: stderr\n    any: error\ndatabase:\n    storage: {dir}\n\
             template:\n  - id: default\n    storage: {dir}\nzone:\n  - domain: test\n    file: test.zone\n"
        );
        fs::write(directory.join("knot.conf"), conf).unwrap();
        Some(Self(Command::new(knotd).arg("-c").arg(directory.join("knot.conf")).spawn().unwrap()))
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the test below in a network of its own.
#[test]
fn servers_are_found_as_the_specification_says() {
    let unshare = ["--user", "--map-root-user", "--net"];
    if !Command::new("unshare")
        .args(unshare)
        .args(["ip", "link", "set", "lo", "up"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        println!(
            "SKIPPED: this user may not make a network (`unshare --user --net`), or `ip` (Debian's package `iproute2`) is missing"
        );
        return;
    }
    let own = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", "ip link set lo up && exec \"$0\" --exact inside --nocapture"])
        .arg(own)
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "see above");
}

#[tokio::test]
async fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let Some(_dns) = Dns::start(directory.path()) else { return };
    let servers = Servers::new();
    let ca_file = directory.path().join("ca.pem");
    fs::write(&ca_file, servers.authority.pem()).unwrap();
    for port in [443, 8448, 9000] {
        servers.start(&format!("127.0.1.1:{port}"), NAMES).await;
        servers.start(&format!("127.0.2.1:{port}"), NAMES).await;
    }
    servers.start("127.0.1.2:9001", &["srvd.test", "oldsrvd.test", "srv.test", "old.test", "two.test"]).await;
    servers.start("127.0.1.2:9002", &["other.test"]).await;
    let settings = Settings {
        allowed_networks: vec!["127.0.1.0/24".to_owned().try_into().unwrap()],
        ca_file: Some(ca_file),
        dns_server: Some(([127, 0, 0, 1], 53).into()),
        ..Settings::default()
    };
    let discovery = Discovery::new(&settings).unwrap();
    // The DNS server has just been started.
    for _ in 0..500 {
        if TcpStream::connect("127.0.0.1:53").await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    find(&discovery).await;
    refuse(&discovery).await;

    // What was found is remembered, and the trace with it.
    let (first, second) =
        (discovery.server("wk-srv.test").await.unwrap(), discovery.server("WK-srv.test").await.unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    let said: Vec<_> = first.steps.iter().map(|step| format!("{} → {}", step.asked, step.found)).collect();
    assert_eq!(
        said,
        [
            "https://wk-srv.test/.well-known/matrix/server → m.server: srvd.test",
            "SRV _matrix-fed._tcp.srvd.test → box.test:9001",
            "srvd.test → a host with SRV records"
        ]
    );

    // Nobody's certificate is checked where the configuration says so.
    let insecure = Settings { ca_file: None, insecure_skip_verify_tls: true, ..settings.clone() };
    let insecure = Discovery::new(&insecure).unwrap();
    assert!(insecure.federation("127.0.1.2:9002", "/", LIMITS).await.is_ok());
    // And without the authority nobody is believed.
    let stranger = Discovery::new(&Settings { ca_file: None, ..settings }).unwrap();
    let error = stranger.federation("127.0.1.1", "/", LIMITS).await.unwrap_err();
    assert!(matches!(error, FederationError::Request { error: RequestError::Tls { .. }, .. }), "{error}");
}

async fn find(discovery: &Discovery) {
    let (one, two) = ("127.0.1.1", "127.0.1.2");
    // Name, rule, Host, SNI, address.
    for (name, rule, host, sni, ip, port) in [
        ("127.0.1.1", Rule::Address, "127.0.1.1", None, one, 8448),
        ("127.0.1.1:9000", Rule::Address, "127.0.1.1:9000", None, one, 9000),
        ("port.test:9000", Rule::Port, "port.test:9000", Some("port.test"), one, 9000),
        ("wk-ip.test", Rule::Address, "127.0.1.1", None, one, 8448),
        ("wk-ip-port.test", Rule::Address, "127.0.1.1:9000", None, one, 9000),
        ("wk-port.test", Rule::Port, "target.test:9000", Some("target.test"), one, 9000),
        ("wk-srv.test", Rule::Srv, "srvd.test", Some("srvd.test"), two, 9001),
        ("wk-old.test", Rule::DeprecatedSrv, "oldsrvd.test", Some("oldsrvd.test"), two, 9001),
        // The document goes before SRV records of the name itself.
        ("wk-plain.test", Rule::DefaultPort, "target.test", Some("target.test"), one, 8448),
        ("srv.test", Rule::Srv, "srv.test", Some("srv.test"), two, 9001),
        ("old.test", Rule::DeprecatedSrv, "old.test", Some("old.test"), two, 9001),
        ("two.test", Rule::Srv, "two.test", Some("two.test"), two, 9001),
        ("root.test", Rule::DefaultPort, "root.test", Some("root.test"), one, 8448),
        ("plain.test", Rule::DefaultPort, "plain.test", Some("plain.test"), one, 8448),
        // One of two addresses is closed.
        ("mixed.test", Rule::DefaultPort, "mixed.test", Some("mixed.test"), one, 8448),
        ("moves.test", Rule::DefaultPort, "target.test", Some("target.test"), one, 8448),
        // Documents that are as if they were not there.
        ("loops.test", Rule::DefaultPort, "loops.test", Some("loops.test"), one, 8448),
        (
            "moves-to-http.test",
            Rule::DefaultPort,
            "moves-to-http.test",
            Some("moves-to-http.test"),
            one,
            8448,
        ),
        ("moves-inside.test", Rule::DefaultPort, "moves-inside.test", Some("moves-inside.test"), one, 8448),
        ("large.test", Rule::DefaultPort, "large.test", Some("large.test"), one, 8448),
        ("broken.test", Rule::DefaultPort, "broken.test", Some("broken.test"), one, 8448),
        ("nonsense.test", Rule::DefaultPort, "nonsense.test", Some("nonsense.test"), one, 8448),
        ("failing.test", Rule::DefaultPort, "failing.test", Some("failing.test"), one, 8448),
    ] {
        let server = discovery.server(name).await.unwrap();
        assert_eq!((server.rule, server.host.as_str()), (rule, host), "{name}: {:#?}", server.steps);
        let answer = discovery
            .federation(name, "/x?y=1", LIMITS)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let said: Value = answer.json().unwrap();
        let expected =
            json!({ "host": host, "sni": sni, "address": format!("{ip}:{port}"), "path": "/x?y=1" });
        assert_eq!(said, expected, "{name}: {:#?}", server.steps);
    }
}

async fn refuse(discovery: &Discovery) {
    for name in [
        "127.0.2.1",
        "private.test:9000",
        "private.test",
        "wk-private.test",
        "wk-private-ip.test",
        "srv-private.test",
        "[::1]:9000",
        "[::ffff:127.0.2.1]:9000",
    ] {
        let error = discovery.federation(name, "/", LIMITS).await.unwrap_err();
        assert!(
            matches!(error, FederationError::Request { error: RequestError::Refused { .. }, .. }),
            "{name}: {error}"
        );
    }
    let error = discovery.federation("127.0.1.2:9002", "/", LIMITS).await.unwrap_err().to_string();
    assert!(error.contains("TLS with 127.0.1.2:9002 as 127.0.1.2: invalid peer certificate"), "{error}");
    let error = discovery.federation("nowhere.test:1", "/", LIMITS).await.unwrap_err().to_string();
    assert!(error.contains("nowhere.test has no address"), "{error}");
    let error = discovery.federation("127.0.1.1:1", "/", LIMITS).await.unwrap_err().to_string();
    assert!(error.contains("cannot connect to 127.0.1.1:1: Connection refused"), "{error}");
    assert!(matches!(discovery.federation("a b", "/", LIMITS).await, Err(FederationError::Name(_))));
    // The answer is no longer than it may be.
    let few = Limits { bytes: 10, ..LIMITS };
    let error = discovery.federation("127.0.1.1", "/", few).await.unwrap_err().to_string();
    assert!(error.contains("length limit exceeded"), "{error}");
}
