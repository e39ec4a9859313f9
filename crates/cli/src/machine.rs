//! What this machine has, for choosing a preset.

use model::Machine;

/// Cores and memory that this process may use. Control groups count, because containers see the host's memory.
pub(crate) fn this_machine() -> Machine {
    let cores =
        std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    let total = read("/proc/meminfo").as_deref().and_then(total_of_meminfo);
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    // Where neither can be read, the smallest layout is the safe choice.
    let memory_bytes = total.into_iter().chain(limit).min().unwrap_or(0);
    Machine { cores, memory_bytes }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// `MemTotal` of `/proc/meminfo`, in bytes (its "kB" are KiB: `man 5 proc_meminfo`).
fn total_of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_kib() {
        assert_eq!(total_of_meminfo("MemTotal:       24000 kB\nMemFree: 1 kB\n"), Some(24000 * 1024));
        assert_eq!(total_of_meminfo("nothing"), None);
    }
}
