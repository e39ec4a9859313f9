//! The real thing, end to end: stacks of real processes behind the real router, used by a client library from
//! elsewhere (`e2e/flow.py`), with processes killed under it.
//!
//! The tests share stacks and build on each other, so they run one after the other, in the order below. They have a
//! `main` of their own, because what they started must be stopped at the end, whatever came of them.

mod beside;
mod calls;
mod compose;
mod compressed;
mod console;
mod mas;
mod reload;
mod scenarios;
mod served;
mod servers;
mod stack;
mod system;
mod tokens;
mod trials;
mod truth;
mod units;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = trials::ALL.iter().map(|(name, run)| {
        Trial::test(*name, move || {
            run();
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    stack::clear_up(conclusion.has_failed());
    conclusion.exit_code()
}
