//! Tests of reading the plugin's configuration.

use serde_json::json;

use super::*;

fn read(conf: Value) -> Result<Conf, CniError> {
    Conf::read(&Request { conf, ..Request::default() })
}

fn base() -> Value {
    json!({"cniVersion": "1.1.0", "name": "n", "type": "orlop-cni"})
}

#[allow(clippy::needless_pass_by_value)]
fn with(extra: Value) -> Value {
    let mut conf = base();
    for (key, value) in extra.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

#[test]
fn defaults_are_those_of_the_reference_bridge() {
    let conf = read(base()).unwrap();
    assert_eq!((conf.mode, conf.bridge.as_str(), conf.table.as_str()), (Mode::Bridge, "cni0", "orlop-cni"));
    assert!(!conf.is_gateway && !conf.masquerade && conf.mtu.is_none());
    assert!(matches!(conf.ipam, Ipam::None));
}

#[test]
fn a_default_gateway_and_point_to_point_are_gateways() {
    assert!(read(with(json!({"isDefaultGateway": true}))).unwrap().is_gateway);
    assert!(read(with(json!({"mode": "ptp"}))).unwrap().is_gateway);
}

#[test]
fn what_is_not_carried_out_is_refused_by_name() {
    for (key, value) in [("vlan", json!(5)), ("macspoofchk", json!(true)), ("vlanTrunk", json!([{"id": 1}]))]
    {
        let error = read(with(json!({ key: value }))).unwrap_err();
        assert_eq!(error.code, code::UNSUPPORTED_FIELD);
        assert!(error.msg.starts_with(key), "{error}");
    }
}

#[test]
fn ranges_come_from_the_runtime_first_then_from_both_spellings() {
    let conf = read(with(json!({
        "ipam": {"type": "orlop-cni", "subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.2.0.0/24"}]]},
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/24"}]]},
    })))
    .unwrap();
    let Ipam::Own { sets, .. } = conf.ipam else { panic!("own") };
    let subnets: Vec<_> = sets.iter().map(|s| s[0].subnet.to_string()).collect();
    assert_eq!(subnets, ["10.3.0.0/24", "10.1.0.0/24", "10.2.0.0/24"]);
}

#[test]
fn wrong_configurations_are_errors_that_name_the_thing() {
    let cases = [
        (json!({"name": "a b"}), code::INVALID_CONFIG, "a b"),
        (json!({"cniVersion": "3.0.0"}), code::INCOMPATIBLE_VERSION, "3.0.0"),
        (json!({"mode": "macvlan"}), code::DECODE, "macvlan"),
        (json!({"bridge": "a/b"}), code::INVALID_CONFIG, "a/b"),
        (json!({"ipam": {"type": "orlop-cni"}}), code::INVALID_CONFIG, "no ranges"),
        (json!({"ipam": {"type": "../x"}}), code::INVALID_CONFIG, "../x"),
        (json!({"runtimeConfig": {"mac": "01:00:00:00:00:00"}}), code::INVALID_CONFIG, "01:00"),
        (json!({"runtimeConfig": {"ips": ["ten"]}}), code::INVALID_CONFIG, "ten"),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]}}),
            code::INVALID_CONFIG,
            "icmp",
        ),
    ];
    for (extra, code, words) in cases {
        let error = read(with(extra)).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn addresses_are_requested_in_three_ways() {
    let request = Request {
        conf: with(json!({"runtimeConfig": {"ips": ["10.0.0.9/24"]}, "args": {"cni": {"ips": ["fd00::9"]}}})),
        args: vec![("IP".into(), "10.0.0.10,10.0.0.9".into()), ("MAC".into(), "02-00-00-00-00-01".into())],
        ..Request::default()
    };
    let conf = Conf::read(&request).unwrap();
    let asked: Vec<_> = conf.requested.iter().map(ToString::to_string).collect();
    assert_eq!(asked, ["10.0.0.9", "fd00::9", "10.0.0.10"]);
    assert_eq!(conf.mac, Some([2, 0, 0, 0, 0, 1]));
}

#[test]
fn port_mappings_know_three_protocols_and_any_address() {
    let conf = read(with(json!({"runtimeConfig": {"portMappings": [
        {"hostPort": 80, "containerPort": 8080, "protocol": "TCP", "hostIP": "0.0.0.0"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.0.1"},
        {"hostPort": 0, "containerPort": 9, "protocol": "tcp"},
    ]}})))
    .unwrap();
    assert_eq!(conf.ports.len(), 2, "host port 0 means none");
    assert_eq!((conf.ports[0].host_address, conf.ports[1].protocol), (None, Protocol::Udp));
    assert!(conf.maps_ports);
}

#[test]
fn resolv_conf_becomes_dns() {
    let dns = read_resolv_conf(
        "# c\nnameserver 10.0.0.1\nnameserver fd00::1\nsearch a b\noptions ndots:5\ndomain d\n",
    );
    assert_eq!(dns.nameservers, ["10.0.0.1", "fd00::1"]);
    assert_eq!(
        (dns.search.join(","), dns.options.join(","), dns.domain),
        ("a,b".into(), "ndots:5".into(), "d".into())
    );
}

#[test]
fn the_dns_capability_goes_before_the_configuration() {
    let conf = read(with(json!({
        "dns": {"nameservers": ["10.0.0.1"]},
        "runtimeConfig": {"dns": {"servers": ["10.0.0.2"], "searches": ["a.b"], "options": ["ndots:5"]}},
    })));
    let dns = conf.unwrap().dns;
    assert_eq!(
        (dns.nameservers[0].as_str(), dns.search[0].as_str(), dns.options.len()),
        ("10.0.0.2", "a.b", 1)
    );
    assert_eq!(
        read(with(json!({"dns": {"nameservers": ["10.0.0.1"]}}))).unwrap().dns.nameservers,
        ["10.0.0.1"]
    );
}
