//! Deleting links after DEL has returned.
//!
//! Owns: a thread and its queue. The kernel waits for a grace period at each request to delete a link, some 20 ms, but
//! a whole group of links costs little more than one; so what queues up during one request goes with the next.
//! An address is released only when its link is gone, and a name is not reused before.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;

use crate::netlink::{Channel, NetlinkError, unless};
use crate::spec::{CniError, code};
use crate::store::{Owner, Store};

/// The group links are put into to be deleted together; "orlp" in ASCII.
const GROUP: u32 = 0x6f72_6c70;

/// The end of one attachment.
#[derive(Debug)]
pub(super) struct Job {
    /// Links to delete; ones that are not there are fine.
    pub(super) links: Vec<String>,
    /// Where the attachment is to be released afterwards.
    pub(super) store: Arc<Mutex<Store>>,
    /// The attachment.
    pub(super) owner: Owner,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: Vec<Job>,
    /// Links queued or being deleted now.
    names: HashSet<String>,
    started: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands links over to the thread that deletes them. Dropping it finishes the queue.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Reaper {
    /// The thread starts with the first job, and in the namespace of the thread that brings it.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Queues a job.
    pub(super) fn bury(&self, job: Job) -> Result<(), CniError> {
        let mut queue = self.shared.queue();
        queue.names.extend(job.links.iter().cloned());
        queue.jobs.push(job);
        if !queue.started {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name("cni-reaper".into()).spawn(move || work(&shared));
            let thread =
                thread.map_err(|e| CniError::new(code::TRY_AGAIN, format!("start a thread: {e}")))?;
            *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
            queue.started = true;
        }
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Waits until the link `name` is not about to be deleted.
    pub(super) fn wait_for(&self, name: &str) {
        let mut queue = self.shared.queue();
        while queue.names.contains(name) {
            queue = self.shared.wait(queue);
        }
    }

    /// Waits until nothing is about to be deleted.
    pub(super) fn settle(&self) {
        let mut queue = self.shared.queue();
        while !queue.names.is_empty() {
            queue = self.shared.wait(queue);
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The thread catches its own errors; a panic in it has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared) {
    let mut channel = None;
    loop {
        let mut queue = shared.queue();
        while queue.jobs.is_empty() {
            if queue.closed {
                return;
            }
            queue = shared.wait(queue);
        }
        let jobs = std::mem::take(&mut queue.jobs);
        drop(queue);
        if let Err(error) = carry_out(&mut channel, &jobs) {
            tracing::warn!(%error, attachments = jobs.len(), "deleting pod links together");
            channel = None;
            one_by_one(&mut channel, &jobs);
        }
        let mut queue = shared.queue();
        let again: HashSet<_> = queue.jobs.iter().flat_map(|j| j.links.iter().cloned()).collect();
        for name in jobs.iter().flat_map(|j| &j.links).filter(|n| !again.contains(*n)) {
            queue.names.remove(name);
        }
        shared.changed.notify_all();
    }
}

/// One link that cannot be deleted must not keep the others. Its attachment keeps its lease, and GC finds it.
fn one_by_one(channel: &mut Option<Channel>, jobs: &[Job]) {
    for job in jobs {
        if let Err(error) = carry_out(channel, std::slice::from_ref(job)) {
            tracing::error!(%error, container = %job.owner.container, "deleting a pod's links");
            *channel = None;
        }
    }
}

fn carry_out(channel: &mut Option<Channel>, jobs: &[Job]) -> Result<(), CniError> {
    let channel = match channel {
        Some(channel) => channel,
        None => channel.insert(Channel::route()?),
    };
    let links: Vec<String> = jobs.iter().flat_map(|j| j.links.iter().cloned()).collect();
    delete_links(channel, &links)?;
    let mut left: Vec<&Job> = jobs.iter().collect();
    while let Some(first) = left.first() {
        let store = Arc::clone(&first.store);
        let (same, others): (Vec<&Job>, Vec<&Job>) =
            left.into_iter().partition(|j| Arc::ptr_eq(&j.store, &store));
        let owners: Vec<Owner> = same.into_iter().map(|j| j.owner.clone()).collect();
        store.lock().unwrap_or_else(PoisonError::into_inner).release(&owners)?;
        left = others;
    }
    Ok(())
}

/// Deletes links, many at once. Ones that are not there are fine.
pub(super) fn delete_links(channel: &mut Channel, links: &[String]) -> Result<(), NetlinkError> {
    if let [one] = links {
        return unless(channel.delete_link(one), &[Errno::ENODEV]);
    }
    for link in links {
        unless(channel.set_group(link, GROUP), &[Errno::ENODEV])?;
    }
    if links.is_empty() {
        return Ok(());
    }
    unless(channel.delete_group(GROUP), &[Errno::ENODEV])
}
