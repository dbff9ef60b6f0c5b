//! The device program of a cgroup (version 2): which device nodes its processes may open and make.
//!
//! On cgroup v1 the kernel takes a list of rules (`devices.allow`). On v2 there is no such file: an eBPF program decides
//! each time. Owns: rules from the OCI spec, the instructions. Never: loads or attaches (see `sys::bpf`).
//!
//! The last rule that matches decides, as with the files of v1; without any match the answer is no.

use serde::Deserialize;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low half, source in the high half.
    pub registers: u8,
    /// Jump or memory offset.
    pub offset: i16,
    /// Operand.
    pub immediate: i32,
}

/// `linux.resources.devices[]` of the OCI spec.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// `b`, `c` or `a` (both).
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Absent or negative: any.
    #[serde(default)]
    pub major: Option<i64>,
    /// Absent or negative: any.
    #[serde(default)]
    pub minor: Option<i64>,
    /// Some of `r`, `w`, `m`; absent: all.
    #[serde(default)]
    pub access: Option<String>,
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE_REGISTER: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X (32 bit)
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K (32 bit)
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K (32 bit)
const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const IF_NOT_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;

/// The devices every container may use, whatever its spec says: making any node, but opening only null, zero, full,
/// random, urandom, tty, console, terminals and tun. `libcontainer` adds the same on version 1.
const ALWAYS: [(&str, Option<i64>, Option<i64>, &str); 12] = [
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", Some(1), Some(3), "rwm"),
    ("c", Some(1), Some(5), "rwm"),
    ("c", Some(1), Some(7), "rwm"),
    ("c", Some(1), Some(8), "rwm"),
    ("c", Some(1), Some(9), "rwm"),
    ("c", Some(5), Some(0), "rwm"),
    ("c", Some(5), Some(1), "rwm"),
    ("c", Some(5), Some(2), "rwm"),
    ("c", Some(136), None, "rwm"),
    ("c", Some(10), Some(200), "rwm"),
];

/// A spec's rules, and behind them what every container may use.
pub fn with_usual(mut rules: Vec<DeviceRule>) -> Vec<DeviceRule> {
    rules.extend(ALWAYS.iter().map(|(kind, major, minor, access)| DeviceRule {
        allow: true,
        kind: Some((*kind).to_owned()),
        major: *major,
        minor: *minor,
        access: Some((*access).to_owned()),
    }));
    rules
}

