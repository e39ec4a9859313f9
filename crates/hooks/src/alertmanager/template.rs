//! Go's HTML templates, with the methods that Alertmanager's types have in Go, and a check that finds what would print nothing.
//!
//! The engine knows maps, lists and strings, but no methods. A walk over the parsed template, which knows what each field is, replaces
//! calls of methods by calls of functions, and notes fields that there are not.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::parse::{BranchNode, CommandNode, Expr, ListNode, Node, Parser, PipeNode, Pos, SmolStr};
use gotmpl::{MissingKey, TemplateError, Value, html};

use super::time::Time;

/// How many rounds all loops of one template may take together.
const ROUNDS: u64 = 100_000;

/// The function that stands for methods.
const METHOD: &str = "__method";

/// Functions of Go's templates, and those that the templates of matrix-alertmanager-receiver have beside them.
const FUNCTIONS: [&str; 25] = [
    "ToLower",
    "ToUpper",
    "Replace",
    "RegexReplace",
    "and",
    "call",
    "eq",
    "ge",
    "gt",
    "html",
    "index",
    "js",
    "le",
    "len",
    "lt",
    "ne",
    "not",
    "or",
    "print",
    "printf",
    "println",
    "slice",
    "urlquery",
    "break",
    "continue",
];

/// A template that can be rendered.
pub(super) struct Template {
    inner: html::Template,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").finish_non_exhaustive()
    }
}

/// What is wrong with a template, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// From 1; 0 where it is not known.
    pub(super) line: usize,
    /// From 1; 0 where it is not known.
    pub(super) column: usize,
    pub(super) reason: String,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Root,
    Alert,
    Alerts,
    /// Labels and annotations.
    Kv,
    /// Computed values.
    Map,
    Pairs,
    Pair,
    Texts,
    Text,
    Time,
    /// Whatever a function gives.
    Unknown,
}

const ROOT: [&str; 13] = [
    "Alert",
    "Alerts",
    "CommonAnnotations",
    "CommonLabels",
    "ComputedValues",
    "ExternalURL",
    "GeneratorURL",
    "GroupKey",
    "GroupLabels",
    "Receiver",
    "SilenceURL",
    "Status",
    "TruncatedAlerts",
];
const ALERT: [&str; 9] = [
    "Annotations",
    "EndsAt",
    "Fingerprint",
    "GeneratorURL",
    "Labels",
    "SilenceURL",
    "StartsAt",
    "Status",
    "ComputedValues",
];
const TIME: [&str; 15] = [
    "Day",
    "Format",
    "Hour",
    "IsZero",
    "Local",
    "Minute",
    "Month",
    "Second",
    "String",
    "UTC",
    "Unix",
    "UnixMilli",
    "Weekday",
    "Year",
    "YearDay",
];

impl Kind {
    /// What a field or a method of it is, and whether it is a method; or what there is instead.
    fn field(self, name: &str) -> Result<(Self, bool), String> {
        let known = |names: &[&str]| {
            if names.contains(&name) {
                return Ok(());
            }
            let near = names.iter().find(|known| known.eq_ignore_ascii_case(name));
            Err(match near {
                Some(near) => format!("write `.{near}`"),
                None => format!("there are {}", names.join(", ")),
            })
        };
        Ok(match self {
            Self::Root => {
                known(&ROOT)?;
                let kind = match name {
                    "Alert" => Self::Alert,
                    "Alerts" => Self::Alerts,
                    "GroupLabels" | "CommonLabels" | "CommonAnnotations" => Self::Kv,
                    "ComputedValues" => Self::Map,
                    "TruncatedAlerts" => Self::Unknown,
                    _ => Self::Text,
                };
                (kind, false)
            }
            Self::Alert => {
                known(&ALERT)?;
                let kind = match name {
                    "Labels" | "Annotations" => Self::Kv,
                    "ComputedValues" => Self::Map,
                    "StartsAt" | "EndsAt" => Self::Time,
                    _ => Self::Text,
                };
                (kind, false)
            }
            Self::Kv => match name {
                "SortedPairs" => (Self::Pairs, true),
                "Names" | "Values" => (Self::Texts, true),
                "Remove" => (Self::Kv, true),
                _ => (Self::Text, false),
            },
            Self::Map => (Self::Text, false),
            Self::Pairs => {
                known(&["Names", "Values"])?;
                (Self::Texts, true)
            }
            Self::Alerts => {
                known(&["Firing", "Resolved"])?;
                (Self::Alerts, true)
            }
            Self::Pair => {
                known(&["Name", "Value"])?;
                (Self::Text, false)
            }
            Self::Time => {
                known(&TIME)?;
                let kind = match name {
                    "UTC" | "Local" => Self::Time,
                    "Format" | "Month" | "String" | "Weekday" => Self::Text,
                    _ => Self::Unknown,
                };
                (kind, true)
            }
            Self::Text => return Err("it is a text, which has no fields".to_owned()),
            Self::Texts => return Err("it is a list: use `range`".to_owned()),
            // Where these are fields, the function gives the field.
            Self::Unknown => (
                Self::Unknown,
                TIME.contains(&name) || ["SortedPairs", "Names", "Values", "Remove"].contains(&name),
            ),
        })
    }

