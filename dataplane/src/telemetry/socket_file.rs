//! The unix socket that clients find by a path, and what a path can be up to: another run's socket, a dead one's, somebody's file.
//!
//! The socket is bound under a name beside it, made the owner's alone, and only then linked to its path: it is never open to others, and who comes
//! second finds the path taken.
#![forbid(unsafe_code)]

use crate::error::Error;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::fs::{self, Metadata, Permissions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Read and written by the owner.
const MODE: u32 = 0o600;
/// What the kernel's `sockaddr_un` has room for, without the NUL at the end, and less what the name beside it takes.
const LONGEST: usize = 107 - SUFFIX;
const SUFFIX: usize = ".4194304".len();

/// A listening socket; dropped, its file goes, if it is still its own.
pub(super) struct SocketFile {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    own: (u64, u64),
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Connects, and waits for nobody.
fn probe(path: &Path) -> Result<(), Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

/// Removes `path` if it is a socket that nobody listens at any more.
fn remove_stale(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let wrong = |error: std::io::Error| format!("--ctl {shown}: {error}; choose another path");
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(wrong(error)),
    };
    if !found.file_type().is_socket() {
        return Err(format!(
            "--ctl {shown}: there is a file already, and it is no socket: choose another path"
        ));
    }
    match probe(path) {
        Err(Errno::ECONNREFUSED) => {}
        // A full queue of connections is somebody's, too.
        Ok(()) | Err(Errno::EAGAIN) => {
            return Err(format!("--ctl {shown}: somebody listens there already: choose another path"));
        }
        Err(errno) => return Err(wrong(errno.into())),
    }
    // Not one that has been put there since.
    if fs::symlink_metadata(path).is_ok_and(|now| identity(&now) == identity(&found)) {
        fs::remove_file(path).map_err(wrong)?;
    }
    Ok(())
}

impl SocketFile {
    /// Listens at `path`, in the place of a dead run's socket if there is one. The error is one line that says what to do.
    pub(super) fn bind(path: &Path) -> Result<Self, Error> {
        let shown = path.display();
        let bytes = path.as_os_str().len();
        if bytes == 0 || bytes > LONGEST {
            let problem = format!("a socket's path has 1 to {LONGEST} bytes, not {bytes}: choose another");
            return Err(Error::Configuration(format!("--ctl {shown}: {problem}")));
        }
        remove_stale(path).map_err(Error::Endpoint)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        // A dead process's that had our number.
        let _ = fs::remove_file(&beside);
        let bound = UnixListener::bind(&beside).and_then(|listener| {
            let linked = fs::set_permissions(&beside, Permissions::from_mode(MODE))
                .and_then(|()| listener.set_nonblocking(true))
                .and_then(|()| fs::symlink_metadata(&beside))
                .and_then(|metadata| fs::hard_link(&beside, path).map(|()| identity(&metadata)));
            let _ = fs::remove_file(&beside);
            Ok((listener, linked?))
        });
        let (listener, own) =
            bound.map_err(|error| Error::Endpoint(format!("--ctl {shown}: {error}; choose another path")))?;
        // Whatever becomes of the working directory.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self { listener, path, own })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|now| identity(&now) == self.own) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn refusal(path: &Path) -> String {
        SocketFile::bind(path).err().unwrap().to_string()
    }

    #[test]
    fn the_file_is_its_owners_and_goes_with_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ctl");
        let socket = SocketFile::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn who_listens_is_left_alone_and_a_dead_ones_place_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ctl");
        let first = SocketFile::bind(&path).unwrap();
        assert!(refusal(&path).contains("somebody listens there already"), "{}", refusal(&path));
        UnixStream::connect(&path).unwrap();
        drop(first);
        // A listener of the standard library leaves its file behind, as a killed run does.
        drop(UnixListener::bind(&path).unwrap());
        let second = SocketFile::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        // Another file at its path is not its own to remove.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        drop(second);
        assert!(path.exists());
        assert!(refusal(&path).contains("it is no socket"), "{}", refusal(&path));
    }

    #[test]
    fn a_path_that_cannot_be_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing").join("ctl");
        assert!(refusal(&missing).contains("No such file"), "{}", refusal(&missing));
        let long = folder.path().join("l".repeat(LONGEST));
        assert!(refusal(&long).contains("1 to 99 bytes"), "{}", refusal(&long));
        // As long as may be.
        let room = LONGEST - folder.path().as_os_str().len() - 1;
        drop(SocketFile::bind(&folder.path().join("l".repeat(room))).unwrap());
    }
}
