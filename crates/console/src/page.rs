//! What every page has around it.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use crate::pages::LISTS;
use crate::session::Session;

/// The style of all pages.
pub(crate) static STYLE: &str = include_str!("static/console.css");
/// What renews the live parts.
pub(crate) static SCRIPT: &str = include_str!("static/console.js");

/// The pages about the stack itself.
const OWN: [(&str, &str); 4] =
    [("/", "Stack"), ("/explain", "Where a request goes"), ("/plan", "Plan"), ("/audit", "Audit log")];

/// A page for somebody who is signed in.
pub(crate) fn page(session: &Session, here: &str, title: &str, body: &Markup) -> Markup {
    let link = |path: &str, name: &str| {
        let current = (path == here).then_some("page");
        html! { li { a href=(path) aria-current=[current] { (name) } } }
    };
    frame(
        title,
        &html! {
            header {
                nav aria-label="Pages" {
                    ul {
                        @for (path, name) in OWN { (link(path, name)) }
                        @for list in LISTS { (link(&format!("/{}", list.path), list.title)) }
                    }
                }
                form.who method="post" action="/sign-out" {
                    (csrf(session))
                    span { bdi { (session.user) } }
                    button type="submit" { "Sign out" }
                }
            }
            main id="main" {
                h1 { bdi { (title) } }
                @if let Some(notice) = session.notice() { p.notice role="status" { (notice) } }
                (body)
            }
        },
    )
}

/// A page for anybody.
pub(crate) fn frame(title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " – matrix-stack" }
                link rel="stylesheet" href="/console.css";
                link rel="icon" href="data:,";
                script src="/console.js" defer {}
            }
            body {
                a.skip href="#main" { "To the content" }
                (body)
            }
        }
    }
}

/// The page to sign in on.
pub(crate) fn sign_in(server: &str, trouble: Option<&str>, user: &str) -> Markup {
    let title = format!("Sign in to {server}");
    frame(
        &title,
        &html! {
            main.small id="main" {
                h1 { (title) }
                @if let Some(trouble) = trouble { p.trouble role="alert" { (trouble) } }
                form method="post" action="/sign-in" {
                    label for="user" { "User" }
                    input id="user" name="user" value=(user) required autocomplete="username" maxlength="255";
                    label for="password" { "Password" }
                    input id="password" name="password" type="password" required autocomplete="current-password" maxlength="512";
                    button type="submit" { "Sign in" }
                }
                p { "For server administrators." }
            }
        },
    )
}

/// What a form of this session has to hold.
pub(crate) fn csrf(session: &Session) -> Markup {
    html! { input type="hidden" name="csrf" value=(session.csrf); }
}

/// A table that a narrow screen scrolls, and a keyboard can.
pub(crate) fn table(name: &str, content: &Markup) -> Markup {
    html! {
        div.wide role="region" aria-label=(name) tabindex="0" { table { (content) } }
    }
}

/// A page that says what went wrong.
pub(crate) fn trouble(session: &Session, status: StatusCode, title: &str, message: &str) -> Response {
    let body = html! { p.trouble role="alert" { (message) } };
    (status, answer(page(session, "", title, &body))).into_response()
}

/// A page as an answer.
pub(crate) fn answer(page: Markup) -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page.into_string()).into_response()
}
