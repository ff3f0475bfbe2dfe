//! What the kernel says of a process and of the machine.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// Clock ticks per second in `/proc`; the same on every Linux.
const TICKS: f64 = 100.0;

/// User and system time of a process with all its threads, in seconds.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    Ok((field(pid, 14)? + field(pid, 15)?) / TICKS)
}

/// A number of `/proc/<pid>/stat`, counted as `proc(5)` does.
fn field(pid: u32, field: usize) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may hold blanks; what follows it is counted from the state, field 3.
    let rest = &stat[stat.rfind(')').context("no name")? + 1..];
    let text = rest.split_ascii_whitespace().nth(field - 3);
    Ok(text.context("too short")?.parse()?)
}

/// The process that started this one.
pub(crate) fn parent(pid: u32) -> anyhow::Result<u32> {
    let parent = field(pid, 4)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the number of a process"
    )]
    Ok(parent as u32)
}

/// User and system time of a process and of all that it ever started, in seconds.
pub(crate) fn family_cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    // Those that have ended are counted with it (fields 16 and 17).
    let mut sum = cpu_seconds(pid)? + (field(pid, 16)? + field(pid, 17)?) / TICKS;
    for entry in fs::read_dir("/proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One may end meanwhile.
        if parent(child).is_ok_and(|of| of == pid) {
            sum += cpu_seconds(child).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// CPU time that anything on the machine has used since it started, in seconds.
pub(crate) fn machine_cpu_seconds() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("empty")?;
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
    let mut sum = 0.0;
    for (index, field) in line.split_ascii_whitespace().skip(1).take(8).enumerate() {
        if ![3, 4].contains(&index) {
            let ticks: f64 = field.parse()?;
            sum += ticks / TICKS;
        }
    }
    Ok(sum)
}

/// Memory of a process in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    pub(crate) highest: f64,
    pub(crate) proportional: f64,
}

pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    Ok(Memory {
        resident: mebibytes(&status, "VmRSS:")?,
        highest: mebibytes(&status, "VmHWM:")?,
        proportional: mebibytes(&rollup, "Pss:")?,
    })
}

fn mebibytes(text: &str, name: &str) -> anyhow::Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_ascii_whitespace().next());
    let kibibytes: f64 = number.with_context(|| format!("no {name}"))?.parse()?;
    Ok(kibibytes / 1024.0)
}

/// The bytes of all files in a directory, not below it.
pub(crate) fn directory_bytes(directory: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let metadata = entry?.metadata()?;
        if metadata.is_file() {
            sum += metadata.len();
        }
    }
    Ok(sum)
}

/// The type of the file system that holds a path, such as `ext4`.
pub(crate) fn file_system(path: &Path) -> anyhow::Result<String> {
    let path = path.canonicalize()?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut best = (0, "unknown");
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(place), Some(kind)) = (fields.next(), fields.next()) else {
            continue;
        };
        // A later mount hides an earlier one at the same place.
        if path.starts_with(place) && place.len() >= best.0 {
            best = (place.len(), kind);
        }
    }
    Ok(best.1.to_owned())
}

pub(crate) fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

pub(crate) fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    let model = line.and_then(|line| line.split_once(':'));
    model.map_or_else(|| "unknown".to_owned(), |(_, model)| model.trim().to_owned())
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
