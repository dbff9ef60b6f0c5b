//! The `RuntimeDefault` profile: what a container may ask of the kernel unless its pod says otherwise.
//!
//! The same calls are allowed as by the default profiles that docker and containerd document: everything that works on
//! what is in a namespace, nothing that reaches the machine, and more for a container that holds the capability that
//! guards a call anyway. Everything else fails with `EPERM`; `clone3` fails with `ENOSYS`, so that C libraries fall
//! back to `clone`, whose flags a filter can see.
//!
//! Never: 32-bit programs on a 64-bit machine. Their calls fail with `ENOSYS` (see `bpf`).

use caps::Capability;

use super::syscalls::{Architecture, Numbers};
use super::{Action, Comparison, Condition, FLAG_SPEC_ALLOW, Rule, Rules};

/// Allowed to everyone.
const ALWAYS: &str = "accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod \
    chown clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup \
    dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old \
    eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir \
    fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr \
    fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list \
    get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid \
    getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt \
    gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch \
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set kill \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listmount \
    listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier \
    memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt mprotect \
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd \
    msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open \
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 \
    process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead \
    readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat \
    renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
    rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity \
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg \
    sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer \
    setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr setxattrat \
    shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs statmount statx \
    symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun \
    timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink \
    unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write writev";

/// Allowed to the holder of a capability.
const BY_CAPABILITY: &[(Capability, &str)] = &[
    (Capability::CAP_DAC_READ_SEARCH, "open_by_handle_at"),
    (
        Capability::CAP_SYS_ADMIN,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare",
    ),
    (Capability::CAP_SYS_BOOT, "reboot"),
    (Capability::CAP_SYS_CHROOT, "chroot"),
    (Capability::CAP_SYS_MODULE, "delete_module init_module finit_module"),
    (Capability::CAP_SYS_PACCT, "acct"),
    (Capability::CAP_SYS_PTRACE, "kcmp pidfd_getfd process_madvise"),
    (Capability::CAP_SYS_RAWIO, "iopl ioperm"),
    (Capability::CAP_SYS_TIME, "settimeofday clock_settime"),
    (Capability::CAP_SYS_TTY_CONFIG, "vhangup"),
    (Capability::CAP_SYS_NICE, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::CAP_SYSLOG, "syslog"),
    (Capability::CAP_BPF, "bpf"),
    (Capability::CAP_PERFMON, "perf_event_open"),
];

/// The personalities a program may take: Linux, 32-bit Linux, both with an old release number, and "only tell me".
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The `clone` flags that make namespaces: `CLONE_NEW` of NS, CGROUP, UTS, IPC, USER, PID and NET.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// Makes the profile for a container with these capabilities (one bit for each).
pub fn rules(capabilities: u64, architecture: Architecture) -> Rules {
    let numbers = Numbers::of(architecture);
    let holds = |capability: Capability| capabilities & capability.bitmask() != 0;
    let mut rules = Vec::with_capacity(400);
    let mut add = |names: &str, conditions: &[Condition], action: Action| {
        for number in names.split_ascii_whitespace().filter_map(|name| numbers.get(name)) {
            rules.push(Rule { number, conditions: conditions.to_vec(), action });
        }
    };
    let first = |comparison| [Condition { argument: 0, comparison }];

    add(ALWAYS, &[], Action::Allow);
    for (capability, names) in BY_CAPABILITY {
        if holds(*capability) {
            add(names, &[], Action::Allow);
        }
    }
    for personality in PERSONALITIES {
        add("personality", &first(Comparison::Equal(personality)), Action::Allow);
    }
    // A vsock reaches the hypervisor and other machines around every network policy.
    add("socket", &first(Comparison::NotEqual(libc::AF_VSOCK as u64)), Action::Allow);
    if !holds(Capability::CAP_SYS_ADMIN) {
        add("clone", &first(Comparison::Masked { mask: NEW_NAMESPACES, value: 0 }), Action::Allow);
        add("clone3", &[], Action::Errno(libc::ENOSYS as u16));
    }
    Rules { default: Action::Errno(libc::EPERM as u16), rules, flags: FLAG_SPEC_ALLOW }
}

#[cfg(test)]
mod tests {
    use super::super::bpf::{Call, compile, run};
    use super::*;

    fn answer(capabilities: u64, name: &str, argument: u64) -> Action {
        let architecture = Architecture::native().unwrap();
        let program = compile(&rules(capabilities, architecture), architecture).unwrap();
        let number = Numbers::of(architecture).get(name).unwrap();
        run(
            &program,
            &Call { number, architecture: architecture.audit(), arguments: [argument, 0, 0, 0, 0, 0] },
        )
    }

    const EPERM: Action = Action::Errno(libc::EPERM as u16);
    const ENOSYS: Action = Action::Errno(libc::ENOSYS as u16);

    #[test]
    fn every_name_is_a_system_call_somewhere() {
        let tables = [Numbers::of(Architecture::X86_64), Numbers::of(Architecture::Aarch64)];
        let names = BY_CAPABILITY.iter().map(|(_, names)| *names).chain([ALWAYS]);
        for name in names.flat_map(str::split_ascii_whitespace) {
            assert!(tables.iter().any(|table| table.get(name).is_some()), "{name}");
        }
    }

    #[test]
    fn plain_container_gets_what_it_needs_and_no_more() {
        let sys_admin = Capability::CAP_SYS_ADMIN.bitmask();
        for (capabilities, name, argument, expected) in [
            (0, "read", 0, Action::Allow),
            (0, "execve", 0, Action::Allow),
            (0, "mount", 0, EPERM),
            (0, "io_uring_setup", 0, EPERM),
            (0, "keyctl", 0, EPERM),
            (0, "clone", 0x11, Action::Allow),
            (0, "clone", 0x1000_0000, EPERM),
            (0, "clone3", 0, ENOSYS),
            (0, "unshare", 0, EPERM),
            (0, "socket", 2, Action::Allow),
            (0, "socket", 40, EPERM),
            (0, "personality", 0xffff_ffff, Action::Allow),
            (0, "personality", 0x40_0000, EPERM),
            (sys_admin, "mount", 0, Action::Allow),
            (sys_admin, "clone", 0x1000_0000, Action::Allow),
            (sys_admin, "clone3", 0, Action::Allow),
            (Capability::CAP_SYS_CHROOT.bitmask(), "chroot", 0, Action::Allow),
            (0, "chroot", 0, EPERM),
            (u64::MAX, "kexec_load", 0, EPERM),
        ] {
            assert_eq!(
                answer(capabilities, name, argument),
                expected,
                "{name} {argument:#x} with {capabilities:#x}"
            );
        }
    }

    #[test]
    fn program_is_short() {
        let architecture = Architecture::native().unwrap();
        let program = compile(&rules(0, architecture), architecture).unwrap();
        assert!(program.len() < 400, "{}", program.len());
    }
}
