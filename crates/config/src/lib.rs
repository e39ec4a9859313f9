//! `stack.yaml`: reading it, its defaults, its secrets, its JSON Schema, and errors that point at the line.
//!
//! [`load`] reads a file and reports everything that is wrong with it at once; [`Loaded::plan`] does the same for
//! what the planner refuses. Both speak through a [`Report`].

mod check;
mod init;
mod places;
mod reference;
mod report;
pub mod secrets;
mod tree;

use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{CompanionKind, Preset, Secrets, ServerName, Stack, Topology};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

pub use init::{SCHEMA_FILE, init_yaml};
pub use places::{default_data_dir, default_packages_dir};
pub use reference::{fields_markdown, reference_markdown};
pub use report::{Finding, Place, Report};

use report::Source;
use tree::{Node, Value};

/// The JSON Schema of `stack.yaml` (draft 2020-12), generated from the types in `model`.
pub fn schema() -> Json {
    schemars::schema_for!(Stack).to_value()
}

/// A stack and the file that it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The stack. What the command line says may be put into it before [`Loaded::plan`].
    pub stack: Stack,
    file: Option<Arc<YamlFile>>,
}

/// A file as text and tree, to find places in.
#[derive(Debug)]
struct YamlFile {
    source: Source,
    root: Node,
}

/// Reads and checks a `stack.yaml`. Relative paths in it are resolved against its directory.
///
/// # Errors
/// Everything that is wrong with the file, or that it cannot be read.
pub fn load(path: &Path) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    let text = read(path, &name)?;
    let mut loaded = parse(&name, &text)?;
    let base = std::path::absolute(path).map_err(|error| {
        Report::of_file(&name, format!("cannot find its directory: {error}"), "use an absolute path")
    })?;
    if let Some(base) = base.parent() {
        for (_, path) in paths(&mut loaded.stack) {
            *path = base.join(&path);
        }
        for kind in CompanionKind::ALL {
            for (key, value) in loaded.stack.companions.settings_mut(kind).into_iter().flatten() {
                resolve(key, value, base);
            }
        }
    }
    Ok(loaded)
}

fn read(path: &Path, name: &str) -> Result<String, Report> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large from one that just fits.
    let limit = tree::MAX_BYTES as u64 + 1;
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
    if let Err(error) = read {
        let mend = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "`matrix-stack init` writes one, and `--config FILE` names another"
            }
            std::io::ErrorKind::PermissionDenied => "make it readable for the user that runs matrix-stack",
            _ => "name a file that can be read",
        };
        return Err(Report::of_file(name, format!("`{name}` cannot be read: {error}"), mend));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        Report::of_file(name, format!("line {line} is not UTF-8 text"), "save the file in UTF-8")
    })
}

/// Checks the text of a `stack.yaml`, which reports call `name`. Relative paths in it stay as they are.
///
/// # Errors
/// Everything that is wrong with the text.
pub fn parse(name: &str, text: &str) -> Result<Loaded, Report> {
    if text.len() > tree::MAX_BYTES {
        let message = format!("`{name}` is larger than {} KiB", tree::MAX_BYTES >> 10);
        return Err(Report::of_file(name, message, "name a stack.yaml: no stack needs a file that large"));
    }
    let source = Source { name: name.to_owned(), text: text.to_owned() };
    let (root, mut problems) = tree::build(text).map_err(|problem| report(&source, vec![problem]))?;
    let Some(root) = root else {
        return Err(Report::of_file(name, format!("`{name}` is empty"), "add `server_name: example.org`"));
    };

    let schema = schema();
    let (wrong, json) = check::check(&schema, &root, text, "");
    problems.extend(wrong);
    let file = YamlFile { source, root };
    let json = json.unwrap_or(Json::Null);
    if problems.is_empty() {
        match typed(json, &file, "") {
            Ok(mut stack) => {
                problems = check_paths(&mut stack, &file);
                if problems.is_empty() {
                    return Ok(Loaded { stack, file: Some(Arc::new(file)) });
                }
            }
            Err(problem) => problems.push(problem),
        }
    } else if let Some(mut stack) = salvage(json, &file) {
        let mut more = check_paths(&mut stack, &file);
        more.extend(planner_problems(&stack, &file));
        // What is left of a field that is wrong already says nothing.
        more.retain(|more| !problems.iter().any(|known| related(&known.path, &more.path)));
        problems.extend(more);
    }
    Err(report(&file.source, problems))
}

