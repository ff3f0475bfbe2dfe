//! One process that a test started, and what it writes. Ends only processes that it started, by their id.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One process that this test started, and what it writes.
pub(super) struct Process {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    log: Arc<Mutex<Vec<u8>>>,
    drain: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    pub(super) fn spawn(mut program: Command) -> Self {
        program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = program.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&log);
        let drain = std::thread::spawn(move || {
            let mut space = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut space) {
                written.lock().unwrap().extend_from_slice(&space[..count]);
            }
        });
        Self { child, stdout, log, drain: Some(drain) }
    }

    /// The first line on its standard output; empty when it ends without one.
    pub(super) fn first_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        if line.is_empty() {
            self.kill();
            panic!("the server did not start:\n{}", self.log());
        }
        line
    }

    /// What came on its standard output together with the first line.
    pub(super) fn came_with_first_line(&self) -> String {
        String::from_utf8_lossy(self.stdout.buffer()).into_owned()
    }

    pub(super) fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap()).into_owned()
    }

    pub(super) fn keep_log_of(&self, earlier: &Self) {
        let mut log = self.log.lock().unwrap();
        let mut whole = earlier.log.lock().unwrap().clone();
        whole.extend_from_slice(b"---- restarted ----\n");
        whole.extend_from_slice(&log);
        *log = whole;
    }

    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(super) fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                self.join_drain();
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.id()).unwrap();
        let id = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// SIGSTOP; waits until every thread has stopped, which is a moment after the signal was given.
    pub(super) fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
        let deadline = Instant::now() + super::PATIENCE;
        let has_stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
            // Number, name in parentheses, state. A thread that has just ended is as good as stopped.
            stat.map_or(true, |stat| stat.rsplit_once(") ").unwrap().1.starts_with('T'))
        };
        let tasks = format!("/proc/{}/task", self.id());
        while !std::fs::read_dir(&tasks).unwrap().all(has_stopped) {
            assert!(Instant::now() < deadline, "the process does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn kill(&mut self) {
        // An error means that it has already ended.
        drop(self.child.kill());
        self.child.wait().unwrap();
        self.join_drain();
    }

    fn join_drain(&mut self) {
        if let Some(drain) = self.drain.take() {
            drain.join().unwrap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
