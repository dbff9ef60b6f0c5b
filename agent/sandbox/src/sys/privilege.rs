//! Capabilities, no_new_privs and the system call filter of the calling process, by raw calls.
//!
//! Every error is returned: a call that is refused must never pass for one that had nothing to do. The order in which
//! they are to be called is in `launch::confine`.
#![allow(unsafe_code)] // Reason: capset, prctl and seccomp have no safe wrapper that reports every error.

use nix::errno::Errno;

use crate::seccomp::bpf::Instruction;

/// `_LINUX_CAPABILITY_VERSION_3`: two 32-bit words for each set.
const VERSION_3: u32 = 0x2008_0522;

/// An absent argument of `prctl`. It is variadic and takes whole words: a narrower zero would leave half of one open.
const NONE: libc::c_ulong = 0;
/// `PR_CAP_AMBIENT_CLEAR_ALL`, as a whole word.
const CLEAR_ALL: libc::c_ulong = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The permitted set of the calling process, one bit for each capability.
pub fn permitted() -> Result<u64, Errno> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut words = [Word::default(); 2];
    // SAFETY: version 3 reads one header and writes two words; both live until the call returns.
    let done = unsafe { libc::syscall(libc::SYS_capget, &mut header, words.as_mut_ptr()) };
    Errno::result(done)?;
    Ok(u64::from(words[0].permitted) | u64::from(words[1].permitted) << 32)
}

/// Sets the effective and permitted sets, and empties the inheritable set.
pub fn set_capabilities(set: u64) -> Result<(), Errno> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let (low, high) = (set as u32, (set >> 32) as u32);
    let words = [
        Word { effective: low, permitted: low, inheritable: 0 },
        Word { effective: high, permitted: high, inheritable: 0 },
    ];
    // SAFETY: version 3 reads one header and two words; both live until the call returns.
    let done = unsafe { libc::syscall(libc::SYS_capset, &mut header, words.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Drops everything but `keep` from the bounding set.
pub fn bound(keep: u64) -> Result<(), Errno> {
    for capability in 0..64u32 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: numbers only.
        let done =
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), NONE, NONE, NONE) };
        match Errno::result(done) {
            Ok(_) => {}
            // The first number the kernel does not know ends the list. Capability 0 always exists, so that EINVAL
            // there is a failure.
            Err(Errno::EINVAL) if capability > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Empties the ambient set.
pub fn clear_ambient() -> Result<(), Errno> {
    // SAFETY: numbers only.
    let done = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, CLEAR_ALL, NONE, NONE, NONE) };
    Errno::result(done).map(drop)
}

/// Sets `no_new_privs`.
pub fn set_no_new_privs() -> Result<(), Errno> {
    nix::sys::prctl::set_no_new_privs()
}

/// Loads a filter for good. Needs `no_new_privs` or `CAP_SYS_ADMIN`. `flags` as in `seccomp(2)`.
pub fn load_filter(program: &[Instruction], flags: u64) -> Result<(), Errno> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `Instruction` has the layout of `sock_filter`; the kernel copies `len` of them and writes to none; the
    // slice outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
    Errno::result(done).map(drop)
}
