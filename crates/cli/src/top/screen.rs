//! How a view is laid out on a terminal, and what keys do to it.

use std::cmp::Reverse;

use clap::ValueEnum;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row, Table, Widget as _};
use runtime::client::Phase;

use super::sample::Latency;
use super::view::{ClassView, FailureView, InstanceView, Traffic, View};

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Requests a second
    #[default]
    Requests,
    /// 99th percentile of the time to the head of the response
    Latency,
    /// Errors a second
    Errors,
    /// Memory
    Memory,
    /// Processor time
    Cpu,
    /// Name
    Name,
}

/// Which of the tables is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tab {
    /// The beginning of each.
    #[default]
    All,
    Instances,
    Classes,
    Failures,
}

/// What one chose to see.
#[derive(Clone, Debug, Default)]
pub(crate) struct Screen {
    sort: Sort,
    /// Only rows that contain it.
    filter: String,
    pub(crate) paused: bool,
    /// The filter is being written.
    writing: bool,
    tab: Tab,
    /// How many rows of a table of its own, or else of the instances, lie above the first that is shown.
    skipped: usize,
}

/// What there is to draw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Picture<'a> {
    /// None before the second sample.
    pub(crate) view: Option<&'a View>,
    /// Why there is none that is newer.
    pub(crate) trouble: Option<&'a str>,
}

/// What a key leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Stay,
    Quit,
}

/// The rows that one goes with a page.
const PAGE: usize = 10;
/// So many failures are shown beside the other tables.
const FEW: usize = 3;
/// From this width on there is room for what is nice to know.
const WIDE: u16 = 100;
const LONGEST_FILTER: usize = 40;

impl Screen {
    pub(crate) fn new(sort: Sort, filter: &str) -> Self {
        Self { sort, filter: filter.to_owned(), ..Self::default() }
    }

