//! Signing in and out, and who may see a page.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::{Extension, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use config::secrets::Secret;
use serde_json::json;
use service::Peer;

use crate::session::{Session, same};
use crate::synapse::{Failure, ask};
use crate::value::{encoded, plain};
use crate::{Console, page};

/// The cookie's name.
const COOKIE: &str = "matrix_stack_console";
/// How long Synapse's word that somebody is an administrator is taken.
const CHECKED: Duration = Duration::from_secs(30);

/// Somebody who is signed in, and is a server administrator.
pub(crate) struct Admin(pub(crate) Arc<Session>);

impl FromRequestParts<Arc<Console>> for Admin {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, console: &Arc<Console>) -> Result<Self, Response> {
        let by_itself = parts.uri.path() == "/live.json";
        let session = cookie(&parts.headers).and_then(|cookie| console.sessions.find(cookie, !by_itself));
        let Some(session) = session else {
            return Err(if by_itself {
                (StatusCode::UNAUTHORIZED, axum::Json(json!({ "error": "signed out" }))).into_response()
            } else {
                Redirect::to("/sign-in").into_response()
            });
        };
        if session.unchecked_for() > CHECKED {
            match is_admin(console, &session.user, session.token.expose()).await {
                Ok(true) => session.check(),
                Ok(false) | Err(Failure::SignedOut) => {
                    end(console, &session).await;
                    return Err(Redirect::to("/sign-in").into_response());
                }
                // While Synapse is away, the stack's own pages are needed most; what changes something asks again.
                Err(failure) if parts.method == Method::GET => {
                    tracing::warn!(
                        reason = failure.message(),
                        "it cannot be told whether a user is an administrator"
                    );
                }
                Err(failure) => {
                    let status = StatusCode::SERVICE_UNAVAILABLE;
                    return Err(page::trouble(&session, status, "Nothing was done", &failure.message()));
                }
            }
        }
        Ok(Self(session))
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|line| line.split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE).then_some(value)
    })
}

/// Whether Synapse takes the user for an administrator.
async fn is_admin(console: &Console, user: &str, token: &str) -> Result<bool, Failure> {
    let path = format!("/_synapse/admin/v1/users/{}/admin", encoded(user));
    match ask(&console.plan(), Some(token), Method::GET, &path, None).await {
        Ok(answer) => Ok(answer["admin"].as_bool() == Some(true)),
        Err(Failure::Refused { status: 403, .. }) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Ends a session, here and at Synapse.
pub(crate) async fn end(console: &Console, session: &Arc<Session>) {
    console.sessions.end(session);
    forget(console, session).await;
}

/// Gives a session's token back to Synapse.
pub(crate) async fn forget(console: &Console, session: &Session) {
    sign_out_of_synapse(console, session.token.expose()).await;
}

async fn sign_out_of_synapse(console: &Console, token: &str) {
    let path = "/_matrix/client/v3/logout";
    match ask(&console.plan(), Some(token), Method::POST, path, Some(&json!({}))).await {
        Ok(_) | Err(Failure::SignedOut) => {}
        Err(failure) => tracing::warn!(reason = failure.message(), "a session's token stays valid"),
    }
}

/// Whether a form was sent from a page of this console.
fn from_here(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return site == "same-origin";
    }
    match (text("origin"), text("host")) {
        // Older browsers, and those that are none.
        (None, _) => true,
        (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, place)| place == host),
        (Some(_), None) => false,
    }
}

/// Why a form is refused, if it is: it comes from elsewhere, or lacks what only a page of this session holds.
pub(crate) fn refused(
    session: &Session,
    headers: &HeaderMap,
    form: &HashMap<String, String>,
) -> Option<Response> {
    let good = from_here(headers) && form.get("csrf").is_some_and(|csrf| same(csrf, &session.csrf));
    (!good).then(|| {
        let message = "the form did not come from a page of this session: go back, load the page again, and send it once more";
        page::trouble(session, StatusCode::FORBIDDEN, "Nothing was done", message)
    })
}

fn server(console: &Console) -> String {
    console.plan().topology.stack().server_name.to_string()
}

/// The page to sign in on.
pub(crate) async fn sign_in_page(State(console): State<Arc<Console>>) -> Response {
    page::answer(page::sign_in(&server(&console), None, ""))
}

/// Signs somebody in.
pub(crate) async fn sign_in(
    State(console): State<Arc<Console>>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> Response {
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    let (user, password) = (field("user").trim(), field("password"));
    let no = |status: StatusCode, message: &str| {
        (status, page::answer(page::sign_in(&server(&console), Some(message), user))).into_response()
    };
    if !from_here(&headers) {
        return no(StatusCode::FORBIDDEN, "the form did not come from this page: send it once more");
    }
    let address = peer.map_or_else(|| "unix".to_owned(), |peer| peer.ip().to_string());
    let keys = [format!("address {address}"), format!("user {}", user.to_lowercase())];
    if !console.sessions.may_try(&keys) {
        return no(StatusCode::TOO_MANY_REQUESTS, "too many failed attempts: wait five minutes");
    }
    let request = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user },
        "password": password,
        "initial_device_display_name": "matrix-stack console",
    });
    let path = "/_matrix/client/v3/login";
    let answer = match ask(&console.plan(), None, Method::POST, path, Some(&request)).await {
        Ok(answer) => answer,
        Err(Failure::Refused { status: 403, .. }) => {
            console.sessions.failed(&keys);
            return no(StatusCode::FORBIDDEN, "user or password is wrong");
        }
        Err(failure) => return no(StatusCode::BAD_GATEWAY, &failure.message()),
    };
    let (user_id, token) = (plain(&answer["user_id"]), plain(&answer["access_token"]));
    match is_admin(&console, &user_id, &token).await {
        Ok(true) => {}
        Ok(false) => {
            console.sessions.failed(&keys);
            sign_out_of_synapse(&console, &token).await;
            return no(StatusCode::FORBIDDEN, "this user is no server administrator");
        }
        Err(failure) => {
            sign_out_of_synapse(&console, &token).await;
            return no(StatusCode::BAD_GATEWAY, &failure.message());
        }
    }
    let line = json!({
        "time": crate::value::utc(crate::value::now()), "user": user_id, "what": "sign in", "from": address, "outcome": "done",
    });
    if let Err(error) = console.audit.note(&line) {
        sign_out_of_synapse(&console, &token).await;
        return no(StatusCode::INTERNAL_SERVER_ERROR, &format!("the audit log cannot be written: {error}"));
    }
    let (cookie, over) = match console.sessions.begin(user_id, Secret::from(token)) {
        Ok(begun) => begun,
        Err(error) => return no(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    };
    for session in over {
        forget(&console, &session).await;
    }
    // Over plain HTTP a browser would not keep a cookie that is marked so. A proxy that ends TLS says what it ended.
    let tls = headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
    let secure = if tls { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={cookie}; Path=/; HttpOnly; SameSite=Strict{secure}");
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

/// Signs somebody out.
pub(crate) async fn sign_out(
    State(console): State<Arc<Console>>,
    Admin(session): Admin,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> Response {
    if let Some(refused) = refused(&session, &headers, &form) {
        return refused;
    }
    end(&console, &session).await;
    let cookie = format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    ([(header::SET_COOKIE, cookie)], Redirect::to("/sign-in")).into_response()
}
