//! Pictures of a stack, from its plan: as SVG, Mermaid or Graphviz.
//!
//! A picture is made of lanes, which stand in columns from left to right and hold boxes; arrows go from lane to lane, so that
//! they stay few however many processes there are.

use std::fmt::Write as _;

use model::{Balance, Group, Instance, Role, Stream, Topology};

/// What a picture shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// The servers: who asks whom.
    #[default]
    Overview,
    /// The worker architecture: every process of Synapse, what it does and which streams it writes.
    Workers,
}

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagram {
    title: String,
    /// The picture in words.
    summary: String,
    lanes: Vec<Lane>,
    arrows: Vec<Arrow>,
}

/// Boxes that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lane {
    title: &'static str,
    column: usize,
    boxes: Vec<Node>,
}

/// A box.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    title: String,
    /// What is to be said about it.
    lines: Vec<String>,
    /// Its processes, as `matrix-stack status` calls them.
    processes: Vec<String>,
}

/// From one lane to another, by their places.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arrow {
    from: usize,
    to: usize,
    label: &'static str,
}

impl Node {
    fn new(title: impl Into<String>, lines: impl IntoIterator<Item = String>) -> Self {
        Self { title: title.into(), lines: lines.into_iter().collect(), processes: Vec::new() }
    }

    /// One process that is called so.
    fn process(mut self, name: &str) -> Self {
        self.processes.push(name.to_owned());
        self
    }
}

impl Diagram {
    /// The picture of a stack.
    pub fn of(topology: &Topology, view: View) -> Self {
        match view {
            View::Overview => overview(topology),
            View::Workers => workers(topology),
        }
    }

    /// Adds a lane, if it has boxes; its place.
    fn lane(&mut self, column: usize, title: &'static str, boxes: Vec<Node>) -> Option<usize> {
        if boxes.is_empty() {
            return None;
        }
        self.lanes.push(Lane { title, column, boxes });
        Some(self.lanes.len() - 1)
    }

    /// Adds an arrow between lanes that both exist.
    fn arrow(&mut self, from: Option<usize>, to: Option<usize>, label: &'static str) {
        if let (Some(from), Some(to)) = (from, to) {
            self.arrows.push(Arrow { from, to, label });
        }
    }
}

fn empty(topology: &Topology, what: &str) -> Diagram {
    let title = format!("{what} of {}", topology.stack().server_name);
    Diagram { title, summary: String::new(), lanes: Vec::new(), arrows: Vec::new() }
}

fn overview(topology: &Topology) -> Diagram {
    let stack = topology.stack();
    let mut picture = empty(topology, "The servers");
    let mut outside = vec![Node::new("Clients", ["Element, Cinny, bots …".to_owned()])];
    if stack.federation.enabled {
        outside.push(Node::new("Other servers", ["federation".to_owned()]));
    }
    let outside = picture.lane(0, "Outside", outside);
    let router = picture.lane(1, "Router", vec![router(topology)]);
    let workers = topology.instances().len() - 1;
    let mut synapse = vec![Node::new("Main process", []).process("main")];
    if workers > 0 {
        let mut kinds: Vec<(&str, usize)> = Vec::new();
        for (kind, count) in topology
            .groups()
            .iter()
            .map(|group| (kind(topology, group).title(), members(topology, group).count()))
        {
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, sum)) => *sum += count,
                None => kinds.push((kind, count)),
            }
        }
        let lines = kinds.iter().map(|(kind, count)| format!("{count} × {}", lower(kind)));
        synapse.push(Node::new(format!("{workers} workers"), lines));
    }
    let synapse = picture.lane(2, "Synapse", synapse);
    let companions = topology.companions().iter().map(|companion| {
        let name = companion.kind.name();
        Node::new(name, companion.path.clone()).process(name)
    });
    let companions = picture.lane(2, "Companions", companions.collect());
    let stores = picture.lane(3, "Storage", stores(topology));
    picture.arrow(outside, router, "HTTPS");
    picture.arrow(router, synapse, "HTTP");
    picture.arrow(router, companions, "HTTP");
    picture.arrow(synapse, stores, "SQL, RESP");
    let companions = match topology.companions().len() {
        0 => String::new(),
        count => format!(", and {count} companion services"),
    };
    picture.summary = format!(
        "Requests from outside come to the router, which gives each to one of {} Synapse processes{companions}. Synapse keeps \
         its data in PostgreSQL, and its processes tell each other of changes through Valkey.",
        topology.processes()
    );
    picture
}

