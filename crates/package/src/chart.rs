//! A chart: what lies in its directory, and what Helm wants of that.

use std::fs;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::PackageError;
use crate::ignore::Ignore;

/// The largest file that Helm takes out of a chart's archive (`MaxDecompressedFileSize`), in bytes.
const MAX_FILE: u64 = 5 << 20;
/// The most that all files of a chart may come to: a chart is text, and a release of it has to fit into a Secret.
const MAX_ALL: u64 = 20 << 20;

/// `Chart.yaml` (<https://helm.sh/docs/topics/charts/#the-chartyaml-file>).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metadata {
    /// The version of this format.
    #[schemars(regex(pattern = "^v2$"))]
    pub api_version: String,
    /// The chart's name, which is its directory's.
    #[schemars(regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"), length(max = 53))]
    pub name: String,
    /// Its version, by semantic versioning.
    #[schemars(regex(pattern = VERSION))]
    pub version: String,
    /// The versions of Kubernetes that it works with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kube_version: Option<String>,
    /// What it is, in a line.
    #[schemars(length(min = 1))]
    pub description: String,
    /// `application` or `library`.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    #[schemars(extend("enum" = ["application", "library", null]))]
    pub kind: Option<String>,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keywords: Vec<String>,
    /// The project's page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
    /// Where its sources are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// The charts that it contains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<Dependency>,
    /// Who keeps it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maintainers: Vec<Maintainer>,
    /// The URL of a picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icon: Option<String>,
    /// The version of what it installs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_version: Option<String>,
    /// Whether nobody should begin to use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deprecated: Option<bool>,
    /// Whatever else is to be known.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub annotations: IndexMap<String, String>,
}

/// A semantic version (<https://semver.org>), as far as a chart's may go.
const VERSION: &str = r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$";

/// A chart within a chart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Dependency {
    /// Its name.
    pub name: String,
    /// The versions that will do.
    pub version: String,
    /// Where it comes from; empty if it is in the chart. Helm always writes it.
    #[serde(default)]
    pub repository: String,
    /// The value that switches it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// The groups that switch it on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The name that its values go by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}

/// Who keeps a chart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Maintainer {
    /// A name.
    pub name: String,
    /// An address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// A page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A chart as it goes into its archive.
#[derive(Clone, Debug)]
pub struct Chart {
    /// `Chart.yaml`.
    pub metadata: Metadata,
    /// Every file below the chart's directory that is not left out, with `/` between the parts of its path: `Chart.yaml`
    /// first, the others sorted.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Chart {
    /// The charts in the directories of a directory, sorted by name.
    pub fn read_all(directory: &Path) -> Result<Vec<Self>, PackageError> {
        let mut charts = Vec::new();
        for path in entries(directory)? {
            if path.join("Chart.yaml").exists() {
                charts.push(Self::read(&path)?);
            }
        }
        if charts.is_empty() {
            return Err(PackageError::NoCharts(directory.to_owned()));
        }
        Ok(charts)
    }

    /// The chart in a directory.
    pub fn read(directory: &Path) -> Result<Self, PackageError> {
        let bad = |file: &str, reason: String| PackageError::Chart { path: directory.join(file), reason };
        let ignore_file = directory.join(".helmignore");
        let rules = if ignore_file.exists() { text(&ignore_file)? } else { String::new() };
        let ignore = Ignore::parse(&rules).map_err(|(line, reason)| {
            bad(".helmignore", format!("line {line} {reason}: write it otherwise"))
        })?;

        let mut files = Vec::new();
        let mut size = 0;
        collect(directory, "", &ignore, &mut size, &mut files)?;
        files.sort_by(|(a, _), (b, _)| (a != "Chart.yaml", a).cmp(&(b != "Chart.yaml", b)));

        let chart = directory.join("Chart.yaml");
        let metadata: Metadata = config::document(&chart.display().to_string(), &text(&chart)?)?;
        if directory.file_name() != Some(metadata.name.as_ref()) {
            let reason = format!("names the chart `{}`: give that name to its directory too", metadata.name);
            return Err(bad("Chart.yaml", reason));
        }
        let there = |path: &str| files.iter().any(|(file, _)| file == path);
        if !there("Chart.yaml") || !there("values.yaml") {
            let file = if there("Chart.yaml") { "values.yaml" } else { "Chart.yaml" };
            return Err(bad(file, "is not there, or .helmignore leaves it out: a chart needs it".to_owned()));
        }
        if !files.iter().any(|(file, _)| file.starts_with("templates/")) {
            return Err(bad(
                "templates",
                "holds nothing: a chart without templates installs nothing".to_owned(),
            ));
        }
        for (file, contents) in &files {
            let is_json = Path::new(file).extension().is_some_and(|ending| ending == "json");
            if is_json && serde_json::from_slice::<serde::de::IgnoredAny>(contents).is_err() {
                return Err(bad(file, "is not JSON: mend it".to_owned()));
            }
        }
        for dependency in &metadata.dependencies {
            let own = format!("charts/{}/Chart.yaml", dependency.name);
            let archive = format!("charts/{}-", dependency.name);
            if !there(&own) && !files.iter().any(|(file, _)| file.starts_with(&archive)) {
                let reason = format!(
                    "wants `{}`, which is not in `charts`: run `helm dependency build`",
                    dependency.name
                );
                return Err(bad("Chart.yaml", reason));
            }
        }
        Ok(Self { metadata, files })
    }
}

/// Adds every file below a directory that is not left out.
fn collect(
    directory: &Path,
    prefix: &str,
    ignore: &Ignore,
    size: &mut u64,
    files: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), PackageError> {
    for path in entries(directory)? {
        let bad = |reason: &str| PackageError::Chart { path: path.clone(), reason: reason.to_owned() };
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| bad("has a name that is not UTF-8: rename it"))?;
        let relative = format!("{prefix}{name}");
        let metadata = fs::symlink_metadata(&path).map_err(|source| read_error(&path, source))?;
        if ignore.leaves_out(&relative, metadata.is_dir()) {
            continue;
        }
        if metadata.is_dir() {
            collect(&path, &format!("{relative}/"), ignore, size, files)?;
            continue;
        }
        if !metadata.is_file() {
            return Err(bad("is neither a file nor a directory: put what it stands for in its place"));
        }
        *size += metadata.len();
        if metadata.len() > MAX_FILE || *size > MAX_ALL {
            return Err(bad("makes the chart too large for Helm: leave it out by a line of .helmignore"));
        }
        files.push((relative, fs::read(&path).map_err(|source| read_error(&path, source))?));
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, PackageError> {
    let read = || {
        fs::read_dir(directory)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<PathBuf>, _>>()
    };
    let mut paths = read().map_err(|source| read_error(directory, source))?;
    paths.sort();
    Ok(paths)
}

fn text(path: &Path) -> Result<String, PackageError> {
    fs::read_to_string(path).map_err(|source| read_error(path, source))
}

fn read_error(path: &Path, source: std::io::Error) -> PackageError {
    PackageError::Read { path: path.to_owned(), source }
}
