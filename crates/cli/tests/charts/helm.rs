//! The Helm engine.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use runtime::install::{CHARTS, InstallOptions, ensure_extra};
use runtime::launch::Launcher;
use serde_json::{Map, Value, json};

pub(crate) const MATRIX_STACK: &str = env!("CARGO_BIN_EXE_matrix-stack");

/// The namespace of what is rendered.
pub(crate) const NAMESPACE: &str = "chat";

/// The versions of Kubernetes that objects are held against: the oldest that the chart takes, and the newest there is.
pub(crate) const VERSIONS: [&str; 2] = ["1.31", "1.37"];

/// Values, and what became of them.
#[derive(Debug)]
pub(crate) struct Case {
    /// The name of the values file, behind that of the chart where it is not `synapse`.
    pub(crate) name: String,
    /// All that was rendered.
    pub(crate) text: String,
    /// All objects.
    pub(crate) objects: Vec<Value>,
    /// What the Kubernetes API would say against them.
    pub(crate) invalid: Vec<String>,
}

/// What is asked of the Helm engine.
pub(crate) struct Job {
    pub(crate) name: String,
    /// The chart.
    pub(crate) chart: &'static str,
    /// A values file of the chart's, without folder and ending.
    pub(crate) file: &'static str,
    /// What is set above it.
    pub(crate) values: Value,
    /// Whether the objects are held against the Kubernetes API.
    pub(crate) check: bool,
}

impl Case {
    /// The objects of this kind.
    pub(crate) fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    /// The object of this kind and name.
    pub(crate) fn object(&self, kind: &str, name: &str) -> Option<&Value> {
        self.of_kind(kind).find(|object| object["metadata"]["name"] == name)
    }

    /// Everything that makes pods.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(|object| {
            ["Deployment", "StatefulSet", "Job", "CronJob"].iter().any(|kind| object["kind"] == *kind)
        })
    }
}

/// The template of a workload's pods.
pub(crate) fn template(owner: &Value) -> &Value {
    let job = &owner["spec"]["jobTemplate"]["spec"]["template"];
    if job.is_null() { &owner["spec"]["template"] } else { job }
}

fn chart(name: &str) -> PathBuf {
    committed::root().join("charts").join(name)
}

/// The values files of a chart.
fn files(name: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(chart(name).join("ci"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// Renders all of these at once: the engine takes longer to start than to render.
pub(crate) fn render(jobs: &[Job]) -> BTreeMap<String, Result<Case, String>> {
    let cases: Vec<Value> = jobs
        .iter()
        .map(|job| {
            let files: Vec<PathBuf> = [job.file]
                .into_iter()
                .filter(|file| !file.is_empty())
                .map(|file| chart(job.chart).join(format!("ci/{file}.yaml")))
                .collect();
            json!({ "name": job.name, "chart": chart(job.chart), "files": files, "values": job.values, "check": job.check })
        })
        .collect();
    let mut child = Command::new(python())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(committed::root().join("e2e/charts.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let question = json!({ "versions": VERSIONS, "cases": cases }).to_string();
    child.stdin.take().unwrap().write_all(question.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "the Helm engine failed; its words are above");
    let answer: Map<String, Value> = serde_json::from_slice(&done.stdout).unwrap();
    answer
        .into_iter()
        .map(|(name, case)| {
            let result = match case["error"].as_str() {
                Some(error) => Err(error.to_owned()),
                None => Ok(Case {
                    text: text(&case["text"]),
                    objects: case["objects"].as_array().unwrap().clone(),
                    invalid: serde_json::from_value(case["invalid"].clone()).unwrap(),
                    name: name.clone(),
                }),
            };
            (name, result)
        })
        .collect()
}

/// The texts of all templates as one YAML file, without empty lines. What Helm only says is a comment.
fn text(templates: &Value) -> String {
    let mut out = String::new();
    let templates: BTreeMap<_, _> = templates.as_object().unwrap().iter().collect();
    for (template, text) in templates {
        let lines = text.as_str().unwrap().lines().filter(|line| !line.trim().is_empty());
        let lines: Vec<&str> = lines.skip_while(|line| *line == "---").collect();
        if lines.is_empty() {
            continue;
        }
        let _ = writeln!(out, "---\n# {template}");
        for line in lines {
            let _ = writeln!(out, "{}{line}", if template.ends_with("/NOTES.txt") { "# " } else { "" });
        }
    }
    out
}

/// All values files of the chart `synapse`, rendered once.
pub(crate) fn rendered() -> &'static [Case] {
    static RENDERED: OnceLock<Vec<Case>> = OnceLock::new();
    RENDERED.get_or_init(|| render_all(["synapse"]))
}

/// All values files of all charts, rendered once.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    rendered().iter().chain(companions())
}

/// All values files of the companions' charts, rendered once.
pub(crate) fn companions() -> &'static [Case] {
    static RENDERED: OnceLock<Vec<Case>> = OnceLock::new();
    RENDERED.get_or_init(|| render_all(charts::companion_charts().map(|chart| chart.name)))
}

fn render_all(charts: impl IntoIterator<Item = &'static str>) -> Vec<Case> {
    let mut jobs = Vec::new();
    for chart in charts {
        for file in files(chart) {
            let name = if chart == "synapse" { file.clone() } else { format!("{chart}/{file}") };
            jobs.push(Job { name, chart, file: file.leak(), values: json!({}), check: true });
        }
    }
    render(&jobs).into_values().map(|case| case.unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// A Python with the Helm engine, installed from its lock.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        let options = InstallOptions::new(&packages, Launcher::at(MATRIX_STACK));
        ensure_extra(&options, &CHARTS, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
    })
}
