//! Packaged charts, judged by the Helm engine (`e2e/repository.py`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use runtime::install::{CHARTS, InstallOptions, ensure_extra};
use runtime::launch::Launcher;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_matrix-stack");

fn package(charts: &Path, out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.arg("package-charts").arg("--charts").arg(charts).arg("--out").arg(out).args(more);
    command.env_remove("SOURCE_DATE_EPOCH").output().unwrap()
}

/// A chart with something of everything that makes packaging hard.
fn example(charts: &Path) -> PathBuf {
    let chart = charts.join("example");
    for (path, text) in [
        (
            "Chart.yaml",
            "apiVersion: v2\nname: example\nversion: 1.2.3-rc.1+build.5\ndescription: \"Says: \\\"1:30\\\"\"\n\
             appVersion: \"010\"\nkeywords: [\"on\", matrix]\nhome: https://example.org\n\
             maintainers:\n  - name: Example\n    email: example@example.org\n\
             annotations:\n  example.org/text: |\n    - two\n    - lines\n\
             dependencies:\n  - name: inner\n    version: 0.1.0\n    repository: \"\"\n    condition: inner.enabled\n",
        ),
        ("values.yaml", "greeting: hello\ninner: {enabled: true}\n"),
        ("values.schema.json", "{\"type\": \"object\"}"),
        (".helmignore", "# not for users\n*.md\n!*\nci/\n/top.txt\ntemplates/*.bak\n"),
        ("README.md", "left out"),
        ("top.txt", "left out"),
        ("files/top.txt", "stays"),
        (
            "files/a name with spaces, and more than the hundred letters of an old tar header, to be sure of it.txt",
            "ä",
        ),
        ("ci/minimal.yaml", "greeting: hi\n"),
        ("templates/.hidden.yaml", "left out"),
        ("templates/_helpers.tpl", "{{- define \"x\" }}x{{ end -}}\n"),
        ("templates/old.bak", "left out"),
        (
            "templates/map.yaml",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ include \"x\" . }}}\ndata: {a: {{ .Values.greeting }}}\n",
        ),
        ("charts/inner/Chart.yaml", "apiVersion: v2\nname: inner\nversion: 0.1.0\ndescription: Within\n"),
        ("charts/inner/values.yaml", "{}\n"),
        ("charts/inner/templates/map.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: inner}\n"),
    ] {
        let path = chart.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    chart
}

fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}

#[test]
fn helm_takes_the_repository_and_it_is_always_the_same() {
    let directory = TempDir::new().unwrap();
    let charts = directory.path().join("charts");
    example(&charts);
    let own = committed::root().join("charts");
    let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
    let options = InstallOptions::new(&packages, Launcher::at(PROGRAM));
    let python = ensure_extra(&options, &CHARTS, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));

    for (name, charts) in [("example", charts), ("own", own)] {
        if !charts.exists() {
            continue;
        }
        let (out, again) = (directory.path().join(name), directory.path().join("again").join(name));
        for out in [&out, &again] {
            let done = package(&charts, out, &[]);
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        let relative = |out: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
            let files = contents(out).into_iter();
            files.map(|(path, bytes)| (path.strip_prefix(out).unwrap().to_owned(), bytes)).collect()
        };
        assert!(relative(&out) == relative(&again), "{name} is another each time");

        let mut judge = Command::new(&python);
        judge.env("PYTHONDONTWRITEBYTECODE", "1").arg(committed::root().join("e2e/repository.py"));
        let judged = judge.arg(&charts).arg(&out).output().unwrap();
        let said = String::from_utf8_lossy(&judged.stdout);
        assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stderr));
        assert_eq!(said.trim(), "", "{name}");
    }
}

#[test]
fn archives_may_lie_elsewhere_and_times_are_given() {
    let directory = TempDir::new().unwrap();
    let charts = directory.path().join("charts");
    example(&charts);
    let out = directory.path().join("out");
    let done = package(&charts, &out, &["--url", "https://charts.example.org/", "--time", "86400"]);
    assert!(done.status.success());
    let index = fs::read_to_string(out.join("index.yaml")).unwrap();
    assert!(index.contains("https://charts.example.org/example-1.2.3-rc.1+build.5.tgz"), "{index}");
    assert!(index.contains("created: \"1970-01-02T00:00:00Z\""), "{index}");
}

#[test]
fn what_helm_would_stumble_over_is_refused_and_nothing_is_written() {
    /// What is done to a chart, under a name, and what is said of it.
    type Broken = (&'static str, fn(&Path), &'static str);
    let broken: [Broken; 9] = [
        ("nothing", |chart| fs::remove_dir_all(chart).unwrap(), "holds no chart"),
        ("values", |chart| fs::remove_file(chart.join("values.yaml")).unwrap(), "values.yaml` is not there"),
        (
            "templates",
            |chart| fs::remove_dir_all(chart.join("templates")).unwrap(),
            "templates` holds nothing",
        ),
        (
            "dependency",
            |chart| fs::remove_dir_all(chart.join("charts")).unwrap(),
            "wants `inner`, which is not in `charts`: run `helm dependency build`",
        ),
        (
            "name",
            |chart| fs::rename(chart, chart.with_file_name("other")).unwrap(),
            "names the chart `example`: give that name to its directory too",
        ),
        ("schema", |chart| fs::write(chart.join("values.schema.json"), "{").unwrap(), "is not JSON"),
        (
            "link",
            |chart| std::os::unix::fs::symlink("/etc/passwd", chart.join("files/link")).unwrap(),
            "is neither a file nor a directory",
        ),
        ("ignore", |chart| fs::write(chart.join(".helmignore"), "a\n**/b\n").unwrap(), "line 2 has `**`"),
        (
            "version",
            |chart| {
                let text = fs::read_to_string(chart.join("Chart.yaml")).unwrap();
                let text = text.replace("version: 1.2.3-rc.1+build.5", "version: 1.2\nverison: 2");
                fs::write(chart.join("Chart.yaml"), text).unwrap();
            },
            "verison",
        ),
    ];
    for (name, break_it, message) in broken {
        let directory = TempDir::new().unwrap();
        let charts = directory.path().join("charts");
        break_it(&example(&charts));
        let out = directory.path().join("out");
        let done = package(&charts, &out, &[]);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(message), "{name}: {said}");
        assert!(!out.exists(), "{name} was written");
    }
}
