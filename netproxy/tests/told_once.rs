//! What is wrong with objects is logged once, with the object's name. The only test of its file: what is logged is heard in
//! this thread, and another without an ear would make the log's cache believe that nobody listens.

mod hostile;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use orlop_netproxy::fake::Fake;
use orlop_netproxy::{Config, Proxy};

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic while locked").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn each_problem_is_logged_once_with_its_object() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut proxy = Proxy::new(Config::default(), Fake::default());
    for crowd in [3, 4, 3] {
        for event in hostile::events(crowd) {
            proxy.apply(event);
        }
        proxy.sync(SystemTime::UNIX_EPOCH).expect("the fake takes it");
    }
    let text = String::from_utf8_lossy(&log.0.lock().expect("no panic while locked")).into_owned();
    let lines: Vec<&str> =
        text.lines().filter(|line| line.contains("part of an object is left out")).collect();
    assert_eq!(lines.len() as u64, proxy.problems_total(), "{text}");
    for object in ["ns/big-port", "ns/thief", "ns/node-port-too", "ns/good"] {
        assert!(lines.iter().any(|line| line.contains(object)), "{object} is named in {text}");
    }
}
