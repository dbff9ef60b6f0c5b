//! System call numbers by name, from the kernel's headers.
//!
//! Owns: the table `syscalls.txt` (name, number on x86_64, number on aarch64, `-` where there is none). It is text, so
//! that it costs no memory until a filter is compiled.

use super::SeccompError;

const TABLE: &str = include_str!("syscalls.txt");

/// The architecture a filter is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `AUDIT_ARCH_X86_64`
    X86_64,
    /// `AUDIT_ARCH_AARCH64`
    Aarch64,
}

impl Architecture {
    /// This machine's.
    pub fn native() -> Result<Self, SeccompError> {
        if cfg!(target_arch = "x86_64") {
            Ok(Architecture::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Ok(Architecture::Aarch64)
        } else {
            Err(SeccompError::UnknownArchitecture)
        }
    }

    /// As the kernel names it in `struct seccomp_data`.
    pub fn audit(self) -> u32 {
        match self {
            Architecture::X86_64 => 0xc000_003e,
            Architecture::Aarch64 => 0xc000_00b7,
        }
    }

    fn column(self) -> usize {
        match self {
            Architecture::X86_64 => 1,
            Architecture::Aarch64 => 2,
        }
    }
}

/// The numbers of one architecture.
#[derive(Debug)]
pub struct Numbers(Vec<(&'static str, u32)>);

impl Numbers {
    /// Reads the table.
    pub fn of(architecture: Architecture) -> Self {
        let entry = |line: &'static str| {
            let mut words = line.split(' ');
            let name = words.next()?;
            Some((name, words.nth(architecture.column() - 1)?.parse().ok()?))
        };
        // The table is sorted by name; a test holds it to that.
        Numbers(TABLE.lines().filter_map(entry).collect())
    }

    /// The number of a system call; `None` if this architecture has none of this name.
    pub fn get(&self, name: &str) -> Option<u32> {
        let at = self.0.binary_search_by_key(&name, |entry| entry.0).ok()?;
        Some(self.0[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_complete() {
        let names: Vec<_> = TABLE.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert!(names.is_sorted());
        assert!(Numbers::of(Architecture::X86_64).0.len() > 370);
        assert!(Numbers::of(Architecture::Aarch64).0.len() > 310);
    }

    #[test]
    fn numbers_agree_with_libc() {
        let numbers = Numbers::of(Architecture::native().unwrap());
        for (name, number) in [
            ("read", libc::SYS_read),
            ("execve", libc::SYS_execve),
            ("clone3", libc::SYS_clone3),
            ("openat2", libc::SYS_openat2),
            ("newfstatat", libc::SYS_newfstatat),
            ("mseal", libc::SYS_mseal),
            ("seccomp", libc::SYS_seccomp),
        ] {
            assert_eq!(numbers.get(name), u32::try_from(number).ok(), "{name}");
        }
        assert_eq!(numbers.get("no_such_call"), None);
    }

    #[test]
    fn a_call_of_one_architecture_is_unknown_on_the_other() {
        assert_eq!(Numbers::of(Architecture::Aarch64).get("open"), None);
        assert_eq!(Numbers::of(Architecture::X86_64).get("open"), Some(2));
    }
}
