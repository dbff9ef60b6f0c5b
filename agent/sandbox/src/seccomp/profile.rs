//! Localhost profiles: the JSON form of the OCI runtime specification, and docker's additions to it.
//!
//! Owns: the wire types and the choice of what applies (architectures, capabilities, kernel). Never: ignores what it
//! does not understand where that would weaken the filter; a name the architecture lacks is skipped, as runtimes do.

use std::path::Path;
use std::str::FromStr;

use caps::Capability;
use serde::Deserialize;

use super::syscalls::{Architecture, Numbers};
use super::{Action, Comparison, Condition, FLAG_LOG, FLAG_SPEC_ALLOW, Rule, Rules, SeccompError};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u16>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    /// Docker's old form: one name.
    #[serde(default)]
    name: Option<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Docker's addition: when an entry applies.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: String,
}

/// Reads a profile from a file.
pub fn read(path: &Path, capabilities: u64, architecture: Architecture) -> Result<Rules, SeccompError> {
    let text = std::fs::read(path).map_err(|source| SeccompError::Read { path: path.to_owned(), source })?;
    parse(&text, capabilities, architecture)
}

/// Reads a profile for a container with these capabilities (one bit for each).
pub fn parse(text: &[u8], capabilities: u64, architecture: Architecture) -> Result<Rules, SeccompError> {
    let profile: Profile = serde_json::from_slice(text)?;
    if let Some(path) = profile.listener_path {
        return Err(SeccompError::Unsupported { what: "listenerPath", value: path });
    }
    let numbers = Numbers::of(architecture);
    let mut rules = Vec::new();
    for entry in profile.syscalls.unwrap_or_default() {
        if !applies(&entry, capabilities, architecture)? {
            continue;
        }
        let action = action(&entry.action, entry.errno_ret)?;
        let alternatives = alternatives(entry.args.as_deref().unwrap_or_default())?;
        for number in entry.names.iter().chain(&entry.name).filter_map(|name| numbers.get(name)) {
            for conditions in &alternatives {
                rules.push(Rule { number, conditions: conditions.clone(), action });
            }
        }
    }
    Ok(Rules {
        default: action(&profile.default_action, profile.default_errno_ret)?,
        rules,
        flags: flags(profile.flags)?,
    })
}

fn flags(names: Option<Vec<String>>) -> Result<u64, SeccompError> {
    let Some(names) = names else { return Ok(FLAG_SPEC_ALLOW) };
    names.into_iter().try_fold(0, |flags, name| match name.as_str() {
        "SECCOMP_FILTER_FLAG_LOG" => Ok(flags | FLAG_LOG),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(flags | FLAG_SPEC_ALLOW),
        // The process has one thread when the filter is loaded; there is nothing to synchronise.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(flags),
        _ => Err(SeccompError::Unsupported { what: "flag", value: name }),
    })
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, SeccompError> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(libc::EPERM as u16)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRACE" => Action::Trace(errno.unwrap_or(libc::EPERM as u16)),
        _ => return Err(SeccompError::Unsupported { what: "action", value: name.to_owned() }),
    })
}

/// Conditions on different arguments must all hold. Two on the same argument are alternatives: runtimes agree on this
/// reading, because their library cannot express the other.
fn alternatives(arguments: &[Argument]) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let conditions = arguments.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let mut seen = [false; 6];
    let repeated = conditions
        .iter()
        .any(|condition| std::mem::replace(&mut seen[usize::from(condition.argument)], true));
    Ok(if repeated { conditions.into_iter().map(|one| vec![one]).collect() } else { vec![conditions] })
}

fn condition(argument: &Argument) -> Result<Condition, SeccompError> {
    if argument.index > 5 {
        return Err(SeccompError::Unsupported { what: "argument index", value: argument.index.to_string() });
    }
    let value = argument.value;
    let comparison = match argument.op.as_str() {
        "SCMP_CMP_EQ" => Comparison::Equal(value),
        "SCMP_CMP_NE" => Comparison::NotEqual(value),
        "SCMP_CMP_GT" => Comparison::Greater(value),
        "SCMP_CMP_GE" => Comparison::GreaterOrEqual(value),
        "SCMP_CMP_LT" => Comparison::Less(value),
        "SCMP_CMP_LE" => Comparison::LessOrEqual(value),
        "SCMP_CMP_MASKED_EQ" => Comparison::Masked { mask: value, value: argument.value_two },
        other => return Err(SeccompError::Unsupported { what: "op", value: other.to_owned() }),
    };
    Ok(Condition { argument: argument.index, comparison })
}

