//! The thread that owns the proxy: events in, nftables elements out, questions answered in between.
//!
//! Owns: the proxy with its netlink socket, the order of things, retries after a refused transaction.
//! Never: programs anything before the own node is known: its pod ranges and zone are part of the rules, and an intact
//! table would be rewritten twice.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime};

use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::objects::{Family, ObjectName, Service};
use orlop_netproxy::{
    Changes, Event, Explanation, Health, Metrics, Proxy, Query, Status, SyncReport, Verification,
};
use tokio::sync::{oneshot, watch};

use super::checks::Checks;

/// So many attempts differ from each other: nobody waits between them.
const ESCALATIONS: u32 = 3;
/// When all were refused the next waits this long.
const RETRY: Duration = Duration::from_secs(1);

/// What goes to the thread.
#[derive(Debug)]
pub enum Message {
    /// Something changed.
    Event(Event),
    /// Someone wants to know something.
    Question(Question),
}

/// What the proxy can be asked. An answer that nobody waits for any more is dropped.
#[derive(Debug)]
pub enum Question {
    /// Counts.
    Status(oneshot::Sender<(Status, Changes)>),
    /// What happens to a packet.
    Explain(Box<Query>, oneshot::Sender<Result<Explanation, String>>),
    /// Whether the kernel has what it should, and whether `nft` sees it; or why that could not be asked.
    Verify(oneshot::Sender<Result<(Verification, Option<String>), String>>),
}

/// The way to the thread. Clones share the channel.
#[derive(Debug, Clone)]
pub struct Handle(Sender<Message>);

impl Handle {
    pub(super) const fn new(sender: Sender<Message>) -> Self {
        Self(sender)
    }

    /// Hands an event over. False once the thread has ended, which it does only with the process.
    pub fn send(&self, event: Event) -> bool {
        self.0.send(Message::Event(event)).is_ok()
    }

    /// Asks, and waits for the answer; `None` once the thread has ended.
    pub(super) async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.0.send(Message::Question(question(sender))).ok()?;
        answer.await.ok()
    }
}

/// Whom the thread tells of what.
pub struct Told {
    /// Whether the kernel has what was asked for.
    pub synced: watch::Sender<bool>,
    /// What waits, and what is done.
    pub health: watch::Sender<Health>,
    /// Health check node ports.
    pub checks: watch::Sender<Checks>,
    /// Counters.
    pub metrics: Metrics,
}

/// The thread's state.
pub struct Driver {
    proxy: Proxy<Netlink>,
    told: Told,
    node_seen: bool,
    /// Services with a health check node port: nobody looks at the others after each event.
    checked: BTreeSet<ObjectName>,
    /// So many attempts were refused, one after the other.
    refusals: u32,
}

impl Driver {
    pub fn new(proxy: Proxy<Netlink>, told: Told) -> Self {
        Self { proxy, told, node_seen: false, checked: BTreeSet::new(), refusals: 0 }
    }

