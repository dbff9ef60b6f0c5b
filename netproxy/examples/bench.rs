//! What the proxy costs: prints one JSON object.
//!
//! Owns: measurements in network namespaces of its own. Each runs in a process of its own, so that memory is not
//! shared between them. `bench` runs all, `bench NAME` one, `bench --compare` also loads kube-proxy's layout with `nft`.
//! Needs root; `ip` for `connect`, `nft` for `--compare`.
//!
//! | key | what |
//! |---|---|
//! | `cold_sync_10k_ms` | 10,000 services x 2 endpoints, from the last object received to committed |
//! | `cold_sync_20kx10_ms` | 20,000 services x 10 endpoints |
//! | `one_endpoint_p50_us`, `_p99_us` | at 10,000 services, from the JSON line of a changed slice to committed |
//! | `count_change_p50_us` | the same where the number of endpoints changes |
//! | `adopt_restart_ms`, `adopt_elements_rewritten` | a fresh proxy on the table of the former one |
//! | `rss_10k_kib` | growth of resident memory, cache and all, at 10,000 services |
//! | `thousand_events_per_s_cpu_percent`, `_backlog_ms` | of one core; and how late the latest event was done |
//! | `thousand_events_per_s_slowest_ms`, `_slowest_cpu_ms` | the slowest event: by the clock, and what the processor spent on one |
//! | `thousand_events_per_s_late_wakeup_ms` | how late the machine let the waiting process run: no code of ours |
//! | `kube_proxy_layout_10k_*_ms` | its tables for 10,000 services: loaded, listed as before each sync, one service rewritten |
//! | `first_connect_overhead_us` | connect to a service less connect to its pod, the worst of 10 to 20,000 services |

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use orlop_netproxy::netlink::Netlink;
use orlop_netproxy::objects::{EndpointSlice, Service};
use orlop_netproxy::{Config, Event, Proxy};
use serde_json::{Value, json};

/// Any error ends a benchmark.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;
type Numbers = BTreeMap<String, Value>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut numbers = Numbers::new();
    match arguments.first().map(String::as_str) {
        None | Some("--compare") => {
            let mut parts = vec!["cold-10k", "cold-20kx10", "events", "adopt", "rate", "connect"];
            parts.extend((!arguments.is_empty()).then_some("compare"));
            for part in parts {
                let output = Command::new(std::env::current_exe()?).arg(part).output()?;
                if !output.status.success() {
                    return Err(format!("{part}: {}", String::from_utf8_lossy(&output.stderr)).into());
                }
                numbers.extend(serde_json::from_slice::<Numbers>(&output.stdout)?);
            }
        }
        Some("cold-10k") => cold(10_000, 2, ("cold_sync_10k_ms", Some("rss_10k_kib")), &mut numbers)?,
        Some("cold-20kx10") => cold(20_000, 10, ("cold_sync_20kx10_ms", None), &mut numbers)?,
        Some("events") => events(&mut numbers)?,
        Some("adopt") => adopt(&mut numbers)?,
        Some("rate") => rate(&mut numbers)?,
        Some("connect") => connect(&mut numbers)?,
        Some("compare") => compare(&mut numbers)?,
        Some(other) => return Err(format!("no benchmark is called {other}").into()),
    }
    println!("{}", serde_json::to_string_pretty(&numbers)?);
    Ok(())
}

fn service_line(number: u32) -> String {
    let (high, low) = (number >> 8, number & 255);
    json!({ "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "default", "name": format!("service-{number}"), "uid": format!("0000-{number}"),
            "resourceVersion": "1234567", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "app": format!("app-{number}") } },
        "spec": { "type": "ClusterIP", "clusterIP": format!("10.96.{high}.{low}"), "clusterIPs": [format!("10.96.{high}.{low}")],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster", "selector": { "app": format!("app-{number}") },
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080 }] },
        "status": { "loadBalancer": {} } })
    .to_string()
}

