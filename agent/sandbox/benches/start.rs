//! How long a container takes from request to answer, and what an idle supervisor weighs. Prints; asserts nothing.
//!
//! `cargo bench -p orlop-sandbox --bench start`; `ORLOP_SANDBOX` names another binary to measure, a static one say.
#![allow(clippy::unwrap_used)] // A measurement, not the product.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::time::Instant;

use orlop_sandbox::protocol::*;
use support::{Plan, Pod, can_run, exec_request, start_exec};

const ROUNDS: usize = 50;
const COPIES: usize = 19;

fn main() {
    if !can_run() {
        return;
    }
    let started = Instant::now();
    let mut pod = Plan::new().start();
    println!("sandbox ready after {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    // Only beside others of its kind does a copy show what it costs: they share the program's pages.
    let others: Vec<Pod> = (0..COPIES).map(|_| Plan::new().start()).collect();
    println!("idle, no container yet, one of {}: {}", COPIES + 1, weight(pod.supervisor.id()));
    for (name, seccomp) in [("plain", Seccomp::Unconfined), ("default", Seccomp::RuntimeDefault)] {
        report(
            &format!("start, {name} filter"),
            &mut (0..ROUNDS).map(|n| start(&mut pod, name, n, &seccomp)).collect::<Vec<_>>(),
        );
    }
    let mut sleeper = pod.prepare("sleeper", &pod.spec("sleeper", &["sleep", "1000"]));
    sleeper.security.seccomp = Seccomp::RuntimeDefault;
    pod.client.start(sleeper).unwrap();
    report("exec", &mut (0..ROUNDS).map(|_| exec(&mut pod)).collect::<Vec<_>>());
    println!("idle, one container: {}", weight(pod.supervisor.id()));
    drop(others);
    let stopping = Instant::now();
    pod.shut_down();
    println!("shut down after {:.1} ms", stopping.elapsed().as_secs_f64() * 1e3);
}

fn start(pod: &mut Pod, name: &str, number: usize, seccomp: &Seccomp) -> f64 {
    let name = format!("{name}-{number}");
    let mut start = pod.prepare(&name, &pod.spec(&name, &["true"]));
    start.security.seccomp = seccomp.clone();
    let begun = Instant::now();
    pod.client.start(start).unwrap();
    let took = begun.elapsed().as_secs_f64() * 1e3;
    pod.client.exit(&name);
    assert_eq!(pod.client.call(Call::Remove { id: pod.id(&name) }), Ok(Answer::Done));
    took
}

fn exec(pod: &mut Pod) -> f64 {
    let request = exec_request(pod, "sleeper", &["true"]);
    let id = request.exec_id;
    let begun = Instant::now();
    start_exec(pod, request).unwrap();
    let took = begun.elapsed().as_secs_f64() * 1e3;
    pod.client.exec_exit(id);
    took
}

fn report(what: &str, millis: &mut [f64]) {
    millis.sort_by(f64::total_cmp);
    let at = |part: usize| millis[(millis.len() - 1) * part / 100];
    println!("{what}: p50 {:.1} ms, p90 {:.1} ms, best {:.1} ms", at(50), at(90), at(0));
}

/// Proportional and private memory of a process.
fn weight(pid: u32) -> String {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let sum = |names: &[&str]| -> u64 {
        let lines = rollup.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
        lines.filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    format!("{} KiB private, {} KiB PSS", sum(&["Private_Clean", "Private_Dirty"]), sum(&["Pss:"]))
}
