//! The supervisor as a program of its own, for this crate's tests. What is shipped is `orlop sandbox`.

fn main() -> std::process::ExitCode {
    orlop_sandbox::main(std::env::args_os().skip(1))
}