    pub(crate) fn key(&mut self, key: KeyEvent) -> Then {
        if key.kind == KeyEventKind::Release {
            return Then::Stay;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Then::Quit } else { Then::Stay };
        }
        if self.writing {
            self.write(key.code);
            return Then::Stay;
        }
        let sort = match key.code {
            KeyCode::Char('q') => return Then::Quit,
            KeyCode::Esc if self.filter.is_empty() => return Then::Quit,
            KeyCode::Esc => {
                self.filter.clear();
                return Then::Stay;
            }
            KeyCode::Char('r') => Sort::Requests,
            KeyCode::Char('l') => Sort::Latency,
            KeyCode::Char('e') => Sort::Errors,
            KeyCode::Char('m') => Sort::Memory,
            KeyCode::Char('c') => Sort::Cpu,
            KeyCode::Char('n') => Sort::Name,
            other => {
                self.go(other);
                return Then::Stay;
            }
        };
        (self.sort, self.skipped) = (sort, 0);
        Then::Stay
    }

    fn go(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('/') => self.writing = true,
            KeyCode::Tab => {
                self.skipped = 0;
                self.tab = match self.tab {
                    Tab::All => Tab::Instances,
                    Tab::Instances => Tab::Classes,
                    Tab::Classes => Tab::Failures,
                    Tab::Failures => Tab::All,
                };
            }
            KeyCode::Up => self.skipped = self.skipped.saturating_sub(1),
            KeyCode::PageUp => self.skipped = self.skipped.saturating_sub(PAGE),
            KeyCode::Home => self.skipped = 0,
            // How many there are is known when it is drawn.
            KeyCode::Down => self.skipped = self.skipped.saturating_add(1),
            KeyCode::PageDown => self.skipped = self.skipped.saturating_add(PAGE),
            KeyCode::End => self.skipped = usize::MAX,
            _ => {}
        }
    }

    fn write(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.writing = false,
            KeyCode::Esc => {
                self.writing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(char) if self.filter.chars().count() < LONGEST_FILTER => self.filter.push(char),
            _ => {}
        }
        self.skipped = 0;
    }

    /// Draws the whole of it.
    pub(crate) fn draw(&mut self, frame: &mut Frame<'_>, picture: Picture<'_>) {
        let area = frame.area();
        let buffer = frame.buffer_mut();
        let mut lines = Lines { buffer, area };
        let Some(view) = picture.view else {
            lines.top(picture.trouble.unwrap_or("Measuring ...").into());
            return;
        };
        lines.bottom(self.help(area.width));
        self.head(&mut lines, view, picture.trouble);
        self.tables(&mut lines, view);
    }

    fn head(&self, lines: &mut Lines<'_>, view: &View, trouble: Option<&str>) {
        for (place, text) in summary(view).into_iter().enumerate() {
            let style = if place == 0 { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
            lines.top(Line::styled(text, style));
        }
        let mut notes = notes(view);
        if let Some(trouble) = trouble {
            notes.insert(0, format!("! no news: {trouble}"));
        }
        let amiss = !notes.is_empty();
        if self.paused {
            notes.push("PAUSED".to_owned());
        }
        if self.writing || !self.filter.is_empty() {
            let cursor = if self.writing { "_" } else { "" };
            notes.push(format!("filter: {}{cursor}", self.filter));
        }
        if notes.is_empty() {
            notes.push("all is well".to_owned());
        }
        lines.top(Line::styled(notes.join("  "), if amiss { alarm() } else { Style::new() }));
    }

    fn help(&self, width: u16) -> Line<'static> {
        let text = if self.writing {
            "Enter: keep the filter   Esc: forget it"
        } else if width < WIDE {
            "q quit  p pause  / filter  Tab tables  ↑↓ scroll  sort by: r l e m c n"
        } else {
            "q quit  p pause  / filter  Tab tables  ↑↓ scroll  sort by: r)eq/s l)atency e)rrors m)em c)pu n)ame"
        };
        Line::styled(text, Style::new().add_modifier(Modifier::DIM))
    }

    fn tables(&mut self, lines: &mut Lines<'_>, view: &View) {
        let wide = lines.area.width >= WIDE;
        let instances = self.instances(view);
        let classes = self.classes(view);
        let failures: Vec<_> = view
            .failures
            .iter()
            .filter(|failure| self.wants([failure.instance.as_str(), failure.failure.as_str()]))
            .collect();
        let height = usize::from(lines.area.height);
        // Each has a line for its head, and one where there is nothing.
        let [all, others, failed] =
            [instances.len(), classes.len(), failures.len().min(FEW)].map(|rows| 1 + rows.max(1));
        let left = height.saturating_sub(failed);
        let own = match self.tab {
            Tab::All => all.min(left.saturating_sub(others).max(left * 3 / 5)),
            _ => height,
        };
        // Where there is room, tables stand apart.
        let gap = usize::from(left >= own + others + 2);
        let shown = own.saturating_sub(1);
        // The column's head says what is seen, if that is not all.
        let head = if instances.len() > shown { "INSTANCE▼ 10-20 of 40" } else { "INSTANCE▼" };
        let names = instances.iter().map(|row| row.name.chars().count());
        let longest = names.max().unwrap_or(0).max(head.chars().count());
        let (table, rows) = match self.tab {
            Tab::All | Tab::Instances => (
                instance_columns(wide, longest),
                instances.iter().map(|row| instance_row(row, wide)).collect(),
            ),
            Tab::Classes => (class_columns(), classes.iter().map(|row| class_row(row)).collect()),
            Tab::Failures => (failure_columns(), failures.iter().map(|row| failure_row(row)).collect()),
        };
        let rows: Vec<_> = rows;
        self.skipped = self.skipped.min(rows.len().saturating_sub(shown));
        self.table(lines, own, &table, rows, self.skipped);
        if self.tab == Tab::All {
            lines.take(gap);
            let rows = classes.iter().map(|row| class_row(row)).collect();
            self.table(lines, others.min(left - own), &class_columns(), rows, 0);
            lines.take(gap);
            let rows = failures.iter().map(|row| failure_row(row)).collect();
            self.table(lines, failed, &failure_columns(), rows, 0);
        }
    }

    /// A table in the next `height` lines, and how much of it is seen.
    fn table(
        &self,
        lines: &mut Lines<'_>,
        height: usize,
        columns: &[Column],
        rows: Vec<(bool, Vec<String>)>,
        skipped: usize,
    ) {
        let area = lines.take(height);
        let (all, shown) = (rows.len(), height.saturating_sub(1));
        let seen = if all > shown {
            format!(" {}-{} of {all}", skipped + 1, (skipped + shown).min(all))
        } else {
            String::new()
        };
        let head = columns.iter().enumerate().map(|(place, column)| {
            let mark = if column.sort == Some(self.sort) { "▼" } else { "" };
            let seen = if place == 0 { &*seen } else { "" };
            column.cell(format!("{}{mark}{seen}", column.title))
        });
        let head = Row::new(head).style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
        let empty = rows.is_empty().then(|| Row::new(["  none"]));
        let rows = rows.into_iter().skip(skipped).map(|(amiss, cells)| {
            let cells = cells.into_iter().zip(columns).map(|(cell, column)| column.cell(cell));
            Row::new(cells).style(if amiss { alarm() } else { Style::new() })
        });
        let widths = columns.iter().map(|column| column.width);
        Table::new(rows.chain(empty), widths).header(head).column_spacing(1).render(area, lines.buffer);
    }

    fn wants<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> bool {
        texts.into_iter().any(|text| text.contains(&self.filter))
    }

    fn instances<'v>(&self, view: &'v View) -> Vec<&'v InstanceView> {
        let texts =
            |row: &'v InstanceView| [&row.name, &row.state].into_iter().chain(&row.roles).map(String::as_str);
        let mut rows: Vec<_> = view.instances.iter().filter(|row| self.wants(texts(row))).collect();
        let traffic = |of: fn(&Traffic) -> f64| move |row: &InstanceView| row.traffic.as_ref().map(of);
        match self.sort {
            Sort::Requests => descend(&mut rows, traffic(|traffic| traffic.requests_per_second)),
            Sort::Latency => descend(&mut rows, |row| row.traffic.as_ref()?.p99.map(|p99| p99.seconds)),
            Sort::Errors => descend(&mut rows, traffic(|traffic| traffic.errors_per_second)),
            Sort::Memory => rows.sort_by_key(|row| Reverse(row.memory_bytes)),
            Sort::Cpu => descend(&mut rows, |row| row.cpu_percent),
            Sort::Name => rows.sort_by(|a, b| a.name.cmp(&b.name)),
        }
        rows
    }

    fn classes<'v>(&self, view: &'v View) -> Vec<&'v ClassView> {
        let mut rows: Vec<_> = view.classes.iter().filter(|row| self.wants([&*row.name])).collect();
        match self.sort {
            Sort::Latency => descend(&mut rows, |row| row.traffic.p99.map(|p99| p99.seconds)),
            Sort::Errors => descend(&mut rows, |row| Some(row.traffic.errors_per_second)),
            // They are in the order of their names.
            Sort::Name => {}
            _ => descend(&mut rows, |row| Some(row.traffic.requests_per_second)),
        }
        rows
    }
}

