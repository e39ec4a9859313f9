//! HTTP/1.1 to a homeserver, with TLS where its URL says so, and through a proxy if there is one.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a connection is kept for the next request. Proxies in front of homeservers keep them for a minute.
const IDLE: Duration = Duration::from_secs(30);

/// A tunnel through a proxy, which may itself be reached with TLS.
type ToProxy = Tunnel<HttpsConnector<HttpConnector>>;

pub(crate) enum Transport {
    Direct(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
    Proxied(Box<Client<HttpsConnector<ToProxy>, Full<Bytes>>>),
}

impl Transport {
    pub(crate) fn new(proxy: Option<Uri>) -> io::Result<Self> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT));
        let direct = HttpsConnectorBuilder::new()
            .with_native_roots()?
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let mut clients = Client::builder(TokioExecutor::new());
        clients.pool_idle_timeout(IDLE).pool_timer(TokioTimer::new()).pool_max_idle_per_host(16);
        Ok(match proxy {
            None => Self::Direct(clients.build(direct)),
            Some(proxy) => Self::Proxied(Box::new(
                clients.build(
                    HttpsConnectorBuilder::new()
                        .with_native_roots()?
                        .https_or_http()
                        .enable_http1()
                        .wrap_connector(Tunnel::new(proxy, direct)),
                ),
            )),
        })
    }

    /// The answer: its status, how long it asks to wait, and its body up to a size.
    pub(crate) async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        most: usize,
    ) -> Result<(StatusCode, Option<Duration>, Bytes), String> {
        let answer = match self {
            Self::Direct(client) => client.request(request).await,
            Self::Proxied(client) => client.request(request).await,
        };
        let answer: Response<Incoming> = answer.map_err(|error| with_cause(&error))?;
        let wait = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wait = wait.and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
        let status = answer.status();
        let body = Limited::new(answer.into_body(), most)
            .collect()
            .await
            .map_err(|error| format!("the answer broke off: {error}"))?;
        Ok((status, wait, body.to_bytes()))
    }
}

/// An error with what caused it, which is what tells.
fn with_cause(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
