//! Which endpoints of a service port get traffic.
//!
//! Owns: the compact endpoint the table keeps, topology hints (KEP-2433, KEP-3015, KEP-4444), the fallback to
//! terminating endpoints (KEP-1669) and the merging of slices. All of it pure.
//! Never: assigns slots (see `slots`).

use std::collections::BTreeMap;

use crate::ruleset::Target;

/// Facts about an endpoint, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Facts(u8);

impl Facts {
    /// Takes new connections.
    pub const READY: Self = Self(1);
    /// Still answers, though it may be terminating.
    pub const SERVING: Self = Self(2);
    /// Is being shut down.
    pub const TERMINATING: Self = Self(4);
    /// Runs on this node.
    pub const LOCAL: Self = Self(8);
    /// Has hints for nodes.
    pub const NODE_HINTED: Self = Self(16);
    /// This node is among them.
    pub const HINTS_THIS_NODE: Self = Self(32);

    /// Both.
    pub const fn with(self, other: Self, really: bool) -> Self {
        if really { Self(self.0 | other.0) } else { self }
    }

    /// Whether all of `other` hold.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// An endpoint of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Where connections go.
    pub target: Target,
    /// What is known of it.
    pub facts: Facts,
    /// The zones it is hinted for, as a bit set of zone numbers.
    pub zones: u64,
}

/// What a service port needs of its endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wants {
    /// It uses all endpoints: `internalTrafficPolicy: Cluster`, or anything external (pods and the node may always
    /// use all).
    pub cluster: bool,
    /// It uses those on this node.
    pub local: bool,
}

/// The endpoints in use, each list sorted and without duplicates.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Chosen {
    /// Those usable from inside.
    pub cluster: Vec<Target>,
    /// Those usable where only local endpoints may be.
    pub local: Vec<Target>,
    /// Those of either list that run here: they may talk to themselves.
    pub here: Vec<Target>,
    /// Every endpoint that still answers, used or not: existing UDP flows to it are left alone.
    pub serving: Vec<Target>,
    /// Whether there is any usable endpoint anywhere.
    pub any: bool,
}

/// Merges the same endpoint from several slices: one that is not terminating wins, else the last.
pub fn merge(candidates: impl IntoIterator<Item = Candidate>) -> Vec<Candidate> {
    let mut merged: BTreeMap<Target, Candidate> = BTreeMap::new();
    for candidate in candidates {
        match merged.get(&candidate.target) {
            Some(known)
                if candidate.facts.has(Facts::TERMINATING) && !known.facts.has(Facts::TERMINATING) => {}
            _ => {
                merged.insert(candidate.target, candidate);
            }
        }
    }
    merged.into_values().collect()
}

enum Topology {
    Everywhere,
    ThisNode,
    Zone(u64),
}

impl Topology {
    /// Hints count only if every ready endpoint has them and one is for us; a half-hinted service is in transition.
    fn of(candidates: &[Candidate], zone: Option<u64>) -> Self {
        let ready = || candidates.iter().filter(|candidate| candidate.facts.has(Facts::READY));
        if ready().next().is_none() {
            return Self::Everywhere;
        }
        if ready().all(|candidate| candidate.facts.has(Facts::NODE_HINTED))
            && ready().any(|candidate| candidate.facts.has(Facts::HINTS_THIS_NODE))
        {
            return Self::ThisNode;
        }
        match zone {
            Some(zone)
                if ready().all(|candidate| candidate.zones != 0)
                    && ready().any(|candidate| candidate.zones & zone != 0) =>
            {
                Self::Zone(zone)
            }
            _ => Self::Everywhere,
        }
    }

    const fn admits(&self, candidate: &Candidate) -> bool {
        match self {
            Self::Everywhere => true,
            Self::ThisNode => candidate.facts.has(Facts::HINTS_THIS_NODE),
            Self::Zone(zone) => candidate.zones & *zone != 0,
        }
    }
}

/// Chooses among merged candidates. `zone` is the bit of the own zone, if it is known.
pub fn choose(candidates: &[Candidate], wants: Wants, zone: Option<u64>) -> Chosen {
    let ready = |candidate: &Candidate| candidate.facts.has(Facts::READY);
    let draining = |candidate: &Candidate| candidate.facts.has(Facts::SERVING.with(Facts::TERMINATING, true));
    let local = |candidate: &Candidate| candidate.facts.has(Facts::LOCAL);
    let pick = |keep: &dyn Fn(&Candidate) -> bool| -> Vec<Target> {
        candidates.iter().filter(|candidate| keep(candidate)).map(|candidate| candidate.target).collect()
    };
    let mut chosen = Chosen {
        serving: pick(&|candidate| candidate.facts.has(Facts::SERVING)),
        any: candidates.iter().any(|candidate| ready(candidate) || draining(candidate)),
        ..Chosen::default()
    };
    if wants.cluster {
        let topology = Topology::of(candidates, zone);
        chosen.cluster = pick(&|candidate| ready(candidate) && topology.admits(candidate));
        if chosen.cluster.is_empty() {
            chosen.cluster = pick(&draining);
        }
    }
    if wants.local {
        chosen.local = pick(&|candidate| ready(candidate) && local(candidate));
        if chosen.local.is_empty() {
            chosen.local = pick(&|candidate| draining(candidate) && local(candidate));
        }
    }
    let used = |target: &Target| {
        chosen.cluster.binary_search(target).is_ok() || chosen.local.binary_search(target).is_ok()
    };
    chosen.here = pick(&|candidate| local(candidate) && used(&candidate.target));
    chosen
}