/// Reads the text of another YAML file than a `stack.yaml`, which reports call `name`, and checks it as strictly.
///
/// # Errors
/// Everything that is wrong with the text.
pub fn document<T: DeserializeOwned + JsonSchema>(name: &str, text: &str) -> Result<T, Report> {
    if text.len() > tree::MAX_BYTES {
        let message = format!("`{name}` is larger than {} KiB", tree::MAX_BYTES >> 10);
        return Err(Report::of_file(name, message, "make it smaller"));
    }
    let source = Source { name: name.to_owned(), text: text.to_owned() };
    let (root, mut problems) = tree::build(text).map_err(|problem| report(&source, vec![problem]))?;
    let Some(root) = root else {
        return Err(Report::of_file(name, format!("`{name}` is empty"), "write what belongs there"));
    };
    let schema = schemars::schema_for!(T).to_value();
    let (wrong, json) = check::check(&schema, &root, text, "");
    problems.extend(wrong);
    let file = YamlFile { source, root };
    if problems.is_empty() {
        match typed(json.unwrap_or(Json::Null), &file, "") {
            Ok(value) => return Ok(value),
            Err(problem) => problems.push(problem),
        }
    }
    Err(report(&file.source, problems))
}

/// What stands at a path, typed. After the schema's check this succeeds; should the types know a rule that the schema does
/// not, it is reported at the field.
fn typed<T: DeserializeOwned>(json: Json, file: &YamlFile, at: &str) -> Result<T, tree::Problem> {
    serde_path_to_error::deserialize(json).map_err(|error| {
        let path = match (at, error.path().to_string()) {
            (at, path) if path == "." => at.to_owned(),
            ("", path) => path,
            (at, path) => format!("{at}.{path}"),
        };
        tree::Problem {
            span: file.locate(&path, false),
            path,
            message: error.inner().to_string(),
            mend: "write a value that `docs/configuration.md` allows there".to_owned(),
        }
    })
}

/// Whether one of two fields contains the other. The file as a whole counts for none.
fn related(a: &str, b: &str) -> bool {
    let within = |inner: &str, outer: &str| {
        !outer.is_empty()
            && inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    within(a, b) || within(b, a)
}

/// The stack that is left of a file with problems, to look for more problems in.
fn salvage(mut json: Json, file: &YamlFile) -> Option<Stack> {
    let object = json.as_object_mut()?;
    object.entry("server_name").or_insert_with(|| "localhost".into());
    typed(json, file, "").ok()
}

/// What the planner would refuse, whatever the machine: a stack that names no preset has a problem only if it has
/// it under each.
fn planner_problems(stack: &Stack, file: &YamlFile) -> Vec<tree::Problem> {
    let presets = stack
        .preset
        .map_or_else(|| vec![Preset::Small, Preset::Medium, Preset::Full, Preset::Custom], |p| vec![p]);
    let mut plans = presets
        .into_iter()
        .map(|preset| model::plan(stack, Path::new("/run"), preset).err().map_or_else(Vec::new, |p| p.0));
    let mut common = plans.next().unwrap_or_default();
    for plan in plans {
        common.retain(|problem| plan.contains(problem));
    }
    common.iter().map(|problem| file.blame(problem)).collect()
}

fn check_paths(stack: &mut Stack, file: &YamlFile) -> Vec<tree::Problem> {
    let mut problems = Vec::new();
    for (field, path) in paths(stack) {
        let (message, mend) = if path.as_os_str().is_empty() {
            (format!("`{field}` is empty"), "write a path, or remove the key")
        } else if path.starts_with("~") {
            (format!("`{}` would be a directory called `~`", path.display()), "write the home directory out")
        } else {
            continue;
        };
        problems.push(tree::Problem {
            span: file.locate(&field, false),
            path: field,
            message,
            mend: mend.to_owned(),
        });
    }
    problems
}

/// Every path of a stack with its field.
fn paths(stack: &mut Stack) -> Vec<(String, &mut PathBuf)> {
    // Named one by one so that a new secret cannot be forgotten here.
    let Secrets {
        signing_key,
        macaroon_secret_key,
        form_secret,
        registration_shared_secret,
        worker_replication_secret,
        database_password,
        redis_password,
        mas_shared_secret,
        mas_encryption,
        mas_rsa_key,
        mas_ec_key,
        mas_database_password,
    } = &mut stack.secrets;
    let secrets = [
        ("signing_key", signing_key),
        ("macaroon_secret_key", macaroon_secret_key),
        ("form_secret", form_secret),
        ("registration_shared_secret", registration_shared_secret),
        ("worker_replication_secret", worker_replication_secret),
        ("database_password", database_password),
        ("redis_password", redis_password),
        ("mas_shared_secret", mas_shared_secret),
        ("mas_encryption", mas_encryption),
        ("mas_rsa_key", mas_rsa_key),
        ("mas_ec_key", mas_ec_key),
        ("mas_database_password", mas_database_password),
    ];
    let others = [
        ("data_dir", &mut stack.data_dir),
        ("synapse.python", &mut stack.synapse.python),
        ("media.store_path", &mut stack.media.store_path),
    ];
    let others = others.into_iter().filter_map(|(field, path)| Some((field.to_owned(), path.as_mut()?)));
    let tls = stack
        .listen
        .tls
        .iter_mut()
        .flat_map(|tls| [("certificate", &mut tls.certificate), ("private_key", &mut tls.private_key)]);
    let tls = tls.map(|(field, path)| (format!("listen.tls.{field}"), path));
    let secrets = secrets
        .into_iter()
        .filter_map(|(field, source)| Some((format!("secrets.{field}.file"), &mut source.as_mut()?.file)));
    let mas = stack.auth.mas.iter_mut().flat_map(model::Mas::paths);
    others.chain(tls).chain(secrets).chain(mas).collect()
}

/// Puts relative paths in a companion's settings below a directory. Which settings are paths their names say, since their types are
/// the companion's own.
fn resolve(key: &str, value: &mut Json, base: &Path) {
    let is_path =
        ["file", "files", "certificate", "private_key", "client_ca", "ca", "store"].iter().any(|name| {
            key.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with(['_', '-']))
        });
    match value {
        Json::String(path) if is_path && !path.is_empty() => {
            *path = base.join(&*path).display().to_string();
        }
        Json::Array(items) => items.iter_mut().for_each(|item| resolve(key, item, base)),
        Json::Object(fields) => fields.iter_mut().for_each(|(key, value)| resolve(key, value, base)),
        _ => {}
    }
}

