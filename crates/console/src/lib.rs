//! The admin console: pages about a running stack, and about what Synapse's admin API manages.
//!
//! Pages are made here and work without scripts; a little script renews the live parts of one. Whoever signs in does so with
//! an account of the homeserver, and everything that is asked of Synapse is asked with the token of that session. What
//! changes something is confirmed on a page of its own, and written into the audit log before and after.

mod access;
mod audit;
mod page;
mod pages;
mod resource;
mod session;
mod stack;
mod synapse;
mod value;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use model::{Layout, Topology};
use routes::Matcher;
use serde_json::Value;

use crate::audit::Audit;
use crate::session::Sessions;

/// The stack that the console is about.
#[derive(Debug)]
pub struct Plan {
    /// Which processes there are.
    pub topology: Topology,
    /// Where the router sends requests.
    pub routes: Matcher,
    /// The same with the admin API open, which the router may keep closed.
    pub all: Matcher,
}

/// What gives the figures of the running stack: what `matrix-stack top --json` prints, or why there are none.
pub type Figures =
    Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Value, String>> + Send>> + Send + Sync + 'static>;

/// What a console is made of.
pub struct Options {
    /// The stack.
    pub plan: Plan,
    /// Where its files lie.
    pub layout: Layout,
    /// The file of the audit log; it is made with mode 0600.
    pub audit_log: PathBuf,
    /// The figures of the running stack.
    pub figures: Figures,
}

/// A console.
pub struct Console {
    plan: RwLock<Arc<Plan>>,
    layout: Layout,
    sessions: Sessions,
    audit: Audit,
    figures: Figures,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("layout", &self.layout).finish_non_exhaustive()
    }
}

/// What a browser may do with a page: nothing that this console did not send.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// How often sessions are looked through.
const TENDED: Duration = Duration::from_secs(60);

/// The largest form.
const FORM: usize = 64 << 10;

impl Console {
    /// A console. Fails where the audit log cannot be written.
    pub fn new(options: Options) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            plan: RwLock::new(Arc::new(options.plan)),
            layout: options.layout,
            sessions: Sessions::default(),
            audit: Audit::open(options.audit_log)?,
            figures: options.figures,
        }))
    }

    /// Takes the stack that the stack file says now.
    pub fn replan(&self, plan: Plan) {
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(plan);
    }

    fn plan(&self) -> Arc<Plan> {
        self.plan.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends sessions as their time is over, and gives their tokens back to Synapse, for as long as it is awaited.
    pub async fn tend(&self) -> ! {
        loop {
            tokio::time::sleep(TENDED).await;
            for session in self.sessions.end_old() {
                access::forget(self, &session).await;
            }
        }
    }

    /// Gives the tokens of all sessions back to Synapse.
    pub async fn end(&self) {
        for session in self.sessions.end_all() {
            access::forget(self, &session).await;
        }
    }

    /// What answers a browser.
    pub fn app(self: &Arc<Self>) -> Router {
        let asset = |kind: &'static str, text: String| {
            get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
        };
        let style = format!("{}{}\n", page::STYLE, render::DIAGRAM_STYLE);
        Router::new()
            .route("/console.css", asset("text/css; charset=utf-8", style))
            .route("/console.js", asset("text/javascript; charset=utf-8", page::SCRIPT.to_owned()))
            .route("/sign-in", get(access::sign_in_page).post(access::sign_in))
            .route("/sign-out", post(access::sign_out))
            .route("/", get(stack::overview))
            .route("/live.json", get(stack::live))
            .route("/process/{name}", get(stack::process))
            .route("/process/{name}/restart", get(stack::confirm_restart).post(stack::restart))
            .route("/explain", get(stack::explain))
            .route("/plan", get(stack::plan))
            .route("/audit", get(stack::audit))
            .route("/do/{action}", get(resource::confirm).post(resource::act))
            .route("/{list}", get(resource::list))
            .route("/{list}/{id}", get(resource::detail))
            .route("/{list}/{id}/{section}", get(resource::section))
            .layer(DefaultBodyLimit::max(FORM))
            .layer(middleware::map_response(guard))
            .with_state(self.clone())
    }

    /// Asks Synapse as the one whose session this is.
    async fn ask(
        &self,
        session: &session::Session,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, synapse::Failure> {
        synapse::ask(&self.plan(), Some(session.token.expose()), method, path, body).await
    }

    /// Does something that changes something, if it can be written down, and writes down what came of it.
    async fn record<T>(
        &self,
        session: &session::Session,
        what: Value,
        act: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let note = |outcome: &str, message: Option<&str>| {
            let mut line = serde_json::json!({
                "time": value::utc(value::now()), "user": session.user, "session": session.name, "outcome": outcome,
            });
            if let (Some(line), Some(what)) = (line.as_object_mut(), what.as_object()) {
                line.extend(what.clone());
                line.extend(message.map(|message| ("message".to_owned(), message.into())));
            }
            self.audit.note(&line)
        };
        note("begun", None)
            .map_err(|error| format!("nothing was done, because the audit log cannot be written: {error}"))?;
        let done = act.await;
        let noted = match &done {
            Ok(_) => note("done", None),
            Err(message) => note("failed", Some(message)),
        };
        if let Err(error) = noted {
            tracing::error!(%error, "the audit log cannot be written");
        }
        done
    }
}

/// The headers that every answer has.
async fn guard(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, &str); 6] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

impl service::Observed for Console {
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }
}
