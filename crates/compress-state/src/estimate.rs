//! What compressing would save, before anything is read in full: from counts of groups and a sample of rows.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::Serialize;
use tokio_postgres::Client;

use crate::progress;
use crate::{Error, failed};

/// How many pages of the table of rows are sampled.
const SAMPLE_PAGES: f64 = 20_000.0;
/// Rows that a group has after compressing, besides whole states: one change, and its part of the levels above.
const ROWS_A_GROUP: f64 = 2.5;
/// About what one connection reads in a second, in rows and in groups.
const ROWS_A_SECOND: f64 = 300_000.0;
const GROUPS_A_SECOND: f64 = 20_000.0;

/// What one room has, and what would be left of it.
#[derive(Clone, Debug, Serialize)]
pub struct RoomEstimate {
    /// The room.
    pub room_id: String,
    /// Its groups.
    pub groups: u64,
    /// Its groups since it was last compressed.
    pub new_groups: u64,
    /// Its rows, from a sample.
    pub rows: u64,
    /// How many of them would go.
    pub rows_saved: u64,
    /// Their bytes, with their part of the indices.
    pub bytes_saved: u64,
    /// About how many seconds that takes.
    pub seconds: f64,
}

/// What a database has, and what would be left of it.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Rooms, those that save most first.
    pub rooms: Vec<RoomEstimate>,
    /// The size of `state_groups_state` with its indices, in bytes.
    pub table_bytes: u64,
    /// About how many rows it has.
    pub table_rows: u64,
    /// The part of it that was sampled, from 0 to 1.
    pub sampled: f64,
}

#[expect(clippy::cast_precision_loss, reason = "estimates")]
fn float(number: i64) -> f64 {
    number.max(0) as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "estimates, not below zero")]
fn whole(number: f64) -> u64 {
    number.max(0.0) as u64
}

/// Estimates all rooms that have something new; or all, as if nothing had been done.
pub async fn estimate(client: &Client, anew: bool) -> Result<Estimate, Error> {
    let what = "estimate";
    let sizes = client
        .query_one(
            "SELECT pg_total_relation_size('state_groups_state'), pg_relation_size('state_groups_state'), \
             current_setting('block_size')::bigint",
            &[],
        )
        .await
        .map_err(failed(what))?;
    let (total, heap, block): (i64, i64, i64) = (sizes.get(0), sizes.get(1), sizes.get(2));
    let pages = (float(heap) / float(block)).max(1.0);
    let percent = (100.0 * SAMPLE_PAGES / pages).min(100.0);
    let sample = format!(
        "SELECT room_id, count(*) FROM state_groups_state TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1) GROUP BY room_id"
    );
    let rows: HashMap<String, f64> = client
        .query(&sample, &[])
        .await
        .map_err(failed(what))?
        .iter()
        .map(|row| (row.get(0), float(row.get(1)) * 100.0 / percent))
        .collect();
    // How large a room's whole state is; a database for state groups alone does not say.
    let current = client
        .query_one("SELECT to_regclass('current_state_events') IS NOT NULL", &[])
        .await
        .map_err(failed(what))?;
    let mut states: HashMap<String, f64> = HashMap::new();
    if current.get(0) {
        let counts = client
            .query("SELECT room_id, count(*) FROM current_state_events GROUP BY room_id", &[])
            .await
            .map_err(failed(what))?;
        states.extend(counts.iter().map(|row| (row.get(0), float(row.get(1)))));
    }
    // Where each room was left; a room of which nothing is known counts from its beginning.
    let done = if anew { HashMap::new() } else { progress::last_groups(client).await? };
    let groups = client
        .query("SELECT room_id, count(*), max(id) FROM state_groups GROUP BY room_id", &[])
        .await
        .map_err(failed(what))?;
    let total_rows: f64 = rows.values().sum();
    let row_bytes = float(total) / total_rows.max(1.0);
    let mut rooms = Vec::new();
    for row in groups {
        let (room_id, groups, newest): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let mut new = groups;
        if let Some(last) = done.get(&room_id) {
            if *last >= newest {
                continue;
            }
            let above = client
                .query_one(
                    "SELECT count(*) FROM state_groups WHERE room_id = $1 AND id > $2",
                    &[&room_id, last],
                )
                .await
                .map_err(failed(what))?;
            new = above.get(0);
        }
        let rows = rows.get(&room_id).copied().unwrap_or(0.0);
        let groups = float(groups);
        let state = states.get(&room_id).copied().unwrap_or(rows / groups).min(rows);
        // What is not new was compressed, and stays.
        let old = if done.contains_key(&room_id) { (groups - float(new)) * ROWS_A_GROUP } else { 0.0 };
        let left = (state + groups * ROWS_A_GROUP).max(old).min(rows);
        let saved = rows - left;
        rooms.push(RoomEstimate {
            room_id,
            groups: whole(groups),
            new_groups: whole(float(new)),
            rows: whole(rows),
            rows_saved: whole(saved),
            bytes_saved: whole(saved * row_bytes),
            seconds: 0.02 + (rows - old).max(0.0) / ROWS_A_SECOND + float(new) / GROUPS_A_SECOND,
        });
    }
    rooms.sort_by(|a, b| b.rows_saved.cmp(&a.rows_saved).then_with(|| a.room_id.cmp(&b.room_id)));
    Ok(Estimate {
        rooms,
        table_bytes: whole(float(total)),
        table_rows: whole(total_rows),
        sampled: percent / 100.0,
    })
}

