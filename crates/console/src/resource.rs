//! Lists, details and actions, as [`crate::pages`] describes them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde_json::{Map, Value, json};

use crate::access::{self, Admin};
use crate::pages::{self, Action, Column, Field, Input, Table};
use crate::session::Session;
use crate::synapse::Failure;
use crate::value::{at, encoded, items, now, plain, shown};
use crate::{Console, page};

/// How many items a page has.
const LIMIT: usize = 50;

type Asked = HashMap<String, String>;

/// What a page is about, for the holes in paths.
#[derive(Clone, Copy, Default)]
struct About<'a> {
    id: &'a str,
    sub: &'a str,
}

/// A path with its holes filled: what fills them cannot leave its segment.
fn fill(template: &str, about: About<'_>, server: &str, form: &Asked) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (hole, after) = after.split_once('}').unwrap_or((after, ""));
        out.push_str(before);
        out.push_str(&encoded(match hole {
            "id" => about.id,
            "sub" => about.sub,
            "server" => server,
            field => form.get(field).map_or("", String::as_str),
        }));
        rest = after;
    }
    out + rest
}

/// What an action does, with what it is about written out.
fn described(what: &str, about: About<'_>) -> String {
    what.replace("{sub}", about.sub).replace("{id}", about.id)
}

fn not_found(session: &Session, what: &str) -> Response {
    page::trouble(session, StatusCode::NOT_FOUND, "Not found", &format!("There is no {what}."))
}

/// What went wrong at Synapse, as a page.
async fn failed(console: &Console, session: &Arc<Session>, failure: Failure) -> Response {
    let status = match &failure {
        Failure::SignedOut => {
            access::end(console, session).await;
            return Redirect::to("/sign-in").into_response();
        }
        Failure::Refused { status, .. } => StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY),
        Failure::Unreachable(_) => StatusCode::BAD_GATEWAY,
    };
    page::trouble(session, status, "That did not work", &failure.message())
}

