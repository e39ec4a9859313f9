//! The pages about the stack itself.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Form, Json};
use maud::{Markup, html};
use model::{MAX_WORKERS_PER_GROUP, Topology, compare, estimate, grouped};
use render::{Diagram, View};
use runtime::client::{self, ProcessStatus, Status};
use runtime::logs;
use serde_json::json;

use crate::access::{self, Admin};
use crate::session::Session;
use crate::value::{Kind, bytes, encoded, plain, shown};
use crate::{Console, page};

/// How many of the newest lines of a log are shown.
const LINES: usize = 300;
/// How many lines of the audit log are shown.
const AUDITED: usize = 200;

async fn status(console: &Console) -> Result<Status, String> {
    client::status(&console.layout).await.map_err(|error| error.to_string())
}

/// The live picture, and every process.
pub(crate) async fn overview(State(console): State<Arc<Console>>, Admin(session): Admin) -> Response {
    let plan = console.plan();
    let version = console.ask(&session, Method::GET, "/_synapse/admin/v1/server_version", None);
    let (status, version) = tokio::join!(status(&console), version);
    let picture = Diagram::of(&plan.topology, View::Workers).svg_for_page("/process/");
    let version = version.map_or_else(|failure| failure.message(), |answer| plain(&answer["server_version"]));
    let body = html! {
        @match &status {
            Ok(status) => dl {
                dt { "Server" } dd { (status.server_name) }
                dt { "For clients" } dd { (status.url) }
                dt { "Preset" } dd { (status.preset) }
                dt { "Synapse" } dd { (version) }
                dt { "matrix-stack" } dd { (status.version) }
                dt { "Up for" } dd { (status.uptime_seconds / 60) " min" }
                @if let Some(pss) = status.pss_bytes { dt { "Memory" } dd { (bytes(pss)) } }
            },
            Err(error) => p.trouble role="alert" { (error) },
        }
        p id="live-state" role="status" { "As of the time that this page was loaded." }
        div.picture data-live="" role="region" aria-label="The stack" tabindex="0" { (maud::PreEscaped(picture)) }
        @if let Ok(status) = &status { (processes(status)) }
    };
    page::answer(page::page(&session, "/", "Stack", &body))
}

fn processes(status: &Status) -> Markup {
    let live = ["rate", "flight", "p50", "p99", "errors", "cpu", "memory"];
    let titles =
        ["State", "Requests/s", "In flight", "p50", "p99", "Errors/s", "CPU", "Memory", "Restarts", "Roles"];
    page::table(
        "Processes",
        &html! {
            caption { (status.processes.len()) " processes" }
            thead { tr { th scope="col" { "Process" } @for title in titles { th scope="col" { (title) } } } }
            tbody { @for process in &status.processes { tr data-row=(process.name) {
                th scope="row" { a href={ "/process/" (encoded(&process.name)) } { (process.name) } }
                td data-key="state" { (process.state.name()) }
                @for key in live { td data-key=(key) { @if key == "memory" { (memory(process)) } @else { "–" } } }
                td { (process.restarts) }
                td { (process.roles.join(", ")) }
            } } }
        },
    )
}

fn memory(process: &ProcessStatus) -> String {
    process.pss_bytes.or(process.rss_bytes).map_or_else(|| "–".to_owned(), bytes)
}

/// The figures that renew the page, as JSON.
pub(crate) async fn live(State(console): State<Arc<Console>>, Admin(_): Admin) -> Response {
    match (console.figures)().await {
        Ok(view) => Json(view).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error }))).into_response(),
    }
}