fn workers(topology: &Topology) -> Diagram {
    let mut picture = empty(topology, "The worker architecture");
    let entrance = picture.lane(0, "Router", vec![router(topology)]);
    let of = |wanted: Does| {
        let groups = topology.groups().iter().filter(move |group| kind(topology, group) == wanted);
        groups.map(|group| group_box(topology, group)).collect::<Vec<_>>()
    };
    let answer = picture.lane(1, Does::Answer.title(), of(Does::Answer));
    let mut writers = vec![
        Node::new("main", [writes(topology.main())].into_iter().flatten()).process(&topology.main().name),
    ];
    writers[0].lines.insert(0, "everything that no other process does".to_owned());
    writers.extend(of(Does::Write));
    let writers = picture.lane(2, "Main and stream writers", writers);
    let alone = picture.lane(3, Does::Alone.title(), of(Does::Alone));
    let persist = picture.lane(3, Does::Persist.title(), of(Does::Persist));
    let stores = picture.lane(4, "Storage", stores(topology));
    picture.arrow(entrance, answer, "requests");
    picture.arrow(answer, writers, "replication");
    picture.arrow(writers, persist, "events");
    picture.arrow(persist, stores, "SQL");
    picture.arrow(alone, stores, "SQL");
    picture.arrow(entrance, writers, "requests");
    picture.arrow(answer, persist, "events");
    picture.arrow(writers, stores, "SQL; what changes, to all processes");
    picture.summary = format!(
        "The router gives each request to a process that can serve it. Processes that only answer pass what is to be written \
         on to the writer of its stream. All {} processes use PostgreSQL, and hear through Valkey what others wrote.",
        topology.processes()
    );
    picture
}

/// What the processes of a group are there for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Answer,
    Write,
    Persist,
    Alone,
}

impl Does {
    fn title(self) -> &'static str {
        match self {
            Self::Answer => "Answer requests",
            Self::Write => "Write streams",
            Self::Persist => "Persist events",
            Self::Alone => "Work by themselves",
        }
    }
}

fn members<'a>(topology: &'a Topology, group: &'a Group) -> impl Iterator<Item = &'a Instance> {
    topology.instances().iter().filter(|instance| instance.group == group.name)
}

fn kind(topology: &Topology, group: &Group) -> Does {
    let Some(instance) = members(topology, group).next() else { return Does::Alone };
    match (instance.client.is_some(), instance.writes.is_empty()) {
        // Media processes write a stream of their own, but what they are there for is to answer.
        (true, _) if instance.enable_media_repo => Does::Answer,
        (_, false) if instance.writes.contains(&Stream::Events) => Does::Persist,
        (_, false) => Does::Write,
        (true, true) => Does::Answer,
        (false, true) => Does::Alone,
    }
}

fn group_box(topology: &Topology, group: &Group) -> Node {
    let first = members(topology, group).next();
    // Roles that write a stream are told by the stream.
    let roles = group.roles.iter().filter(|role| role.stream().is_none()).map(|role| role.name());
    let roles: Vec<_> = roles.filter(|role| *role != group.name).collect();
    let mut lines: Vec<String> = (!roles.is_empty()).then(|| roles.join(", ")).into_iter().collect();
    lines.extend(first.and_then(writes));
    if first.is_some_and(Instance::is_pool) || members(topology, group).count() > 1 {
        lines.extend(group.roles.first().and_then(|role| spread(topology, *role)));
    }
    let names = members(topology, group).map(|instance| match instance.replicas {
        Some(replicas) => format!("{} (pool of {} to {})", instance.name, replicas.count, replicas.max),
        None => instance.name.clone(),
    });
    Node { title: group.name.clone(), lines, processes: names.collect() }
}

