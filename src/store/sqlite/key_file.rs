//! The file with the keys of the signing secrets, for a server that was given no key: `secret.key` in the data directory.
//!
//! One key to a line, the newest first, readable by its owner only. It is on the disk before anything is sealed with a
//! key in it, and it is never made anew when something was sealed before: that would lose every secret unnoticed.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::store::Error;
use crate::store::keyring::{Key, KeyError, Keyring};

/// Its name in the data directory.
const FILE_NAME: &str = "secret.key";
/// Longest file that is read, in bytes: the most keys there can be take a tenth of it.
const FILE_BYTES_MAX: u64 = 8 * 1024;
/// What is written above the keys.
const NOTE: &str = "# Keys of Rollcall's signing secrets, the newest first. Without them the secrets in the database \
                    are lost: keep a copy, and not beside the backups.\n";

/// Where it is.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join(FILE_NAME)
}

/// Reads it; none when it is not there.
///
/// # Errors
///
/// It cannot be read, others than its owner may read it, or it holds no keys.
pub(super) fn read(directory: &Path) -> Result<Option<Keyring>, Error> {
    let path = path(directory);
    let failed = |why: &dyn std::fmt::Display| {
        Error::Unavailable(format!("cannot use key file {}: {why}", path.display()))
    };
    let file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| failed(&error))?,
    };
    let mode = file.metadata().map_err(|error| failed(&error))?.permissions().mode();
    if mode & 0o077 != 0 {
        let mode = mode & 0o777;
        return Err(failed(&format!(
            "others than its owner may read or write it (mode {mode:04o}), make that 0600"
        )));
    }
    let mut text = String::new();
    let mut file = file.take(FILE_BYTES_MAX + 1);
    file.read_to_string(&mut text).map_err(|error| failed(&error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(&format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    Keyring::parse(&text).map(Some).map_err(|error| failed(&error))
}

/// Makes a first key and the file for it.
///
/// # Errors
///
/// It cannot be written.
pub(super) fn make(directory: &Path) -> Result<Keyring, Error> {
    let keys = Key::random().and_then(|key| Keyring::new(vec![key])).map_err(unusable)?;
    write(directory, &keys)?;
    Ok(keys)
}

/// Writes it, whole or not at all; on the disk when this returns.
///
/// # Errors
///
/// It cannot be written.
pub(super) fn write(directory: &Path, keys: &Keyring) -> Result<(), Error> {
    let path = path(directory);
    let fresh = directory.join("secret.key.new");
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            // A leftover could have another mode, which opening would not change.
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(NOTE.as_bytes())?;
        file.write_all(keys.reveal().as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| {
        Error::Unavailable(format!("cannot write key file {}: {error}", path.display()))
    })
}

/// A fault of keys as a fault of the store.
pub(super) fn unusable(error: KeyError) -> Error {
    Error::Internal(error.to_string())
}
