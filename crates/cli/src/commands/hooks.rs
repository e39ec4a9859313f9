//! `hooks`: what webhooks left undelivered.

use std::fmt::Write as _;

use anyhow::bail;
use hooks::DeadLetter;

use crate::args::Hooks;

/// Runs a command about a store.
pub(crate) fn hooks(hooks: &Hooks) -> anyhow::Result<()> {
    match hooks {
        Hooks::Dead { store, json } => {
            let letters = hooks::dead_letters(&store.store)?;
            if json.json { super::print_json(&letters) } else { super::print(&table(&letters)) }
        }
        Hooks::Retry { id, all: _, store } => {
            let count = hooks::retry(&store.store, *id)?;
            if let (Some(id), 0) = (id, count) {
                bail!("there is no dead letter {id}: `matrix-stack hooks dead --store FILE` lists them");
            }
            super::print(&format!("{count} to be tried again\n"))
        }
    }
}

fn table(letters: &[DeadLetter]) -> String {
    if letters.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let room = letters.iter().map(|letter| letter.room.chars().count()).max().unwrap_or(0).max(4);
    let mut out = format!("{:>8}  {:20}  {:room$}  REASON\n", "NUMBER", "TAKEN", "ROOM");
    for DeadLetter { id, room: name, reason, accepted_ms, text, .. } in letters {
        let taken = jiff::Timestamp::from_millisecond(*accepted_ms)
            .map_or_else(|_| accepted_ms.to_string(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        let _ = writeln!(out, "{id:>8}  {taken:20}  {name:room$}  {}", one_line(reason, 200));
        let _ = writeln!(out, "{:>8}  {}", "", one_line(text, 100));
    }
    out
}

/// Text on one line, without what a terminal would obey.
fn one_line(text: &str, most: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect()
}
