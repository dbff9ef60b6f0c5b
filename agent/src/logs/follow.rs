//! A log as a stream of bytes, to its end or, when followed, to the end of its container.
//!
//! Owns: waiting. The kernel tells of changes (inotify); nothing is polled. Never: reads on the runtime's own threads.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{FutureExt, Stream};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe;

use super::print::Style;
use super::reader::{LogReader, Reached};

/// Resolves when the container has ended and nothing more will be written.
pub type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Which log, and how to show it.
pub struct LogRequest {
    /// The current file, `<n>.log`.
    pub path: PathBuf,
    /// Only so many last lines.
    pub tail: Option<u64>,
    /// What to show of them.
    pub style: Style,
    /// Go on with what is written later, until this resolves. `None` ends at the log's present end.
    pub follow: Option<Ended>,
}

/// Opens the log and gives its output in pieces. An error at opening is an error here; later ones end the stream.
pub async fn stream(request: LogRequest) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send> {
    let LogRequest { path, tail, style, follow } = request;
    // Watched before anything is read, so that no change falls in between.
    let follower = match follow {
        None => None,
        Some(ended) => {
            let folder = path.parent().unwrap_or(Path::new("."));
            Some(Follower { changes: Changes::of(folder)?, ended, has_ended: false })
        }
    };
    let reader = blocking(move || LogReader::open(path, tail, style)).await?;
    if follower.is_none() && reader.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such log file"));
    }
    let state = State { reader: Some(Box::new(reader)), follower };
    Ok(futures_util::stream::unfold(state, |mut state| async move {
        let piece = state.next().await.transpose()?;
        Some((piece, state))
    }))
}

struct State {
    /// `None` once everything has been given.
    reader: Option<Box<LogReader>>,
    follower: Option<Follower>,
}

struct Follower {
    changes: Changes,
    ended: Ended,
    has_ended: bool,
}

impl State {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while let Some(reader) = self.reader.take() {
            // Asked before reading: what is written before the end is announced is then certainly read.
            let last_round = self.follower.as_mut().is_none_or(Follower::poll_ended);
            let (reader, reached, out) = read(reader, last_round).await?;
            match reached {
                Reached::Limit => {}
                Reached::End if last_round => {}
                Reached::More | Reached::End => self.reader = Some(reader),
            }
            if !out.is_empty() {
                return Ok(Some(Bytes::from(out)));
            }
            if reached == Reached::End
                && self.reader.is_some()
                && let Some(follower) = &mut self.follower
            {
                follower.wait().await?;
            }
        }
        Ok(None)
    }
}

async fn read(
    mut reader: Box<LogReader>,
    last_round: bool,
) -> io::Result<(Box<LogReader>, Reached, Vec<u8>)> {
    blocking(move || {
        let mut out = Vec::new();
        let reached = reader.read(&mut out)?;
        if last_round && reached == Reached::End {
            reader.finish(&mut out);
        }
        Ok((reader, reached, out))
    })
    .await
}

impl Follower {
    fn poll_ended(&mut self) -> bool {
        self.has_ended = self.has_ended || (&mut self.ended).now_or_never().is_some();
        self.has_ended
    }

    async fn wait(&mut self) -> io::Result<()> {
        // Both arms only wait: a change not taken now is still readable next time.
        tokio::select! {
            () = &mut self.ended, if !self.has_ended => self.has_ended = true,
            changed = self.changes.next() => changed?,
        }
        Ok(())
    }
}

/// Tells when something happens in a folder.
#[derive(Debug)]
pub struct Changes {
    /// An inotify descriptor is read as a pipe is; tokio has no other safe type for descriptors of its owner.
    inotify: pipe::Receiver,
}

impl Changes {
    /// Watches a folder: files written, made, renamed.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(folder, flags)?;
        Ok(Self { inotify: pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(inotify))? })
    }

    /// Waits for at least one change; several are told as one.
    pub async fn next(&mut self) -> io::Result<()> {
        let mut events = [0u8; 4096];
        loop {
            self.inotify.readable().await?;
            match self.inotify.try_read(&mut events) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(|_| ()),
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