fn writes(instance: &Instance) -> Option<String> {
    let streams: Vec<_> = instance.writes.iter().map(|stream| stream.name()).collect();
    (!streams.is_empty()).then(|| format!("writes {}", streams.join(", ")))
}

/// How a role's work is spread.
fn spread(topology: &Topology, role: Role) -> Option<String> {
    use model::Shard;
    Some(
        match topology.balance(role) {
            Balance::None => return None,
            Balance::RoundRobin => "each in turn",
            Balance::LeastConnections => "to the least busy",
            Balance::HashRoom | Balance::BySynapse(Shard::Room) => "by room",
            Balance::HashUser | Balance::BySynapse(Shard::User) => "by user",
            Balance::HashOrigin => "by origin server",
            Balance::BySynapse(Shard::Destination) => "by destination server",
        }
        .to_owned(),
    )
}

fn router(topology: &Topology) -> Node {
    let stack = topology.stack();
    let lines =
        [Some(stack.listen.address.clone()), stack.listen.tls.as_ref().map(|_| "ends TLS".to_owned())];
    Node::new("Router", lines.into_iter().flatten()).process("router")
}

fn stores(topology: &Topology) -> Vec<Node> {
    let stack = topology.stack();
    let connections = format!("at most {} connections", topology.max_connections());
    let postgres = match &stack.database.external {
        Some(external) => Node::new("PostgreSQL", [external.host.clone(), connections]),
        None => Node::new("PostgreSQL", [connections]).process("postgres"),
    };
    let streams = "streams between processes".to_owned();
    let valkey = match &stack.redis.external {
        Some(external) => Node::new("Valkey", [external.host.clone(), streams]),
        None => Node::new("Valkey", [streams]).process("valkey"),
    };
    let media = if topology.has_media_process() { "of the media processes" } else { "of main" };
    vec![postgres, valkey, Node::new("Media files", [media.to_owned()])]
}

