//! Which endpoint sits in which slot.
//!
//! Owns: the assignment that changes as little as possible. An endpoint that is replaced costs one slot; one that
//! goes leaves a hole that the last one fills; one that comes is appended.
//! Never: cares what the endpoints are.

use crate::ruleset::Target;

/// The wanted endpoints (sorted, no duplicates) in slots, given who sits where now.
pub fn assign(now: &[Target], wanted: &[Target]) -> Vec<Target> {
    let mut slots: Vec<Target> = Vec::with_capacity(wanted.len());
    if now.is_empty() {
        slots.extend_from_slice(wanted);
        return slots;
    }
    let mut seated: Vec<Target> = now.to_vec();
    seated.sort_unstable();
    let mut newcomers =
        wanted.iter().filter(|target| seated.binary_search(target).is_err()).copied().peekable();
    let mut holes = Vec::new();
    for (slot, target) in now.iter().enumerate() {
        let stays = wanted.binary_search(target).is_ok();
        match (stays, newcomers.peek()) {
            (true, _) => slots.push(*target),
            (false, Some(_)) => slots.extend(newcomers.next()),
            (false, None) => {
                slots.push(*target);
                holes.push(slot);
            }
        }
    }
    slots.extend(newcomers);
    // From the back, so that a hole at the end is cut off before something would be moved into it.
    for hole in holes.into_iter().rev() {
        slots.swap_remove(hole);
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(ports: &[u16]) -> Vec<Target> {
        ports.iter().map(|&port| Target { address: [10, 0, 0, 1].into(), port }).collect()
    }

    #[test]
    fn only_touched_slots_change() {
        let table: [(&[u16], &[u16], &[u16]); 9] = [
            (&[], &[1, 2, 3], &[1, 2, 3]),
            (&[1, 2, 3], &[1, 2, 3], &[1, 2, 3]),
            (&[3, 1, 2], &[1, 2, 3], &[3, 1, 2]),
            (&[1, 2, 3], &[2, 3, 9], &[9, 2, 3]),
            (&[1, 2, 3], &[2, 3], &[3, 2]),
            (&[1, 2, 3], &[1, 2], &[1, 2]),
            (&[1, 2, 3], &[1, 2, 3, 4], &[1, 2, 3, 4]),
            (&[1, 2, 3, 4, 5], &[3], &[3]),
            (&[1, 2], &[], &[]),
        ];
        for (now, wanted, expected) in table {
            assert_eq!(assign(&targets(now), &targets(wanted)), targets(expected), "{now:?} -> {wanted:?}");
        }
    }
}