impl Estimate {
    /// The rooms' places, the largest gain in a second first.
    pub fn order(&self) -> Vec<&RoomEstimate> {
        let mut rooms: Vec<&RoomEstimate> = self.rooms.iter().collect();
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let gain = |room: &RoomEstimate| room.rows_saved as f64 / room.seconds;
        rooms.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
        rooms
    }

    /// A table for people, of so many rooms at most.
    pub fn table(&self, most: usize) -> String {
        let mut out = String::new();
        let saved: u64 = self.rooms.iter().map(|room| room.rows_saved).sum();
        let bytes_saved: u64 = self.rooms.iter().map(|room| room.bytes_saved).sum();
        let _ = writeln!(
            out,
            "state_groups_state has about {} rows in {}; compressing would remove about {} of them, {}.\n",
            count(self.table_rows),
            bytes(self.table_bytes),
            count(saved),
            bytes(bytes_saved)
        );
        let width = self.rooms.iter().take(most).map(|room| room.room_id.len()).max().unwrap_or(4).max(4);
        let _ = writeln!(
            out,
            "{:width$}  {:>10}  {:>12}  {:>12}  {:>10}  {:>8}",
            "ROOM", "GROUPS", "ROWS", "ROWS SAVED", "SAVED", "TIME"
        );
        for room in self.rooms.iter().take(most) {
            let _ = writeln!(
                out,
                "{:width$}  {:>10}  {:>12}  {:>12}  {:>10}  {:>6.0} s",
                room.room_id,
                count(room.groups),
                count(room.rows),
                count(room.rows_saved),
                bytes(room.bytes_saved),
                room.seconds
            );
        }
        if self.rooms.len() > most {
            let rest = &self.rooms[most..];
            let saved: u64 = rest.iter().map(|room| room.rows_saved).sum();
            let _ = writeln!(out, "and {} rooms with {} rows to save", rest.len(), count(saved));
        }
        out
    }

    /// A bar chart of the rooms that save most, as SVG.
    pub fn chart(&self) -> String {
        const BARS: usize = 20;
        const LINE: usize = 26;
        const LEFT: f64 = 330.0;
        const WIDTH: f64 = 420.0;
        let rooms = &self.rooms[..self.rooms.len().min(BARS)];
        let height = 60 + LINE * rooms.len();
        let most = rooms.iter().map(|room| room.rows).max().unwrap_or(1).max(1);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 900 {height}\" font-family=\"sans-serif\" font-size=\"13\" \
             role=\"img\" aria-label=\"Rows of state groups by room\">\n\
             <rect width=\"900\" height=\"{height}\" fill=\"#fff\"/>\n\
             <text x=\"12\" y=\"26\" font-size=\"16\">Rows of state groups by room: what stays, and what compressing saves</text>\n"
        );
        for (index, room) in rooms.iter().enumerate() {
            let top = 44 + LINE * index;
            #[expect(clippy::cast_precision_loss, reason = "a picture")]
            let length = |rows: u64| rows as f64 / most as f64 * WIDTH;
            let stays = length(room.rows - room.rows_saved.min(room.rows));
            let saved = length(room.rows_saved);
            let mut name: String = room.room_id.chars().take(44).collect();
            if name.len() < room.room_id.len() {
                name.push('…');
            }
            let _ = writeln!(
                out,
                "<text x=\"12\" y=\"{}\">{}</text><rect x=\"{LEFT}\" y=\"{top}\" width=\"{stays:.1}\" height=\"18\" fill=\"#30638e\"/>\
                 <rect x=\"{:.1}\" y=\"{top}\" width=\"{saved:.1}\" height=\"18\" fill=\"#edae49\"/>\
                 <text x=\"{:.1}\" y=\"{}\">−{}</text>",
                top + 14,
                escape(&name),
                LEFT + stays,
                LEFT + stays + saved + 6.0,
                top + 14,
                bytes(room.bytes_saved)
            );
        }
        out.push_str("</svg>\n");
        out
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number with spaces between thousands.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Bytes in a unit that suits them.
pub fn bytes(number: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = number as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate() -> Estimate {
        let room = |name: &str, saved: u64, seconds: f64| RoomEstimate {
            room_id: name.to_owned(),
            groups: 1000,
            new_groups: 1000,
            rows: 2 * saved,
            rows_saved: saved,
            bytes_saved: saved * 200,
            seconds,
        };
        Estimate {
            rooms: vec![room("!large<&:a", 5_000_000, 100.0), room("!small:a", 1000, 0.01)],
            table_bytes: 3 << 30,
            table_rows: 10_002_000,
            sampled: 1.0,
        }
    }

    #[test]
    fn the_best_gain_comes_first() {
        assert_eq!(estimate().order()[0].room_id, "!small:a");
    }

    #[test]
    fn people_can_read_it() {
        let table = estimate().table(1);
        assert!(
            table.contains("10 002 000 rows in 3.0 GiB") && table.contains("and 1 rooms with 1 000 rows"),
            "{table}"
        );
        let chart = estimate().chart();
        assert!(chart.contains("!large&lt;&amp;:a") && chart.ends_with("</svg>\n"), "{chart}");
    }
}
