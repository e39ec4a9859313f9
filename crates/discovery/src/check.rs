//! A homeserver, looked at from outside: as other servers and as clients see it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Serialize;
use serde_json::Value;

use crate::{
    Answer, Discovery, FederationError, InvalidName, Limits, RequestError, Server, Step, well_known,
};

const LIMITS: Limits = Limits { time: Duration::from_secs(20), bytes: 256 << 10 };
/// How many services for calls are looked at.
const MOST_FOCI: usize = 8;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Good,
    /// It works, but something is missing or about to fail.
    Warning,
    /// It does not work.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, in one word for programs.
    pub check: &'static str,
    /// How it is.
    pub status: Status,
    /// What was seen.
    pub found: String,
    /// What to do. Nothing where all is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// All that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Examination {
    /// The server's name.
    pub server_name: String,
    /// Where other servers find it, and how.
    pub server: Server,
    /// How clients find it.
    pub client_steps: Vec<Step>,
    /// What was seen.
    pub findings: Vec<Finding>,
}

impl Examination {
    /// Whether something does not work.
    pub fn has_failed(&self) -> bool {
        self.findings.iter().any(|finding| finding.status == Status::Failure)
    }

    fn good(&mut self, check: &'static str, found: impl Into<String>) {
        self.findings.push(Finding { check, status: Status::Good, found: found.into(), mend: None });
    }

    fn bad(
        &mut self,
        check: &'static str,
        status: Status,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.findings.push(Finding { check, status, found: found.into(), mend: Some(mend.into()) });
    }

    fn fail(&mut self, check: &'static str, found: impl Into<String>, mend: impl Into<String>) {
        self.bad(check, Status::Failure, found, mend);
    }

    /// Whether browsers may read an answer.
    fn cors(&mut self, check: &'static str, what: &str, answer: &Answer) {
        match answer.headers.get(ACCESS_CONTROL_ALLOW_ORIGIN) {
            Some(origin) if origin == "*" => {
                self.good(check, format!("{what} can be read by clients in browsers"));
            }
            found => {
                let found = found.map_or("is missing".to_owned(), |value| format!("is {value:?}"));
                self.fail(
                    check,
                    format!("Access-Control-Allow-Origin of {what} {found}"),
                    "add the header `Access-Control-Allow-Origin: *` to all answers there",
                );
            }
        }
    }
}

/// Looks at a homeserver. Where it is, is found out as others do, and what is remembered is used.
pub async fn examine(discovery: &Discovery, name: &str) -> Result<Examination, InvalidName> {
    let server = discovery.server(name).await?;
    let mut all = Examination {
        server_name: server.name.clone(),
        server: Server::clone(&server),
        client_steps: Vec::new(),
        findings: Vec::new(),
    };
    let places: Vec<_> =
        server.endpoints.iter().map(|place| format!("{}:{}", place.host, place.port)).collect();
    all.good(
        "discovery",
        format!(
            "other servers connect to {}, and expect the certificate of {}",
            places.join(", "),
            server.certificate
        ),
    );
    let broken = |step: &&Step| {
        step.asked.contains("/.well-known/matrix/server") && !step.used && !step.found.starts_with("404")
    };
    if let Some(step) = server.steps.iter().find(broken) {
        all.bad(
            "server_well_known",
            Status::Warning,
            format!("{}: {}", step.asked, step.found),
            "serve a document with `m.server` there, as `matrix-stack serve well-known` does, or answer 404 where none is needed",
        );
    }
    federation(discovery, &mut all).await;
    clients(discovery, &mut all).await;
    Ok(all)
}

/// What to do about a request that failed.
fn mend(error: &RequestError, server: &Server) -> String {
    match error {
        RequestError::Url(_) => "write a URL that begins with https://".to_owned(),
        RequestError::Dns(_) => format!("add an A or AAAA record for {}", server.certificate),
        RequestError::Refused { .. } => {
            "give the name a public address; or, if all who shall reach it are in that network, allow it there".to_owned()
        }
        RequestError::Connect { address, .. } => format!(
            "open port {} to everybody and have your proxy listen there; or say another place in /.well-known/matrix/server",
            address.port()
        ),
        RequestError::Tls { name, .. } => format!(
            "have your proxy show a certificate for {name} of a known authority, with those that lead to its root"
        ),
        RequestError::Http { .. } => "see what answers there: it is no web server".to_owned(),
        RequestError::Late(_) => "see why what answers there is so slow, and whether a firewall drops packets".to_owned(),
    }
}