/// Makes the program for rules in the order of the spec.
pub fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx { u32 access_type (access << 16 | type); u32 major; u32 minor; }
    let mut program = vec![
        Instruction { code: LOAD_WORD, registers: TYPE | CONTEXT << 4, offset: 0, immediate: 0 },
        Instruction { code: MOVE_REGISTER, registers: ACCESS | TYPE << 4, offset: 0, immediate: 0 },
        on_register(AND, TYPE, 0xffff),
        on_register(SHIFT_RIGHT, ACCESS, 16),
        Instruction { code: LOAD_WORD, registers: MAJOR | CONTEXT << 4, offset: 4, immediate: 0 },
        Instruction { code: LOAD_WORD, registers: MINOR | CONTEXT << 4, offset: 8, immediate: 0 },
    ];
    // From the last rule to the first: the first that matches then decides.
    for rule in rules.iter().rev() {
        let code = one(rule);
        let matches_everything = code.len() == answer(false).len();
        program.extend(code);
        if matches_everything {
            // The kernel refuses a program with instructions that are never reached.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

fn one(rule: &DeviceRule) -> Vec<Instruction> {
    let mut tests = Vec::new();
    match rule.kind.as_deref() {
        Some("b") => tests.push(on_register(IF_NOT_EQUAL, TYPE, TYPE_BLOCK)),
        Some("c" | "u") => tests.push(on_register(IF_NOT_EQUAL, TYPE, TYPE_CHARACTER)),
        // `a`, absent, or a pipe, which is no device and matches nothing else.
        _ => {}
    }
    let access = access_bits(rule.access.as_deref());
    if access != ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE {
        // Register 1 is free after the loads. An allowing rule must cover all that is asked for (nothing is left
        // outside its bits); a denying one strikes when it covers any of it.
        let copy =
            Instruction { code: MOVE_REGISTER, registers: CONTEXT | ACCESS << 4, offset: 0, immediate: 0 };
        if rule.allow {
            tests.extend([copy, on_register(AND, CONTEXT, !access), on_register(IF_NOT_EQUAL, CONTEXT, 0)]);
        } else {
            let strikes = Instruction { code: IF_NOT_EQUAL, registers: CONTEXT, offset: 1, immediate: 0 };
            let skip = on_register(IF_NOT_EQUAL, ACCESS, 0); // access is never 0: an unconditional jump
            tests.extend([copy, on_register(AND, CONTEXT, access), strikes, skip]);
        }
    }
    let number = |value: Option<i64>| value.filter(|v| *v >= 0).map(|v| v as i32);
    tests.extend(number(rule.major).map(|major| on_register(IF_NOT_EQUAL, MAJOR, major)));
    tests.extend(number(rule.minor).map(|minor| on_register(IF_NOT_EQUAL, MINOR, minor)));

    let behind = tests.len() + 2;
    for (at, test) in tests.iter_mut().enumerate() {
        if test.code == IF_NOT_EQUAL && test.offset == 0 {
            // At most nine tests: far below 32767.
            test.offset = (behind - at - 1) as i16;
        }
    }
    tests.extend(answer(rule.allow));
    tests
}

fn access_bits(access: Option<&str>) -> i32 {
    access.unwrap_or("rwm").chars().fold(0, |bits, letter| {
        bits | match letter {
            'r' => ACCESS_READ,
            'w' => ACCESS_WRITE,
            'm' => ACCESS_MKNOD,
            _ => 0,
        }
    })
}

fn on_register(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [on_register(MOVE, RESULT, i32::from(allow)), on_register(EXIT, 0, 0)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Ask {
        kind: i32,
        access: i32,
        major: i32,
        minor: i32,
    }

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], ask: &Ask) -> bool {
        let mut registers = [0i64; 16];
        let mut at = 0usize;
        loop {
            let i = program[at];
            at += 1;
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            match i.code {
                LOAD_WORD => {
                    assert_eq!(from, usize::from(CONTEXT));
                    registers[to] = i64::from(match i.offset {
                        0 => ask.access << 16 | ask.kind,
                        4 => ask.major,
                        8 => ask.minor,
                        other => panic!("context has nothing at {other}"),
                    });
                }
                MOVE_REGISTER => registers[to] = registers[from] & 0xffff_ffff,
                AND => registers[to] &= i64::from(i.immediate as u32),
                SHIFT_RIGHT => registers[to] = (registers[to] & 0xffff_ffff) >> i.immediate,
                MOVE => registers[to] = i64::from(i.immediate),
                IF_NOT_EQUAL => {
                    if registers[to] != i64::from(i.immediate) {
                        at = (at as i64 + i64::from(i.offset)) as usize;
                    }
                }
                EXIT => return registers[usize::from(RESULT)] != 0,
                other => panic!("unknown operation {other:#x}"),
            }
        }
    }

    /// What the rules say: the last that matches decides.
    fn meaning(rules: &[DeviceRule], ask: &Ask) -> bool {
        let matches = |rule: &&DeviceRule| {
            let bits = access_bits(rule.access.as_deref());
            let access = if rule.allow { ask.access & !bits == 0 } else { ask.access & bits != 0 };
            let kind = match rule.kind.as_deref() {
                Some("b") => ask.kind == TYPE_BLOCK,
                Some("c") => ask.kind == TYPE_CHARACTER,
                _ => true,
            };
            let same = |wanted: Option<i64>, is: i32| wanted.is_none_or(|w| w < 0 || w == i64::from(is));
            access && kind && same(rule.major, ask.major) && same(rule.minor, ask.minor)
        };
        rules.iter().rev().find(matches).is_some_and(|rule| rule.allow)
    }

    fn rule() -> impl Strategy<Value = DeviceRule> {
        let kind = prop_oneof![Just(None), Just(Some("a")), Just(Some("b")), Just(Some("c"))];
        let access = prop_oneof![Just(None), "[rwm]{1,3}".prop_map(Some)];
        let number = || proptest::option::of(-1i64..3);
        (any::<bool>(), kind, number(), number(), access).prop_map(|(allow, kind, major, minor, access)| {
            DeviceRule { allow, kind: kind.map(str::to_owned), major, minor, access }
        })
    }

    proptest! {
        #[test]
        fn program_does_what_the_rules_say(
            rules in proptest::collection::vec(rule(), 0..12),
            asks in proptest::collection::vec((1i32..3, 1i32..8, 0i32..3, 0i32..3), 40),
        ) {
            let program = program(&rules);
            for (kind, access, major, minor) in asks {
                let ask = Ask { kind, access, major, minor };
                prop_assert_eq!(run(&program, &ask), meaning(&rules, &ask));
            }
        }
    }

    #[test]
    fn spec_rules_are_read() {
        let rules: Vec<DeviceRule> = serde_json::from_str(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}]"#,
        )
        .unwrap();
        let program = program(&with_usual(rules));
        let null = Ask { kind: TYPE_CHARACTER, access: ACCESS_READ | ACCESS_WRITE, major: 1, minor: 3 };
        assert!(run(&program, &null));
        assert!(!run(&program, &Ask { minor: 1, ..null }), "/dev/mem");
        assert!(run(&program, &Ask { kind: TYPE_CHARACTER, access: ACCESS_MKNOD, major: 1, minor: 1 }));
        assert!(run(&program, &Ask { kind: TYPE_CHARACTER, access: ACCESS_WRITE, major: 136, minor: 7 }));
    }

    #[test]
    fn no_rules_allow_nothing() {
        assert!(!run(&program(&[]), &Ask { kind: TYPE_CHARACTER, access: ACCESS_READ, major: 1, minor: 3 }));
    }
}