/// Sorts the largest to the top. Equals stay as they are, and what has no such figure is last.
fn descend<T>(rows: &mut [&T], by: impl Fn(&T) -> Option<f64>) {
    let by = |row: &T| by(row).unwrap_or(f64::NEG_INFINITY);
    rows.sort_by(|a, b| by(b).total_cmp(&by(a)));
}

/// Never the only sign: whatever is amiss is marked with `!` too.
fn alarm() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

/// The lines that are still free.
struct Lines<'b> {
    buffer: &'b mut Buffer,
    area: Rect,
}

impl Lines<'_> {
    fn take(&mut self, height: usize) -> Rect {
        let height = u16::try_from(height).unwrap_or(u16::MAX).min(self.area.height);
        let taken = Rect { height, ..self.area };
        self.area = Rect { y: self.area.y + height, height: self.area.height - height, ..self.area };
        taken
    }

    fn top(&mut self, line: Line<'_>) {
        let area = self.take(1);
        line.render(area, self.buffer);
    }

    fn bottom(&mut self, line: Line<'_>) {
        let height = self.area.height.min(1);
        self.area.height -= height;
        let area = Rect { y: self.area.bottom(), height, ..self.area };
        line.render(area, self.buffer);
    }
}

struct Column {
    title: &'static str,
    width: Constraint,
    right: bool,
    sort: Option<Sort>,
}

impl Column {
    const fn text(title: &'static str, width: Constraint, sort: Option<Sort>) -> Self {
        Self { title, width, right: false, sort }
    }

