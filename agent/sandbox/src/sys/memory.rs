//! Giving memory back to the kernel: what is free, and what was needed to start.
//!
//! Owns: `malloc_trim`, and `madvise` of the program's own file. Never: decides when.
#![allow(unsafe_code)] // Reason: malloc_trim is a C function, and madvise takes an address.

use std::fs;
use std::ops::Range;

/// Returns the free pages of the heap. There is one supervisor for each pod, and it idles for nearly all of its life.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it only gives back pages that hold no allocation.
    unsafe {
        libc::malloc_trim(0);
    }
    // musl's allocator gives back whole free groups by itself.
}

/// Unmaps the program's file. What is used is mapped again when it is, from the page cache; what only a start needs is not,
/// and the kernel is free to drop it. A fault maps 64 KiB around it, so that a start maps nearly all of the code.
pub fn release_program() {
    // Without /proc there is nothing to do that matters.
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for range in untouched_file_mappings(&maps) {
        // SAFETY: no page of the mapping differs from the file, and none can be written to, so that each access finds what it
        // would have found: the kernel maps the file's page again.
        unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(range.start),
                range.len(),
                libc::MADV_DONTNEED,
            );
        }
    }
}

/// The mappings of files in `/proc/<pid>/smaps` that are private and cannot be written to, and of which no page was before:
/// relocations are written into mappings that are read-only afterwards.
fn untouched_file_mappings(smaps: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut current: Option<Range<usize>> = None;
    for line in smaps.lines() {
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        match first {
            "Anonymous:" | "Swap:" if rest.trim() != "0 kB" => current = None,
            // The last line of each mapping.
            "VmFlags:" => found.extend(current.take()),
            _ => {
                if let Some(range) = address_range(first) {
                    let is_file = rest.split_whitespace().nth(4).is_some_and(|path| path.starts_with('/'));
                    let untouched = is_file && (rest.starts_with("r--p") || rest.starts_with("r-xp"));
                    current = untouched.then_some(range);
                }
            }
        }
    }
    found
}

/// `00400000-0048a000`.
fn address_range(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mappings_that_are_as_the_file_are_given_back() {
        let mapping = |head: &str, anonymous: u32| {
            format!(
                "{head}\nSize:   8 kB\nRss:   8 kB\nAnonymous:   {anonymous} kB\nSwap:  0 kB\nVmFlags: rd ex mr\n"
            )
        };
        let smaps = [
            mapping("00200000-0043f000 r--p 00000000 fe:00 5 /usr/bin/orlop", 0),
            mapping("0043f000-00f3c000 r-xp 0023e000 fe:00 5 /usr/bin/orlop (deleted)", 0),
            mapping("00f3c000-00f40000 r--p 00d3a000 fe:00 5 /usr/bin/orlop", 16),
            mapping("00f40000-00f47000 rw-p 00d3d000 fe:00 5 /usr/bin/orlop", 0),
            mapping("00f47000-00f4f000 rw-p 00000000 00:00 0", 4),
            mapping("7f0000000000-7f0000001000 r--p 00000000 00:00 0 [vvar]", 0),
            mapping("7f0000002000-7f0000003000 r--s 00000000 fe:00 6 /shared", 0),
        ];
        assert_eq!(untouched_file_mappings(&smaps.concat()), [0x200000..0x43f000, 0x43f000..0xf3c000]);
    }

    #[test]
    fn a_program_goes_on_after_its_code_was_given_back() {
        let rss = || {
            let smaps = fs::read_to_string("/proc/self/smaps").expect("readable");
            let mut code = false;
            let mut sum = 0;
            for line in smaps.lines() {
                if address_range(line.split(' ').next().unwrap_or_default()).is_some() {
                    code = line.contains(" r-xp ") && line.contains('/');
                } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| code) {
                    sum += rss.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
                }
            }
            sum
        };
        let before = rss();
        release_program();
        let after = rss();
        assert!(after < before, "{before} kB of code mapped before, {after} after");
    }
}