/// Text that may hold as much of the file as somebody wrote, cut to what a person reads.
fn cut(text: String) -> String {
    const MOST: usize = 1000;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn report(source: &Source, mut problems: Vec<tree::Problem>) -> Report {
    problems.sort_by_key(|problem| problem.span.as_ref().map_or(usize::MAX, |span| span.start));
    problems.truncate(report::MAX_KEPT);
    let findings = problems
        .into_iter()
        .map(|problem| Finding {
            place: problem.span.map(|span| source.place(&span)),
            message: cut(problem.message),
            mend: cut(problem.mend),
            path: cut(problem.path),
        })
        .collect();
    Report::new(&source.name, findings)
}

impl YamlFile {
    /// Where a field stands, given its dotted path: the longest part of it that is in the file. `key` asks for the
    /// key and not the value. Group names and options may themselves contain dots.
    fn locate(&self, path: &str, key: bool) -> Option<Range<usize>> {
        let mut node = &self.root;
        let mut rest = path;
        let mut span = None;
        while let Value::Map(entries) = &node.value {
            let found = entries
                .iter()
                .filter(|(key, _)| {
                    rest.strip_prefix(key.text.as_str())
                        .is_some_and(|after| after.is_empty() || after.starts_with(['.', '[']))
                })
                .max_by_key(|(key, _)| key.text.len());
            let Some((found, value)) = found else { break };
            rest = rest[found.text.len()..].trim_start_matches('.');
            node = value;
            let value = if key {
                found.span.clone()
            } else {
                check::best_span(&self.source.text, value, Some(found))
            };
            // Where the field itself is absent, the mapping that lacks it is to blame by its key.
            span = Some(if rest.is_empty() { value } else { found.span.clone() });
        }
        span
    }

    /// What stands below these keys.
    fn node(&self, keys: &[&str]) -> Option<&Node> {
        keys.iter().try_fold(&self.root, |node, key| {
            let Value::Map(entries) = &node.value else { return None };
            entries.iter().find(|(known, _)| known.text == *key).map(|(_, node)| node)
        })
    }

    /// A problem of the planner's, at its place.
    fn blame(&self, problem: &model::Problem) -> tree::Problem {
        use model::Problem::{BadGroupName, NoRoles, OwnedOption, ReservedName};
        let at_key = matches!(
            problem,
            ReservedName { .. } | BadGroupName { .. } | NoRoles { .. } | OwnedOption { .. }
        );
        let path = problem.field();
        tree::Problem {
            span: self.locate(&path, at_key),
            path,
            message: problem.to_string(),
            mend: problem.mend(),
        }
    }
}

impl Loaded {
    /// What `up` runs where there is no `stack.yaml`: a server called `localhost`, everything else by default.
    pub fn implicit() -> Self {
        let localhost = ServerName::try_from("localhost".to_owned());
        // `localhost` is a server name; a test says so.
        Self::from_stack(Stack::new(localhost.expect("`localhost` is a server name")))
    }

    /// A stack that no file stands behind.
    pub fn from_stack(stack: Stack) -> Self {
        Self { stack, file: None }
    }

    /// The file's name as reports show it; `None` where no file stands behind the stack.
    pub fn name(&self) -> Option<&str> {
        self.file.as_ref().map(|file| file.source.name.as_str())
    }

    /// The settings of a companion service, in the service's own type; none where the stack does not have it.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn companion<T: DeserializeOwned + JsonSchema>(
        &self,
        kind: CompanionKind,
    ) -> Result<Option<T>, Report> {
        let Some(settings) = self.stack.companions.settings(kind) else { return Ok(None) };
        let path = format!("{}.settings", kind.field());
        let settings = Json::Object(settings.clone());
        let Some(file) = &self.file else {
            return serde_json::from_value(settings).map(Some).map_err(|error| {
                Report::of_file(&path, error.to_string(), "write what the service's settings allow there")
            });
        };
        let schema = schemars::schema_for!(T).to_value();
        let mut problems = match file.node(&path.split('.').collect::<Vec<_>>()) {
            Some(node) => check::check(&schema, node, &file.source.text, &path).0,
            None => Vec::new(),
        };
        if problems.is_empty() {
            match typed(settings, file, &path) {
                Ok(typed) => return Ok(Some(typed)),
                Err(problem) => problems.push(problem),
            }
        }
        Err(report(&file.source, problems))
    }

    /// A report on what stands at a dotted path, where only its user can say what is wrong with it.
    pub fn refusal(&self, path: &str, message: String, mend: &str) -> Report {
        let Some(file) = &self.file else { return Report::of_file(path, message, mend) };
        let problem = tree::Problem {
            span: file.locate(path, false),
            path: path.to_owned(),
            message,
            mend: mend.to_owned(),
        };
        report(&file.source, vec![problem])
    }

    /// Plans the stack; what the planner refuses is shown at its place in the file.
    ///
    /// # Errors
    /// Every problem that the stack has.
    pub fn plan(&self, socket_dir: &Path, default_preset: Preset) -> Result<Topology, Report> {
        model::plan(&self.stack, socket_dir, default_preset).map_err(|problems| {
            if let Some(file) = &self.file {
                return report(&file.source, problems.0.iter().map(|problem| file.blame(problem)).collect());
            }
            let findings = problems.0.iter().map(|problem| Finding {
                message: problem.to_string(),
                mend: problem.mend(),
                path: problem.field(),
                place: None,
            });
            Report::new("the command line and the defaults", findings.collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_companions_are_wrong_at_their_place() {
        #[derive(Debug, serde::Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        struct Settings {
            url: String,
            #[serde(default)]
            most: u8,
        }
        let read = |settings: &str| {
            let text =
                format!("server_name: example.org\ncompanions:\n  webhook:\n    settings:\n{settings}");
            parse("stack.yaml", &text).unwrap().companion::<Settings>(CompanionKind::Webhook)
        };
        let good = read("      url: x\n      most: 3\n").unwrap().unwrap();
        assert_eq!((good.url.as_str(), good.most), ("x", 3));
        let wrong = read("      most: many\n      uri: x\n").unwrap_err();
        let places: Vec<_> = wrong
            .findings()
            .iter()
            .map(|finding| (finding.path.as_str(), finding.place.as_ref().map(|place| place.line)))
            .collect();
        assert!(places.contains(&("companions.webhook.settings.most", Some(5))), "{wrong}");
        assert!(places.contains(&("companions.webhook.settings.uri", Some(6))), "{wrong}");
        assert!(wrong.to_string().contains("url"), "{wrong}");
        let none = parse("stack.yaml", "server_name: example.org\ncompanions: {webhook: {}}\n").unwrap();
        assert!(none.companion::<Settings>(CompanionKind::Webhook).is_err());
        assert!(none.companion::<Settings>(CompanionKind::Ldap).unwrap().is_none());
    }

    #[test]
    fn relative_paths_of_companions_count_from_the_file() {
        let dir = std::env::temp_dir();
        let mut settings = serde_json::json!({
            "keys_file": "a", "key": "b", "tls": {"certificate": "c"}, "client_secret_files": ["d", "/e"],
            "access-token-file": "f", "hooks": [{"key_file": "g", "profile": "h"}], "store": "i",
        });
        for (key, value) in settings.as_object_mut().unwrap() {
            resolve(key, value, &dir);
        }
        let below = |name: &str| dir.join(name).display().to_string();
        assert_eq!(
            settings,
            serde_json::json!({
                "keys_file": below("a"), "key": "b", "tls": {"certificate": below("c")},
                "client_secret_files": [below("d"), "/e"], "access-token-file": below("f"),
                "hooks": [{"key_file": below("g"), "profile": "h"}], "store": below("i"),
            })
        );
    }

    #[test]
    fn a_stack_without_a_file_has_a_plan() {
        let loaded = Loaded::implicit();
        assert_eq!(loaded.name(), None);
        loaded.plan(Path::new("/run"), Preset::Full).unwrap();
    }
}
