//! What the daemon believes after talking to a supervisor that is in the middle of something.

use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, recv, send};
use orlop_sandbox::protocol::{FromSupervisor, RecordState, Reply, Request};
use tokio::net::UnixDatagram;

use super::*;

fn record(state: RecordState) -> ContainerRecord {
    ContainerRecord {
        id: ContainerId { name: "main".to_owned(), attempt: 0 },
        container_id: "c0".to_owned(),
        backoff_ms: 0,
        image: "localhost/busybox:test".to_owned(),
        image_id: String::new(),
        log_path: PathBuf::new(),
        sandbox: 0,
        start_us: 0,
        state,
    }
}

/// A supervisor whose container gets on its way right behind the answer to `State`: on one thread, the daemon reads both
/// before whoever asked looks at the answer.
struct Fake {
    socket: UnixDatagram,
    listed: Vec<ContainerRecord>,
    then: Vec<Event>,
}

impl Fake {
    async fn run(self) {
        loop {
            let packet = self.socket.async_io(tokio::io::Interest::READABLE, || {
                let mut packet = vec![0; 4096];
                let size = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty())?;
                packet.truncate(size);
                Ok(packet)
            });
            let Ok(request) = serde_json::from_slice::<Request>(&packet.await.unwrap()) else { return };
            let answer = match request.call {
                Call::Hello { version } => Answer::Hello {
                    version,
                    supervisor: SupervisorRecord {
                        version,
                        pid: 1,
                        start_ticks: 0,
                        created_at_ms: 0,
                        pid_ns_holder: None,
                    },
                },
                Call::State => Answer::State { containers: self.listed.clone(), truncated: false },
                other => panic!("{other:?}"),
            };
            let is_state = matches!(answer, Answer::State { .. });
            self.say(&FromSupervisor::Reply(Reply { id: request.id, result: Ok(answer) }));
            if is_state {
                self.then.iter().for_each(|event| self.say(&FromSupervisor::Event(event.clone())));
            }
        }
    }

    fn say(&self, message: &FromSupervisor) {
        let packet = serde_json::to_vec(message).unwrap();
        send(self.socket.as_raw_fd(), &packet, MsgFlags::empty()).unwrap();
    }
}

async fn adopted(listed: RecordState, then: Vec<Event>) -> Vec<ContainerRecord> {
    let dir = tempfile::tempdir().unwrap();
    let supervisors = Supervisors::new(dir.path().join("pods")).unwrap();
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let socket = UnixDatagram::from_std(theirs.into()).unwrap();
    let fake = tokio::spawn(Fake { socket, listed: vec![record(listed)], then }.run());
    let uid = PodUid::from("uid".to_owned());
    supervisors.attach(&uid, Connection::new(ours).unwrap(), 0).await.unwrap();
    assert!(supervisors.live(&uid).is_some());
    fake.abort();
    supervisors.records(&uid)
}

const STARTING: RecordState = RecordState::Starting { since_ms: 1 };
const RUNNING: RecordState = RecordState::Running { pid: 7, started_at_ms: 2 };

fn exited() -> RecordState {
    RecordState::Exited { started_at_ms: 2, finished_at_ms: 3, exit_code: 9, signal: None, oom_killed: false }
}

/// A daemon that was killed while a container started leaves its successor to learn of it from the event.
#[tokio::test]
async fn what_happens_while_a_supervisor_is_adopted_is_not_lost() {
    let records = adopted(STARTING, vec![Event::Started(record(RUNNING))]).await;
    assert_eq!(records, [record(RUNNING)]);
    let events = vec![Event::Started(record(RUNNING)), Event::Exited(record(exited()))];
    assert_eq!(adopted(STARTING, events).await, [record(exited())]);
    assert_eq!(adopted(RUNNING, vec![]).await, [record(RUNNING)]);
}
