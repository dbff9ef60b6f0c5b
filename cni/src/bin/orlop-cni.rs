//! The CNI plugin as a program of its own, for other runtimes and for the tests.

fn main() -> std::process::ExitCode {
    orlop_cni::plugin::main()
}
