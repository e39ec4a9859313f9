//! Who answered what: what each step of a client's flow says of it, held against the routers' access logs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use model::Role;
use serde::Deserialize;

use crate::stack::Stack;

/// A line of the access log comes after the answer.
const LOGGED: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Report {
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    name: String,
    outcome: String,
    /// Both are written like the access log's times, which sort as text.
    started: String,
    ended: String,
    /// Method, a part of the path, role (`one ROLE`: always by the same of its processes); of several servers, which.
    served: Vec<Vec<String>>,
}

/// While each step ran, each request that it names was made and answered, always by a process with the role that it
/// says, or with the first of the role's fallbacks that the stack has.
#[track_caller]
pub(crate) fn check(report: &Path, stacks: &[(&str, &Stack)]) {
    let text = fs::read_to_string(report)
        .unwrap_or_else(|error| panic!("{}: {error}; run this with the flow before it", report.display()));
    let report: Report = serde_json::from_str(&text).expect("a report");
    let deadline = Instant::now() + LOGGED;
    loop {
        let (requests, failures) = hold(&report, stacks);
        if failures.is_empty() {
            let said: usize = report.steps.iter().map(|step| step.served.len()).sum();
            println!(
                "    {requests} requests answered as {said} statements of {} steps say",
                report.steps.len()
            );
            return;
        }
        assert!(Instant::now() < deadline, "{}", failures.join("\n"));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// How many requests were looked at, and what is amiss.
fn hold(report: &Report, stacks: &[(&str, &Stack)]) -> (usize, Vec<String>) {
    let stacks: Vec<_> =
        stacks.iter().map(|(name, stack)| (*name, stack.access_log(), carriers(stack))).collect();
    let (mut requests, mut failures) = (0, Vec::new());
    for step in report.steps.iter().filter(|step| step.outcome == "pass") {
        for statement in &step.served {
            let [method, part, role, rest @ ..] = &statement[..] else {
                panic!("{}: {statement:?} is no statement", step.name)
            };
            let server = rest.first().map_or("", String::as_str);
            let (_, log, carriers) = stacks
                .iter()
                .find(|(name, ..)| *name == server)
                .unwrap_or_else(|| panic!("{}: no server {server:?}", step.name));
            let (same, role) = role.strip_prefix("one ").map_or((false, role.as_str()), |role| (true, role));
            let wanted = carriers(role);
            let by: Vec<&str> = log
                .iter()
                .filter(|line| {
                    let text = |field: &str| line[field].as_str().unwrap_or_default();
                    text("method") == method
                        && text("path").contains(part.as_str())
                        && (step.started.as_str()..=step.ended.as_str()).contains(&text("time"))
                        && line["status"].as_u64().is_some_and(|status| status < 400)
                })
                .map(|line| line["instance"].as_str().unwrap_or("the router"))
                .collect();
            requests += by.len();
            if same && by.iter().any(|name| *name != by[0]) {
                failures.push(format!("{}: {method} …{part}… was answered by several: {by:?}", step.name));
            }
            let others: BTreeSet<&str> = by.iter().copied().filter(|name| !wanted.contains(*name)).collect();
            if by.is_empty() {
                failures.push(format!("{}: no {method} …{part}… was answered on {server:?}", step.name));
            } else if !others.is_empty() {
                failures.push(format!(
                    "{}: {method} …{part}… was answered on {server:?} by {others:?}, not only by {wanted:?}",
                    step.name
                ));
            }
        }
    }
    (requests, failures)
}

/// Which processes stand for a role in a stack.
fn carriers(stack: &Stack) -> impl Fn(&str) -> BTreeSet<String> {
    let processes = stack.status().processes;
    move |name| {
        let role = Role::from_name(name).unwrap_or_else(|| panic!("{name} is no role"));
        let carrying = |role: &Role| -> BTreeSet<String> {
            let carries = processes.iter().filter(|p| p.roles.iter().any(|name| name == role.name()));
            carries.map(|process| process.name.clone()).collect()
        };
        let chain = std::iter::once(&role).chain(role.spec().fallback);
        chain.map(carrying).find(|found| !found.is_empty()).unwrap_or_default()
    }
}