fn slice_line(number: u32, endpoints: impl Iterator<Item = u32>) -> String {
    let endpoints: Vec<Value> = endpoints
        .map(|id| {
            json!({ "addresses": [format!("10.{}.{}.{}", 128 + (id >> 16), (id >> 8) & 255, id & 255)],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": format!("node-{}", id % 500), "zone": "zone-a",
                "targetRef": { "kind": "Pod", "namespace": "default", "name": format!("pod-{id}"), "uid": format!("1111-{id}") } })
        })
        .collect();
    json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "namespace": "default", "name": format!("service-{number}-abcde"), "resourceVersion": "1234568",
            "labels": { "kubernetes.io/service-name": format!("service-{number}"),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io" } },
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }], "endpoints": endpoints })
    .to_string()
}

fn own_endpoints(number: u32, each: u32) -> impl Iterator<Item = u32> {
    number * each..(number + 1) * each
}

fn feed(proxy: &mut Proxy<Netlink>, services: u32, each: u32) -> Outcome<()> {
    let parse = |number| serde_json::from_str::<Service>(&service_line(number));
    proxy.apply(Event::ServicesReset((0..services).map(parse).collect::<Result<_, _>>()?));
    let parse =
        |number| serde_json::from_str::<EndpointSlice>(&slice_line(number, own_endpoints(number, each)));
    proxy.apply(Event::SlicesReset((0..services).map(parse).collect::<Result<_, _>>()?));
    Ok(())
}

fn fresh_proxy() -> Outcome<Proxy<Netlink>> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    Ok(Proxy::new(Config { node_name: "node-1".to_owned(), ..Config::default() }, Netlink::open()?))
}

fn milliseconds(duration: Duration) -> Value {
    json!((duration.as_secs_f64() * 100_000.0).round() / 100.0)
}

fn resident_kib() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn cold(services: u32, each: u32, keys: (&str, Option<&str>), numbers: &mut Numbers) -> Outcome<()> {
    let mut proxy = fresh_proxy()?;
    let before = resident_kib()?;
    feed(&mut proxy, services, each)?;
    let start = Instant::now();
    let report = proxy.sync(SystemTime::now())?;
    numbers.insert(keys.0.to_owned(), milliseconds(start.elapsed()));
    if report.added < (services * (each + 2)) as usize {
        return Err(format!("only {} elements", report.added).into());
    }
    if let Some(key) = keys.1 {
        numbers.insert(key.to_owned(), json!(resident_kib()?.saturating_sub(before)));
    }
    Ok(())
}

fn percentile(sorted: &[Duration], percent: usize) -> Value {
    let index = (sorted.len() * percent / 100).min(sorted.len() - 1);
    json!((sorted[index].as_secs_f64() * 10_000_000.0).round() / 10.0)
}

/// Reads a line as from a watch, and programs it.
fn handle(proxy: &mut Proxy<Netlink>, line: &str) -> Outcome<Duration> {
    let start = Instant::now();
    proxy.apply(Event::SliceApplied(Box::new(serde_json::from_str(line)?)));
    if !proxy.sync(SystemTime::now())?.committed {
        return Err("the event changed nothing".into());
    }
    Ok(start.elapsed())
}

fn events(numbers: &mut Numbers) -> Outcome<()> {
    const SERVICES: u32 = 10_000;
    const ROUNDS: u32 = 2000;
    let mut proxy = fresh_proxy()?;
    feed(&mut proxy, SERVICES, 2)?;
    proxy.sync(SystemTime::now())?;
    let (mut replaced, mut counted) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let number = (round * 4219) % SERVICES;
        let own = number * 2;
        replaced.push(handle(&mut proxy, &slice_line(number, [own, 1_000_000 + round].into_iter()))?);
    }
    for round in 0..ROUNDS / 2 {
        let number = (round * 4219 + 1) % SERVICES;
        let own = number * 2;
        counted.push(handle(&mut proxy, &slice_line(number, [own, own + 1, 2_000_000 + round].into_iter()))?);
        counted.push(handle(&mut proxy, &slice_line(number, [own, own + 1].into_iter()))?);
    }
    replaced.sort_unstable();
    counted.sort_unstable();
    numbers.insert("one_endpoint_p50_us".to_owned(), percentile(&replaced, 50));
    numbers.insert("one_endpoint_p99_us".to_owned(), percentile(&replaced, 99));
    numbers.insert("count_change_p50_us".to_owned(), percentile(&counted, 50));
    numbers.insert("count_change_p99_us".to_owned(), percentile(&counted, 99));
    Ok(())
}

