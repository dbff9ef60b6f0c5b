//! Forking, and the state a child must not inherit.
//!
//! Owns: `fork`, `close_range`, `pidfd_open`, signal dispositions. Never: waits; the event loop reaps.
#![allow(unsafe_code)] // Reason: fork, close_range, pidfd_open and sigaction have no safe wrapper.

use std::os::fd::{FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid};

/// The exit code of a forked child whose code panicked.
const PANICKED: i32 = 101;

/// Runs `child` in a forked copy of this process, which ends with the code it returns.
///
/// # Caveats
/// The calling process must have a single thread: the child runs ordinary Rust (allocation, locks).
pub fn fork_child(child: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    // SAFETY: this crate's process never starts a thread, so no lock can be held by a thread that the child lacks.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
            // SAFETY: _exit does not return and runs no destructor, which would act on what the parent owns.
            unsafe { libc::_exit(code) }
        }
    }
}

/// How a child ended, as `waitpid` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// Reaps one child that has ended; `None` when there is none at the moment.
///
/// By raw call: the wrapper's list of signals lacks the real-time ones, and it would lose a child that one has killed.
pub fn reap() -> Option<(Pid, Ended)> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes one int, which lives until the call returns.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
        match Errno::result(pid) {
            Ok(pid) if pid > 0 && libc::WIFEXITED(status) => {
                return Some((Pid::from_raw(pid), Ended::Exited(libc::WEXITSTATUS(status))));
            }
            Ok(pid) if pid > 0 && libc::WIFSIGNALED(status) => {
                return Some((Pid::from_raw(pid), Ended::Killed(libc::WTERMSIG(status))));
            }
            Ok(0) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Sends a signal by number, real-time signals included.
pub fn signal(pid: Pid, number: i32) -> Result<(), Errno> {
    if pid.as_raw() <= 0 {
        // Zero and negative numbers mean groups and everybody.
        return Err(Errno::ESRCH);
    }
    // SAFETY: numbers only.
    let done = unsafe { libc::kill(pid.as_raw(), number) };
    Errno::result(done).map(drop)
}

/// A descriptor that becomes readable when the process ends.
pub fn open_pid(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only.
    let opened = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let descriptor = i32::try_from(opened).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) -> Result<(), Errno> {
    // SAFETY: closes numbers only; the callers (start of the process, child that owns nothing else) hold no owner
    // of a number from `first` on.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    Errno::result(done).map(drop)
}

/// Gives every signal its default disposition and unblocks all.
///
/// A container's program must not inherit what the supervisor, or whoever started it, ignores or blocks.
pub fn reset_signals() -> Result<(), Errno> {
    /// `struct sigaction` of the kernel: handler, flags, restorer, mask. All zero is the default disposition.
    #[repr(C)]
    struct KernelAction([usize; 4]);
    let default = KernelAction([0; 4]);
    // By raw call: C libraries refuse the signals they use themselves, and those may be inherited as ignored, too.
    for signal in 1..=64 {
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
            continue;
        }
        // SAFETY: the kernel reads one action, which lives until the call returns, and writes none; the default
        // disposition runs no code of ours.
        let done =
            unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &default, std::ptr::null::<u8>(), 8) };
        Errno::result(done)?;
    }
    SigSet::empty().thread_set_mask()
}
