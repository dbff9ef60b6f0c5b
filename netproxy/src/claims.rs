//! Who wins an address that several services want.
//!
//! Owns: for each address the claims on it. The winner follows from the claims alone, not from the order in which
//! they came: what the API server allocated beats a load balancer's address beats `externalIPs`, then the older
//! service wins, then the lower name.
//! Never: logs; the proxy does, from what `lost` tells.

use std::collections::HashMap;

use crate::frontends::Class;
use crate::objects::ObjectName;
use crate::program::Address;

/// One claim.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Claim {
    /// What kind of claim.
    pub class: Class,
    /// When the service was made, milliseconds since the epoch.
    pub created_ms: u64,
    /// The service's number in the table.
    pub service: u32,
    /// Index into its ports.
    pub port: u32,
}

/// All claims.
#[derive(Default)]
pub struct Claims {
    /// Almost every address has one claim; the others stand in `rivals`, sorted, the winner first.
    sole: HashMap<Address, Claim>,
    rivals: HashMap<Address, Vec<Claim>>,
}

impl Claims {
    /// Adds a claim. Returns the service that was winning and is not any more, or now has a rival to know of.
    pub fn add(&mut self, address: Address, claim: Claim, name: &dyn Fn(u32) -> ObjectName) -> Option<u32> {
        if let Some(rivals) = self.rivals.get_mut(&address) {
            let before = rivals.first().map(|first| first.service);
            rivals.push(claim);
            sort(rivals, name);
            let after = rivals.first().map(|first| first.service);
            return before.filter(|before| Some(*before) != after);
        }
        match self.sole.remove(&address) {
            None => {
                self.sole.insert(address, claim);
                None
            }
            Some(other) => {
                let before = other.service;
                let mut rivals = vec![other, claim];
                sort(&mut rivals, name);
                let lost = (rivals[0].service != before).then_some(before);
                self.rivals.insert(address, rivals);
                lost
            }
        }
    }

    /// Removes a service's claims on an address. Returns the service that wins it now and did not before.
    pub fn remove(&mut self, address: &Address, service: u32) -> Option<u32> {
        if let Some(rivals) = self.rivals.get_mut(address) {
            let before = rivals.first().map(|first| first.service);
            rivals.retain(|claim| claim.service != service);
            let after = rivals.first().map(|first| first.service);
            if rivals.len() < 2 {
                let last = self.rivals.remove(address).and_then(|mut rivals| rivals.pop());
                if let Some(last) = last {
                    self.sole.insert(*address, last);
                }
            }
            return after.filter(|after| Some(*after) != before);
        }
        if self.sole.get(address).is_some_and(|claim| claim.service == service) {
            self.sole.remove(address);
        }
        None
    }

    /// Whether this port of this service is the one that gets the address.
    pub fn wins(&self, address: &Address, service: u32, port: u32) -> bool {
        self.winner(address).is_some_and(|claim| (claim.service, claim.port) == (service, port))
    }

    /// The claim that gets the address.
    pub fn winner(&self, address: &Address) -> Option<&Claim> {
        self.sole.get(address).or_else(|| self.rivals.get(address).and_then(|rivals| rivals.first()))
    }
}

fn sort(rivals: &mut [Claim], name: &dyn Fn(u32) -> ObjectName) {
    rivals.sort_by_cached_key(|claim| (claim.class, claim.created_ms, name(claim.service), claim.port));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{Family, Protocol};
    use crate::ruleset::NodePort;

    #[test]
    fn the_winner_does_not_depend_on_the_order_of_claims() {
        let address = Address::NodePort(Family::V4, NodePort { protocol: Protocol::Tcp, port: 30080 });
        let name = |service: u32| ObjectName::new("ns", &format!("s{service}"));
        let claim = |service, class, created_ms| Claim { class, created_ms, service, port: 0 };
        let all = [
            claim(3, Class::ExternalIp, 1),
            claim(1, Class::Allocated, 9),
            claim(2, Class::Allocated, 9),
            claim(4, Class::LoadBalancer, 0),
        ];
        for turn in 0..all.len() {
            let mut claims = Claims::default();
            for index in 0..all.len() {
                claims.add(address, all[(index + turn) % all.len()].clone(), &name);
            }
            assert!(claims.wins(&address, 1, 0));
            assert_eq!(claims.remove(&address, 1), Some(2));
            assert_eq!(claims.remove(&address, 4), None);
            assert_eq!(claims.remove(&address, 2), Some(3));
            assert!(claims.wins(&address, 3, 0));
            assert_eq!(claims.remove(&address, 3), None);
            assert!(claims.winner(&address).is_none());
        }
    }
}