impl Table {
    /// The parameters of the page that the API gets: the table's own ones alone.
    fn parameters<'a>(&self, asked: &'a Asked) -> Vec<(&'static str, &'a str)> {
        let sorts = |name: &str| self.columns.iter().any(|column| column.sort == Some(name));
        let get = |name: &str| asked.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let filters = self.filters.iter().filter_map(|filter| Some((filter.name, get(filter.name)?)));
        let order = get("order_by").filter(|name| sorts(name)).map(|name| ("order_by", name));
        let direction =
            get("dir").filter(|dir| order.is_some() && ["f", "b"].contains(dir)).map(|dir| ("dir", dir));
        filters.chain(order).chain(direction).collect()
    }

    /// The path to ask.
    fn path(&self, filled: &str, asked: &Asked) -> String {
        let mut path = filled.to_owned();
        let mut add = |name: &str, value: &str| {
            let sign = if path.contains('?') { '&' } else { '?' };
            let _ = write!(path, "{sign}{name}={}", encoded(value));
        };
        for (name, value) in self.parameters(asked) {
            add(name, value);
        }
        if self.paged {
            add("from", &from(asked).to_string());
            add("limit", &LIMIT.to_string());
        }
        path
    }

    /// The table as it was answered, with what narrows and sorts it.
    fn show(&self, here: &str, name: &str, asked: &Asked, answer: &Value, about: About<'_>) -> Markup {
        let found = items(answer, self.items);
        let total = self.total.and_then(|place| at(answer, place).as_u64());
        let link = |changes: &[(&str, &str)]| {
            let kept = self.parameters(asked);
            let kept =
                kept.into_iter().filter(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
            let all = kept.chain(changes.iter().copied()).filter(|(_, value)| !value.is_empty());
            let query: Vec<_> = all.map(|(name, value)| format!("{name}={}", encoded(value))).collect();
            format!("{here}?{}", query.join("&"))
        };
        let actions = self.row.map_or(&[][..], |(_, actions)| actions);
        let first = from(asked);
        html! {
            (self.filter_form(here, asked))
            (page::table(name, &html! {
                caption {
                    @match total {
                        Some(total) if self.paged && !found.is_empty() => { (first + 1) "–" (first + found.len()) " of " (total) },
                        Some(total) => { (total) " in all" },
                        None => { (found.len()) " in all" },
                    }
                }
                thead { tr {
                    @for column in self.columns { (self.heading(column, asked, &link)) }
                    @if !actions.is_empty() { th scope="col" { "Actions" } }
                } }
                tbody {
                    @for item in &found { tr {
                        @for column in self.columns { td { (shown(at(item, column.field), column.kind)) } }
                        @if let Some((field, actions)) = self.row { td { (buttons(actions, About { sub: &plain(at(item, field)), ..about })) } }
                    } }
                    @if found.is_empty() { tr { td colspan=(self.columns.len() + usize::from(!actions.is_empty())) { "Nothing." } } }
                }
            }))
            @if self.paged {
                div.pages {
                    @if first > 0 { a rel="prev" href=(link(&[("from", &first.saturating_sub(LIMIT).to_string())])) { "Previous page" } }
                    @if found.len() == LIMIT && total.is_none_or(|total| usize::try_from(total).is_ok_and(|total| total > first + LIMIT)) {
                        a rel="next" href=(link(&[("from", &(first + LIMIT).to_string())])) { "Next page" }
                    }
                }
            }
        }
    }

    fn heading(&self, column: &Column, asked: &Asked, link: &impl Fn(&[(&str, &str)]) -> String) -> Markup {
        let Some(sort) = column.sort else { return html! { th scope="col" { (column.title) } } };
        let parameters = self.parameters(asked);
        let now = parameters.contains(&("order_by", sort));
        let down = now && !parameters.contains(&("dir", "b"));
        let state = now.then_some(if down { "ascending" } else { "descending" });
        html! {
            th scope="col" aria-sort=[state] {
                a href=(link(&[("order_by", sort), ("dir", if down { "b" } else { "f" })])) { (column.title) }
                @if now { (if down { " ↑" } else { " ↓" }) }
            }
        }
    }

    fn filter_form(&self, here: &str, asked: &Asked) -> Markup {
        if self.filters.is_empty() {
            return html! {};
        }
        html! {
            form.filters method="get" action=(here) role="search" {
                @for filter in self.filters {
                    @let value = asked.get(filter.name).map_or("", String::as_str);
                    label {
                        (filter.label)
                        @if filter.choices.is_empty() { input name=(filter.name) value=(value) type="search"; }
                        @else { select name=(filter.name) {
                            @for (choice, name) in filter.choices { option value=(choice) selected[*choice == value] { (name) } }
                        } }
                    }
                }
                @for name in ["order_by", "dir"] {
                    @if let Some(value) = asked.get(name) { input type="hidden" name=(name) value=(value); }
                }
                button type="submit" { "Filter" }
            }
        }
    }
}

fn from(asked: &Asked) -> usize {
    asked.get("from").and_then(|from| from.parse().ok()).unwrap_or(0)
}

/// Links to the pages on which actions are confirmed.
fn buttons(actions: &[&str], about: About<'_>) -> Markup {
    html! {
        ul.actions { @for action in actions.iter().filter_map(|name| pages::find(name)) {
            li { a.button href=(confirm_path(action, about)) { (action.title) } }
        } }
    }
}

fn confirm_path(action: &Action, about: About<'_>) -> String {
    format!("/do/{}?id={}&sub={}", action.name, encoded(about.id), encoded(about.sub))
}

/// A list.
pub(crate) async fn list(
    State(console): State<Arc<Console>>,
    Admin(session): Admin,
    Path(list): Path<String>,
    Query(asked): Query<Asked>,
) -> Response {
    let Some(list) = pages::list(&list) else { return not_found(&session, "page of this name") };
    let path = list.table.path(list.table.api, &asked);
    let here = format!("/{}", list.path);
    let answer = match console.ask(&session, Method::GET, &path, None).await {
        Ok(answer) => answer,
        Err(Failure::Refused { status, message }) if !list.note.is_empty() => {
            let message = format!("{message}. {}", list.note);
            return failed(&console, &session, Failure::Refused { status, message }).await;
        }
        Err(failure) => return failed(&console, &session, failure).await,
    };
    let body = html! {
        @if !list.note.is_empty() { p { (list.note) } }
        (buttons(list.actions, About::default()))
        (list.table.show(&here, list.title, &asked, &answer, About::default()))
    };
    page::answer(page::page(&session, &here, list.title, &body))
}

