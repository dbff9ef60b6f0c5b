//! Who may work at the same time: one operation for a container, many for different ones, or GC alone.
//!
//! Owns: the waiting.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Inside {
    containers: HashSet<String>,
    closed: bool,
}

/// The gate.
#[derive(Debug, Default)]
pub(super) struct Gate {
    inside: Mutex<Inside>,
    changed: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, Inside>) -> MutexGuard<'a, Inside> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for this container's turn.
    pub(super) fn enter(&self, container: &str) -> Turn<'_> {
        let mut inside = self.lock();
        while inside.closed || inside.containers.contains(container) {
            inside = self.wait(inside);
        }
        inside.containers.insert(container.to_owned());
        Turn { gate: self, container: Some(container.to_owned()) }
    }

    /// Waits until nobody is inside, and lets nobody in.
    pub(super) fn close(&self) -> Turn<'_> {
        let mut inside = self.lock();
        while inside.closed {
            inside = self.wait(inside);
        }
        inside.closed = true;
        while !inside.containers.is_empty() {
            inside = self.wait(inside);
        }
        Turn { gate: self, container: None }
    }
}

/// Being inside; ends when dropped.
pub(super) struct Turn<'a> {
    gate: &'a Gate,
    container: Option<String>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut inside = self.gate.lock();
        match &self.container {
            Some(container) => {
                inside.containers.remove(container);
            }
            None => inside.closed = false,
        }
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    #[test]
    fn a_container_s_operations_never_overlap_and_gc_is_alone() {
        let gate = Gate::default();
        let (same, all) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for n in 0..4 {
                let (gate, same, all) = (&gate, &same, &all);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let turn = gate.enter("c");
                        all.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(same.fetch_add(1, Ordering::SeqCst), 0);
                        same.fetch_sub(1, Ordering::SeqCst);
                        all.fetch_sub(1, Ordering::SeqCst);
                        drop(turn);
                        let other = gate.enter(&n.to_string());
                        all.fetch_add(1, Ordering::SeqCst);
                        all.fetch_sub(1, Ordering::SeqCst);
                        drop(other);
                        let _alone = gate.close();
                        assert_eq!(all.load(Ordering::SeqCst), 0);
                    }
                });
            }
        });
    }
}
