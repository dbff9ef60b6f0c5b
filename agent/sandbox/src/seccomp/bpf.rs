//! From rules to a BPF program: a binary tree over ranges of system call numbers.
//!
//! Neighbouring numbers with the same answer are one range, so a profile of 300 names becomes some 60 leaves and every
//! call is decided after 6 or 7 comparisons. A linear list of the same rules takes longer to load (the kernel runs it
//! once for each number to fill its cache) and longer for each call.
//!
//! Calls of another architecture (32-bit programs, x32) fail with `ENOSYS`, whatever the profile's default: their
//! numbers mean other calls, so that no rule may be applied to them and none may be evaded through them.

use super::syscalls::Architecture;
use super::{Action, Comparison, Condition, Rule, Rules, SeccompError};

/// `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// How many instructions to skip if true.
    pub jt: u8,
    /// How many to skip if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const IF_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// The most instructions the kernel takes (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// From here on x86_64 numbers mean x32 calls.
const X32_BIT: u32 = 0x4000_0000;
const NO_SUCH_CALL: Action = Action::Errno(libc::ENOSYS as u16);

/// What happens to the numbers from `first` up to the next segment's first.
struct Segment {
    first: u32,
    verdict: Verdict,
}

#[derive(Clone, PartialEq)]
enum Verdict {
    Always(Action),
    /// The first alternative whose conditions hold, else the default.
    Tested(Vec<(Vec<Condition>, Action)>),
}

/// Compiles a filter.
pub fn compile(rules: &Rules, architecture: Architecture) -> Result<Vec<Instruction>, SeccompError> {
    let segments = segments(rules, architecture);
    let mut program = vec![
        load(OFFSET_ARCHITECTURE),
        Instruction { code: IF_EQUAL, jt: 1, jf: 0, k: architecture.audit() },
        answer(NO_SUCH_CALL),
        load(OFFSET_NUMBER),
    ];
    program.extend(tree(&segments, rules.default));
    if program.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(program)
}

fn segments(rules: &Rules, architecture: Architecture) -> Vec<Segment> {
    let mut sorted: Vec<&Rule> = rules.rules.iter().filter(|rule| rule.number < X32_BIT).collect();
    sorted.sort_by_key(|rule| rule.number);
    let otherwise = Verdict::Always(rules.default);
    let mut segments: Vec<Segment> = vec![Segment { first: 0, verdict: otherwise.clone() }];
    for same in sorted.chunk_by(|a, b| a.number == b.number) {
        let number = same[0].number;
        push(&mut segments, Segment { first: number, verdict: verdict(same) });
        push(&mut segments, Segment { first: number + 1, verdict: otherwise.clone() });
    }
    if architecture == Architecture::X86_64 {
        push(&mut segments, Segment { first: X32_BIT, verdict: Verdict::Always(NO_SUCH_CALL) });
    }
    segments
}

/// Appends a segment: an empty one before it goes, and equal neighbours become one.
fn push(segments: &mut Vec<Segment>, next: Segment) {
    if segments.last().is_some_and(|last| last.first == next.first) {
        segments.pop();
    }
    if segments.last().is_none_or(|last| last.verdict != next.verdict) {
        segments.push(next);
    }
}

fn verdict(same_number: &[&Rule]) -> Verdict {
    match same_number.iter().find(|rule| rule.conditions.is_empty()) {
        Some(rule) => Verdict::Always(rule.action),
        None => {
            Verdict::Tested(same_number.iter().map(|rule| (rule.conditions.clone(), rule.action)).collect())
        }
    }
}

fn tree(segments: &[Segment], default: Action) -> Vec<Instruction> {
    if let [only] = segments {
        return leaf(&only.verdict, default);
    }
    let (left, right) = segments.split_at(segments.len() / 2);
    let k = right[0].first;
    let (left, right) = (tree(left, default), tree(right, default));
    let mut code = match u8::try_from(left.len()) {
        Ok(skip) => vec![Instruction { code: IF_GREATER_OR_EQUAL, jt: skip, jf: 0, k }],
        Err(_) => vec![
            Instruction { code: IF_GREATER_OR_EQUAL, jt: 0, jf: 1, k },
            Instruction { code: JUMP, jt: 0, jf: 0, k: left.len() as u32 },
        ],
    };
    code.extend(left);
    code.extend(right);
    code
}

