//! The lines of the address log.
//!
//! Owns: how a change is written and recognised: words, then a check sum of them, then a line end.
//! ```text
//! orlop-leases 1 <boot id> <sum>
//! A <set> <address> <container> <ifname> <sum>      leased
//! N <container> <ifname> <sum>                      attached, addresses are another plugin's business
//! D <container> <ifname> <sum>                      everything of this attachment released
//! R <address> <sum>                                 was released before the log was rewritten, oldest first
//! L <set> <address> <sum>                           the address of the set leased last
//! ```

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use super::Owner;

const MAGIC: &str = "orlop-leases 1";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Boot(String),
    Leased { set: usize, address: IpAddr, owner: Owner },
    Attached(Owner),
    Released(Owner),
    Resting(IpAddr),
    Last { set: usize, address: IpAddr },
}

fn sum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(4).map(|b| format!("{b:02x}")).collect()
}

impl Record {
    /// The line, with its end.
    pub(super) fn line(&self) -> String {
        let text = match self {
            Self::Boot(id) => format!("{MAGIC} {id}"),
            Self::Leased { set, address, owner } => {
                format!("A {set} {address} {} {}", owner.container, owner.ifname)
            }
            Self::Attached(owner) => format!("N {} {}", owner.container, owner.ifname),
            Self::Released(owner) => format!("D {} {}", owner.container, owner.ifname),
            Self::Resting(address) => format!("R {address}"),
            Self::Last { set, address } => format!("L {set} {address}"),
        };
        let sum = sum(&text);
        format!("{text} {sum}\n")
    }

    /// Reads a line without its end. `None`: it is not what was written.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (text, said) = line.rsplit_once(' ')?;
        if said != sum(text) {
            return None;
        }
        if let Some(id) = text.strip_prefix(MAGIC) {
            return Some(Self::Boot(id.trim_start().to_owned()));
        }
        let mut words = text.split(' ');
        let kind = words.next()?;
        let mut word = || words.next();
        let record = match kind {
            "A" => {
                let (set, address) = (word()?.parse().ok()?, word()?.parse().ok()?);
                Self::Leased { set, address, owner: Owner::new(word()?, word()?) }
            }
            "N" => Self::Attached(Owner::new(word()?, word()?)),
            "D" => Self::Released(Owner::new(word()?, word()?)),
            "R" => Self::Resting(word()?.parse().ok()?),
            "L" => Self::Last { set: word()?.parse().ok()?, address: word()?.parse().ok()? },
            _ => return None,
        };
        words.next().is_none().then_some(record)
    }
}

/// What a piece of log holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    /// The records, in order.
    pub(super) records: Vec<Record>,
    /// How many bytes they take.
    pub(super) good: usize,
    /// Whether more follows than a torn last line.
    pub(super) damaged: bool,
}

/// Reads as far as the lines are whole. A bad line that is not the last means damage.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut parsed = Parsed { records: Vec::new(), good: 0, damaged: false };
    while let Some(len) = bytes[parsed.good..].iter().position(|b| *b == b'\n') {
        let line = &bytes[parsed.good..parsed.good + len];
        let Some(record) = std::str::from_utf8(line).ok().and_then(Record::parse) else {
            // Several lines are written at once, so what is torn may hold a line end only if nothing follows it.
            parsed.damaged = parsed.good + len + 1 < bytes.len();
            return parsed;
        };
        parsed.records.push(record);
        parsed.good += len + 1;
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records() -> Vec<Record> {
        let owner = Owner::new("c-1", "eth0");
        vec![
            Record::Boot("5c0e".into()),
            Record::Leased { set: 1, address: "fd00::2".parse().unwrap(), owner: owner.clone() },
            Record::Attached(owner.clone()),
            Record::Released(owner),
            Record::Resting("10.0.0.2".parse().unwrap()),
            Record::Last { set: 0, address: "10.0.0.9".parse().unwrap() },
        ]
    }

    #[test]
    fn lines_read_back() {
        let text: String = records().iter().map(Record::line).collect();
        let parsed = parse(text.as_bytes());
        assert_eq!(parsed, Parsed { records: records(), good: text.len(), damaged: false });
    }

    proptest! {
        #[test]
        fn a_log_cut_anywhere_keeps_its_whole_lines(cut in 0_usize..300) {
            let text: String = records().iter().map(Record::line).collect();
            let cut = cut.min(text.len());
            let parsed = parse(&text.as_bytes()[..cut]);
            prop_assert!(!parsed.damaged);
            prop_assert_eq!(parsed.records.len(), text[..cut].matches('\n').count());
        }

        #[test]
        fn a_changed_byte_is_never_read_as_something_else(at in 0_usize..200, bit in 0_u8..8) {
            let text: String = records().iter().map(Record::line).collect();
            let mut bytes = text.into_bytes();
            let at = at.min(bytes.len() - 1);
            bytes[at] ^= 1 << bit;
            let parsed = parse(&bytes);
            let kept = parsed.records.len();
            prop_assert!(kept < records().len());
            prop_assert_eq!(&parsed.records[..], &records()[..kept]);
        }
    }
}