/// One process: how it is, and the end of its log.
pub(crate) async fn process(
    State(console): State<Arc<Console>>,
    Admin(session): Admin,
    Path(name): Path<String>,
) -> Response {
    let status = match status(&console).await {
        Ok(status) => status,
        Err(error) => {
            return page::trouble(
                &session,
                StatusCode::SERVICE_UNAVAILABLE,
                "The stack does not answer",
                &error,
            );
        }
    };
    let Some(process) = status.processes.iter().find(|process| process.name == name) else {
        return page::trouble(
            &session,
            StatusCode::NOT_FOUND,
            "Not found",
            "There is no process of this name.",
        );
    };
    // The router lives in the supervisor, and logs there.
    let log = if name == "router" { "supervisor" } else { &name };
    let mut lines = Vec::new();
    let options = logs::Options { lines: LINES, follow: false };
    let read = logs::show(&console.layout, &[log.to_owned()], options, &mut lines).await;
    let text = match read {
        Ok(()) => String::from_utf8_lossy(&lines).into_owned(),
        Err(error) => format!("the log cannot be read: {error}"),
    };
    let body = html! {
        dl {
            dt { "State" } dd { (process.state.name()) }
            dt { "Roles" } dd { (process.roles.join(", ")) }
            dt { "Group" } dd { (process.group) }
            dt { "Process number" } dd { (process.pid.map_or_else(|| "–".to_owned(), |pid| pid.to_string())) }
            dt { "Address" } dd { (process.address.as_deref().unwrap_or("–")) }
            dt { "Memory" } dd { (memory(process)) }
            dt { "Restarts" } dd { (process.restarts) }
            @if let Some(exit) = &process.last_exit { dt { "Last end" } dd { (exit) } }
        }
        @if console.plan().topology.instance(&name).is_some() {
            ul.actions { li { a.button href={ "/process/" (encoded(&name)) "/restart" } { "Restart" } } }
        }
        h2 { "The end of its log" }
        pre.log role="region" aria-label="Log" tabindex="0" { (text) }
    };
    page::answer(page::page(&session, "", &name, &body))
}

/// The page on which a restart is confirmed.
pub(crate) async fn confirm_restart(Admin(session): Admin, Path(name): Path<String>) -> Response {
    let path = format!("/process/{}", encoded(&name));
    let body = html! {
        p { "Stops " (name) ", and starts it again. Requests wait in the router meanwhile." }
        form.fields method="post" action={ (path) "/restart" } {
            (page::csrf(&session))
            button type="submit" { "Restart" } " " a href=(path) { "Cancel" }
        }
    };
    page::answer(page::page(&session, "", "Restart", &body))
}

/// Restarts a process.
pub(crate) async fn restart(
    State(console): State<Arc<Console>>,
    Admin(session): Admin,
    Path(name): Path<String>,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> Response {
    if let Some(refused) = access::refused(&session, &headers, &form) {
        return refused;
    }
    let work =
        async { client::restart(&console.layout, &name, |_| {}).await.map_err(|error| error.to_string()) };
    match console.record(&session, json!({ "what": "restart", "process": name }), work).await {
        Err(message) => page::trouble(&session, StatusCode::BAD_GATEWAY, "That did not work", &message),
        Ok(restarted) => {
            let times: Vec<_> =
                restarted.iter().map(|done| format!("{} after {:.2} s", done.name, done.seconds)).collect();
            session.notify(format!("Healthy again: {}", times.join(", ")));
            Redirect::to(&format!("/process/{}", encoded(&name))).into_response()
        }
    }
}

/// Where a request goes, and why.
pub(crate) async fn explain(
    State(console): State<Arc<Console>>,
    Admin(session): Admin,
    Query(asked): Query<HashMap<String, String>>,
) -> Response {
    let get = |name: &str| asked.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
    let (method, path) = (get("method").unwrap_or("GET").to_ascii_uppercase(), get("path"));
    let body = html! {
        form.filters method="get" action="/explain" {
            label { "Method" select name="method" {
                @for known in ["GET", "POST", "PUT", "DELETE", "OPTIONS"] { option selected[known == method] { (known) } }
            } }
            label { "Path" input name="path" size="60" required value=(path.unwrap_or_default())
                placeholder="/_matrix/client/v3/sync"; }
            button type="submit" { "Explain" }
        }
        @if let Some(path) = path { (explanation(&console, &method, path)) }
    };
    page::answer(page::page(&session, "/explain", "Where a request goes", &body))
}

fn explanation(console: &Console, method: &str, path: &str) -> Markup {
    let plan = console.plan();
    let found = plan.routes.explain(method, path);
    let roles: Vec<_> = found.roles.iter().map(|role| role.name()).collect();
    let facts = [
        ("Class", found.class.unwrap_or_default().to_owned()),
        ("Template", found.template.clone().unwrap_or_default()),
        ("Roles, in this order", roles.join(", then ")),
        ("Processes", found.instances.join(", ")),
        ("Balance", found.role.map(|_| found.balance.to_string()).unwrap_or_default()),
        ("Key", found.key_value.clone().or_else(|| found.key.map(str::to_owned)).unwrap_or_default()),
        ("Timeout", found.timeout_seconds.map(|seconds| format!("{seconds} s")).unwrap_or_default()),
    ];
    html! {
        section aria-live="polite" {
            p { strong { bdi { (found.method) " " (found.path) } } }
            p { bdi { (found.reason) } }
            dl { @for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) { dt { (name) } dd { bdi { (value) } } } }
        }
    }
}