fn lower(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

// ---- Mermaid and Graphviz ----

impl Diagram {
    /// As Mermaid's flowchart (<https://mermaid.js.org/syntax/flowchart.html>).
    pub fn mermaid(&self) -> String {
        // Entities are written with `#`, and a label in quotes may hold all else.
        let escape = |text: &str| {
            let mut out = String::new();
            for c in text.chars() {
                match c {
                    '"' | '#' | '<' | '>' | '&' | '`' => {
                        let _ = write!(out, "#{};", u32::from(c));
                    }
                    c => out.push(c),
                }
            }
            out
        };
        let mut out = format!(
            "flowchart LR\n    accTitle: {}\n    accDescr: {}\n",
            escape(&self.title),
            escape(&self.summary)
        );
        for (at, lane) in self.lanes.iter().enumerate() {
            let _ = writeln!(out, "    subgraph lane{at} [\"{}\"]", escape(lane.title));
            for (number, node) in lane.boxes.iter().enumerate() {
                let label: Vec<_> = node.text().map(escape).collect();
                let _ = writeln!(out, "        box{at}_{number}[\"{}\"]", label.join("<br>"));
            }
            out.push_str("    end\n");
        }
        for arrow in &self.arrows {
            let label =
                if arrow.label.is_empty() { String::new() } else { format!("|\"{}\"|", escape(arrow.label)) };
            let _ = writeln!(out, "    lane{} -->{label} lane{}", arrow.from, arrow.to);
        }
        out
    }

    /// As Graphviz' DOT (<https://graphviz.org/doc/info/lang.html>).
    pub fn dot(&self) -> String {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let mut out = format!(
            "digraph stack {{\n    rankdir=LR; compound=true; label=\"{}\"; tooltip=\"{}\";\n    \
             node [shape=box, style=rounded, fontname=\"sans-serif\"];\n",
            escape(&self.title),
            escape(&self.summary)
        );
        for (at, lane) in self.lanes.iter().enumerate() {
            let _ = writeln!(out, "    subgraph cluster_{at} {{\n        label=\"{}\";", escape(lane.title));
            for (number, node) in lane.boxes.iter().enumerate() {
                let label: Vec<_> = node.text().map(escape).collect();
                let _ = writeln!(out, "        box{at}_{number} [label=\"{}\"];", label.join("\\n"));
            }
            out.push_str("    }\n");
        }
        for arrow in &self.arrows {
            let _ = writeln!(
                out,
                "    box{0}_0 -> box{1}_0 [ltail=cluster_{0}, lhead=cluster_{1}, label=\"{2}\"];",
                arrow.from,
                arrow.to,
                escape(arrow.label)
            );
        }
        out.push_str("}\n");
        out
    }
}

impl Node {
    /// All that stands in the box. One process that is called like the box is not said twice.
    fn text(&self) -> impl Iterator<Item = &str> {
        let processes = if self.is_its_process() { &[][..] } else { &self.processes[..] };
        std::iter::once(&self.title).chain(&self.lines).chain(processes).map(String::as_str)
    }

    fn is_its_process(&self) -> bool {
        matches!(&self.processes[..], [one] if *one == self.title || one == "router" || one == "postgres" || one == "valkey")
    }
}

// ---- SVG ----

/// The style of every picture. A file has it in itself; a page has it in its stylesheet.
pub const DIAGRAM_STYLE: &str = "\
.diagram{--ink:#1f2328;--dim:#59636e;--paper:#fff;--lane:#f3f5f8;--line:#8b949e;--edge:#d1d9e0}\
@media (prefers-color-scheme:dark){.diagram{--ink:#f0f6fc;--dim:#9da7b3;--paper:#0d1117;--lane:#161b22;--line:#768390;\
--edge:#3d444d}}\
.diagram text{font:12px system-ui,sans-serif;fill:var(--ink)}\
.diagram .lane rect{fill:var(--lane)}.diagram .lane>text{font-weight:600;fill:var(--dim)}\
.diagram .box rect{fill:var(--paper);stroke:var(--edge)}.diagram .box .name{font-weight:600}\
.diagram .box .line,.diagram .arrow text,.diagram .figure{font-size:11px;fill:var(--dim)}\
.diagram .arrow path{fill:none;stroke:var(--line);stroke-width:1.5}.diagram .head{fill:var(--line)}\
.diagram .process circle{fill:var(--line)}";

const WIDTH: usize = 216;
const GAP: usize = 64;
const MARGIN: usize = 12;
const LINE: usize = 16;
/// The letters that fit into a line of a box.
const LETTERS: usize = 33;

/// Where something stands.
#[derive(Clone, Copy)]
struct Place {
    x: usize,
    y: usize,
    height: usize,
}

impl Place {
    fn bottom(self) -> usize {
        self.y + self.height
    }
}

impl Diagram {
    /// As a file of its own, for light and dark surroundings.
    pub fn svg(&self) -> String {
        format!("{}\n", self.draw(&format!("<style>{DIAGRAM_STYLE}</style>"), None))
    }

    /// As part of a page whose stylesheet holds [`DIAGRAM_STYLE`]: each process is a link to `base` followed by its name, with
    /// `data-process`, and has an empty text of class `figure` beside its name.
    pub fn svg_for_page(&self, base: &str) -> String {
        self.draw("", Some(base))
    }

    fn draw(&self, style: &str, links: Option<&str>) -> String {
        let height_of = |node: &Node| {
            let live = links.is_some();
            let processes = node.rows(live).iter().map(|process| if live { lines_of(process) } else { 1 });
            let rows = 1 + node.wrapped().count() + processes.sum::<usize>();
            rows * LINE + 14
        };
        let mut columns = vec![MARGIN; self.lanes.iter().map(|lane| lane.column + 1).max().unwrap_or(1)];
        let mut places = Vec::new();
        for lane in &self.lanes {
            let height = 26 + lane.boxes.iter().map(|node| height_of(node) + 8).sum::<usize>() + 2;
            let y = &mut columns[lane.column];
            // Columns without lanes take no room.
            let column =
                (0..lane.column).filter(|c| self.lanes.iter().any(|other| other.column == *c)).count();
            places.push(Place { x: MARGIN + column * (WIDTH + 16 + GAP), y: *y, height });
            *y += height + 20;
        }
        let used = places.iter().map(|place| place.bottom()).max().unwrap_or_default();
        let width = places.iter().map(|place| place.x).max().unwrap_or_default() + WIDTH + 16 + MARGIN;
        let mut arrows = String::new();
        let mut below = used;
        for arrow in &self.arrows {
            self.draw_arrow(arrow, &places, &mut below, &mut arrows);
        }
        let height = below + MARGIN + if below > used { 4 } else { 0 };
        let role = if links.is_some() { "group" } else { "img" };
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"diagram\" viewBox=\"0 0 {width} {height}\" role=\"{role}\" \
             aria-labelledby=\"diagram-title diagram-summary\">\n<title id=\"diagram-title\">{}</title>\n\
             <desc id=\"diagram-summary\">{}</desc>\n{style}\n\
             <defs><marker id=\"head\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
             orient=\"auto-start-reverse\"><path class=\"head\" d=\"M0 0 8 4 0 8z\"/></marker></defs>\n",
            escape(&self.title),
            escape(&self.summary)
        );
        for (lane, place) in self.lanes.iter().zip(&places) {
            let _ = writeln!(
                out,
                "<g class=\"lane\"><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"8\"/><text x=\"{}\" y=\"{}\">{}</text></g>",
                place.x,
                place.y,
                WIDTH + 16,
                place.height,
                place.x + 10,
                place.y + 18,
                escape(lane.title)
            );
            let mut y = place.y + 26;
            for node in &lane.boxes {
                let height = height_of(node);
                node.draw(Place { x: place.x + 8, y, height }, links, &mut out);
                y += height + 8;
            }
        }
        out.push_str(&arrows);
        out.push_str("</svg>");
        out
    }

    /// Between neighbours an arrow goes through the gap; all others go below everything, each on a line of its own.
    fn draw_arrow(&self, arrow: &Arrow, places: &[Place], below: &mut usize, out: &mut String) {
        let (from, to) = (places[arrow.from], places[arrow.to]);
        let right = from.x + WIDTH + 16;
        let (path, x, y) = if to.x == right + GAP {
            let end = to.y + 38;
            let start = end.clamp(from.y + 12, from.bottom() - 12);
            let middle = right + GAP / 2;
            (format!("M{right} {start}H{middle}V{end}H{}", to.x - 1), middle, start.min(end) - 5)
        } else {
            // Lines that leave or reach the same lane do not lie on each other.
            let same = |lane: usize| {
                let before = self.arrows.iter().take_while(|other| *other != arrow);
                before.filter(|other| other.from == lane || other.to == lane).count()
            };
            *below += 22;
            let (x1, x2) = (from.x + 60 + 16 * same(arrow.from), to.x + 60 + 16 * same(arrow.to));
            let path = format!("M{x1} {}V{below}H{x2}V{}", from.bottom(), to.bottom() + 1);
            (path, usize::midpoint(x1, x2), *below - 5)
        };
        let _ = writeln!(
            out,
            "<g class=\"arrow\"><path d=\"{path}\" marker-end=\"url(#head)\"/><text x=\"{x}\" y=\"{y}\" \
             text-anchor=\"middle\">{}</text></g>",
            escape(arrow.label)
        );
    }
}