/// One of a list.
pub(crate) async fn detail(
    State(console): State<Arc<Console>>,
    Admin(session): Admin,
    Path((list, id)): Path<(String, String)>,
) -> Response {
    let found = pages::list(&list).and_then(|list| Some((list, list.detail.as_ref()?)));
    let Some((list, detail)) = found else { return not_found(&session, "page of this name") };
    let about = About { id: &id, sub: "" };
    let path = fill(detail.api, about, "", &Asked::new());
    let answer = console.ask(&session, Method::GET, &path, None).await;
    let facts = match answer {
        Ok(answer) => html! {
            dl { @for fact in detail.facts { dt { (fact.title) } dd { (shown(at(&answer, fact.field), fact.kind)) } } }
        },
        // What is not there may still have sections: a room that was deleted, say.
        Err(Failure::Refused { status: 404, message }) => html! { p.trouble { (message) } },
        Err(failure) => return failed(&console, &session, failure).await,
    };
    let body = html! {
        (facts)
        @if !detail.sections.is_empty() {
            h2 { "More" }
            (sections(list, detail, &id))
        }
        @if !detail.actions.is_empty() {
            h2 { "Actions" }
            (buttons(detail.actions, about))
        }
    };
    page::answer(page::page(&session, "", &id, &body))
}

fn sections(list: &pages::List, detail: &pages::Detail, id: &str) -> Markup {
    html! {
        ul.actions { @for section in detail.sections {
            li { a href={ "/" (list.path) "/" (encoded(id)) "/" (section.path) } { (section.title) } }
        } }
    }
}

/// A table about one of a list.
pub(crate) async fn section(
    State(console): State<Arc<Console>>,
    Admin(session): Admin,
    Path((list, id, section)): Path<(String, String, String)>,
    Query(asked): Query<Asked>,
) -> Response {
    let found = pages::list(&list).and_then(|list| {
        let detail = list.detail.as_ref()?;
        Some((list, detail, detail.sections.iter().find(|known| known.path == section)?))
    });
    let Some((list, detail, section)) = found else { return not_found(&session, "page of this name") };
    let about = About { id: &id, sub: "" };
    let path = section.table.path(&fill(section.table.api, about, "", &Asked::new()), &asked);
    let here = format!("/{}/{}/{}", list.path, encoded(&id), section.path);
    let shown = match console.ask(&session, Method::GET, &path, None).await {
        Ok(answer) => section.table.show(&here, section.title, &asked, &answer, about),
        Err(Failure::Refused { status: 404, message }) => html! { p { (message) } },
        Err(failure) => return failed(&console, &session, failure).await,
    };
    let body = html! {
        p { "Of the " (list.one) " " a href={ "/" (list.path) "/" (encoded(&id)) } { bdi { (id) } } }
        (sections(list, detail, &id))
        (shown)
    };
    page::answer(page::page(&session, "", section.title, &body))
}

/// The page on which an action is confirmed.
pub(crate) async fn confirm(
    Admin(session): Admin,
    Path(action): Path<String>,
    Query(asked): Query<Asked>,
) -> Response {
    let Some(action) = pages::find(&action) else { return not_found(&session, "action of this name") };
    page::answer(confirmation(&session, action, &asked, None))
}

fn about(asked: &Asked) -> About<'_> {
    let get = |name: &str| asked.get(name).map_or("", String::as_str);
    About { id: get("id"), sub: get("sub") }
}