    /// What `range` goes over.
    fn item(self) -> Self {
        match self {
            Self::Alerts => Self::Alert,
            Self::Pairs => Self::Pair,
            Self::Kv | Self::Map | Self::Texts => Self::Text,
            _ => Self::Unknown,
        }
    }
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// Everything that is wrong with it: it does not parse, or asks for what there is not.
    pub(super) fn new(name: &str, text: &str) -> Result<Self, Vec<Wrong>> {
        balanced(text).map_err(|wrong| vec![wrong])?;
        let parser = Parser::new(text, "{{", "}}").map_err(|error| vec![wrong(&error)])?;
        let (tree, defines) = parser.parse().map_err(|error| vec![wrong(&error)])?;
        let mut walk = Walk { text, wrongs: Vec::new(), variables: vec![("$".into(), Kind::Root)] };
        let tree = walk.list(&tree, Kind::Root);
        let mut inner = html::Template::new(name).missing_key(MissingKey::ZeroValue).max_range_iters(ROUNDS);
        for (name, function) in functions() {
            inner = inner.func(name, function);
        }
        let failed = |error: &TemplateError| vec![wrong(error)];
        inner = inner.parse(r#"{{template "__main" .}}"#).map_err(|error| failed(&error))?;
        inner = inner.add_parse_tree("__main", tree).map_err(|error| failed(&error))?;
        for define in defines {
            walk.variables = vec![("$".into(), Kind::Unknown)];
            let body = walk.list(&define.body, Kind::Unknown);
            inner = inner.add_parse_tree(&define.name, body).map_err(|error| failed(&error))?;
        }
        if walk.wrongs.is_empty() { Ok(Self { inner }) } else { Err(walk.wrongs) }
    }

    /// Finds what is wrong with a template whatever the data are.
    pub(super) fn try_out(&self, data: &Value) -> Result<(), Wrong> {
        use TemplateError::{ArgCount, Escape, UndefinedFunction, UndefinedTemplate, UndefinedVariable};
        match self.inner.execute_to_string(data) {
            Err(
                error @ (ArgCount { .. }
                | Escape { .. }
                | UndefinedFunction(_)
                | UndefinedTemplate(_)
                | UndefinedVariable(_)),
            ) => Err(wrong(&error)),
            _ => Ok(()),
        }
    }

    /// The HTML of some data.
    pub(super) fn render(&self, data: &Value) -> Result<String, Wrong> {
        self.inner.execute_to_string(data).map_err(|error| wrong(&error))
    }
}

fn wrong(error: &TemplateError) -> Wrong {
    match error {
        TemplateError::Parse { line, col, message, .. } | TemplateError::Lex { line, col, message, .. } => {
            Wrong { line: *line, column: *col, reason: message.clone() }
        }
        TemplateError::Escape { line, description, .. } => {
            Wrong { line: *line, column: 0, reason: description.clone() }
        }
        other => Wrong { line: 0, column: 0, reason: other.to_string() },
    }
}

/// Whether each `if`, `range`, `with`, `define` and `block` has its `end`. The engine takes a template that lacks one, or that has
/// one too many, whose rest it drops.
fn balanced(text: &str) -> Result<(), Wrong> {
    let place = |offset: usize, reason: &str| {
        let before = &text[..offset];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Wrong { line, column, reason: reason.to_owned() }
    };
    let mut open = Vec::new();
    let mut at = 0;
    while let Some(found) = text[at..].find("{{") {
        let begin = at + found;
        let action = &text[begin + 2..];
        let inner = action.strip_prefix('-').unwrap_or(action).trim_start();
        at = begin + 2 + end_of_action(action);
        if inner.starts_with("/*") {
            continue;
        }
        let word: String = inner.chars().take_while(char::is_ascii_alphabetic).collect();
        match word.as_str() {
            "if" | "range" | "with" | "define" | "block" => open.push(begin),
            "end" if open.pop().is_none() => {
                return Err(place(begin, "there is nothing that this `end` ends"));
            }
            _ => {}
        }
    }
    match open.first() {
        Some(begin) => Err(place(*begin, "it has no `end`")),
        None => Ok(()),
    }
}

/// Where an action's `}}` is: not one in a text or a comment.
fn end_of_action(action: &str) -> usize {
    let start = action.strip_prefix('-').unwrap_or(action).trim_start();
    if start.starts_with("/*") {
        return action.find("*/").unwrap_or(action.len());
    }
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in action.char_indices() {
        match (quote, c) {
            (Some('"'), '\\') if !escaped => {
                escaped = true;
                continue;
            }
            (Some(open), c) if c == open && !escaped => quote = None,
            (None, '"' | '`') => quote = Some(c),
            (None, '}') if action[at..].starts_with("}}") => return at,
            _ => {}
        }
        escaped = false;
    }
    action.len()
}

/// A walk over a template that knows what each value is.
struct Walk<'a> {
    text: &'a str,
    wrongs: Vec<Wrong>,
    variables: Vec<(SmolStr, Kind)>,
}

