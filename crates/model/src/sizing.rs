//! How much a stack needs, and which preset fits a machine or a number of users.

use std::fmt;

use serde::Serialize;

use crate::topology::connections;
use crate::{Preset, Stack, Topology, preset_groups, reserved_connections};

/// A machine, as far as sizing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Processor cores that may be used.
    pub cores: u32,
    /// Memory that may be used, in bytes.
    pub memory_bytes: u64,
}

const MIB: u64 = 1 << 20;

/// What a Synapse worker takes of its own when idle (proportional set size, forked from a common parent), as
/// `bench/startup.py` measures it.
const WORKER_IDLE: u64 = 31 * MIB;
/// What a Synapse worker should be given for work and caches, at a cache factor of 0.5.
const WORKER_BUSY: u64 = 110 * MIB;
/// Main, the fork server, PostgreSQL, Valkey and the router when idle.
const BASE_IDLE: u64 = 225 * MIB;
/// The same under load.
const BASE_BUSY: u64 = 700 * MIB;

/// What a layout needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Synapse processes, with pools at their largest.
    pub processes: u32,
    /// Memory when idle, in bytes.
    pub idle_bytes: u64,
    /// Memory to plan for under load, in bytes.
    pub busy_bytes: u64,
    /// Database connections that the processes may open, with the reserve for administration.
    pub connections: u32,
}

/// What a topology needs.
pub fn estimate(topology: &Topology) -> Estimate {
    estimate_for(topology.processes(), connections(topology.instances()))
}

fn estimate_for(processes: u32, connections: u32) -> Estimate {
    let workers = u64::from(processes.saturating_sub(1));
    Estimate {
        processes,
        idle_bytes: BASE_IDLE + workers * WORKER_IDLE,
        busy_bytes: BASE_BUSY + workers * WORKER_BUSY,
        connections,
    }
}

fn preset_estimate(preset: Preset) -> Estimate {
    let processes = 1 + preset_groups(preset).iter().map(|(_, _, count)| u32::from(*count)).sum::<u32>();
    let pool = u32::from(crate::Pool::default().max);
    estimate_for(processes, processes * pool + reserved_connections())
}

/// The cores from which on a preset gains more by working in parallel than it loses by passing messages between its
/// processes. A message sent through every process of `full` costs about three times the processor time of one sent
/// through main alone.
fn cores_for(preset: Preset) -> u32 {
    match preset {
        Preset::Custom | Preset::Small => 1,
        Preset::Medium => 2,
        Preset::Full => 4,
    }
}

/// The largest preset that fits a machine, and why.
pub fn choose_preset(machine: Machine) -> (Preset, String) {
    let mut reason = String::new();
    for preset in Preset::LAYOUTS.into_iter().rev() {
        let needs = preset_estimate(preset);
        let have = format!("this machine has {} and {}", cores(machine.cores), gib(machine.memory_bytes));
        if machine.cores < cores_for(preset) {
            reason = format!("`{preset}` pays off from {}, and {have}", cores(cores_for(preset)));
        } else if machine.memory_bytes < needs.busy_bytes {
            reason = format!("`{preset}` wants {} under load, and {have}", gib(needs.busy_bytes));
        } else {
            let why = if reason.is_empty() {
                format!("{have}; it wants {} and {}", cores(cores_for(preset)), gib(needs.busy_bytes))
            } else {
                reason
            };
            return (preset, why);
        }
    }
    (Preset::Small, reason)
}

/// The load that a number of users makes, by rules of thumb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct UserLoad {
    /// Accounts.
    pub users: u32,
    /// Users with a client open at the busiest time: one in four, and at least one.
    pub online: u32,
}

/// What to run for a number of users, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recommendation {
    /// The load that was assumed.
    pub load: UserLoad,
    /// The preset.
    pub preset: Preset,
    /// Counts to set above the preset's, by group.
    pub counts: Vec<(String, u16)>,
    /// What the result needs.
    pub estimate: Estimate,
    /// Cores to plan for.
    pub cores: u32,
    /// The reasons, one sentence each.
    pub reasons: Vec<String>,
}

/// Users online that one core serves: sync, sends and reads together, with room for peaks. A worker of Synapse's uses
/// one core at most.
const ONLINE_PER_CORE: u32 = 150;

/// Recommends a preset and counts for a number of users.
pub fn recommend(users: u32) -> Recommendation {
    let load = UserLoad { users, online: users.div_ceil(4).max(1) };
    let cores = load.online.div_ceil(ONLINE_PER_CORE).max(1);
    let preset = match cores {
        0..=1 => Preset::Small,
        2..=3 => Preset::Medium,
        _ => Preset::Full,
    };
    let mut counts = Vec::new();
    if preset == Preset::Full {
        // Shares of the whole work, by how many cores a group should be able to fill.
        for (group, share) in [
            ("sync", 4),
            ("room", 6),
            ("event_persister", 6),
            ("client_reader", 8),
            ("federation_reader", 10),
        ] {
            let count =
                u16::try_from(cores.div_ceil(share)).unwrap_or(u16::MAX).min(crate::MAX_WORKERS_PER_GROUP);
            if count > 2 {
                counts.push((group.to_owned(), count));
            }
        }
    }
    let mut estimate = preset_estimate(preset);
    let extra: u32 = counts.iter().map(|(_, count)| u32::from(*count) - 2).sum();
    let pool = u32::from(crate::Pool::default().max);
    estimate = estimate_for(estimate.processes + extra, estimate.connections + extra * pool);
    let reasons = vec![
        format!("{users} users means about {} online at the busiest time (one in four)", load.online),
        format!(
            "about {ONLINE_PER_CORE} users online keep one core busy, and a Synapse process uses one core at most, so \
             plan for {} and enough processes to fill them",
            self::cores(cores)
        ),
        format!(
            "{} Synapse processes take about {} idle and should be given {} under load",
            estimate.processes,
            gib(estimate.idle_bytes),
            gib(estimate.busy_bytes)
        ),
        format!(
            "PostgreSQL must allow {} connections ({pool} for each process, {} for administration)",
            estimate.connections,
            reserved_connections()
        ),
    ];
    Recommendation { load, preset, counts, estimate, cores, reasons }
}

impl Recommendation {
    /// The recommendation as the part of a `stack.yaml` that it changes.
    pub fn apply(&self, stack: &mut Stack) {
        stack.preset = Some(self.preset);
        for (group, count) in &self.counts {
            stack.workers.entry(group.clone()).or_default().count = Some(*count);
        }
    }
}

fn cores(count: u32) -> String {
    if count == 1 { "1 core".to_owned() } else { format!("{count} cores") }
}

/// Bytes as GiB with one decimal.
fn gib(bytes: u64) -> String {
    let tenths = (bytes * 10 + (1 << 29)) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", cores(self.cores), gib(self.memory_bytes))
    }
}