    const fn number(title: &'static str, width: u16, sort: Option<Sort>) -> Self {
        Self { title, width: Constraint::Length(width), right: true, sort }
    }

    fn cell(&self, text: String) -> Cell<'static> {
        let text = Text::from(text);
        Cell::from(if self.right { text.right_aligned() } else { text })
    }
}

/// With room for names of this length, where there is room for more than names.
fn instance_columns(wide: bool, longest: usize) -> Vec<Column> {
    let name = if wide {
        Constraint::Length(u16::try_from(longest + 2).unwrap_or(u16::MAX))
    } else {
        Constraint::Fill(1)
    };
    let mut columns = vec![
        Column::text("  INSTANCE", name, Some(Sort::Name)),
        Column::text("STATE", Constraint::Length(10), None),
        Column::number("REQ/S", 6, Some(Sort::Requests)),
        Column::number("FLIGHT", 6, None),
        Column::number("P50", 6, None),
        Column::number("P99", 6, Some(Sort::Latency)),
        Column::number("ERR/S", 6, Some(Sort::Errors)),
        Column::number("MEM", 5, Some(Sort::Memory)),
        Column::number("CPU", 4, Some(Sort::Cpu)),
    ];
    if wide {
        columns.insert(1, Column::text("ROLES", Constraint::Fill(1), None));
        columns.push(Column::number("RESTARTS", 8, None));
    }
    columns
}

fn instance_row(row: &InstanceView, wide: bool) -> (bool, Vec<String>) {
    let traffic = |of: fn(&Traffic) -> String| row.traffic.as_ref().map_or_else(nothing, of);
    let mut cells = vec![
        format!("{} {}", if row.amiss { '!' } else { ' ' }, row.name),
        row.state.clone(),
        traffic(|traffic| rate(traffic.requests_per_second)),
        traffic(|traffic| whole(traffic.in_flight)),
        traffic(|traffic| latency(traffic.p50)),
        traffic(|traffic| latency(traffic.p99)),
        traffic(|traffic| rate(traffic.errors_per_second)),
        row.memory_bytes.map_or_else(nothing, memory),
        row.cpu_percent.map_or_else(nothing, percent),
    ];
    if wide {
        cells.insert(1, row.roles.join(" "));
        cells.push(row.restarts.map_or_else(nothing, |restarts| restarts.to_string()));
    }
    (row.amiss, cells)
}

fn class_columns() -> Vec<Column> {
    vec![
        Column::text("  CLASS", Constraint::Fill(1), Some(Sort::Name)),
        Column::number("REQ/S", 6, Some(Sort::Requests)),
        Column::number("FLIGHT", 6, None),
        Column::number("P50", 6, None),
        Column::number("P99", 6, Some(Sort::Latency)),
        Column::number("ERRORS", 7, Some(Sort::Errors)),
        Column::number("SHED/S", 6, None),
        Column::number("QUEUED", 6, None),
    ]
}

fn class_row(row: &ClassView) -> (bool, Vec<String>) {
    let traffic = &row.traffic;
    let amiss = traffic.errors_per_second > 0.0 || row.shed_per_second > 0.0;
    let cells = vec![
        format!("{} {}", if amiss { '!' } else { ' ' }, row.name),
        rate(traffic.requests_per_second),
        whole(traffic.in_flight),
        latency(traffic.p50),
        latency(traffic.p99),
        row.error_share.map_or_else(nothing, |share| percent(share * 100.0)),
        rate(row.shed_per_second),
        whole(row.queued),
    ];
    (amiss, cells)
}

fn failure_columns() -> Vec<Column> {
    vec![
        Column::text("  FAILURES", Constraint::Fill(2), None),
        Column::text("WHAT", Constraint::Fill(3), None),
        Column::number("TIMES", 6, None),
        Column::number("LAST", 12, None),
    ]
}

fn failure_row(row: &FailureView) -> (bool, Vec<String>) {
    let last = row.last_seconds_ago.map_or_else(
        || "before".to_owned(),
        |seconds| match seconds {
            0..=99 => format!("{seconds} s ago"),
            100..=5999 => format!("{} min ago", seconds / 60),
            _ => format!("{} h ago", seconds / 3600),
        },
    );
    (false, vec![format!("  {}", row.instance), row.failure.clone(), whole(row.times), last])
}

