//! What clients ask for: one function for each call.

use std::os::fd::OwnedFd;

use crate::protocol::{
    Answer, Call, ContainerId, ContainerRecord, Failure, FailureKind, MAX_PACKET, OLDEST, Request, VERSION,
};

use super::{Caller, Supervisor};

pub(super) fn bad_request(message: impl std::fmt::Display) -> Failure {
    Failure { kind: FailureKind::BadRequest, message: message.to_string() }
}

pub(super) fn not_running(id: &ContainerId) -> Failure {
    Failure { kind: FailureKind::NotRunning, message: format!("container {id} is not running") }
}

/// 0 only asks; 64 is the last real-time signal.
fn check_signal(number: i32) -> Result<(), Failure> {
    if (0..=64).contains(&number) { Ok(()) } else { Err(bad_request(format_args!("{number} is no signal"))) }
}

impl Supervisor {
    pub(super) fn call(&mut self, connection: u32, request: Request, fds: Vec<OwnedFd>) {
        let caller = Caller { connection, request: request.id };
        let greeted = self.connections.get(&connection).is_some_and(|one| one.greeted);
        match request.call {
            Call::Hello { version } => self.hello(caller, version),
            _ if !greeted => self.answer(caller, Err(bad_request("the first packet must be hello")), None),
            Call::State => {
                let state = self.state();
                self.answer(caller, Ok(state), None);
            }
            Call::Start(start) => self.start(caller, &start),
            Call::Signal { id, signal, all } => {
                let result = check_signal(signal).and_then(|()| self.signal(&id, signal, all));
                self.answer(caller, result, None);
            }
            Call::Remove { id } => self.remove(caller, &id),
            Call::Exec(exec) => self.exec(caller, &exec, fds),
            Call::ExecSignal { exec_id, signal } => {
                let result = check_signal(signal).and_then(|()| self.exec_signal(exec_id, signal));
                self.answer(caller, result, None);
            }
            Call::Shutdown => self.shut_down(caller),
        }
    }

    fn hello(&mut self, caller: Caller, version: u32) {
        let result = if version < OLDEST {
            Err(bad_request(format_args!("version {version} is not spoken here, {OLDEST} to {VERSION} are")))
        } else {
            if let Some(connection) = self.connections.get_mut(&caller.connection) {
                connection.greeted = true;
            }
            Ok(Answer::Hello { version: version.min(VERSION), supervisor: self.record.clone() })
        };
        self.answer(caller, result, None);
    }

    /// Everything known. If it does not fit a packet, the attempts that ended first are left out; their records are on
    /// disk.
    fn state(&self) -> Answer {
        let mut containers: Vec<ContainerRecord> =
            self.containers.values().map(|one| one.record.clone()).collect();
        let size = |records: &[ContainerRecord]| serde_json::to_vec(records).map_or(0, |text| text.len());
        let mut truncated = false;
        while size(&containers) > MAX_PACKET - 1024 {
            let Some(oldest) = containers.iter().position(|one| one.state.is_over()) else { break };
            containers.remove(oldest);
            truncated = true;
        }
        Answer::State { containers, truncated }
    }
}
