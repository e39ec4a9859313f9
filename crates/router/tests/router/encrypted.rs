//! TLS and HTTP/2 in front.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::Role;
use router::{Settings, Snapshot, TlsError};
use routes::Table;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsConnector, rustls};

use crate::lab::{Lab, checksum, get, post, quick, stack, topology, until};

pub(crate) const NAME: &str = "matrix.test.example";

/// A PEM file (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// Writes a new certificate and its key, and returns the certificate.
pub(crate) fn certify(dir: &Path) -> rustls::pki_types::CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    std::fs::write(dir.join("cert.pem"), pem("CERTIFICATE", made.cert.der())).unwrap();
    std::fs::write(dir.join("key.pem"), pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
    made.cert.der().clone()
}

fn files(dir: &Path) -> model::Tls {
    model::Tls { certificate: dir.join("cert.pem"), private_key: dir.join("key.pem") }
}

/// A lab whose public listener has TLS, and its certificate.
async fn lab() -> (Lab, rustls::pki_types::CertificateDer<'static>) {
    let lab = Lab::new(&[("sync", &[Role::Sync], 1)]).await;
    let certificate = certify(lab.dir.path());
    encrypt(&lab, quick());
    (lab, certificate)
}

/// Has the router use the certificate that lies there.
pub(crate) fn encrypt(lab: &Lab, settings: Settings) {
    let mut stack = stack(&[("sync", &[Role::Sync], 1)]);
    stack.listen.tls = Some(files(lab.dir.path()));
    let topology = topology(&stack, lab.dir.path());
    let snapshot =
        Snapshot::with_table(Table::newest(), &topology, settings).unwrap().with_tls(&stack).unwrap();
    lab.router.reload(snapshot);
}

/// Connects, trusting this certificate alone.
async fn connect(
    lab: &Lab,
    trusted: rustls::pki_types::CertificateDer<'static>,
    alpn: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    secure(TcpStream::connect(lab.address).await?, trusted, alpn).await
}

/// Begins with TLS on a connection, trusting this certificate alone.
pub(crate) async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    trusted: rustls::pki_types::CertificateDer<'static>,
    alpn: &[u8],
) -> std::io::Result<TlsStream<S>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), stream).await
}

#[tokio::test]
async fn clients_may_speak_either_version() {
    let (lab, certificate) = lab().await;
    let io = TokioIo::new(connect(&lab, certificate.clone(), b"http/1.1").await.unwrap());
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let reply = sender.send_request(get("/_matrix/client/versions")).await.unwrap();
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        let echoed: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(echoed["headers"]["x-forwarded-proto"], "https");
        assert_eq!(echoed["headers"]["x-forwarded-for"], "127.0.0.1");
    }

    let io = TokioIo::new(connect(&lab, certificate, b"h2").await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    // Many at once, small and large, each to its own process.
    let upload: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let (length, sum) = (upload.len(), checksum(&upload));
    let one = |number: usize| {
        let (mut sender, upload) = (sender.clone(), upload.clone());
        async move {
            let uri = |path: &str| format!("https://{NAME}{path}");
            let request: Request<Full<Bytes>> = match number % 3 {
                0 => Request::get(uri("/_matrix/client/v3/sync?since=s")).body(Full::default()).unwrap(),
                1 => Request::get(uri("/_synapse/metrics")).body(Full::default()).unwrap(),
                _ => Request::post(uri("/_matrix/media/v3/upload")).body(Full::from(upload)).unwrap(),
            };
            let reply = sender.send_request(request).await.unwrap();
            assert_eq!(reply.version(), Version::HTTP_2);
            let status = reply.status();
            assert!(!reply.headers().contains_key("connection"));
            let body = reply.into_body().collect().await.unwrap().to_bytes();
            let echoed: serde_json::Value = serde_json::from_slice(&body).unwrap();
            match number % 3 {
                0 => {
                    assert_eq!(echoed["instance"], "sync_1");
                    assert_eq!(echoed["headers"]["host"], NAME);
                    assert_eq!(echoed["headers"]["x-forwarded-proto"], "https");
                }
                1 => assert_eq!(
                    (status, &echoed["errcode"]),
                    (StatusCode::NOT_FOUND, &"M_UNRECOGNIZED".into())
                ),
                _ => assert_eq!(
                    (echoed["length"].as_u64(), echoed["sum"].as_u64()),
                    (Some(length as u64), Some(sum))
                ),
            }
        }
    };
    let mut all = tokio::task::JoinSet::new();
    (0..12).map(one).for_each(|each| drop(all.spawn(each)));
    all.join_all().await;
}

#[tokio::test]
async fn a_stream_that_is_given_up_frees_the_instance() {
    let (lab, certificate) = lab().await;
    lab.run("sync_1", crate::lab::Behaviour::Raw(crate::lab::Raw::Hang));
    let io = TokioIo::new(connect(&lab, certificate, b"h2").await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("https://{NAME}/_matrix/client/v3/sync?since=s");
    let request = Request::get(uri).body(Full::<Bytes>::default()).unwrap();
    let held = tokio::time::timeout(Duration::from_millis(100), sender.send_request(request)).await;
    assert!(held.is_err());
    let in_flight = || lab.router.stats().instances.iter().map(|instance| instance.in_flight).sum::<usize>();
    until("nothing is in flight", || in_flight() == 0).await;
    assert_eq!(lab.log(1).await[0]["failure"], "client_gone");
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let (lab, old) = lab().await;
    let mut open = {
        let io = TokioIo::new(connect(&lab, old.clone(), b"http/1.1").await.unwrap());
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        sender
    };
    let new = certify(lab.dir.path());
    encrypt(&lab, quick());
    assert!(connect(&lab, new, b"http/1.1").await.is_ok());
    assert!(connect(&lab, old, b"http/1.1").await.is_err());
    let reply = open.send_request(post("/_matrix/client/v3/keys/query", "{}")).await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK, "connections that are open stay");
}

#[tokio::test]
async fn who_does_not_speak_tls_gets_nothing() {
    let settings = Settings { head_timeout: Duration::from_millis(200), ..quick() };
    let lab = Lab::with(&[], settings.clone()).await;
    certify(lab.dir.path());
    encrypt(&lab, settings);
    let answer = lab.raw(format!("{} / HTTP/1.1\r\nhost: a\r\n\r\n", Method::GET).as_bytes()).await;
    assert!(!answer.contains("HTTP/1.1 200"), "{answer}");
    assert_eq!(lab.seen("main"), 0);
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut stack = stack(&[]);
    stack.listen.tls = Some(files(dir.path()));
    let topology = topology(&stack, dir.path());
    let load =
        || Snapshot::with_table(Table::newest(), &topology, quick()).unwrap().with_tls(&stack).unwrap_err();
    let missing = load();
    assert!(matches!(&missing, TlsError::Read { field: "certificate", .. }), "{missing}");
    certify(dir.path());
    std::fs::write(dir.path().join("key.pem"), "no key").unwrap();
    assert!(matches!(load(), TlsError::Read { field: "private_key", .. }));
    let other = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let other = pem("PRIVATE KEY", &other.signing_key.serialize_der());
    std::fs::write(dir.path().join("key.pem"), other).unwrap();
    let mismatched = load().to_string();
    assert!(mismatched.contains("cert.pem") && mismatched.contains("key.pem"), "{mismatched}");
}