/// What other numbers of workers would mean.
pub(crate) async fn plan(
    State(console): State<Arc<Console>>,
    Admin(session): Admin,
    Query(asked): Query<HashMap<String, String>>,
) -> Response {
    let plan = console.plan();
    let topology = &plan.topology;
    let count = |group: &model::Group| {
        let asked = asked.get(&format!("count.{}", group.name)).and_then(|text| text.parse().ok());
        asked.filter(|count| (1..=MAX_WORKERS_PER_GROUP).contains(count)).unwrap_or(group.count)
    };
    let body = html! {
        p { "Nothing is changed here: this says what would happen. To make it so, write the counts into the stack file, and "
            code { "matrix-stack reload" } "." }
        form.fields method="get" action="/plan" {
            (page::table("Groups", &html! {
                thead { tr { th scope="col" { "Group" } th scope="col" { "Roles" } th scope="col" { "Count" } } }
                tbody { @for group in topology.groups() { tr {
                    th scope="row" { (group.name) }
                    td { (group.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ")) }
                    td { input type="number" min="1" max=(MAX_WORKERS_PER_GROUP) name={ "count." (group.name) }
                        aria-label={ "Count of " (group.name) } value=(count(group)); }
                } } }
            }))
            button type="submit" { "Compare" }
        }
        @if !asked.is_empty() { (comparison(&console, topology, count)) }
    };
    page::answer(page::page(&session, "/plan", "Plan", &body))
}

fn comparison(console: &Console, topology: &Topology, count: impl Fn(&model::Group) -> u16) -> Markup {
    let mut stack = topology.stack().clone();
    for group in topology.groups().iter().filter(|group| count(group) != group.count) {
        stack.workers.entry(group.name.clone()).or_default().count = Some(count(group));
    }
    let new = match model::plan(&stack, &console.layout.sockets(), topology.preset()) {
        Ok(new) => new,
        Err(problems) => {
            return html! { ul.trouble role="alert" { @for problem in &problems.0 {
                li { code { (problem.field()) } ": " (problem) }
            } } };
        }
    };
    let comparison = compare(topology, &new);
    let needs = estimate(&new);
    html! {
        h2 { "What would happen" }
        @if comparison.is_empty() { p { "Nothing." } }
        @for (field, reason) in &comparison.refused { p.trouble { code { (field) } ": " (reason) } }
        dl { @for ((action, because), instances) in grouped(&comparison.changes) {
            dt { (action.describe()) }
            dd { (instances.join(", ")) @if !because.is_empty() { " – because of " (because.join(", ")) } }
        } }
        @if comparison.router { p { "The router loads a new table, without a restart." } }
        p { (needs.processes) " Synapse processes, about " (bytes(needs.idle_bytes)) " of memory idle, "
            (bytes(needs.busy_bytes)) " to plan for under load, " (needs.connections) " database connections." }
    }
}

/// The newest lines of the audit log.
pub(crate) async fn audit(State(console): State<Arc<Console>>, Admin(session): Admin) -> Response {
    let lines = match console.audit.newest(AUDITED) {
        Ok(lines) => lines,
        Err(error) => return unreadable(&session, &error),
    };
    let columns =
        [("time", "Time"), ("user", "Who"), ("session", "Session"), ("what", "What"), ("outcome", "Outcome")];
    let rest = |line: &serde_json::Value| {
        let mut rest = line.clone();
        if let Some(rest) = rest.as_object_mut() {
            rest.retain(|name, _| !columns.iter().any(|(column, _)| column == name));
        }
        rest
    };
    let body = page::table(
        "Audit log",
        &html! {
            caption { "The newest first, at most " (AUDITED) }
            thead { tr { @for (_, title) in columns { th scope="col" { (title) } } th scope="col" { "How" } } }
            tbody { @for line in &lines { tr {
                @for (name, _) in columns { td { (shown(&line[name], Kind::Text)) } }
                td { (shown(&rest(line), Kind::Json)) }
            } } }
        },
    );
    page::answer(page::page(&session, "/audit", "Audit log", &body))
}

fn unreadable(session: &Session, error: &std::io::Error) -> Response {
    let message = format!("the audit log cannot be read: {error}");
    page::trouble(session, StatusCode::INTERNAL_SERVER_ERROR, "Audit log", &message)
}
