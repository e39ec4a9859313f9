//! What the kernel says about processes: identity, memory, processor time, and who holds a port.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One process, and never another one that was given the same number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// The process's number.
    pub(crate) pid: u32,
    /// When it started, in clock ticks since the machine did (field 22 of `/proc/PID/stat`).
    pub(crate) started: u64,
}

impl ProcessId {
    /// The living process with this number. A process that has ended and waits to be reaped is not living.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let stat = Stat::parse(&stat)?;
        (!stat.ended).then_some(Self { pid, started: stat.started })
    }

    /// Whether it still lives.
    pub(crate) fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal, if it still lives.
    pub(crate) fn signal(self, signal: Signal) -> bool {
        let Ok(pid) = i32::try_from(self.pid) else { return false };
        self.alive() && kill(Pid::from_raw(pid), signal).is_ok()
    }

    /// Its command line, the arguments separated by spaces.
    pub(crate) fn command_line(self) -> Option<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).ok()?;
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        self.alive().then(|| text.trim().to_owned())
    }
}

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    started: u64,
    ended: bool,
    /// Processor time in clock ticks: its own, and that of the children that it has waited for.
    ticks: u64,
    children_ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may hold anything, parentheses and spaces too.
        let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        // The fields 14 to 17: in user mode and in the kernel, then the children's.
        let mut time = fields.by_ref().skip(9).take(4).map(|field| field.parse::<u64>().ok());
        let mut both = || Some(time.next()?? + time.next()??);
        let (ticks, children_ticks) = (both()?, both()?);
        let started = fields.nth(4)?.parse().ok()?;
        Some(Self { parent, started, ended: matches!(state, "Z" | "X" | "x"), ticks, children_ticks })
    }
}

/// The boot that this machine runs since: process numbers and start times mean nothing beyond it.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// The children of every process, by parent.
pub(crate) struct Family(HashMap<u32, Vec<u32>>);

impl Family {
    /// The processes that live now.
    pub(crate) fn read() -> Self {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for pid in all_pids() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok();
            if let Some(stat) = stat.as_deref().and_then(Stat::parse) {
                children.entry(stat.parent).or_default().push(pid);
            }
        }
        Self(children)
    }

    /// A process's descendants, itself not among them.
    pub(crate) fn descendants(&self, pid: u32) -> Vec<u32> {
        let mut found = self.0.get(&pid).cloned().unwrap_or_default();
        let mut next = 0;
        while let Some(child) = found.get(next).copied() {
            found.extend(self.0.get(&child).into_iter().flatten());
            next += 1;
        }
        found
    }
}

fn all_pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process's name.
pub(crate) fn name(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| name.trim().to_owned())
}

/// A process's resident memory, in bytes (`VmRSS`).
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    kib_field(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

/// A process's proportional share of the memory that it uses, in bytes (`Pss`).
pub(crate) fn proportional_bytes(pid: u32) -> Option<u64> {
    kib_field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss:")
}

/// The processor time that a process has used.
pub(crate) struct CpuTime {
    /// By itself, in milliseconds.
    pub(crate) own_ms: u64,
    /// By children of its that have ended, in milliseconds.
    pub(crate) children_ms: u64,
}

/// A clock tick in `/proc` (`USER_HZ` is 100 on every architecture that this program is built for).
const TICK_MS: u64 = 10;

/// The processor time that a process has used.
pub(crate) fn cpu_time(pid: u32) -> Option<CpuTime> {
    let stat = Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    Some(CpuTime { own_ms: stat.ticks * TICK_MS, children_ms: stat.children_ticks * TICK_MS })
}

/// The memory that may be used here, in bytes: the machine's, or less where a control group limits it.
pub(crate) fn memory_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| kib_field(&text, "MemTotal:"));
    let limit =
        fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(limit).min()
}

fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Who listens on a TCP address: the process's number and name. Nothing if `/proc` does not tell.
pub(crate) fn listener(address: SocketAddr) -> Option<(u32, String)> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, address))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    all_pids().find_map(|pid| {
        let held = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().any(|fd| {
            fs::read_link(fd.path())
                .is_ok_and(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
        });
        if held { Some((pid, name(pid)?)) } else { None }
    })
}

/// The sockets in a table of `/proc/net/tcp`'s form that listen where `address` would be in their way.
fn listening_inodes(table: &str, address: SocketAddr) -> Vec<String> {
    const LISTEN: &str = "0A";
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (ip, port) = fields.get(1)?.split_once(':')?;
            let same_port = u16::from_str_radix(port, 16).ok()? == address.port();
            let anywhere = ip.bytes().all(|b| b == b'0') || address.ip().is_unspecified();
            let same_ip = ip.eq_ignore_ascii_case(&kernel_hex(address.ip()));
            (*fields.get(3)? == LISTEN && same_port && (anywhere || same_ip))
                .then(|| fields.get(9).map(ToString::to_string))?
        })
        .collect()
}

/// An address as the kernel prints it there: words of four bytes, each in the machine's byte order.
fn kernel_hex(ip: IpAddr) -> String {
    use std::fmt::Write as _;
    let bytes: Vec<u8> = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.chunks_exact(4).fold(String::new(), |mut out, word| {
        let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        let _ = write!(out, "{word:08X}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_names_with_parentheses() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        assert_eq!(
            Stat::parse(line),
            Some(Stat { parent: 7, started: 987_654, ended: false, ticks: 5 + 6, children_ticks: 7 + 8 })
        );
        assert!(Stat::parse("42 (x) Z 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9 1 2").unwrap().ended);
        assert_eq!(Stat::parse("nothing"), None);
    }

    #[test]
    fn a_process_is_known_by_its_start_too() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.alive());
        let other = ProcessId { started: me.started + 1, ..me };
        assert!(!other.alive() && !other.signal(Signal::SIGTERM));
        assert!(me.command_line().is_some_and(|line| !line.is_empty()));
        assert!(resident_bytes(me.pid).is_some_and(|bytes| bytes > 1 << 16));
    }

    #[test]
    fn an_ended_child_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = ProcessId::of(child.id());
        for _ in 0..500 {
            if !id.is_some_and(ProcessId::alive) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(!id.is_some_and(ProcessId::alive));
        child.wait().unwrap();
    }

    #[test]
    fn who_holds_a_port_is_found() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (pid, name) = listener(held.local_addr().unwrap()).unwrap();
        assert_eq!(pid, std::process::id());
        assert!(!name.is_empty());
    }
}
