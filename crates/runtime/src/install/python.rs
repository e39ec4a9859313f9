//! Finding a Python to install with, and looking at one that the user brings.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{InstallError, InstallOptions, installer_spec};
use crate::launch::{self, Launcher};

/// The versions that the locked packages support: Synapse from 3.10, ready-made packages up to 3.14.
const OLDEST: (u32, u32) = (3, 10);
const NEWEST: (u32, u32) = (3, 14);

/// The oldest Synapse that a stack can be run with: the one whose stream writers and options the plan knows.
const OLDEST_SYNAPSE: (u32, u32) = (1, 157);

/// The names to look for. The system's own comes first, then versions by how many wheels are made for them.
const NAMES: [&str; 6] = ["python3", "python3.13", "python3.12", "python3.11", "python3.14", "python3.10"];

/// A Python answers within this time, even from a cold disk.
const LIMIT: Duration = Duration::from_secs(30);

/// A Python that will do.
#[derive(Clone, Debug)]
pub(super) struct Interpreter {
    pub(super) path: PathBuf,
    version: (u32, u32, u32),
}

/// What a Python says about itself.
#[derive(Debug, Deserialize)]
struct Answer {
    version: (u32, u32, u32),
    implementation: String,
    free_threaded: bool,
    bits: u32,
    venv: bool,
}

/// Understood by every Python from 3.4 on.
const QUESTION: &str = r#"
import importlib.util, json, sys, sysconfig
has = lambda name: importlib.util.find_spec(name) is not None
print(json.dumps({
    "version": list(sys.version_info[:3]),
    "implementation": sys.implementation.name,
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "bits": sys.maxsize.bit_length() + 1,
    "venv": has("venv") and has("ensurepip"),
}))
"#;

impl Interpreter {
    /// The Python that was asked for, or the first on `PATH` that will do.
    pub(super) fn choose(options: &InstallOptions) -> Result<Self, InstallError> {
        let searched = options.variable("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let candidates = match &options.interpreter {
            Some(path) => vec![path.clone()],
            None => NAMES.iter().flat_map(|name| launch::find_programs(name, &searched)).collect(),
        };
        let mut without_venv = None;
        let mut unsuitable = Vec::new();
        for candidate in &candidates {
            let Some(answer) = ask(options, candidate)? else { continue };
            let (major, minor, patch) = answer.version;
            let version = format!("{major}.{minor}.{patch}");
            let complaint = if (major, minor) < OLDEST {
                Some("is too old")
            } else if (major, minor) > NEWEST {
                Some("is too new")
            } else if answer.implementation != "cpython" {
                Some("is not CPython")
            } else if answer.free_threaded {
                Some("is the free-threaded build")
            } else if answer.bits != 64 {
                Some("is not a 64-bit build")
            } else {
                None
            };
            match complaint {
                Some(complaint) => {
                    unsuitable.push(format!("`{}` ({version}) {complaint}", candidate.display()));
                }
                None if !answer.venv => {
                    without_venv =
                        without_venv.or(Some(InstallError::NoVenv { python: candidate.clone(), version }));
                }
                None => return Ok(Self { path: candidate.clone(), version: answer.version }),
            }
        }
        if let Some(error) = without_venv {
            return Err(error);
        }
        if !unsuitable.is_empty() {
            return Err(InstallError::UnsuitablePython { found: unsuitable.join(", ") });
        }
        Err(InstallError::NoPython {
            tried: match &options.interpreter {
                Some(path) => format!("`{}` is not one that runs", path.display()),
                None => format!("looked for `{}` in {}", NAMES.join("`, `"), searched.display()),
            },
        })
    }

    /// Its version, such as `3.11.2`.
    pub(super) fn version(&self) -> String {
        let (major, minor, patch) = self.version;
        format!("{major}.{minor}.{patch}")
    }

    /// The part of a tree's name that stands for it: `cp311`.
    pub(super) fn tag(&self) -> String {
        format!("cp{}{}", self.version.0, self.version.1)
    }

    /// The directory of its libraries below `lib`: `python3.11`.
    pub(super) fn library(&self) -> String {
        format!("python{}.{}", self.version.0, self.version.1)
    }
}

/// Asks a Python about itself. `None`: it does not work, like the stand-ins of version managers for versions that are
/// not installed.
fn ask(options: &InstallOptions, python: &Path) -> Result<Option<Answer>, InstallError> {
    let spec = installer_spec(python, &options.environment).args(["-I", "-c", QUESTION]);
    let done = options.run(&spec, LIMIT, || ())?;
    // Warnings may come before.
    let answer = done.output.lines().rev().find(|line| line.starts_with('{'));
    Ok(answer.filter(|_| done.success()).and_then(|answer| serde_json::from_str(answer).ok()))
}

/// The version of the Synapse of a Python that has all a stack needs; else what it lacks.
pub(super) fn synapse_version(launcher: &Launcher, python: &Path) -> Result<String, String> {
    let script = "import psycopg2, txredisapi, synapse.app.generic_worker\nfrom synapse.util import SYNAPSE_VERSION\nprint(SYNAPSE_VERSION)";
    let spec = installer_spec(python, &[]).args(["-I", "-c", script]);
    let done = launch::run(launcher, &spec, LIMIT, || true).map_err(|error| error.to_string())?;
    if !done.success() {
        return Err(format!(
            "it cannot import Synapse, psycopg2 and txredisapi: {}",
            launch::last_lines(&done.output, 1)
        ));
    }
    // `1.163.2 (b=branch,commit)` in a checkout.
    let line = launch::last_lines(&done.output, 1);
    let version = line.split_whitespace().next().unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST_SYNAPSE => Ok(version.to_owned()),
        (Some(_), Some(_)) => Err(format!("its Synapse, {version}, is too old")),
        _ => Err(format!("its Synapse says that its version is `{line}`")),
    }
}

/// Looks at a Python that the user brings (`synapse.python` in stack.yaml): whether it has what a stack needs. Returns
/// the version of its Synapse. Blocks, for about a second.
pub fn check_python(python: &Path, launcher: &Launcher) -> Result<String, InstallError> {
    synapse_version(launcher, python)
        .map_err(|reason| InstallError::OwnPython { python: python.to_owned(), reason })
}
