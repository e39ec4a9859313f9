//! `status`, `logs`, `restart`, `reload`, `down` and `user`: what is done with a stack that runs.

use std::fmt::Write as _;
use std::io::Read as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use runtime::client::{self, ClientError, ProcessStatus, Status};
use runtime::{logs, progress, users};

use crate::args::{Logs, StackArguments, User};
use crate::place::Place;

/// Prints the state of every process. Exit code 1 says that the stack runs but not all of it is healthy.
pub(crate) fn status(place: &Place, json: bool) -> anyhow::Result<ExitCode> {
    let status = super::block_on(async { Ok(client::status(&place.layout).await?) })?;
    if json {
        super::print_json(&status)?;
    } else {
        super::print(&describe(&status))?;
    }
    Ok(if status.processes.iter().all(ProcessStatus::is_healthy) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn describe(status: &Status) -> String {
    let mut out = format!(
        "{} at {}, preset `{}`, up for {}\n\n",
        status.server_name,
        status.url,
        status.preset,
        duration(status.uptime_seconds)
    );
    let width = status.processes.iter().map(|p| p.name.len()).max().unwrap_or(4).max(4);
    let _ = writeln!(
        out,
        "{:width$}  {:10}  {:>7}  {:>8}  {:>8}  ADDRESS",
        "NAME", "STATE", "PID", "RSS", "RESTARTS"
    );
    for process in &status.processes {
        let pid = process.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let rss = process.rss_bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
        let _ = writeln!(
            out,
            "{:width$}  {:10}  {pid:>7}  {rss:>8}  {:>8}  {}",
            process.name,
            process.state.name(),
            process.restarts,
            process.address.as_deref().unwrap_or("-")
        );
        if let Some(exit) = process.last_exit.as_deref().filter(|_| !process.is_healthy()) {
            let _ = writeln!(out, "{:width$}  last exit: {exit}", "");
        }
    }
    if let Some(pss) = status.pss_bytes {
        let _ = writeln!(out, "\n{} MiB of memory in all (proportional set size)", pss >> 20);
    }
    out
}

/// A duration in its two largest units.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

pub(crate) fn logs(place: &Place, arguments: &Logs) -> anyhow::Result<()> {
    let topology = place.plan()?;
    let mut names = Vec::new();
    for target in &arguments.names {
        let found = logs::names(&topology, target);
        if found.is_empty() {
            bail!("there is no process, role or group `{target}`; see `matrix-stack status`");
        }
        names.extend(found.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
    }
    if arguments.names.is_empty() {
        names = logs::all(&topology);
    }
    let options = logs::Options { lines: arguments.lines, follow: arguments.follow };
    super::block_on(async {
        let mut out = std::io::stdout();
        tokio::select! {
            shown = logs::show(&place.layout, &names, options, &mut out) => match shown {
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot show the logs"),
                _ => Ok(()),
            },
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}

pub(crate) fn restart(place: &Place, names: &[String]) -> anyhow::Result<()> {
    super::block_on(async {
        for name in names {
            client::restart(&place.layout, name, |done| {
                eprintln!("{} is healthy again after {:.2} s", done.name, done.seconds);
            })
            .await?;
        }
        Ok(())
    })
}

pub(crate) fn reload(stack: &StackArguments) -> anyhow::Result<()> {
    let place = Place::find(stack)?;
    // Here its errors are shown best. The supervisor reads it with what the command line of `up` said.
    place.plan()?;
    super::block_on(async {
        let display = progress::for_stderr();
        match client::reload(&place.layout, |event| display.event(event)).await {
            Err(error @ ClientError::NotRunning { .. }) => bail!(
                "{error}. If it runs, take back what was changed in `server_name` or `data_dir`: a stack keeps them"
            ),
            result => Ok(result?),
        }
    })
}

pub(crate) fn down(place: &Place) -> anyhow::Result<()> {
    super::block_on(async {
        let display = progress::for_stderr();
        client::down(&place.layout, |event| display.event(event)).await?;
        eprintln!("{} is down", place.loaded.stack.server_name);
        Ok(())
    })
}

/// The longest password that is read. Synapse's own limit is 512 characters.
const LONGEST_PASSWORD: u64 = 4096;

pub(crate) fn user(place: &Place, command: &User) -> anyhow::Result<()> {
    let User::Add { name, password_file, admin } = command;
    // First of all, so that nobody is asked for a password in vain. Main may run without `up`.
    super::block_on(async {
        let stack = &place.loaded.stack;
        match client::status(&place.layout).await {
            Err(error) if !users::can_add(&place.layout, stack).await => Err(error.into()),
            _ => Ok(()),
        }
    })?;
    let (password, made) = match password_file {
        Some(file) if file.as_os_str() == "-" => (read_password(std::io::stdin())?, false),
        Some(file) => {
            let handle =
                std::fs::File::open(file).with_context(|| format!("cannot read `{}`", file.display()))?;
            (read_password(handle)?, false)
        }
        None => (config::secrets::Secret::generate()?.expose().to_owned(), true),
    };
    let account = users::Account { name, password: &password, admin: *admin };
    let user_id =
        super::block_on(async { Ok(users::add(&place.layout, &place.loaded.stack, account).await?) })?;
    if made {
        super::print(&format!("{user_id}\n{password}\n"))
    } else {
        super::print(&format!("{user_id}\n"))
    }
}

fn read_password(from: impl std::io::Read) -> anyhow::Result<String> {
    let mut text = String::new();
    from.take(LONGEST_PASSWORD).read_to_string(&mut text).context("the password cannot be read as text")?;
    let password = text.trim_end_matches(['\n', '\r']).to_owned();
    if password.is_empty() {
        bail!(
            "the password is empty; write it into the file given with `--password-file`, or leave that out"
        );
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_lose_the_line_end_alone() {
        assert_eq!(read_password(&b" s p \r\n"[..]).unwrap(), " s p ");
        assert!(read_password(&b"\n"[..]).is_err());
    }

    #[test]
    fn durations_have_two_units() {
        assert_eq!([5, 65, 3700, 90_000].map(duration), ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
    }
}
