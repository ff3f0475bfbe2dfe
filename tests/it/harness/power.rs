//! What a disk may hold after the power was cut: made from the log of what was done to it.
//!
//! Only a sync makes anything certain: of a file its data and size, of a directory the names in it. Of what was done
//! since, any part may have arrived, whole writes or single sectors, in any order: for each sector any of its
//! contents since the last sync is possible, and so for each name. (An older content of a sector never replaces
//! a newer one: there is one cache above the disk, and it holds the newest.) Whether the sync of a directory is
//! needed differs between file systems; here it always is.
//!
//! When a sync fails, what waited for it is given up, as Linux does it: it may or may not have arrived, and a later
//! sync that succeeds says nothing about it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::chance::Chance;
use super::disk::{DiskLog, Operation};

/// What a disk writes as one.
const SECTOR_BYTES: usize = 512;
/// How the name of the index in shared memory ends. It is not in the log.
const INDEX: &str = "-shm";
/// Size of that index, in which anything may stand after a cut.
const INDEX_BYTES: usize = 32 * 1024;

/// One name in a directory, or its end.
type Naming = (String, Option<Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Directory,
    File(usize),
}

/// Something that a file's next sync will make certain.
#[derive(Clone)]
enum Pending {
    Write { at: usize, data: Vec<u8> },
    Truncate(usize),
}

#[derive(Clone, Default)]
struct File {
    certain: Vec<u8>,
    pending: Vec<Pending>,
    /// What a program reads.
    cached: Vec<u8>,
}

/// How much of what was pending is there.
#[derive(Clone, Copy)]
enum Survival {
    Nothing,
    Everything,
    SomeWrites,
    SomeSectors,
}

impl Survival {
    fn choose(chance: &mut Chance) -> Self {
        match chance.below(6) {
            0 => Self::Nothing,
            1 => Self::Everything,
            2 | 3 => Self::SomeWrites,
            _ => Self::SomeSectors,
        }
    }

    fn takes_part(self, chance: &mut Chance) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::SomeWrites | Self::SomeSectors => chance.percent(50),
        }
    }
}

fn put(content: &mut Vec<u8>, at: usize, data: &[u8]) {
    if content.len() < at + data.len() {
        content.resize(at + data.len(), 0);
    }
    content[at..at + data.len()].copy_from_slice(data);
}

impl Pending {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, data } => put(content, *at, data),
            Self::Truncate(size) => content.resize(*size, 0),
        }
    }

    fn apply_in_part(&self, content: &mut Vec<u8>, survival: Survival, chance: &mut Chance) {
        let (at, data) = match (self, survival) {
            (Self::Write { at, data }, Survival::SomeSectors) => (*at, data),
            _ => {
                if survival.takes_part(chance) {
                    self.apply(content);
                }
                return;
            }
        };
        let mut from = 0;
        while from < data.len() {
            // Up to the next border between sectors of the file.
            let end = data.len().min(from + SECTOR_BYTES - (at + from) % SECTOR_BYTES);
            if chance.percent(50) {
                put(content, at + from, &data[from..end]);
            }
            from = end;
        }
        if chance.percent(50) && content.len() < at + data.len() {
            // The size arrived, the data did not.
            content.resize(at + data.len(), 0);
        }
    }
}

impl File {
    fn after_cut(&self, chance: &mut Chance) -> Vec<u8> {
        let survival = Survival::choose(chance);
        let mut content = self.certain.clone();
        for pending in &self.pending {
            pending.apply_in_part(&mut content, survival, chance);
        }
        content
    }
}

/// The files of one disk at a moment of its log.
#[derive(Clone, Default)]
pub(crate) struct DiskModel {
    files: Vec<File>,
    /// Which file an inode is now; numbers are given again.
    inodes: HashMap<u64, usize>,
    names: BTreeMap<String, Entry>,
    certain_names: BTreeMap<String, Entry>,
    pending_names: Vec<Vec<Naming>>,
    done: usize,
}

impl DiskModel {
    /// A disk that holds the files of this directory for certain, under the inodes that they have there.
    pub(crate) fn of(root: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let mut model = Self::default();
        for (name, path) in list_files(root) {
            if path.is_dir() {
                model.certain_names.insert(name, Entry::Directory);
                continue;
            }
            if name.ends_with(INDEX) {
                continue;
            }
            let content = fs::read(&path).unwrap();
            model.inodes.insert(fs::metadata(&path).unwrap().ino(), model.files.len());
            model.certain_names.insert(name, Entry::File(model.files.len()));
            model.files.push(File {
                certain: content.clone(),
                pending: Vec::new(),
                cached: content,
            });
        }
        model.names = model.certain_names.clone();
        model
    }