impl Walk<'_> {
    fn complain(&mut self, pos: Pos, reason: String) {
        let before = &self.text[..pos.offset.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        self.wrongs.push(Wrong { line, column, reason });
    }

    fn list(&mut self, list: &ListNode, dot: Kind) -> ListNode {
        let scope = self.variables.len();
        let nodes = list.nodes.iter().map(|node| self.node(node, dot)).collect();
        self.variables.truncate(scope);
        ListNode { pos: list.pos, nodes }
    }

    fn node(&mut self, node: &Node, dot: Kind) -> Node {
        match node {
            Node::List(list) => Node::List(self.list(list, dot)),
            Node::Action(action) => {
                let mut action = action.clone();
                let (pipe, kind) = self.pipe(&action.pipe, dot);
                if !pipe.is_assign
                    && let [name] = &pipe.decl[..]
                {
                    self.variables.push((name.clone(), kind));
                }
                action.pipe = pipe;
                Node::Action(action)
            }
            Node::If(branch) => Node::If(self.branch(branch, dot, |_| dot)),
            Node::With(branch) => Node::With(self.branch(branch, dot, |kind| kind)),
            Node::Range(branch) => Node::Range(self.branch(branch, dot, Kind::item)),
            Node::Template(template) => {
                let mut template = template.clone();
                template.pipe = template.pipe.as_ref().map(|pipe| self.pipe(pipe, dot).0);
                Node::Template(template)
            }
            other => other.clone(),
        }
    }

    fn branch(&mut self, branch: &BranchNode, dot: Kind, inside: impl Fn(Kind) -> Kind) -> BranchNode {
        let scope = self.variables.len();
        let (pipe, kind) = self.pipe(&branch.pipe, dot);
        match &pipe.decl[..] {
            [value] if !pipe.is_assign => {
                // `if` gives its variable what it tests, whatever dot is.
                let kind = if inside(kind) == dot { kind } else { inside(kind) };
                self.variables.push((value.clone(), kind));
            }
            [key, value] if !pipe.is_assign => {
                self.variables.push((key.clone(), Kind::Unknown));
                self.variables.push((value.clone(), inside(kind)));
            }
            _ => {}
        }
        let body = self.list(&branch.body, inside(kind));
        let else_body = branch.else_body.as_ref().map(|body| self.list(body, dot));
        self.variables.truncate(scope);
        BranchNode { pos: branch.pos, pipe, body, else_body }
    }

    fn pipe(&mut self, pipe: &PipeNode, dot: Kind) -> (PipeNode, Kind) {
        let mut kind = Kind::Unknown;
        let commands = pipe
            .commands
            .iter()
            .map(|command| {
                let (command, result) = self.command(command, dot);
                kind = result;
                command
            })
            .collect();
        (PipeNode { commands, ..pipe.clone() }, kind)
    }

    fn command(&mut self, command: &CommandNode, dot: Kind) -> (CommandNode, Kind) {
        let Some((first, rest)) = command.args.split_first() else { return (command.clone(), Kind::Unknown) };
        let rest: Vec<(Expr, Kind)> = rest.iter().map(|argument| self.expression(argument, dot)).collect();
        let kinds: Vec<Kind> = rest.iter().map(|(_, kind)| *kind).collect();
        let arguments: Vec<Expr> = rest.into_iter().map(|(argument, _)| argument).collect();
        if let Expr::Identifier(pos, name) = first {
            if !FUNCTIONS.contains(&name.as_str()) {
                self.complain(
                    *pos,
                    format!("there is no function `{name}`: there are {}", FUNCTIONS[..23].join(", ")),
                );
            }
            let kind = match (name.as_str(), kinds.first()) {
                ("index", Some(kind)) if kinds.len() > 1 => kind.item(),
                _ => Kind::Unknown,
            };
            let mut args = vec![first.clone()];
            args.extend(arguments);
            return (CommandNode { pos: command.pos, args }, kind);
        }
        let (first, kind) = self.expression(first, dot);
        // A method's arguments follow it, and what comes through the pipe is the last of them.
        let args = match first {
            Expr::Pipe(_, PipeNode { mut commands, .. }) if is_method(&commands) => {
                let mut args = commands.pop().map(|command| command.args).unwrap_or_default();
                args.extend(arguments);
                args
            }
            first => std::iter::once(first).chain(arguments).collect(),
        };
        (CommandNode { pos: command.pos, args }, kind)
    }

    fn expression(&mut self, expression: &Expr, dot: Kind) -> (Expr, Kind) {
        match expression {
            Expr::Dot(_) => (expression.clone(), dot),
            Expr::Field(pos, names) => self.chain(Expr::Dot(*pos), dot, names, *pos),
            Expr::Variable(pos, name, names) => {
                let kind = self.variables.iter().rev().find(|(known, _)| known == name);
                let kind = kind.map_or(Kind::Unknown, |(_, kind)| *kind);
                self.chain(Expr::Variable(*pos, name.clone(), Vec::new()), kind, names, *pos)
            }
            Expr::Chain(pos, inner, names) => {
                let (inner, kind) = self.expression(inner, dot);
                self.chain(inner, kind, names, *pos)
            }
            Expr::Pipe(pos, pipe) => {
                let (pipe, kind) = self.pipe(pipe, dot);
                (Expr::Pipe(*pos, pipe), kind)
            }
            Expr::Identifier(..) => (expression.clone(), Kind::Unknown),
            Expr::String(..) => (expression.clone(), Kind::Text),
            other => (other.clone(), Kind::Unknown),
        }
    }

    /// Fields and methods of a value, one after the other.
    fn chain(&mut self, mut base: Expr, mut kind: Kind, names: &[SmolStr], pos: Pos) -> (Expr, Kind) {
        let mut plain: Vec<SmolStr> = Vec::new();
        for name in names {
            let (next, method) = match kind.field(name) {
                Ok(found) => found,
                Err(hint) => {
                    let path = names.join(".");
                    self.complain(
                        pos,
                        format!("`.{path}` would print nothing: there is no `.{name}` here; {hint}"),
                    );
                    (Kind::Unknown, false)
                }
            };
            if method {
                let receiver = fields(base, std::mem::take(&mut plain));
                let args = vec![
                    Expr::Identifier(pos, METHOD.into()),
                    Expr::String(pos, name.as_str().into()),
                    receiver,
                ];
                let commands = vec![CommandNode { pos, args }];
                base = Expr::Pipe(pos, PipeNode { pos, decl: Vec::new(), commands, is_assign: false });
            } else {
                plain.push(name.clone());
            }
            kind = next;
        }
        (fields(base, plain), kind)
    }
}

