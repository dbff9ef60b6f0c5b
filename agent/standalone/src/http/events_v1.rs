//! Events of the group events.k8s.io, which are stored as events of the core group: the fields have other names.

use serde_json::Value;

use crate::object;
use crate::resource::{ApiResource, Kind};

/// Names in events.k8s.io and in the core group.
const NAMES: [(&str, &str); 8] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingInstance", "reportingInstance"),
];

/// Whether objects of this resource have the other names.
pub fn applies(api: &ApiResource) -> bool {
    api.kind == Kind::Event && api.group == "events.k8s.io"
}

fn rename(event: &mut Value, to_stored: bool) {
    let map = object::object_of(event);
    for (new, stored) in NAMES {
        let (from, to) = if to_stored { (new, stored) } else { (stored, new) };
        if from != to
            && let Some(value) = map.remove(from)
        {
            map.insert(to.to_owned(), value);
        }
    }
}

/// To the names under which events are stored.
pub fn to_stored(event: &mut Value) {
    rename(event, true);
}

/// From the names under which events are stored.
pub fn from_stored(event: &mut Value) {
    rename(event, false);
}
