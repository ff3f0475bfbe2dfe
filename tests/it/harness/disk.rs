//! A disk under the server that writes down what is done to it, and fails on command.
//!
//! `disk.c` is compiled when the first test needs it and loaded in front of the C library (`LD_PRELOAD`), so it is
//! the real binary that is watched. The log is a row of records: kind, number of bytes (`u32` each), inode, place
//! (`u64` each, in the order of bytes of the machine), and then the bytes: a path or what was written.

use std::ffi::OsString;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a record before its path or data.
const HEAD_BYTES: usize = 24;

/// One thing that was done to a file or directory. Paths are relative to the root.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Create { path: String, inode: u64 },
    Write { inode: u64, at: usize, data: Range<usize> },
    Truncate { inode: u64, size: usize },
    Unlink { path: String },
    Rename { from: String, to: String },
    MakeDirectory { path: String },
    Sync { inode: u64 },
    SyncDirectory { path: String },
    SyncFailed { inode: u64 },
}

/// What the disk was told, in order.
pub(crate) struct DiskLog {
    bytes: Vec<u8>,
    /// Each operation with the length of the log up to its end.
    pub(crate) operations: Vec<(u64, Operation)>,
}

impl DiskLog {
    /// What was written there.
    pub(crate) fn data(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }

    fn parse(bytes: Vec<u8>) -> Self {
        let mut operations = Vec::new();
        let mut at = 0;
        // The last record is half written when the process was killed then.
        while let Some((end, operation)) = parse_record(&bytes, at) {
            operations.push((end as u64, operation));
            at = end;
        }
        Self { bytes, operations }
    }
}

fn parse_record(bytes: &[u8], at: usize) -> Option<(usize, Operation)> {
    let head = bytes.get(at..at + HEAD_BYTES)?;
    let short = |from: usize| u32::from_ne_bytes(head[from..from + 4].try_into().unwrap());
    let long = |from: usize| u64::from_ne_bytes(head[from..from + 8].try_into().unwrap());
    let data = at + HEAD_BYTES..at + HEAD_BYTES + short(4) as usize;
    let text = String::from_utf8_lossy(bytes.get(data.clone())?).into_owned();
    let (inode, place) = (long(8), usize::try_from(long(16)).unwrap());
    let end = data.end;
    let operation = match short(0) {
        1 => Operation::Create { path: text, inode },
        2 => Operation::Write { inode, at: place, data },
        3 => Operation::Truncate { inode, size: place },
        4 => Operation::Unlink { path: text },
        5 => {
            let (from, to) = text.split_once('\n').unwrap();
            Operation::Rename { from: from.to_owned(), to: to.to_owned() }
        }
        6 => Operation::MakeDirectory { path: text },
        7 => Operation::Sync { inode },
        8 => Operation::SyncDirectory { path: text },
        9 => Operation::SyncFailed { inode },
        other => panic!("a record of kind {other}"),
    };
    Some((end, operation))
}

/// An order to the disk: operations on some files fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// `w`rite, `s`ync, `t`runcate, `o`pen for writing, `u`nlink.
    pub(crate) operations: &'static str,
    /// `w`rite-ahead log, `d`atabase, `s`hared index, `j`ournal, `o`ther, `/` directory.
    pub(crate) files: &'static str,
    /// The number of the error, as the system has it.
    pub(crate) error: i32,
    /// So many pass before the first that fails.
    pub(crate) skip: u32,
    /// So many fail.
    pub(crate) times: u32,
    /// Writes do half of their work before they fail.
    pub(crate) torn: bool,
}

/// A directory whose files are watched. The log stands outside of it.
pub(crate) struct Disk {
    folder: PathBuf,
    orders: AtomicU64,
}

impl Disk {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("rollcall-watched-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(folder.join("root")).unwrap();
        fs::write(folder.join("log"), []).unwrap();
        fs::write(folder.join("control"), []).unwrap();
        Self { folder, orders: AtomicU64::new(0) }
    }

    /// The directory that is watched.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// What a process on this disk is started with.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("LD_PRELOAD", shim().as_os_str().to_owned()),
            ("DISK_ROOT", self.root().into_os_string()),
            ("DISK_LOG", self.folder.join("log").into_os_string()),
            ("DISK_CONTROL", self.folder.join("control").into_os_string()),
        ]
    }

    /// How long the log is now: what was done before this moment stands before this place.
    pub(crate) fn position(&self) -> u64 {
        fs::metadata(self.folder.join("log")).unwrap().len()
    }

    /// The log so far.
    pub(crate) fn log(&self) -> DiskLog {
        DiskLog::parse(fs::read(self.folder.join("log")).unwrap())
    }

    /// Fails like this from now on.
    pub(crate) fn fail(&self, fault: &Fault) {
        let Fault { operations, files, error, skip, times, torn } = fault;
        let torn = u8::from(*torn);
        self.order(&format!("{operations} {files} {error} {skip} {times} {torn}"));
    }

    /// Works again.
    pub(crate) fn heal(&self) {
        self.order("- - 0 0 0 0");
    }

    /// In one piece: the other side may read at any moment.
    fn order(&self, order: &str) {
        use std::os::unix::fs::FileExt;
        let number = self.orders.fetch_add(1, Ordering::Relaxed);
        let line = format!("{:<100}\n", format!("{number} {order}"));
        let file = fs::File::options().write(true).open(self.folder.join("control")).unwrap();
        file.write_all_at(line.as_bytes(), 0).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// Where `disk.c` was compiled to, once for a run of the tests.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/harness/disk.c");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(folder).unwrap();
        let made = folder.join(format!("disk-{}.so", std::process::id()));
        let library = folder.join("disk.so");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut compile = Command::new(compiler);
        compile.args(["-O1", "-shared", "-fPIC", "-pthread", "-o"]).arg(&made).arg(source);
        let done = compile.output().expect("the tests need a C compiler, as the server does");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        // In one step, because another run of the tests may be using it.
        fs::rename(made, &library).unwrap();
        library
    })
}