    /// Runs until every handle is dropped.
    pub fn run(mut self, messages: &Receiver<Message>) {
        let mut questions = Vec::new();
        loop {
            let next = match self.refusals {
                0 => messages.recv().map_err(RecvTimeoutError::from),
                // A change that is refused is followed by a replacement, and that by the search for a service at fault.
                1..ESCALATIONS => messages.recv_timeout(Duration::ZERO),
                ESCALATIONS.. => messages.recv_timeout(RETRY),
            };
            match next {
                Ok(message) => self.take(message, &mut questions),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // What has arrived together goes into the kernel together.
            while let Ok(message) = messages.try_recv() {
                self.take(message, &mut questions);
            }
            if self.node_seen && (self.proxy.is_pending() || self.refusals > 0) {
                self.sync();
            }
            for question in questions.drain(..) {
                self.answer(question);
            }
        }
    }

    fn take(&mut self, message: Message, questions: &mut Vec<Question>) {
        match message {
            Message::Question(question) => questions.push(question),
            Message::Event(event) => {
                self.note(&event);
                self.proxy.apply(event);
            }
        }
    }

    /// What is of interest here before the proxy takes it.
    fn note(&mut self, event: &Event) {
        match event {
            Event::ServiceApplied(service) => self.note_service(service),
            Event::ServiceDeleted(name) => {
                self.checked.remove(name);
            }
            Event::ServicesReset(services) => {
                self.checked.clear();
                services.iter().for_each(|service| self.note_service(service));
            }
            Event::NodeApplied(node) => {
                self.node_seen = true;
                self.told.health.send_modify(|health| health.set_node_eligible(node.eligible));
            }
            Event::SliceApplied(_)
            | Event::SliceDeleted(_)
            | Event::SlicesReset(_)
            | Event::InterfaceAddresses(_)
            | Event::ServiceRanges(_)
            | Event::ForeignChange => {}
        }
    }

    fn note_service(&mut self, service: &Service) {
        match service.health_check_node_port {
            Some(_) => self.checked.insert(service.name.clone()),
            None => self.checked.remove(&service.name),
        };
    }

    fn sync(&mut self) {
        let (now, start) = (SystemTime::now(), Instant::now());
        self.told.health.send_modify(|health| health.queued(now));
        self.told.metrics.record_queued(now);
        let outcome = self.proxy.sync(now);
        let (now, took) = (SystemTime::now(), start.elapsed());
        self.told.metrics.record_sync(&outcome, took, now);
        match outcome {
            Ok(report) => {
                if self.refusals > 0 {
                    tracing::info!("the service rules are programmed again");
                }
                self.refusals = 0;
                tell(&report, took);
                self.told.health.send_modify(|health| health.updated(now));
                let is_synced = self.proxy.is_synced();
                self.told.synced.send_if_modified(|known| std::mem::replace(known, is_synced) != is_synced);
                self.publish_checks();
            }
            Err(error) => {
                if self.refusals == 0 {
                    tracing::error!(%error, "cannot program the service rules; trying again until it works");
                }
                self.refusals = self.refusals.saturating_add(1);
            }
        }
    }

    fn publish_checks(&self) {
        let fresh = match self.checked.is_empty() {
            true => Checks::default(),
            false => Checks {
                addresses: self.proxy.health_check_addresses(),
                checks: self.checked.iter().filter_map(|name| self.proxy.health_check(name)).collect(),
            },
        };
        self.told.checks.send_if_modified(|known| {
            let changed = *known != fresh;
            *known = fresh;
            changed
        });
    }

    fn answer(&mut self, question: Question) {
        // Who asked may have gone away meanwhile.
        match question {
            Question::Status(to) => {
                let _ = to.send((self.proxy.status(), self.proxy.changes()));
            }
            Question::Explain(query, to) => {
                let _ = to.send(self.proxy.explain(*query).map_err(|error| error.to_string()));
            }
            Question::Verify(to) => {
                let _ = to.send(self.verify());
            }
        }
    }

    fn verify(&mut self) -> Result<(Verification, Option<String>), String> {
        let mut verification = self.proxy.verify().map_err(|error| error.to_string())?;
        match self.proxy.verify_with_nft() {
            Ok(differences) => {
                verification.differences.extend(differences);
                Ok((verification, None))
            }
            Err(error) => Ok((verification, Some(error.to_string()))),
        }
    }
}

/// One line for what is rare, none for what happens all the time.
fn tell(report: &SyncReport, took: Duration) {
    let (added, removed) = (report.added, report.removed);
    if report.adopted.is_empty() && report.replaced.is_empty() {
        if report.committed {
            tracing::debug!(added, removed, "service rules");
        }
        return;
    }
    let (adopted, replaced) = (names(&report.adopted), names(&report.replaced));
    let ms = took.as_millis();
    tracing::info!(%adopted, %replaced, added, removed, %ms, "the service rules are in the kernel");
}

fn names(families: &[Family]) -> String {
    let names: Vec<String> = families.iter().map(ToString::to_string).collect();
    if names.is_empty() { "none".to_owned() } else { names.join("+") }
}
