//! Requests, each on a connection of its own to an address that was looked at.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use model::Sources;
use rustls_pki_types::ServerName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use crate::dns::Resolver;
use crate::guard;
use crate::tls::{SetupError, tls};

/// How servers that others name are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Networks outside the public internet in which other servers may be: an address there is connected to where a stranger's
    /// server name leads to it. Private addresses, this machine's own and the like are refused otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("examples" = [["10.0.0.0/8", "fd00::/8"]]))]
    pub allowed_networks: Vec<Sources>,
    /// A file with certificates in PEM of authorities that are believed beside the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/etc/matrix-stack/authority.pem")]
    pub ca_file: Option<PathBuf>,
    /// Take every certificate, whoever shows it. For tests alone: anybody can be any server then.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_verify_tls: bool,
    /// The DNS server to ask, as `ADDRESS:PORT`. Default: those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", example = &"10.0.0.53:53")]
    pub dns_server: Option<SocketAddr>,
}

/// What one request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the question for the address to the last byte.
    pub time: Duration,
    /// The answer's body, in bytes.
    pub bytes: usize,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The address that sent it.
    pub address: SocketAddr,
}

impl Answer {
    /// The body as JSON, whatever it says it is.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_slice(&self.body)
            .map_err(|error| format!("the answer is not what was expected: {error}"))
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The URL is none that can be asked.
    #[error("`{0}` is no URL of http or https with a host")]
    Url(String),
    /// The name has no address.
    #[error("{0}")]
    Dns(String),
    /// All addresses are in networks that are closed.
    #[error(
        "{host} is at {address}, which is not of the public internet; allow its network in `allowed_networks`, if that is meant"
    )]
    Refused {
        /// The name.
        host: String,
        /// The address.
        address: std::net::IpAddr,
    },
    /// Nobody is there.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// The last address that was tried.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// The certificate, or something else about TLS.
    #[error("TLS with {address} as {name}: {reason}")]
    Tls {
        /// The address.
        address: SocketAddr,
        /// Whose certificate was expected.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The connection broke, or what came over it is not HTTP.
    #[error("{address}: {reason}")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What is wrong.
        reason: String,
    },
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

/// Where to connect, and as whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub host: &'a str,
    pub port: u16,
    /// Whose certificate there has to be. None: no TLS.
    pub certificate: Option<&'a str>,
    /// Whether a stranger named it.
    pub guarded: bool,
}

/// Makes requests, and refuses to make some.
#[derive(Debug)]
pub struct Client {
    pub(crate) resolver: Resolver,
    tls: Arc<ClientConfig>,
    networks: Vec<Sources>,
}

/// Who asks.
const AGENT: &str = concat!("matrix-stack/", env!("CARGO_PKG_VERSION"));
/// How long one address may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

impl Client {
    /// A client with these settings.
    pub fn new(settings: &Settings) -> Result<Self, SetupError> {
        if settings.insecure_skip_verify_tls {
            tracing::warn!(
                "certificates are not checked: anybody can be any server. This is for tests alone"
            );
        }
        Ok(Self {
            resolver: Resolver::new(settings.dns_server),
            tls: tls(settings.ca_file.as_deref(), settings.insecure_skip_verify_tls)?,
            networks: settings.allowed_networks.clone(),
        })
    }

    /// Asks a URL that a stranger named.
    pub async fn ask(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
        limits: Limits,
    ) -> Result<Answer, RequestError> {
        self.url(method, url, headers, body, limits, true).await
    }

    /// Asks a URL of the configuration, wherever that is.
    pub async fn ask_own(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
        limits: Limits,
    ) -> Result<Answer, RequestError> {
        self.url(method, url, headers, body, limits, false).await
    }

    async fn url(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
        limits: Limits,
        guarded: bool,
    ) -> Result<Answer, RequestError> {
        let wrong = || RequestError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong());
        };
        let secure = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        let host = authority.host();
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(wrong());
        }
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let certificate = host.trim_start_matches('[').trim_end_matches(']');
        let place = Place { host, port, certificate: secure.then_some(certificate), guarded };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        self.send(&[place], authority.as_str(), method, path, headers, body, limits).await
    }

    /// Sends a request to the first of these places that can be connected to.
    #[expect(clippy::too_many_arguments, reason = "they are a request's parts")]
    pub(crate) async fn send(
        &self,
        places: &[Place<'_>],
        host: &str,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        limits: Limits,
    ) -> Result<Answer, RequestError> {
        let asked = async {
            let mut failure = RequestError::Dns(format!("{host} has no address"));
            for place in places {
                match self.connect(*place).await {
                    Ok((stream, address)) => {
                        return exchange(stream, address, host, method, path, headers, body, limits.bytes)
                            .await;
                    }
                    Err(error) => failure = error,
                }
            }
            Err(failure)
        };
        timeout(limits.time, asked).await.map_err(|_| RequestError::Late(limits.time))?
    }

    /// Connects to the first address that it can. Each is looked at before, and no name is looked up again after that.
    async fn connect(&self, place: Place<'_>) -> Result<(Box<dyn Stream>, SocketAddr), RequestError> {
        let found = self.resolver.addresses(place.host).await.map_err(RequestError::Dns)?;
        let allowed = |ip| !place.guarded || guard::allows(&self.networks, ip);
        let mut failure = RequestError::Refused { host: place.host.to_owned(), address: found[0] };
        for ip in found.into_iter().filter(|ip| allowed(*ip)) {
            let address = SocketAddr::new(ip, place.port);
            let wrong = |reason: String| RequestError::Connect { address, reason };
            let stream = match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    failure = wrong(error.to_string());
                    continue;
                }
                Err(_) => {
                    failure = wrong(format!("nobody answers within {} s", CONNECT.as_secs()));
                    continue;
                }
            };
            // It fails where the other end is gone already.
            let _ = stream.set_nodelay(true);
            let Some(certificate) = place.certificate else { return Ok((Box::new(stream), address)) };
            let wrong = |reason: String| RequestError::Tls { address, name: certificate.to_owned(), reason };
            let name = match ServerName::try_from(certificate.to_owned()) {
                Ok(name) => name,
                Err(error) => return Err(wrong(error.to_string())),
            };
            match TlsConnector::from(self.tls.clone()).connect(name, stream).await {
                Ok(stream) => return Ok((Box::new(stream), address)),
                Err(error) => failure = wrong(error.to_string()),
            }
        }
        Err(failure)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[expect(clippy::too_many_arguments, reason = "they are a request's parts")]
async fn exchange(
    stream: Box<dyn Stream>,
    address: SocketAddr,
    host: &str,
    method: Method,
    path: &str,
    headers: HeaderMap,
    body: Bytes,
    most: usize,
) -> Result<Answer, RequestError> {
    let wrong = |reason: String| RequestError::Http { address, reason };
    let mut request = http::Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|_| RequestError::Url(path.to_owned()))?;
    *request.headers_mut() = headers;
    let host = HeaderValue::from_str(host).map_err(|_| RequestError::Url(host.to_owned()))?;
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(64 << 10)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| wrong(error.to_string()))?;
    // What goes wrong with it is seen by who waits for the answer, and it ends with the answer.
    let connection = tokio::spawn(connection);
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|error| wrong(error.to_string()))?;
        let (head, body) = answer.into_parts();
        let body =
            Limited::new(body, most).collect().await.map_err(|error| wrong(error.to_string()))?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body, address })
    };
    let aborted = Aborted(connection);
    let answer = answered.await;
    drop(aborted);
    answer
}

/// Ends a connection's task with its request, also where that is given up.
struct Aborted<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Aborted<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
