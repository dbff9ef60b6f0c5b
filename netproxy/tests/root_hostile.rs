//! Malformed and hostile objects against the kernel.

mod hostile;
mod lab;

use std::time::SystemTime;

use lab::{Lab, Outcome};
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::{Config, Proxy};

#[test]
fn the_kernel_takes_what_is_left_of_hostile_objects() {
    require_root!();
    let lab = Lab::new();
    let mut proxy = lab.on_node(|| Proxy::new(Config::default(), Netlink::open().expect("nf_tables")));
    for crowd in [100_000, 99_000, 100_000] {
        for event in hostile::events(crowd) {
            proxy.apply(event);
        }
        let report = proxy.sync(SystemTime::now()).expect("the kernel takes it");
        assert_eq!(report.quarantined, 0);
        assert!(matches!(lab.tcp("client", hostile::GOOD, 80), Outcome::Answered(pod, _) if pod == "a"));
    }
    assert_eq!(proxy.verify().expect("the kernel can be read").differences, Vec::<String>::new());
    let listing = lab.nft(&["list", "ruleset"]).expect("nft can list it all");
    assert!(listing.lines().count() > 100_000, "every endpoint is listed");
    proxy.cleanup().expect("our own table can be removed");
}