async fn federation(discovery: &Discovery, all: &mut Examination) {
    let (name, server) = (all.server_name.clone(), all.server.clone());
    let version = match discovery.federation(&name, "/_matrix/federation/v1/version", LIMITS).await {
        Ok(answer) => answer,
        Err(FederationError::Name(error)) => {
            return all.fail("federation", error.to_string(), "use a server name");
        }
        Err(FederationError::Request { error, .. }) => {
            let check = if matches!(error, RequestError::Tls { .. }) { "certificate" } else { "federation" };
            return all.fail(check, error.to_string(), mend(&error, &server));
        }
    };
    all.good("certificate", format!("{} shows a certificate for {}", version.address, server.certificate));
    let text: Option<(String, String)> = version.json::<Value>().ok().and_then(|body| {
        let text = |key: &str| Some(body["server"][key].as_str()?.to_owned());
        Some((text("name")?, text("version")?))
    });
    match (version.status, text) {
        (StatusCode::OK, Some((name, version))) => {
            all.good("federation", format!("{name} {version} answers"));
        }
        (status, _) => {
            return all.fail(
                "federation",
                format!("/_matrix/federation/v1/version answers {status}, and not as a homeserver does"),
                "route /_matrix/federation there to the homeserver; see also whether `federation` is switched on",
            );
        }
    }
    let keys = match discovery.federation(&name, "/_matrix/key/v2/server", LIMITS).await {
        Ok(answer) if answer.status == StatusCode::OK => answer.json::<Value>().unwrap_or_default(),
        Ok(answer) => Value::from(answer.status.to_string()),
        Err(error) => Value::from(error.to_string()),
    };
    let route = "route /_matrix/key there to the homeserver, which signs with keys of its own";
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let valid = keys["valid_until_ts"].as_u64().is_some_and(|until| u128::from(until) > now);
    let has_keys = keys["verify_keys"].as_object().is_some_and(|keys| !keys.is_empty());
    match keys["server_name"].as_str() {
        Some(of) if of != name => all.fail(
            "keys",
            format!("the homeserver there is called {of}"),
            format!("set server_name to {name}, which cannot be changed later, or send /.well-known/matrix/server of {name} elsewhere"),
        ),
        Some(_) if valid && has_keys => all.good("keys", "its signing keys can be had"),
        Some(_) => all.fail("keys", "its signing keys are over, or there are none", "set the clock, and restart the homeserver"),
        None => all.fail("keys", "its signing keys cannot be had at /_matrix/key/v2/server", route),
    }
}

async fn clients(discovery: &Discovery, all: &mut Examination) {
    let (name, client) = (all.server_name.clone(), discovery.client());
    let ask = async |url: &str, method: Method, headers: HeaderMap| {
        client.ask(method, url, headers, Bytes::new(), LIMITS).await
    };
    let url = format!("https://{name}/.well-known/matrix/client");
    let (document, _) = well_known::client(client, &name, &mut all.client_steps).await;
    let Some(document) = document else {
        let found = all.client_steps.last().map(|step| step.found.clone()).unwrap_or_default();
        all.bad(
            "client_well_known",
            Status::Warning,
            format!("{url}: {found}"),
            format!("serve the document there, as `matrix-stack serve well-known` does; without it people have to type the homeserver's URL, since their clients try https://{name}"),
        );
        return;
    };
    all.good("client_well_known", format!("{url} is there"));
    if let Ok(answer) = ask(&url, Method::GET, HeaderMap::new()).await {
        all.cors("client_well_known_cors", "/.well-known/matrix/client", &answer);
    }
    let Some(base) = well_known::base_url(&document) else { return };
    if base.starts_with("http://") {
        all.bad(
            "base_url",
            Status::Warning,
            format!("clients are sent to {base}, in the clear"),
            "set public_base_url to a URL of https",
        );
    }
    match ask(&format!("{base}/_matrix/client/versions"), Method::GET, HeaderMap::new()).await {
        Ok(answer)
            if answer.status == StatusCode::OK
                && answer.json::<Value>().is_ok_and(|body| body["versions"].is_array()) =>
        {
            all.good("versions", format!("{base} is a homeserver's"));
            all.cors("versions_cors", "/_matrix/client/versions", &answer);
        }
        Ok(answer) => all.fail(
            "versions",
            format!("{base}/_matrix/client/versions answers {}, and not as a homeserver does", answer.status),
            "route /_matrix/client there to the homeserver, or correct public_base_url",
        ),
        Err(error) => all.fail("versions", format!("{base}: {error}"), mend(&error, &all.server)),
    }
    for focus in document["org.matrix.msc4143.rtc_foci"].as_array().into_iter().flatten().take(MOST_FOCI) {
        let Some(url) = focus["livekit_service_url"].as_str().filter(|_| focus["type"] == "livekit") else {
            all.bad(
                "livekit",
                Status::Warning,
                format!("{focus} in rtc_foci is of no kind that is known"),
                "remove it, if nobody needs it",
            );
            continue;
        };
        let url = url.trim_end_matches('/');
        match ask(&format!("{url}/healthz"), Method::GET, HeaderMap::new()).await {
            Ok(answer) if answer.status == StatusCode::OK => all.good("livekit", format!("{url} gives out tokens for calls")),
            Ok(answer) => all.fail(
                "livekit",
                format!("{url}/healthz answers {}", answer.status),
                "route that URL to `matrix-stack serve livekit-jwt` with all that is below it, or correct well_known.livekit",
            ),
            Err(error) => all.fail("livekit", format!("{url}: {error}"), mend(&error, &all.server)),
        }
        let headers = HeaderMap::from_iter([
            (ORIGIN, HeaderValue::from_static("https://client.invalid")),
            (ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST")),
        ]);
        if let Ok(answer) = ask(&format!("{url}/sfu/get"), Method::OPTIONS, headers).await {
            all.cors("livekit_cors", &format!("{url}/sfu/get"), &answer);
        }
    }
}
