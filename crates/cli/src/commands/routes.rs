//! `routes`: where requests go, and why.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use model::{Preset, Role, Topology};
use routes::{Decision, Explanation, Expression, Features, Matcher, Options, Table, Target};
use runtime::launch::Launcher;
use serde_json::json;

use crate::args::{Audit, Routes, StackArguments, Synapse};
use crate::place::Place;

pub(crate) fn routes(command: &Routes, stack: &StackArguments) -> anyhow::Result<()> {
    match command {
        Routes::Explain { method, path, synapse, json } => {
            let topology = topology(stack)?;
            let matcher = compile(&*version(synapse, &topology)?, &topology)?;
            let explanation = matcher.explain(&method.to_ascii_uppercase(), path);
            if json.json { super::print_json(&explanation) } else { super::print(&describe(&explanation)) }
        }
        Routes::List { synapse, json } => {
            let topology = topology(stack)?;
            let matcher = compile(&*version(synapse, &topology)?, &topology)?;
            if json.json { super::print_json(&rows(&matcher)) } else { super::print(&list(&matcher)) }
        }
        Routes::Extract { python } => super::print(&extract(python)?),
        Routes::Diff { old, new } => {
            let (old, new) = (table(old)?, table(new)?);
            let difference = old.diff(&new);
            super::print(&if difference.is_empty() {
                "no endpoint differs\n".to_owned()
            } else {
                difference.to_string()
            })
        }
        Routes::Audit(arguments) => {
            let found = audit(arguments, stack)?;
            if arguments.json.json {
                super::print_json(&found)
            } else {
                super::print(&if arguments.markdown { found.markdown() } else { found.to_string() })
            }
        }
    }
}

/// Measures what is named, or else the stack's own routing.
fn audit(arguments: &Audit, stack: &StackArguments) -> anyhow::Result<routes::Audit> {
    let topology = topology(stack)?;
    let table = version(&arguments.synapse, &topology)?;
    if arguments.workers.is_empty() {
        // What is measured is where requests go, not whether they are let in.
        let options = Options {
            admin_open: true,
            features: options(&topology).features.with("matrix_authentication_service.enabled"),
        };
        let matcher = Matcher::compile(&table, &topology, &options)?;
        return Ok(routes::Audit::of_decisions(&table, |method, path| {
            matches!(
                matcher.decide(method.name(), path),
                Decision::Forward(forward) if forward.route.primary() != Role::Main
            )
        }));
    }
    let mut expressions = Vec::new();
    for (parts, target) in [
        (&arguments.workers, Target::Worker),
        (&arguments.get, Target::WorkerForGet),
        (&arguments.main, Target::Main),
    ] {
        for part in parts {
            let name = part.file.display().to_string();
            let text = std::fs::read(&part.file).with_context(|| format!("{name} cannot be read"))?;
            let found = Expression::find_all(&name, &String::from_utf8_lossy(&text), &part.lines, target);
            if found.is_empty() {
                bail!(
                    "no expression is in {name}: one begins a word, as `^/_matrix/`, `(/_matrix/`, `/_matrix/` or the \
                     same with `_synapse`, and stands in no comment"
                );
            }
            expressions.extend(found);
        }
    }
    Ok(routes::Audit::of_expressions(&table, &expressions))
}

/// Every route that a stack's processes serve, for programs.
fn rows(matcher: &Matcher) -> Vec<serde_json::Value> {
    matcher
        .routes()
        .iter()
        .filter(|route| route.active)
        .map(|route| {
            json!({
                "method": route.method,
                "template": route.template,
                "role": route.primary(),
                "roles": route.chain,
                "class": route.class.name,
                "instances": matcher.instances(route.primary()),
            })
        })
        .collect()
}

/// The same for people.
fn list(matcher: &Matcher) -> String {
    let mut out = String::new();
    for route in matcher.routes().iter().filter(|route| route.active) {
        let (Some(method), Some(template)) = (route.method, &route.template) else { continue };
        let _ = writeln!(out, "{method:6} {:25} {template}", route.primary().name());
    }
    out
}

