//! The program's own log, on stderr. What a stack's processes log goes to files of theirs.

use tracing_subscriber::EnvFilter;

/// The variable that says what is logged, as `tracing-subscriber` filters are written: `debug`, `router=trace`.
const VARIABLE: &str = "MATRIX_STACK_LOG";

/// Starts logging. In the background everything from `info` on is kept, a JSON object a line, because programs read that log; in a
/// terminal only warnings are worth a line between the progress.
pub(crate) fn start(background: bool) {
    let standard = if background { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(standard));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // It fails where a log was started before, which then goes on.
    let _ = if background { lines.json().try_init() } else { lines.without_time().try_init() };
}