fn is_method(commands: &[CommandNode]) -> bool {
    matches!(commands, [command] if matches!(command.args.first(), Some(Expr::Identifier(_, name)) if name == METHOD))
}

/// Fields of a value, as the engine knows them.
fn fields(base: Expr, names: Vec<SmolStr>) -> Expr {
    if names.is_empty() {
        return base;
    }
    match base {
        Expr::Dot(pos) => Expr::Field(pos, names),
        Expr::Variable(pos, name, mut before) => {
            before.extend(names);
            Expr::Variable(pos, name, before)
        }
        other => Expr::Chain(other.pos(), Box::new(other), names),
    }
}

type Function = fn(&[Value]) -> gotmpl::Result<Value>;

fn functions() -> [(&'static str, Function); 5] {
    [
        ("ToUpper", |arguments| Ok(text(text_of(arguments, 0)?.to_uppercase()))),
        ("ToLower", |arguments| Ok(text(text_of(arguments, 0)?.to_lowercase()))),
        ("Replace", |arguments| {
            let [old, new, all] = [text_of(arguments, 0)?, text_of(arguments, 1)?, text_of(arguments, 2)?];
            Ok(text(all.replace(&old, &new)))
        }),
        ("RegexReplace", |arguments| {
            let [pattern, new, all] =
                [text_of(arguments, 0)?, text_of(arguments, 1)?, text_of(arguments, 2)?];
            match regex_lite::Regex::new(&pattern) {
                Ok(pattern) => Ok(text(pattern.replace_all(&all, new.as_str()).into_owned())),
                Err(error) => {
                    tracing::warn!(%error, "a template's regular expression is wrong; the text stays");
                    Ok(text(all))
                }
            }
        }),
        (METHOD, |arguments| {
            let name = text_of(arguments, 0)?;
            method(&name, arguments.get(1).unwrap_or(&Value::Nil), arguments.get(2..).unwrap_or_default())
        }),
    ]
}

fn text(text: impl Into<Arc<str>>) -> Value {
    Value::String(text.into())
}

fn text_of(arguments: &[Value], at: usize) -> gotmpl::Result<String> {
    match arguments.get(at) {
        Some(Value::String(text)) => Ok(text.to_string()),
        Some(Value::Nil) => Ok(String::new()),
        Some(other) => Ok(other.to_string()),
        None => Err(TemplateError::Exec(format!("argument {} is missing", at + 1))),
    }
}

/// Alertmanager's methods in Go, by what they are called on.
fn method(name: &str, receiver: &Value, arguments: &[Value]) -> gotmpl::Result<Value> {
    let unknown = || TemplateError::Exec(format!("there is no method {name} here"));
    let items: Vec<Value> = match receiver {
        Value::Map(map) => match name {
            "SortedPairs" => pairs(map).into_iter().map(|(name, value)| pair(&name, value)).collect(),
            "Names" => pairs(map).into_iter().map(|(name, _)| Value::String(name)).collect(),
            "Values" => pairs(map).into_iter().map(|(_, value)| value).collect(),
            "Remove" => {
                let without: Vec<String> = match arguments.first() {
                    Some(Value::List(names)) => names.iter().map(Value::to_string).collect(),
                    Some(name) => vec![name.to_string()],
                    None => return Err(unknown()),
                };
                let mut map = BTreeMap::clone(map);
                map.retain(|name, _| !without.iter().any(|other| **other == **name));
                return Ok(Value::Map(Arc::new(map)));
            }
            field => return Ok(map.get(field).cloned().unwrap_or(Value::Nil)),
        },
        Value::List(items) => {
            let with = |field: &str| items.iter().filter_map(|item| item.field(field).cloned()).collect();
            let in_state = |state: &str| {
                let is = |item: &&Value| item.field("Status").and_then(Value::as_str) == Some(state);
                items.iter().filter(is).cloned().collect()
            };
            match name {
                "Names" => with("Name"),
                "Values" => with("Value"),
                "Firing" => in_state("firing"),
                "Resolved" => in_state("resolved"),
                _ => return Err(unknown()),
            }
        }
        Value::String(written) => {
            let time =
                Time::parse(written).ok_or_else(|| TemplateError::Exec(format!("`{written}` is no time")))?;
            return Ok(match name {
                "Format" => text(time.format(&text_of(arguments, 0)?)),
                "UTC" | "Local" => text(time.utc().shown()),
                "String" => text(time.shown()),
                "Month" => text(time.month()),
                "Weekday" => text(time.weekday()),
                "IsZero" => Value::Bool(time.is_zero()),
                part => Value::Int(time.part(part).ok_or_else(unknown)?),
            });
        }
        _ => return Err(unknown()),
    };
    Ok(Value::List(items.into()))
}

/// Labels by their names, `alertname` first.
fn pairs(map: &BTreeMap<Arc<str>, Value>) -> Vec<(Arc<str>, Value)> {
    let mut pairs: Vec<(Arc<str>, Value)> =
        map.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    pairs.sort_by_key(|(name, _)| &**name != "alertname");
    pairs
}

fn pair(name: &Arc<str>, value: Value) -> Value {
    Value::Map(Arc::new(BTreeMap::from([
        ("Name".into(), Value::String(name.clone())),
        ("Value".into(), value),
    ])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(pairs: &[(&str, &str)]) -> Value {
        Value::Map(Arc::new(pairs.iter().map(|(name, value)| ((*name).into(), text(*value))).collect()))
    }

    fn data() -> Value {
        let labels = [("severity", "critical"), ("alertname", "Down"), ("pod", "<b>a</b>")];
        let alert = Value::from_entries([
            ("Status".to_owned(), text("firing")),
            ("Labels".to_owned(), kv(&labels)),
            ("Annotations".to_owned(), kv(&[("runbook", "javascript:alert(1)")])),
            ("StartsAt".to_owned(), text("2026-03-09 15:04:05 +0000 UTC")),
        ]);
        Value::from_entries([
            ("Alert".to_owned(), alert.clone()),
            ("Alerts".to_owned(), Value::List(vec![alert].into())),
            ("CommonLabels".to_owned(), kv(&[("a", "1"), ("b", "2")])),
            ("ComputedValues".to_owned(), kv(&[("color", "red")])),
            ("SilenceURL".to_owned(), text("https://am.example.org/#/silences/new?filter=%7B%7D")),
        ])
    }

    fn render(template: &str) -> String {
        Template::new("t", template)
            .unwrap_or_else(|wrong| panic!("{template}: {wrong:?}"))
            .render(&data())
            .unwrap()
    }

    #[test]
    fn methods_of_go_are_known() {
        for (template, shown) in [
            (
                "{{range .Alert.Labels.SortedPairs}}{{.Name}}={{.Value}} {{end}}",
                "alertname=Down pod=&lt;b&gt;a&lt;/b&gt; severity=critical ",
            ),
            ("{{range .Alert.Labels.Names}}{{.}} {{end}}", "alertname pod severity "),
            ("{{range $i, $v := .CommonLabels.SortedPairs.Values}}{{$i}}{{$v}} {{end}}", "01 12 "),
            (
                "{{range (.Alert.Labels.Remove .CommonLabels.Names).Names}}{{.}} {{end}}",
                "alertname pod severity ",
            ),
            ("{{range (.Alert.Labels.Remove .Alert.Labels.Names).SortedPairs}}x{{end}}", ""),
            ("{{.Alert.StartsAt}}", "2026-03-09 15:04:05 &#43;0000 UTC"),
            ("{{.Alert.StartsAt.Format \"15:04\"}}", "15:04"),
            ("{{\"15h04\" | .Alert.StartsAt.Format | ToUpper}}", "15H04"),
            ("{{.Alert.StartsAt.UTC.Unix}}", "1773068645"),
            ("{{with .Alert.StartsAt}}{{.Format \"2006\"}}{{end}}", "2026"),
            ("{{$a := .Alert}}{{$a.Labels.alertname}} {{$a.StartsAt.Format \"Jan\"}}", "Down Mar"),
            ("{{range .Alerts.Firing}}{{.Labels.alertname}}{{end}}{{len .Alerts.Resolved}}", "Down0"),
            (
                "{{define \"x\"}}{{range .SortedPairs}}{{.Name}};{{end}}{{end}}{{template \"x\" .CommonLabels}}",
                "a;b;",
            ),
            (
                "{{.Alert.Labels.nothing}}|{{.ComputedValues.color}}|{{index .Alert.Labels \"alertname\"}}",
                "|red|Down",
            ),
            (
                "{{if gt (len .Alert.Labels) 2}}{{printf \"%s!\" .Alert.Status}}{{else if true}}b{{end}}",
                "firing!",
            ),
            ("<a href=\"{{.Alert.Annotations.runbook}}\">x</a>", "<a href=\"#ZgotmplZ\">x</a>"),
        ] {
            assert_eq!(render(template), shown, "{template}");
        }
    }

    #[test]
    fn functions_replace() {
        // The cases of matrix-alertmanager-receiver's tests of Replace and RegexReplace.
        for (template, shown) in [
            (r#"{{Replace "o" "0" "foo"}}"#, "f00"),
            (r#"{{Replace "x" "0" "foo"}}"#, "foo"),
            (r#"{{"foo" | Replace "f" ""}}"#, "oo"),
            (r#"{{RegexReplace "[0-9]+" "-" "a1b22"}}"#, "a-b-"),
            (r#"{{RegexReplace "(a)(b)" "$2$1" "ab"}}"#, "ba"),
            (r#"{{RegexReplace "(" "x" "a(b"}}"#, "a(b"),
        ] {
            assert_eq!(render(template), shown, "{template}");
        }
    }

    #[test]
    fn what_would_print_nothing_is_refused_with_its_place() {
        for (template, line, column, part) in [
            ("x\n  {{.Alert.Foo}}", 2, 5, "`.Alert.Foo`"),
            ("{{.Labels.a}}", 1, 3, "there is no `.Labels` here"),
            ("{{.alert.Status}}", 1, 3, "write `.Alert`"),
            ("{{.Alert.Status.Foo}}", 1, 3, "a text"),
            ("{{range .Alert.Labels.SortedPairs}}{{.Key}}{{end}}", 1, 38, "Name, Value"),
            ("{{.Alert.StartsAt.Add 1}}", 1, 3, "Format"),
            ("{{$a := .Alert}}{{$a.Nope}}", 1, 19, "Nope"),
            ("{{toUpper .Alert.Status}}", 1, 3, "no function `toUpper`"),
        ] {
            let wrongs = Template::new("t", template).unwrap_err();
            assert_eq!(wrongs.len(), 1, "{template}: {wrongs:?}");
            assert_eq!((wrongs[0].line, wrongs[0].column), (line, column), "{template}: {wrongs:?}");
            assert!(wrongs[0].reason.contains(part), "{template}: {wrongs:?}");
        }
        for template in [
            "{{.Alert",
            "{{if true}}",
            "{{end}}",
            "{{if true}}{{end}}{{end}} lost",
            "{{range .Alerts}}{{if true}}{{- end -}}",
            "{{printf \"{{end}}\"}}{{end}}",
            "{{- /* {{if}} */ -}}{{end}}",
        ] {
            let wrongs = Template::new("t", template).expect_err(template);
            assert!(wrongs[0].line > 0, "{template}: {wrongs:?}");
        }
    }
}
