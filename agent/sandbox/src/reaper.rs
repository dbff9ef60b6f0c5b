//! PID 1 of a pod that shares its pid namespace: it adopts orphans and reaps them, and does nothing else.
//!
//! Its containers are the supervisor's children and reaped there; what they leave behind comes here.

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::sys::process::{close_from, reset_signals};

/// Runs for the life of the pod.
pub fn run() -> i32 {
    // None of the supervisor's connections, pipes and terminals may be kept open from here.
    let _ = close_from(0);
    let _ = prctl::set_name(c"orlop-reaper");
    // To PID 1 signals with the default disposition do nothing, whoever in the pod sends them.
    let _ = reset_signals();
    let mut child_ended = SigSet::empty();
    child_ended.add(Signal::SIGCHLD);
    // Blocked before the first look: an orphan that ends between a look and the wait is not missed.
    let _ = child_ended.thread_block();
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED) {
            Ok(_) | Err(Errno::EINTR) => {}
            // No orphan at the moment. One that comes and ends sends the signal.
            Err(_) => {
                let _ = child_ended.wait();
            }
        }
    }
}
