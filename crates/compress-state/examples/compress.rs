//! Compresses a whole database and prints the report: the command without the command line around it, for benchmarks.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use compress_state::connect::Database;
use compress_state::room::{Mode, Options};
use compress_state::run::{Limits, run};
use compress_state::tree::Levels;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("the URL of a database")?;
    let database = Database::from_text(&url)?;
    let plan = compress_state::estimate::estimate(&database.connect().await?, false).await?;
    let rooms = plan.order().iter().map(|room| room.room_id.clone()).collect();
    let options = Options {
        mode: Mode::Apply,
        levels: Levels::default(),
        verify: true,
        repair: false,
        from_start: false,
        above: None,
        up_to: None,
        most_groups: None,
    };
    let limits = Limits { jobs: 2, until: None, most_active: 16, stop: Arc::new(AtomicBool::new(false)) };
    let report = run(&database, rooms, &options, &limits, &mut |_| Ok(()), &mut |_| {}).await?;
    let hold = report.rooms.iter().map(|room| room.longest_hold).fold(0.0, f64::max);
    let retries: u64 = report.rooms.iter().map(|room| room.retries).sum();
    println!(
        "{:?} in {:.2} s; locks for {hold:.3} s at most; {retries} retries",
        report.sums(),
        report.seconds
    );
    for (room, reason) in report.skipped {
        println!("{room}: {reason}");
    }
    Ok(())
}
