//! Which address a container gets. Pure.
//!
//! Owns: the order: a requested address; else the first never used one after the last leased, going round; else the
//! longest released one.

use std::net::IpAddr;

use super::range::RangeSet;
use super::state::State;
use super::{Lease, StoreError};

/// Chooses one address of each set.
pub(super) fn pick(state: &State, sets: &[RangeSet], requested: &[IpAddr]) -> Result<Vec<Lease>, StoreError> {
    let mut requested = requested.to_vec();
    let mut picked = Vec::with_capacity(sets.len());
    for (set, ranges) in sets.iter().enumerate() {
        let wanted = requested.iter().position(|ip| ranges.iter().any(|r| r.contains(*ip)));
        let address = match wanted {
            Some(at) => {
                let ip = requested.remove(at);
                if state.owner_of(ip).is_some() {
                    return Err(StoreError::Taken(ip));
                }
                ip
            }
            None => next(state, set, ranges).ok_or_else(|| {
                StoreError::Exhausted(ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
            })?,
        };
        picked.push(Lease { set, address });
    }
    match requested.first() {
        Some(left) => Err(StoreError::OutOfRange(*left)),
        None => Ok(picked),
    }
}

fn next(state: &State, set: usize, ranges: &RangeSet) -> Option<IpAddr> {
    never_used(state, set, ranges).or_else(|| {
        state.resting().find(|ip| state.owner_of(*ip).is_none() && ranges.iter().any(|r| r.contains(*ip)))
    })
}

fn never_used(state: &State, set: usize, ranges: &RangeSet) -> Option<IpAddr> {
    let last = state.last(set);
    // The range the last address was taken from; a changed configuration may not have it any more.
    let from = last.and_then(|last| ranges.iter().position(|r| r.contains(last)));
    let (start, after) = from.map_or((0, None), |at| (at, last));
    let rest =
        ranges[start..].iter().enumerate().flat_map(|(i, r)| r.addresses_after(after.filter(|_| i == 0)));
    let round =
        ranges[..=start.min(ranges.len().saturating_sub(1))].iter().flat_map(|r| r.addresses_after(None));
    rest.chain(round).find(|ip| state.is_fresh(*ip))
}