impl Node {
    /// Its lines, broken where they are too long.
    fn wrapped(&self) -> impl Iterator<Item = String> {
        self.lines.iter().flat_map(|line| {
            let mut lines = vec![String::new()];
            for word in line.split(' ') {
                let last = lines.last().map_or(0, |last| last.chars().count());
                if last > 0 && last + 1 + word.chars().count() > LETTERS {
                    lines.push(String::new());
                }
                if let Some(last) = lines.last_mut() {
                    if !last.is_empty() {
                        last.push(' ');
                    }
                    last.push_str(word);
                }
            }
            lines
        })
    }

    /// The processes that have rows of their own: on a page all, for each has figures there.
    fn rows(&self, live: bool) -> &[String] {
        if self.is_its_process() && !live { &[] } else { &self.processes }
    }

    fn draw(&self, place: Place, links: Option<&str>, out: &mut String) {
        let Place { x, y, height } = place;
        let mut row = y + 18;
        let _ = writeln!(
            out,
            "<g class=\"box\"><rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\
             <text class=\"name\" x=\"{}\" y=\"{row}\">{}</text>",
            x + 10,
            escape(&self.title)
        );
        for line in self.wrapped() {
            row += LINE;
            let _ =
                writeln!(out, "<text class=\"line\" x=\"{}\" y=\"{row}\">{}</text>", x + 10, escape(&line));
        }
        for process in self.rows(links.is_some()) {
            row += LINE;
            let name = escape(process);
            let dot = format!("<circle cx=\"{}\" cy=\"{}\" r=\"4\"/>", x + 15, row - 4);
            let text = format!("<text x=\"{}\" y=\"{row}\">{name}</text>", x + 25);
            let _ = match links {
                None => writeln!(out, "<g class=\"process\">{dot}{text}</g>"),
                Some(base) => {
                    // Beside a long name is no room for figures.
                    row += (lines_of(process) - 1) * LINE;
                    writeln!(
                        out,
                        "<a class=\"process\" href=\"{}{name}\" data-process=\"{name}\">{dot}{text}<text class=\"figure\" \
                     x=\"{}\" y=\"{row}\" text-anchor=\"end\"></text></a>",
                        escape(base),
                        x + WIDTH - 8
                    )
                }
            };
        }
        out.push_str("</g>\n");
    }
}

