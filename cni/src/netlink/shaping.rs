//! Traffic shaping with token buckets.
//!
//! Owns: the queueing disciplines and the filter that sends what comes in to a block device for shaping.
//! Kernel structures: `include/uapi/linux/pkt_sched.h` and `pkt_cls.h`.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector,
    TcU32SelectorFlags,
};

use super::{Channel, NEW, NetlinkError};

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that may go at once.
    pub burst: u32,
    /// Bytes that may wait.
    pub limit: u32,
}

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const LINKLAYER_ETHERNET: u8 = 1;
const ETH_P_ALL: u16 = 3;
/// The kernel's clock for queueing disciplines counts 64 ns (`PSCHED_SHIFT` 6).
const NANOSECONDS_PER_TICK: u64 = 64;

impl Bucket {
    /// `struct tc_tbf_qopt`, and the attributes that carry what does not fit into it.
    fn options(&self) -> Vec<TcOption> {
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        let nanoseconds = u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate.max(1));
        let ticks = u32::try_from(nanoseconds / u128::from(NANOSECONDS_PER_TICK)).unwrap_or(u32::MAX);
        let mut parameters = Vec::with_capacity(36);
        // struct tc_ratespec rate: cell_log, linklayer, overhead, cell_align, mpu, rate.
        parameters.extend([0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
        parameters.extend(rate.to_ne_bytes());
        // struct tc_ratespec peakrate: none.
        parameters.extend([0; 12]);
        parameters.extend(self.limit.to_ne_bytes());
        parameters.extend(ticks.to_ne_bytes());
        parameters.extend(0_u32.to_ne_bytes());
        let mut options = vec![
            TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parameters)),
            TcOption::Other(DefaultNla::new(TCA_TBF_BURST, self.burst.to_ne_bytes().to_vec())),
        ];
        if u32::try_from(self.rate).is_err() {
            options.push(TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, self.rate.to_ne_bytes().to_vec())));
        }
        options
    }
}

impl Channel {
    /// Shapes what a link sends.
    ///
    /// # Errors
    /// `EEXIST` when it is shaped already, else as the kernel answers.
    pub fn shape(&mut self, index: u32, bucket: &Bucket) -> Result<(), NetlinkError> {
        let mut message = to_link(index);
        message.header.parent = TcHandle::ROOT;
        message.header.handle = TcHandle { major: 1, minor: 0 };
        message.attributes = vec![TcAttribute::Kind("tbf".into()), TcAttribute::Options(bucket.options())];
        let what = format!("shape link {index} to {} bytes/s", bucket.rate);
        self.ack(&what, RouteNetlinkMessage::NewQueueDiscipline(message), NEW)
    }

    /// Sends everything that comes in by `from` out by `to`.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn redirect_incoming(&mut self, from: u32, to: u32) -> Result<(), NetlinkError> {
        let mut ingress = to_link(from);
        ingress.header.parent = TcHandle::INGRESS;
        ingress.header.handle = TcHandle { major: 0xffff, minor: 0 };
        ingress.attributes = vec![TcAttribute::Kind("ingress".into())];
        let what = format!("redirect what comes in by link {from} to link {to}");
        self.ack(&what, RouteNetlinkMessage::NewQueueDiscipline(ingress), NEW)?;

        let mut mirror = TcMirror::default();
        mirror.generic.action = TcActionType::Stolen;
        mirror.eaction = TcMirrorActionType::EgressRedir;
        mirror.ifindex = to;
        let mut action = TcAction::default();
        action.tab = 1;
        action.attributes = vec![
            TcActionAttribute::Kind("mirred".into()),
            TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
        ];
        let mut everything = TcU32Selector::default();
        everything.flags = TcU32SelectorFlags::Terminal;
        everything.nkeys = 1;
        everything.keys = vec![TcU32Key::default()];
        let mut filter = to_link(from);
        filter.header.parent = TcHandle { major: 0xffff, minor: 0 };
        filter.header.info = 1 << 16 | u32::from(ETH_P_ALL.to_be());
        filter.attributes = vec![
            TcAttribute::Kind("u32".into()),
            TcAttribute::Options(vec![
                TcOption::U32(TcFilterU32Option::Selector(everything)),
                TcOption::U32(TcFilterU32Option::Action(vec![action])),
            ]),
        ];
        self.ack(&what, RouteNetlinkMessage::NewTrafficFilter(filter), NEW)
    }
}

fn to_link(index: u32) -> TcMessage {
    TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX))
}