fn describe(explanation: &Explanation) -> String {
    let mut out = format!("{} {}\n{}\n", explanation.method, explanation.path, explanation.reason);
    let names =
        |roles: &[model::Role]| roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", then ");
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let _ = writeln!(out, "  {name:10} {value}");
        }
    };
    line("class", explanation.class.map(str::to_owned));
    line("template", explanation.template.clone());
    line("roles", Some(names(&explanation.roles)));
    line("instances", Some(explanation.instances.join(", ")));
    line("balance", explanation.role.map(|_| explanation.balance.to_string()));
    line("key", explanation.key_value.clone().or_else(|| explanation.key.map(str::to_owned)));
    line("timeout", explanation.timeout_seconds.map(|seconds| format!("{seconds} s")));
    line("cap", explanation.cap.map(|cap| format!("{cap} requests in flight at one instance")));
    out
}

/// Asks an installed Synapse for its endpoint table.
fn extract(python: &Path) -> anyhow::Result<String> {
    let output =
        Command::new(python).args(["-I", "-W", "ignore", "-c", routes::EXTRACT_PY]).output().with_context(
            || format!("cannot run `{}`; name the Python of Synapse's environment", python.display()),
        )?;
    if !output.status.success() {
        bail!(
            "Synapse's endpoints cannot be read with `{}`; name the Python of an environment with Synapse in it:\n{}",
            python.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The table of a version that this program has, or that a file made by `routes extract` holds.
fn table(name: &str) -> anyhow::Result<Cow<'static, Table>> {
    if let Some(table) = Table::for_version(name) {
        return Ok(Cow::Borrowed(table));
    }
    let versions: Vec<_> = Table::all().iter().map(Table::version).collect();
    let text = std::fs::read_to_string(name).with_context(|| {
        format!("there is no table of Synapse {name}; name one of {} or a file", versions.join(", "))
    })?;
    Ok(Cow::Owned(Table::parse(&text)?))
}

/// The table that is asked about.
pub(crate) fn version(synapse: &Synapse, topology: &Topology) -> anyhow::Result<Cow<'static, Table>> {
    if let Some(name) = &synapse.synapse {
        return table(name);
    }
    Ok(Cow::Borrowed(match &topology.stack().synapse.python {
        None => runtime::install::endpoints(),
        Some(python) => {
            let version = runtime::install::check_python(python, &Launcher::this_program())
                .context("the stack brings a Synapse of its own; name its version with `--synapse`")?;
            Table::closest(&version)
        }
    }))
}

/// The topology that routes are explained for: the stack's, and every role's where there is no stack at hand.
fn topology(stack: &StackArguments) -> anyhow::Result<Topology> {
    let mut place = Place::find(stack)?;
    if place.loaded.name().is_none() && stack.preset.is_none() {
        place.loaded.stack.preset = Some(Preset::Full);
    }
    place.plan()
}

/// The matcher of a topology, for the Synapse that `up` installs. Fails if the topology cannot be routed to.
pub(crate) fn matcher(topology: &Topology) -> anyhow::Result<Matcher> {
    compile(runtime::install::endpoints(), topology)
}

/// The same with Synapse's admin API open, whether or not the router is to pass it on.
pub(crate) fn matcher_of_all(topology: &Topology) -> anyhow::Result<Matcher> {
    let options = Options { admin_open: true, ..options(topology) };
    Ok(Matcher::compile(runtime::install::endpoints(), topology, &options)?)
}

fn compile(table: &Table, topology: &Topology) -> anyhow::Result<Matcher> {
    Ok(Matcher::compile(table, topology, &options(topology))?)
}

fn options(topology: &Topology) -> Options {
    let stack = topology.stack();
    Options { admin_open: stack.listen.admin_api, features: Features::of(stack) }
}