fn confirmation(session: &Session, action: &Action, asked: &Asked, trouble: Option<&str>) -> Markup {
    let about = about(asked);
    let back = LISTS_WITH_DETAILS
        .iter()
        .find(|(sigil, _)| about.id.starts_with(*sigil))
        .map_or_else(|| "/".to_owned(), |(_, list)| format!("/{list}/{}", encoded(about.id)));
    let body = html! {
        @if let Some(trouble) = trouble { p.trouble role="alert" { (trouble) } }
        p { bdi { (described(action.what, about)) } }
        form.fields method="post" action={ "/do/" (action.name) } {
            (page::csrf(session))
            input type="hidden" name="id" value=(about.id);
            input type="hidden" name="sub" value=(about.sub);
            @for field in action.fields { (input(field, asked)) }
            button type="submit" { (action.title) }
            " " a href=(back) { "Cancel" }
        }
    };
    page::page(session, "", action.title, &body)
}

/// Where a page leads back to, by the first letter of what it is about.
const LISTS_WITH_DETAILS: [(char, &str); 2] = [('@', "users"), ('!', "rooms")];

fn input(field: &Field, asked: &Asked) -> Markup {
    let value = asked.get(field.name).map_or("", String::as_str);
    let (name, required) = (field.name, field.required);
    let id = format!("field-{name}");
    html! {
        @match &field.input {
            Input::Flag => label { input type="checkbox" name=(name) value="true" checked[value == "true"]; " " (field.label) },
            Input::Choice(choices) => {
                label for=(id) { (field.label) }
                select id=(id) name=(name) { @for (choice, title) in *choices { option value=(choice) selected[*choice == value] { (title) } } }
            },
            Input::Password => {
                label for=(id) { (field.label) }
                input id=(id) name=(name) type="password" required[required] autocomplete="new-password" maxlength="512";
            },
            Input::Number | Input::Hours => {
                label for=(id) { (field.label) }
                input id=(id) name=(name) type="number" min="0" max="1000000" value=(value) required[required];
            },
            Input::Line => {
                label for=(id) { (field.label) }
                input id=(id) name=(name) value=(value) required[required] maxlength="1000" autocomplete="off";
            },
        }
    }
}

/// The body that a form means, and the same without what must not be written down.
fn body(action: &Action, form: &Asked) -> Result<(Value, Value), String> {
    let mut body: Map<String, Value> = serde_json::from_str(action.body).unwrap_or_default();
    let mut logged = body.clone();
    for field in action.fields {
        let text = form.get(field.name).map_or("", String::as_str);
        if text.is_empty() && field.required {
            return Err(format!("“{}” is empty", field.label));
        }
        let number = || text.parse::<u64>().map_err(|_| format!("“{}” is no whole number", field.label));
        let value = match field.input {
            Input::Flag => Value::Bool(text == "true"),
            _ if text.is_empty() => continue,
            Input::Number => number()?.into(),
            Input::Hours => now().saturating_add(number()?.saturating_mul(3_600_000)).into(),
            Input::Choice(choices) if !choices.iter().any(|(choice, _)| *choice == text) => {
                return Err(format!("“{}” is none of its choices", field.label));
            }
            Input::Line | Input::Password | Input::Choice(_) => text.into(),
        };
        let secret = matches!(field.input, Input::Password);
        logged.insert(field.name.to_owned(), if secret { "(not logged)".into() } else { value.clone() });
        if !field.in_path {
            body.insert(field.name.to_owned(), value);
        }
    }
    Ok((body.into(), logged.into()))
}

