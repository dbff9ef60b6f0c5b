//! Which container IDs, interface names and network names are allowed.
//!
//! Owns: the three checks. They also keep these strings safe as file names and as words of a line.

/// A container ID: starts with a letter or digit, then letters, digits, `_`, `.` and `-`.
#[must_use]
pub fn valid_container_id(id: &str) -> bool {
    starts_well(id) && id.len() <= 255
}

/// A network's name: the same alphabet as a container ID.
#[must_use]
pub fn valid_network_name(name: &str) -> bool {
    starts_well(name) && name.len() <= 255
}

/// An interface name the kernel takes: 1 to 15 bytes, no `/`, `:` or white space, not `.` or `..`.
#[must_use]
pub fn valid_ifname(name: &str) -> bool {
    (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

fn starts_well(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && text.bytes().all(ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_directory_or_a_line_are_refused() {
        for bad in ["", "..", "../x", "a/b", "a b", "a\nb", "-a", ".a"] {
            assert!(!valid_container_id(bad), "{bad:?}");
            assert!(!valid_network_name(bad), "{bad:?}");
        }
        for good in ["a", "0", "cni-1.2_3"] {
            assert!(valid_container_id(good));
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-letters-", "\u{e9}th0"] {
            assert!(!valid_ifname(bad), "{bad:?}");
        }
        for good in ["eth0", "fifteen-letters"] {
            assert!(valid_ifname(good));
        }
    }
}
