//! Bandwidth limits of a container.
//!
//! Owns: turning the `bandwidth` capability into token buckets: one on the host's end for what the container receives,
//! one on a block device for what it sends. Rates are bits per second, bursts bits, as the capability has them.

use crate::netlink::{Bucket, Channel};
use crate::spec::{CniError, code};
use crate::store::Owner;

use super::conf::Conf;
use super::names;

/// The largest packet a link hands over at once (segmentation offload), in bits: a bucket that holds less lets nothing big
/// through, however long it waits.
const LARGEST_PACKET: u64 = 64 * 1024 * 8;

/// How long data may wait in a bucket's queue, milliseconds; the reference plugin's value.
const LATENCY_MS: u64 = 25;

/// Limits an attachment whose host end is `host`. Without limits nothing is done.
pub(super) fn limit(channel: &mut Channel, conf: &Conf, owner: &Owner, host: &str) -> Result<(), CniError> {
    let limits = conf.bandwidth;
    let incoming = bucket("ingress", limits.ingress_rate, limits.ingress_burst)?;
    let outgoing = bucket("egress", limits.egress_rate, limits.egress_burst)?;
    if incoming.is_none() && outgoing.is_none() {
        return Ok(());
    }
    let gone = |name: &str| CniError::new(code::TRY_AGAIN, format!("interface {name} disappeared"));
    let link = channel.link(host)?.ok_or_else(|| gone(host))?;
    if let Some(bucket) = incoming {
        channel.shape(link.index, &bucket)?;
    }
    if let Some(bucket) = outgoing {
        let name = names::ifb_link(&conf.network, owner);
        channel.create_ifb(&name, link.mtu)?;
        let ifb = channel.link(&name)?.ok_or_else(|| gone(&name))?;
        channel.redirect_incoming(link.index, ifb.index)?;
        channel.shape(ifb.index, &bucket)?;
    }
    Ok(())
}

fn bucket(direction: &str, rate: u64, burst: u64) -> Result<Option<Bucket>, CniError> {
    if rate == 0 && burst == 0 {
        return Ok(None);
    }
    if rate < 8 {
        return Err(CniError::config(format!(
            "bandwidth: {direction}Rate {rate} is less than a byte per second"
        )));
    }
    // Without a burst a second's worth is allowed.
    let burst = if burst == 0 { rate.max(LARGEST_PACKET) } else { burst };
    let bytes = u32::try_from(burst / 8).unwrap_or(u32::MAX);
    let rate = rate / 8;
    let waiting = rate.saturating_mul(LATENCY_MS) / 1000 + u64::from(bytes);
    Ok(Some(Bucket { rate, burst: bytes, limit: u32::try_from(waiting).unwrap_or(u32::MAX) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_bytes_and_the_queue_holds_a_moment_s_worth() {
        let b = bucket("ingress", 8_000_000, 800_000).unwrap().unwrap();
        assert_eq!(b, Bucket { rate: 1_000_000, burst: 100_000, limit: 125_000 });
        assert_eq!(bucket("egress", 0, 0).unwrap(), None);
        assert!(bucket("egress", 7, 1).unwrap_err().msg.contains("egressRate 7"));
        assert_eq!(bucket("egress", 8_000, 0).unwrap().unwrap().burst, 65_536);
        let huge = bucket("egress", 100_000_000_000, 0).unwrap().unwrap();
        assert_eq!((huge.rate, huge.limit), (12_500_000_000, u32::MAX));
    }
}