fn leaf(verdict: &Verdict, default: Action) -> Vec<Instruction> {
    let alternatives = match verdict {
        Verdict::Always(action) => return vec![answer(*action)],
        Verdict::Tested(alternatives) => alternatives,
    };
    let mut code = Vec::new();
    for (conditions, action) in alternatives {
        code.extend(alternative(conditions, *action));
    }
    code.push(answer(default));
    code
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum Then {
    /// The next instruction.
    Next,
    /// This condition holds: behind its last instruction.
    Holds,
    /// This condition does not hold: behind the whole alternative.
    Fails,
}

enum Step {
    Plain(Instruction),
    Test { code: u16, k: u32, yes: Then, no: Then },
}

fn alternative(conditions: &[Condition], action: Action) -> Vec<Instruction> {
    let mut steps: Vec<(Step, usize)> = Vec::new(); // with the index at which its condition ends
    for condition in conditions {
        let one = steps_of(condition);
        let end = steps.len() + one.len();
        steps.extend(one.into_iter().map(|step| (step, end)));
    }
    let fails = steps.len() + 1; // behind the answer
    let resolve = |at: usize, end: usize, then: Then| {
        let target = match then {
            Then::Next => at + 1,
            Then::Holds => end,
            Then::Fails => fails,
        };
        // Six conditions of at most six steps are far below 255.
        (target - at - 1) as u8
    };
    let mut code: Vec<Instruction> = Vec::with_capacity(fails);
    for (at, (step, end)) in steps.iter().enumerate() {
        code.push(match step {
            Step::Plain(instruction) => *instruction,
            Step::Test { code, k, yes, no } => {
                Instruction { code: *code, jt: resolve(at, *end, *yes), jf: resolve(at, *end, *no), k: *k }
            }
        });
    }
    code.push(answer(action));
    code
}

fn steps_of(condition: &Condition) -> Vec<Step> {
    use Then::{Fails, Holds, Next};
    let low = OFFSET_ARGUMENTS + 8 * u32::from(condition.argument);
    let high = low + 4;
    let split = |value: u64| ((value >> 32) as u32, value as u32);
    let test = |code, k, yes, no| Step::Test { code, k, yes, no };
    let get = |offset| Step::Plain(load(offset));
    // Compares the high word; only if it is equal does the low word decide.
    let ordered = |value: u64, code: u16, above: Then, below: Then| {
        let (h, l) = split(value);
        vec![
            get(high),
            test(IF_GREATER, h, above, Next),
            test(IF_EQUAL, h, Next, below),
            get(low),
            test(code, l, above, below),
        ]
    };
    match condition.comparison {
        Comparison::Equal(value) => {
            let (h, l) = split(value);
            vec![get(high), test(IF_EQUAL, h, Next, Fails), get(low), test(IF_EQUAL, l, Holds, Fails)]
        }
        Comparison::NotEqual(value) => {
            let (h, l) = split(value);
            vec![get(high), test(IF_EQUAL, h, Next, Holds), get(low), test(IF_EQUAL, l, Fails, Holds)]
        }
        Comparison::Masked { mask, value } => {
            let ((mask_high, mask_low), (h, l)) = (split(mask), split(value));
            let and = |k| Step::Plain(Instruction { code: AND, jt: 0, jf: 0, k });
            vec![
                get(high),
                and(mask_high),
                test(IF_EQUAL, h, Next, Fails),
                get(low),
                and(mask_low),
                test(IF_EQUAL, l, Holds, Fails),
            ]
        }
        Comparison::Greater(value) => ordered(value, IF_GREATER, Holds, Fails),
        Comparison::GreaterOrEqual(value) => ordered(value, IF_GREATER_OR_EQUAL, Holds, Fails),
        Comparison::LessOrEqual(value) => ordered(value, IF_GREATER, Fails, Holds),
        Comparison::Less(value) => ordered(value, IF_GREATER_OR_EQUAL, Fails, Holds),
    }
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn answer(action: Action) -> Instruction {
    let k = match action {
        Action::Allow => 0x7fff_0000,
        Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
        Action::KillProcess => 0x8000_0000,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Log => 0x7ffc_0000,
        Action::Trace(data) => 0x7ff0_0000 | u32::from(data),
    };
    Instruction { code: RETURN, jt: 0, jf: 0, k }
}

#[cfg(test)]
pub(crate) use tests::{Call, run};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A system call as the filter sees it.
    pub(crate) struct Call {
        pub(crate) number: u32,
        pub(crate) architecture: u32,
        pub(crate) arguments: [u64; 6],
    }

    impl Call {
        fn word(&self, offset: u32) -> u32 {
            match offset {
                OFFSET_NUMBER => self.number,
                OFFSET_ARCHITECTURE => self.architecture,
                _ => {
                    let argument = self.arguments[((offset - OFFSET_ARGUMENTS) / 8) as usize];
                    if offset.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
                }
            }
        }
    }

    /// Runs a program as the kernel would.
    pub(crate) fn run(program: &[Instruction], call: &Call) -> Action {
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let i = program[at];
            at += 1;
            let mut branch = |yes: bool| at += usize::from(if yes { i.jt } else { i.jf });
            match i.code {
                LOAD => a = call.word(i.k),
                AND => a &= i.k,
                JUMP => at += i.k as usize,
                IF_EQUAL => branch(a == i.k),
                IF_GREATER => branch(a > i.k),
                IF_GREATER_OR_EQUAL => branch(a >= i.k),
                RETURN => return decode(i.k),
                other => panic!("unknown operation {other:#x}"),
            }
        }
    }

    fn decode(k: u32) -> Action {
        match k & 0xffff_0000 {
            0x7fff_0000 => Action::Allow,
            0x0005_0000 => Action::Errno(k as u16),
            0x8000_0000 => Action::KillProcess,
            0 => Action::KillThread,
            0x0003_0000 => Action::Trap,
            0x7ffc_0000 => Action::Log,
            0x7ff0_0000 => Action::Trace(k as u16),
            other => panic!("unknown answer {other:#x}"),
        }
    }

    /// What the rules say, without any program.
    fn meaning(rules: &Rules, call: &Call) -> Action {
        let same = || rules.rules.iter().filter(|rule| rule.number == call.number);
        if let Some(rule) = same().find(|rule| rule.conditions.is_empty()) {
            return rule.action;
        }
        same()
            .find(|rule| rule.conditions.iter().all(|c| holds(c, call.arguments[usize::from(c.argument)])))
            .map_or(rules.default, |rule| rule.action)
    }

    fn holds(condition: &Condition, argument: u64) -> bool {
        match condition.comparison {
            Comparison::Equal(v) => argument == v,
            Comparison::NotEqual(v) => argument != v,
            Comparison::Greater(v) => argument > v,
            Comparison::GreaterOrEqual(v) => argument >= v,
            Comparison::Less(v) => argument < v,
            Comparison::LessOrEqual(v) => argument <= v,
            Comparison::Masked { mask, value } => argument & mask == value,
        }
    }

    fn word() -> impl Strategy<Value = u64> {
        // Few distinct words in both halves, so that equal halves happen.
        (0u64..4, 0u64..4).prop_map(|(high, low)| high << 32 | low)
    }

    fn comparison() -> impl Strategy<Value = Comparison> {
        prop_oneof![
            word().prop_map(Comparison::Equal),
            word().prop_map(Comparison::NotEqual),
            word().prop_map(Comparison::Greater),
            word().prop_map(Comparison::GreaterOrEqual),
            word().prop_map(Comparison::Less),
            word().prop_map(Comparison::LessOrEqual),
            (word(), word()).prop_map(|(mask, value)| Comparison::Masked { mask, value }),
        ]
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            Just(Action::Allow),
            (1u16..40).prop_map(Action::Errno),
            Just(Action::KillProcess),
            Just(Action::Trap),
            Just(Action::Log),
        ]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let condition =
            (0u8..6, comparison()).prop_map(|(argument, comparison)| Condition { argument, comparison });
        (0u32..500, proptest::collection::vec(condition, 0..3), action())
            .prop_map(|(number, conditions, action)| Rule { number, conditions, action })
    }

    proptest! {
        #[test]
        fn program_does_what_the_rules_say(
            default in action(),
            rules in proptest::collection::vec(rule(), 0..200),
            calls in proptest::collection::vec((0u32..510, proptest::array::uniform6(word())), 50),
        ) {
            let rules = Rules { default, rules, flags: 0 };
            let program = compile(&rules, Architecture::X86_64).unwrap();
            for (number, arguments) in calls {
                let call = Call { number, architecture: Architecture::X86_64.audit(), arguments };
                prop_assert_eq!(run(&program, &call), meaning(&rules, &call));
            }
        }
    }

    #[test]
    fn other_architectures_cannot_evade_a_list_of_forbidden_calls() {
        let rules = Rules {
            default: Action::Allow,
            rules: vec![Rule { number: 2, conditions: vec![], action: Action::KillProcess }],
            flags: 0,
        };
        let program = compile(&rules, Architecture::X86_64).unwrap();
        let ask = |number, architecture| run(&program, &Call { number, architecture, arguments: [0; 6] });
        assert_eq!(ask(2, Architecture::X86_64.audit()), Action::KillProcess);
        assert_eq!(ask(3, Architecture::X86_64.audit()), Action::Allow);
        assert_eq!(ask(5, 0x4000_0003), NO_SUCH_CALL, "i386, where open is 5");
        assert_eq!(ask(X32_BIT | 2, Architecture::X86_64.audit()), NO_SUCH_CALL, "x32");
    }

    #[test]
    fn a_program_longer_than_a_short_jump_works() {
        // Every second number: no two neighbours agree, so that the tree's halves are longer than 255.
        let rules: Vec<_> = (0..900)
            .step_by(2)
            .map(|number| Rule {
                number,
                conditions: vec![],
                action: Action::Errno((number % 100 + 1) as u16),
            })
            .collect();
        let rules = Rules { default: Action::Allow, rules, flags: 0 };
        let program = compile(&rules, Architecture::X86_64).unwrap();
        assert!(program.iter().any(|i| i.code == JUMP));
        for number in 0..1000 {
            let call = Call { number, architecture: Architecture::X86_64.audit(), arguments: [0; 6] };
            assert_eq!(run(&program, &call), meaning(&rules, &call), "{number}");
        }
    }

    #[test]
    fn too_many_rules_are_an_error() {
        let rules: Vec<_> = (0..5000)
            .map(|number| Rule {
                number,
                conditions: vec![],
                action: Action::Errno((number % 4000 + 1) as u16),
            })
            .collect();
        let rules = Rules { default: Action::Allow, rules, flags: 0 };
        assert!(matches!(compile(&rules, Architecture::X86_64), Err(SeccompError::TooLong(_))));
    }
}