/// How many lines a process takes where it has figures.
fn lines_of(process: &str) -> usize {
    if process.chars().count() > 13 { 2 } else { 1 }
}

/// Text for XML, in an element or an attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use model::{Preset, Stack};

    use super::*;

    fn picture(preset: Preset, view: View) -> Diagram {
        let stack = Stack::new("example.org".to_owned().try_into().unwrap());
        Diagram::of(&model::plan(&stack, Path::new("/run/x"), preset).unwrap(), view)
    }

    #[test]
    fn the_pictures_in_the_readme_are_up_to_date() {
        let mut stack = Stack::new("example.org".to_owned().try_into().unwrap());
        stack.companions = serde_json::from_str(r#"{"livekit_jwt": {}, "webhook": {}}"#).unwrap();
        let topology = model::plan(&stack, Path::new("/run/x"), Preset::Medium).unwrap();
        committed::file("docs/images/overview.svg", &Diagram::of(&topology, View::Overview).svg());
        committed::file("docs/images/workers.svg", &Diagram::of(&topology, View::Workers).svg());
    }

    #[test]
    fn every_process_is_in_the_picture_of_the_workers() {
        for preset in [Preset::Small, Preset::Medium, Preset::Full] {
            let stack = Stack::new("example.org".to_owned().try_into().unwrap());
            let topology = model::plan(&stack, Path::new("/run/x"), preset).unwrap();
            let picture = Diagram::of(&topology, View::Workers);
            let page = picture.svg_for_page("/process/");
            for instance in topology.instances() {
                let link = format!("href=\"/process/{0}\" data-process=\"{0}\"", instance.name);
                assert_eq!(page.matches(&link).count(), 1, "{} in {preset}", instance.name);
                for text in [picture.svg(), picture.mermaid(), picture.dot()] {
                    assert!(text.contains(&instance.name), "{} in {text}", instance.name);
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_never_markup() {
        let mut picture = picture(Preset::Small, View::Overview);
        picture.lanes[0].boxes[0].title = "<script>alert(\"x\")</script>".to_owned();
        assert!(!picture.svg().contains("<script"));
        assert!(!picture.mermaid().contains("<script"));
        assert!(picture.dot().contains(r#"<script>alert(\"x\")</script>"#));
    }

    #[test]
    fn pictures_tell_what_they_show() {
        let svg = picture(Preset::Medium, View::Overview).svg();
        assert!(svg.contains("<title id=\"diagram-title\">The servers of example.org</title>"), "{svg}");
        assert!(svg.contains("role=\"img\"") && svg.contains("prefers-color-scheme:dark"));
    }
}
