//! The rendered configuration in the real nginx, HAProxy and Envoy: accepted by the program's own check, and the same
//! decisions as the matcher's on the whole endpoint table.

mod bench;
mod client;
mod decisions;
mod failures;
mod spread;
mod stub;

use bench::{Bench, Program};

/// All there is to see of one program.
fn prove(program: &Program) {
    if !program.is_there() {
        return;
    }
    program.accepts_every_layout();
    let bench = Bench::start(program, "admin_api: true");
    decisions::every_endpoint(&bench);
    decisions::odd_paths(&bench);
    decisions::what_the_proxy_adds(&bench);
    decisions::bodies(&bench);
    spread::keys_stick(&bench);
    drop(bench);
    // Failures leave processes marked as bad, and paths are open or closed when the proxy starts.
    let mut bench = Bench::start(program, "trust_forwarded_for: true, trusted_proxies: 2");
    decisions::closed_paths(&bench);
    decisions::whom_the_proxy_believes(&bench);
    failures::nothing_is_done_twice(&bench);
    failures::others_stand_in(&mut bench);
}

#[test]
fn nginx() {
    prove(&Program::nginx());
}

#[test]
fn haproxy() {
    prove(&Program::haproxy());
}

#[test]
fn envoy() {
    prove(&Program::envoy());
}