fn adopt(numbers: &mut Numbers) -> Outcome<()> {
    let mut first = fresh_proxy()?;
    feed(&mut first, 10_000, 2)?;
    first.sync(SystemTime::now())?;
    let config = first.config().clone();
    drop(first);
    let mut second = Proxy::new(config, Netlink::open()?);
    feed(&mut second, 10_000, 2)?;
    let start = Instant::now();
    let report = second.sync(SystemTime::now())?;
    numbers.insert("adopt_restart_ms".to_owned(), milliseconds(start.elapsed()));
    numbers.insert("adopt_elements_rewritten".to_owned(), json!(report.added + report.removed));
    if report.adopted.len() != 2 {
        return Err("the table was not adopted".into());
    }
    Ok(())
}

fn cpu_time() -> Outcome<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(Duration::from_secs_f64(seconds(usage.user_time()) + seconds(usage.system_time())))
}

fn rate(numbers: &mut Numbers) -> Outcome<()> {
    const SERVICES: u32 = 10_000;
    const EVENTS: u32 = 60_000;
    let mut proxy = fresh_proxy()?;
    feed(&mut proxy, SERVICES, 2)?;
    proxy.sync(SystemTime::now())?;
    let lines: Vec<String> = (0..EVENTS)
        .map(|event| {
            let number = (event * 4219) % SERVICES;
            slice_line(number, [number * 2, 1_000_000 + event].into_iter())
        })
        .collect();
    let (start, cpu) = (Instant::now(), cpu_time()?);
    let [mut latest, mut slowest, mut slowest_cpu, mut overslept] = [Duration::ZERO; 4];
    let mut spent = cpu;
    for (line, index) in lines.iter().zip(0u32..) {
        let due = start + Duration::from_millis(1) * index;
        let pause = due.saturating_duration_since(Instant::now());
        if !pause.is_zero() {
            std::thread::sleep(pause);
            overslept = overslept.max(Instant::now().saturating_duration_since(due));
        }
        slowest = slowest.max(handle(&mut proxy, line)?);
        latest = latest.max(Instant::now().saturating_duration_since(due));
        let now = cpu_time()?;
        slowest_cpu = slowest_cpu.max(now.saturating_sub(spent));
        spent = now;
    }
    let percent = 100.0 * (spent - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    let mut note = |name: &str, value: Value| numbers.insert(format!("thousand_events_per_s_{name}"), value);
    note("cpu_percent", json!((percent * 10.0).round() / 10.0));
    note("backlog_ms", milliseconds(latest));
    note("slowest_ms", milliseconds(slowest));
    note("slowest_cpu_ms", milliseconds(slowest_cpu));
    note("late_wakeup_ms", milliseconds(overslept));
    Ok(())
}

fn run(program: &str, arguments: &str) -> Outcome<()> {
    let output = Command::new(program).args(arguments.split(' ')).output()?;
    if !output.status.success() {
        return Err(format!("{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

/// Connects from the node to a pod in another namespace, directly and by a service, in turns.
fn connect(numbers: &mut Numbers) -> Outcome<()> {
    let pod = format!("orlop-bench-{}", std::process::id());
    let mut proxy = fresh_proxy()?;
    run("ip", &format!("netns add {pod}"))?;
    let measured = connect_in(&pod, &mut proxy, numbers);
    run("ip", &format!("netns del {pod}"))?;
    measured
}

fn connect_in(pod: &str, proxy: &mut Proxy<Netlink>, numbers: &mut Numbers) -> Outcome<()> {
    run("ip", "link set lo up")?;
    run("ip", &format!("link add veth-bench type veth peer name eth0 netns {pod}"))?;
    run("ip", "addr add 10.128.255.254/16 dev veth-bench")?;
    run("ip", "link set veth-bench up")?;
    run("ip", "route add default via 10.128.255.253")?;
    for argument in
        ["addr add 10.128.0.0/16 dev eth0", "link set eth0 up", "route add default via 10.128.255.254"]
    {
        run("ip", &format!("-n {pod} {}", argument.replace("10.128.0.0", "10.128.0.1")))?;
    }
    let namespace = std::fs::File::open(format!("/run/netns/{pod}"))?;
    let listener = std::thread::spawn(move || -> Result<TcpListener, String> {
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
        TcpListener::bind(("10.128.0.1", 8080)).map_err(|error| error.to_string())
    });
    let listener = listener.join().map_err(|_| "the listener's thread failed")??;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let time = |address: &str| -> Outcome<Duration> {
        let address: SocketAddr = address.parse()?;
        let start = Instant::now();
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        let took = start.elapsed();
        drop(stream);
        Ok(took)
    };
    let mut worst = f64::MIN;
    for services in [10, 20_000] {
        feed(proxy, services, 2)?;
        let line = slice_line(5, [1].into_iter());
        proxy.apply(Event::SliceApplied(Box::new(serde_json::from_str(&line)?)));
        proxy.sync(SystemTime::now())?;
        let (mut direct, mut by_service) = (Vec::new(), Vec::new());
        for _ in 0..3000 {
            direct.push(time("10.128.0.1:8080")?);
            by_service.push(time("10.96.0.5:80")?);
        }
        direct.sort_unstable();
        by_service.sort_unstable();
        let microseconds = |times: &[Duration]| times[times.len() / 2].as_secs_f64() * 1e6;
        let overhead = microseconds(&by_service) - microseconds(&direct);
        let rounded = json!((overhead * 10.0).round() / 10.0);
        numbers.insert(format!("first_connect_overhead_{services}_services_us"), rounded);
        worst = worst.max(overhead);
    }
    numbers.insert("first_connect_overhead_us".to_owned(), json!((worst * 10.0).round() / 10.0));
    Ok(())
}

/// A service as kube-proxy lays it out in nftables mode: a chain with an anonymous map.
fn their_rule(number: u32, second: u32) -> String {
    let target = |slot: u32, last: u32| format!("{slot} : 10.128.{}.{last} . 8080", number >> 8);
    let targets = [target(0, number & 255), target(1, second)].join(", ");
    format!("meta l4proto tcp dnat ip addr . port to numgen random mod 2 map {{ {targets} }}")
}

/// The same services in kube-proxy's layout, by the program it uses: loaded, listed as it does before it changes anything,
/// and one of them rewritten. The time to load grows with the square of the number.
fn compare(numbers: &mut Numbers) -> Outcome<()> {
    const SERVICES: u32 = 10_000;
    const CHANGES: u32 = 9;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut text = String::from(
        "table ip kp {\n map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }\n",
    );
    let mut elements = Vec::new();
    for number in 0..SERVICES {
        text += &format!(" chain service-{number} {{\n {}\n }}\n", their_rule(number, 1));
        elements.push(format!("10.96.{}.{} . tcp . 80 : goto service-{number}", number >> 8, number & 255));
    }
    text += " chain services {\n ip daddr . meta l4proto . th dport vmap @service-ips\n }\n";
    text += " chain nat-prerouting {\n type nat hook prerouting priority -100\n jump services\n }\n}\n";
    text += &format!("add element ip kp service-ips {{ {} }}\n", elements.join(", "));
    let path = std::env::temp_dir().join(format!("orlop-bench-{}.nft", std::process::id()));
    let timed = |arguments: &str| -> Outcome<Duration> {
        let start = Instant::now();
        run("nft", arguments)?;
        Ok(start.elapsed())
    };
    let from_file = |text: &str| -> Outcome<Duration> {
        std::fs::write(&path, text)?;
        let loaded = timed(&format!("-f {}", path.display()));
        std::fs::remove_file(&path)?;
        loaded
    };
    let mut note =
        |name: &str, took| numbers.insert(format!("kube_proxy_layout_10k_{name}_ms"), milliseconds(took));
    note("load", from_file(&text)?);
    note("list", timed("--json --terse list table ip kp")?);
    let mut changes = Vec::new();
    for change in 0..CHANGES {
        let number = change * 997;
        let rule = their_rule(number, 2 + change);
        changes.push(from_file(&format!(
            "flush chain ip kp service-{number}\nadd rule ip kp service-{number} {rule}\n"
        ))?);
    }
    changes.sort_unstable();
    note("one_endpoint", changes[changes.len() / 2]);
    Ok(())
}
