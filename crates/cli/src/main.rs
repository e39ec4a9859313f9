//! The `matrix-stack` command: parses arguments, calls the crates below, prints, and chooses the exit code.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed (the message says what to do),
//! 2 wrong usage.

mod args;
mod commands;
mod companions;
mod log;
mod machine;
mod place;
mod top;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // Before anything else: a process that is about to become PostgreSQL, say, must start no threads and parse no more.
    if let Some(code) = runtime::launch::intercept() {
        return code;
    }
    let arguments = args::Arguments::parse();
    log::start(match &arguments.command {
        args::Command::Up(up) => up.detached,
        args::Command::Console(_) => true,
        args::Command::Rollout(rollout) => !rollout.dry_run,
        args::Command::Serve(service) => !matches!(service, args::Serve::Alertmanager { check: true }),
        _ => false,
    });
    match commands::run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints an error the way that suits it: a report about a file shows the file, everything else its chain of causes.
fn complain(error: &anyhow::Error) {
    if let Some(report) = error.downcast_ref::<config::Report>() {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        if colour {
            eprintln!("{}", report.coloured());
        } else {
            eprintln!("{report}");
        }
        return;
    }
    let mut message = error.to_string();
    for cause in error.chain().skip(1) {
        // Most errors here already tell their cause in their own sentence.
        let cause = cause.to_string();
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    eprintln!("error: {message}");
}