fn applies(entry: &Entry, capabilities: u64, architecture: Architecture) -> Result<bool, SeccompError> {
    let holds = |name: &String| {
        let known = Capability::from_str(name)
            .map_err(|_| SeccompError::Unsupported { what: "capability", value: name.clone() })?;
        Ok::<bool, SeccompError>(capabilities & known.bitmask() != 0)
    };
    let is_this = |name: &String| match architecture {
        Architecture::X86_64 => matches!(name.as_str(), "amd64" | "x86_64"),
        Architecture::Aarch64 => matches!(name.as_str(), "arm64" | "aarch64"),
    };
    for name in &entry.includes.caps {
        if !holds(name)? {
            return Ok(false);
        }
    }
    for name in &entry.excludes.caps {
        if holds(name)? {
            return Ok(false);
        }
    }
    let included = entry.includes.arches.is_empty() || entry.includes.arches.iter().any(is_this);
    let excluded = entry.excludes.arches.iter().any(is_this);
    // Every kernel this runs on has openat2 and pidfds (5.6), newer than any version the known profiles ask for; a
    // profile that asks for a newer one is refused rather than guessed at.
    for version in [&entry.includes.min_kernel, &entry.excludes.min_kernel] {
        if !version.is_empty() && !older_than_5_6(version) {
            return Err(SeccompError::Unsupported { what: "minKernel", value: version.clone() });
        }
    }
    Ok(included && !excluded && entry.excludes.min_kernel.is_empty())
}

fn older_than_5_6(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) <= (5, 6),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARCHITECTURE: Architecture = Architecture::X86_64;

    fn parse_text(text: &str) -> Result<Rules, SeccompError> {
        parse(text.as_bytes(), Capability::CAP_SYS_CHROOT.bitmask(), ARCHITECTURE)
    }

    #[test]
    fn oci_form_is_read() {
        let rules = parse_text(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64"],
                "syscalls":[{"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW"},
                            {"names":["clone"],"action":"SCMP_ACT_ALLOW",
                             "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
        )
        .unwrap();
        let masked =
            Condition { argument: 0, comparison: Comparison::Masked { mask: 0x7e02_0000, value: 0 } };
        assert_eq!(rules.default, Action::Errno(38));
        assert_eq!(
            rules.rules,
            [
                Rule { number: 0, conditions: vec![], action: Action::Allow },
                Rule { number: 56, conditions: vec![masked], action: Action::Allow },
            ]
        );
    }

    #[test]
    fn docker_entries_apply_by_capability_architecture_and_kernel() {
        let rules = parse_text(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                {"names":["chroot"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_CHROOT"]}},
                {"names":["reboot"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_BOOT"]}},
                {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
                {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
                {"names":["arch_prctl"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64","x32"]}},
                {"name":"open","action":"SCMP_ACT_ALLOW","args":null,"includes":{"arches":["s390x"]}}]}"#,
        )
        .unwrap();
        let numbers: Vec<_> = rules.rules.iter().map(|rule| (rule.number, rule.action)).collect();
        assert_eq!(
            numbers,
            [(161, Action::Allow), (435, Action::Errno(38)), (101, Action::Allow), (158, Action::Allow)]
        );
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives() {
        let rules = parse_text(
            r#"{"defaultAction":"SCMP_ACT_KILL","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW",
                "args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#,
        )
        .unwrap();
        assert_eq!(rules.rules.len(), 2);
        assert!(rules.rules.iter().all(|rule| rule.conditions.len() == 1));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (text, what) in [
            (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}"#, "listenerPath"),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_NEW"]}"#,
                "SECCOMP_FILTER_FLAG_NEW",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL",
                    "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
                "argument index",
            ),
            ("{", "parse seccomp profile"),
        ] {
            let error = parse_text(text).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