/// Does what was confirmed.
pub(crate) async fn act(
    State(console): State<Arc<Console>>,
    Admin(session): Admin,
    Path(action): Path<String>,
    headers: HeaderMap,
    Form(form): Form<Asked>,
) -> Response {
    if let Some(refused) = access::refused(&session, &headers, &form) {
        return refused;
    }
    let Some(action) = pages::find(&action) else { return not_found(&session, "action of this name") };
    let about = about(&form);
    let again = |message: &str| {
        (StatusCode::BAD_REQUEST, page::answer(confirmation(&session, action, &form, Some(message))))
            .into_response()
    };
    let (body, logged) = match body(action, &form) {
        Ok(bodies) => bodies,
        Err(message) => return again(&message),
    };
    let server = console.plan().topology.stack().server_name.to_string();
    let path = fill(action.api, about, &server, &form);
    let Ok(method) = action.method.parse::<Method>() else {
        return not_found(&session, "method of this name");
    };
    let what = json!({ "what": action.name, "method": action.method, "path": path, "body": logged });
    let work = async {
        if let Some(first) = action.first {
            let first = fill(first, about, &server, &form);
            console.ask(&session, Method::GET, &first, None).await.map_err(|failure| failure.message())?;
        }
        console.ask(&session, method, &path, Some(&body)).await.map_err(|failure| failure.message())
    };
    match console.record(&session, what, work).await {
        Err(message) => again(&message),
        Ok(answer) => {
            let result = action.shows.map(|field| format!(": {}", plain(&answer[field]))).unwrap_or_default();
            session.notify(format!("{}: done{result}", action.title));
            let then = if action.then.is_empty() { "/users/{id}" } else { action.then };
            Redirect::to(&fill(then, about, &server, &form)).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fills_a_path_cannot_leave_its_place() {
        let about = About { id: "@a/../../b?x#y:s", sub: "d%2F" };
        let path = fill("/v2/users/{id}/devices/{sub}?q={name}", about, "s", &Asked::new());
        assert_eq!(path, "/v2/users/%40a%2F..%2F..%2Fb%3Fx%23y%3As/devices/d%252F?q=");
    }

    #[test]
    fn forms_become_bodies_and_passwords_are_not_logged() {
        let form = |pairs: &[(&str, &str)]| -> Asked {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let create = pages::find("create-user").unwrap();
        let (sent, logged) =
            body(create, &form(&[("name", "eve"), ("password", "s3cret"), ("admin", "true")])).unwrap();
        assert_eq!(sent, json!({ "password": "s3cret", "admin": true }));
        assert_eq!(logged, json!({ "name": "eve", "password": "(not logged)", "admin": true }));
        assert!(body(create, &form(&[("name", "eve")])).unwrap_err().contains("Password"));
        let limit = pages::find("limit-user").unwrap();
        assert!(body(limit, &form(&[("messages_per_second", "x"), ("burst_count", "1")])).is_err());
        let start = pages::find("start-update").unwrap();
        assert!(body(start, &form(&[("job_name", "other")])).is_err());
    }

    #[test]
    fn tables_show_hostile_names_and_never_run_them() {
        let users = pages::list("users").unwrap();
        let hostile = "<script>alert(1)</script>\"'><img src=x>";
        let answer =
            json!({ "total": 1, "users": [{ "name": hostile, "displayname": hostile, "admin": 0 }] });
        let asked: Asked =
            [("name".to_owned(), hostile.to_owned()), ("other".to_owned(), "x".to_owned())].into();
        let html = users.table.show("/users", "Users", &asked, &answer, About::default()).into_string();
        assert!(!html.contains("<script") && !html.contains("<img"), "{html}");
        assert!(html.contains("&lt;script&gt;alert(1)"));
        let path = users.table.path(users.table.api, &asked);
        assert!(path.contains("&name=%3Cscript") && !path.contains("other"), "{path}");
    }

    #[test]
    fn pages_follow_each_other_and_headings_sort() {
        let users = pages::list("users").unwrap();
        let page: Vec<_> = (0..LIMIT).map(|n| json!({ "name": format!("@u{n}:x") })).collect();
        let asked: Asked = [("from", "50"), ("order_by", "name"), ("deactivated", "true")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let answer = json!({ "total": 170, "users": page });
        let html = users.table.show("/users", "Users", &asked, &answer, About::default()).into_string();
        for part in ["51–100 of 170", "from=100", "from=0", "aria-sort=\"ascending\"", "dir=b"] {
            assert!(html.contains(part), "no {part} in {html}");
        }
        assert!(html.contains("/users?deactivated=true&amp;order_by=name&amp;from=100"), "{html}");
    }
}
