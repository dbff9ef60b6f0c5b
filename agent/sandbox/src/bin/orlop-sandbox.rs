//! The supervisor and the holder as a program of their own, for this crate's tests. What is shipped is `orlop sandbox` and
//! `orlop hold-pods`.

fn main() -> std::process::ExitCode {
    let args = std::env::args_os();
    match std::env::args_os().nth(1) {
        Some(first) if first == "hold-pods" => orlop_sandbox::holder::main(args.skip(2)),
        _ => orlop_sandbox::main(args.skip(1)),
    }
}