    /// Goes on to the operation with this number. `chance` decides what a sync that fails gives up.
    pub(crate) fn advance(&mut self, log: &DiskLog, to: usize, chance: &mut Chance) {
        while self.done < to {
            let (_, operation) = &log.operations[self.done];
            self.apply(log, operation, chance);
            self.done += 1;
        }
    }

    fn apply(&mut self, log: &DiskLog, operation: &Operation, chance: &mut Chance) {
        match operation {
            Operation::Create { path, inode } => {
                self.inodes.insert(*inode, self.files.len());
                self.rename(vec![(path.clone(), Some(Entry::File(self.files.len())))]);
                self.files.push(File::default());
            }
            Operation::MakeDirectory { path } => {
                self.rename(vec![(path.clone(), Some(Entry::Directory))]);
            }
            Operation::Unlink { path } => self.rename(vec![(path.clone(), None)]),
            Operation::Rename { from, to } => {
                let entry = self.names.get(from).copied();
                self.rename(vec![(to.clone(), entry), (from.clone(), None)]);
            }
            Operation::Write { inode, at, data } => {
                let data = log.data(data).to_vec();
                self.change(*inode, Pending::Write { at: *at, data });
            }
            Operation::Truncate { inode, size } => self.change(*inode, Pending::Truncate(*size)),
            Operation::Sync { inode } => {
                let file = &mut self.files[self.inodes[inode]];
                for pending in std::mem::take(&mut file.pending) {
                    pending.apply(&mut file.certain);
                }
            }
            Operation::SyncFailed { inode } => {
                let file = &mut self.files[self.inodes[inode]];
                file.certain = file.after_cut(chance);
                file.pending.clear();
            }
            Operation::SyncDirectory { path } => self.sync_names(path),
        }
    }

    fn change(&mut self, inode: u64, pending: Pending) {
        let file = &mut self.files[self.inodes[&inode]];
        pending.apply(&mut file.cached);
        file.pending.push(pending);
    }

    fn rename(&mut self, changes: Vec<Naming>) {
        apply_names(&mut self.names, &changes);
        self.pending_names.push(changes);
    }

    fn sync_names(&mut self, directory: &str) {
        let certain = &mut self.certain_names;
        self.pending_names.retain(|changes| {
            let is_in = |(path, _): &Naming| parent(path) == directory;
            let synced = changes.iter().any(is_in);
            if synced {
                apply_names(certain, changes);
            }
            !synced
        });
    }

    /// Bytes that wait for a sync.
    pub(crate) fn pending_bytes(&self) -> usize {
        let bytes = |pending: &Pending| match pending {
            Pending::Write { data, .. } => data.len(),
            Pending::Truncate(_) => 0,
        };
        self.files.iter().flat_map(|file| file.pending.iter().map(bytes)).sum()
    }

    /// Writes into an empty directory what the disk may hold when the power is cut now.
    pub(crate) fn cut(&self, into: &Path, chance: &mut Chance) {
        let survival = Survival::choose(chance);
        let mut names = self.certain_names.clone();
        for changes in &self.pending_names {
            if survival.takes_part(chance) {
                apply_names(&mut names, changes);
            }
        }
        // In the order of the paths, so a directory comes before what is in it.
        for (name, entry) in names {
            let path = into.join(&name);
            if !path.parent().unwrap().is_dir() {
                continue;
            }
            match entry {
                Entry::Directory => fs::create_dir(&path).unwrap(),
                Entry::File(number) => {
                    fs::write(&path, self.files[number].after_cut(chance)).unwrap();
                    // As the program makes each of its files.
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                    let is_database = path.extension().is_some_and(|extension| extension == "db");
                    if is_database && chance.percent(50) {
                        let garbage: Vec<u8> = (0..INDEX_BYTES / 8)
                            .flat_map(|_| chance.next().to_ne_bytes())
                            .collect();
                        fs::write(path.with_extension("db-shm"), garbage).unwrap();
                    }
                }
            }
        }
    }

    /// Fails unless the directory holds what a program would read now: then the log has missed nothing.
    pub(crate) fn assert_is(&self, root: &Path) {
        let mut found = BTreeMap::new();
        for (name, path) in list_files(root) {
            if !path.is_dir() && !name.ends_with(INDEX) {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
        for (name, entry) in &self.names {
            if let Entry::File(number) = entry {
                let real = found.remove(name).unwrap_or_else(|| panic!("{name} is not there"));
                assert!(real == self.files[*number].cached, "{name} is not what was logged");
            }
        }
        assert!(found.is_empty(), "not in the log: {:?}", found.keys());
    }
}

fn apply_names(names: &mut BTreeMap<String, Entry>, changes: &[Naming]) {
    for (path, entry) in changes {
        match entry {
            Some(entry) => names.insert(path.clone(), *entry),
            None => names.remove(path),
        };
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Everything below a directory, with the path from there.
fn list_files(root: &Path) -> Vec<(String, std::path::PathBuf)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.push((name, path));
        }
    }
    found
}
