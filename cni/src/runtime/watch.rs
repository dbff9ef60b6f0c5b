//! Learning that the directory of network configurations has changed.
//!
//! Owns: an inotify descriptor. The caller waits on it by its own means (it is readable when something changed), then
//! drains it and loads again.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// A watch of a directory.
#[derive(Debug)]
pub struct ConfWatch {
    inotify: Inotify,
}

impl ConfWatch {
    /// Watches `dir`, which is made if it does not exist.
    ///
    /// # Errors
    /// The directory cannot be made or watched.
    pub fn new(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        inotify.add_watch(dir, changes)?;
        Ok(Self { inotify })
    }

    /// Takes what has been reported and says whether there was anything. Never blocks.
    ///
    /// # Errors
    /// The descriptor cannot be read.
    pub fn drain(&self) -> io::Result<bool> {
        let mut any = false;
        loop {
            match self.inotify.read_events() {
                Ok(events) => any |= !events.is_empty(),
                Err(Errno::EAGAIN) => return Ok(any),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for ConfWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// For a caller that waits and reads by its own means: whatever is read, something has changed.
impl From<ConfWatch> for OwnedFd {
    fn from(watch: ConfWatch) -> Self {
        watch.inotify.into()
    }
}

impl AsRawFd for ConfWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    /// Waits for a change: a child forked by another test's thread holds a file open until it executes its program,
    /// and only the last one who closes it is reported.
    fn changed(watch: &ConfWatch) -> bool {
        let mut waiting = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut waiting, PollTimeout::from(60_000_u16)), Ok(1), "nothing was reported");
        watch.drain().unwrap()
    }

    #[test]
    fn every_kind_of_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("net.d");
        let watch = ConfWatch::new(&conf).unwrap();
        assert!(!watch.drain().unwrap());
        fs::write(conf.join("a.conf"), "{}").unwrap();
        assert!(changed(&watch));
        fs::rename(conf.join("a.conf"), conf.join("b.conf")).unwrap();
        assert!(changed(&watch));
        fs::remove_file(conf.join("b.conf")).unwrap();
        assert!(changed(&watch));
        assert!(!watch.drain().unwrap());
    }
}