/// The figures of everything together, in three lines of which each fits in 80 columns.
fn summary(view: &View) -> [String; 3] {
    let all = &view.totals;
    let first = view.stack.as_ref().map_or_else(
        || "router".to_owned(),
        |stack| {
            let phase = match stack.phase {
                Phase::Starting => "  starting",
                Phase::Running => "",
                Phase::Stopping => "  stopping",
            };
            let up = crate::commands::duration(stack.uptime_seconds);
            format!("{}  {}{phase}  up {up}", stack.server_name, stack.preset)
        },
    );
    let memory = all.memory_bytes.map_or_else(String::new, |bytes| format!("  mem {}", memory(bytes)));
    let cpu = all.cpu_percent.map_or_else(String::new, |share| format!("  cpu {}", percent(share)));
    [
        format!("{first}{memory}{cpu}"),
        format!(
            "req/s {}  errors/s {}  shed/s {}  retries/s {}  whoami/s {} (asked {})",
            rate(all.requests_per_second),
            rate(all.errors_per_second),
            rate(all.shed_per_second),
            rate(all.retries_per_second),
            rate(all.whoami_per_second),
            rate(all.whoami_asked_per_second),
        ),
        format!(
            "connections {}  in flight {} (held polls {})  queued {}  waiting {}",
            whole(all.connections),
            whole(all.in_flight),
            whole(all.held_polls),
            whole(all.queued),
            whole(all.waiting),
        ),
    ]
}

/// What must not be missed, whatever of the tables is seen.
fn notes(view: &View) -> Vec<String> {
    let mut notes: Vec<String> = view
        .instances
        .iter()
        .filter(|row| row.amiss)
        .map(|row| format!("! {} is {}", row.name, row.state))
        .collect();
    if view.router_restarted {
        notes.insert(0, "! the router was restarted".to_owned());
    }
    notes
}

fn nothing() -> String {
    "-".to_owned()
}

/// A number of at most five characters.
fn rate(number: f64) -> String {
    match number {
        // A counter that stands still gives 0 exactly.
        0.0 => "0".to_owned(),
        n if n < 9.95 => format!("{n:.1}"),
        n => whole(n),
    }
}

fn whole(number: f64) -> String {
    match number {
        n if n < 99_999.5 => format!("{n:.0}"),
        n if n < 9_999_500.0 => format!("{:.0}k", n / 1e3),
        n => format!("{:.0}M", n / 1e6),
    }
}

fn percent(number: f64) -> String {
    // What is less than half a percent is not nothing.
    if number > 0.0 && number < 0.95 { format!("{number:.1}%") } else { format!("{number:.0}%") }
}

fn latency(latency: Option<Latency>) -> String {
    let Some(Latency { seconds, or_more }) = latency else { return nothing() };
    match seconds {
        s if or_more => format!(">{s:.0}s"),
        s if s < 0.009_95 => format!("{:.1}ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0}ms", s * 1e3),
        s if s < 9.95 => format!("{s:.1}s"),
        s => format!("{s:.0}s"),
    }
}

/// Bytes in MiB or GiB.
fn memory(bytes: u64) -> String {
    let mib = bytes >> 20;
    if mib < 1000 { format!("{mib}M") } else { format!("{}.{}G", mib >> 10, ((mib & 1023) * 10) >> 10) }
}

/// The whole of it as text, as wide as this.
pub(crate) fn plain(screen: &Screen, view: &View, width: u16) -> String {
    // More than its lines, and all tables' heads with them.
    let rows = view.instances.len() + view.classes.len().max(1);
    let height = u16::try_from(rows + FEW + 9).unwrap_or(u16::MAX).min(MOST_LINES);
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    let mut lines = Lines { buffer: &mut buffer, area };
    screen.head(&mut lines, view, None);
    screen.clone().tables(&mut lines, view);
    text(&buffer)
}

/// What a plain picture may be long: some thousand instances.
const MOST_LINES: u16 = 4000;

fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width.max(1));
    let mut text = String::new();
    for line in buffer.content.chunks(width) {
        text.extend(line.iter().map(ratatui::buffer::Cell::symbol));
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}
