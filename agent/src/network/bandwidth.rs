//! A pod's bandwidth limits. Pure.
//!
//! Owns: the annotations `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`, in bits per second, with
//! kubelet's bounds (`pkg/util/bandwidth`). Never: limits anything (a CNI plugin with the capability does).

use std::collections::BTreeMap;

use orlop_cni::runtime::Bandwidth;

use crate::pod::quantity::Quantity;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// 1k and 1P, the bounds of what is reasonable.
const BOUNDS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// A second's worth may go at once, but never less than the largest packet of a link with segmentation offload (64 KiB), nor
/// more than what plugins can count: both in bits.
const BURST: std::ops::RangeInclusive<u64> = 64 * 1024 * 8..=u32::MAX as u64;

/// The limits a pod asks for.
///
/// # Errors
/// An annotation that is not a quantity, or out of bounds: a sentence that names it.
pub fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Bandwidth>, String> {
    let (ingress_rate, egress_rate) = (rate(annotations, INGRESS)?, rate(annotations, EGRESS)?);
    if ingress_rate.or(egress_rate).is_none() {
        return Ok(None);
    }
    let burst = |rate: Option<u64>| rate.map_or(0, |rate| rate.clamp(*BURST.start(), *BURST.end()));
    Ok(Some(Bandwidth {
        ingress_rate: ingress_rate.unwrap_or_default(),
        ingress_burst: burst(ingress_rate),
        egress_rate: egress_rate.unwrap_or_default(),
        egress_burst: burst(egress_rate),
    }))
}

fn rate(annotations: &BTreeMap<String, String>, name: &str) -> Result<Option<u64>, String> {
    let Some(text) = annotations.get(name) else { return Ok(None) };
    let quantity: Quantity = text.parse().map_err(|error| format!("annotation {name}: {error}"))?;
    let rate = quantity.units();
    if BOUNDS.contains(&rate) {
        Ok(Some(rate))
    } else {
        Err(format!("annotation {name}: {text} is not between 1k and 1P bits per second"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(pairs: &[(&str, &str)]) -> Result<Option<Bandwidth>, String> {
        of(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_pod_without_annotations_has_no_limits() {
        assert_eq!(limits(&[("other", "1M")]), Ok(None));
    }

    #[test]
    fn each_direction_has_its_own_limit() {
        let only = Bandwidth { ingress_rate: 10_000_000, ingress_burst: 10_000_000, ..Bandwidth::default() };
        assert_eq!(limits(&[(INGRESS, "10M")]), Ok(Some(only)));
        let both = limits(&[(INGRESS, "1k"), (EGRESS, "1P")]).expect("in bounds").expect("limits");
        assert_eq!((both.ingress_rate, both.ingress_burst), (1_000, 524_288));
        assert_eq!((both.egress_rate, both.egress_burst), (1_000_000_000_000_000, u64::from(u32::MAX)));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for value in ["999", "2P", "fast"] {
            let error = limits(&[(EGRESS, value)]).expect_err(value);
            assert!(error.contains(EGRESS) && error.contains(value), "{error}");
        }
    }
}
