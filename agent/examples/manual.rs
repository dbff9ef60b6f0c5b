//! Writes man pages and shell completions into a directory: what the packages ship, made from the command line's own types.
//!
//! usage: cargo run -p orlop --example manual -- DIR
//!
//! Owns: the layout of DIR (`man/*.8`, `orlop.bash`, `_orlop`, `orlop.fish`). Never: is part of the shipped binary.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use orlop::cli::manual::{EXIT_CODES, FILES, command, join_exit_codes};

fn main() -> io::Result<()> {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: manual DIR");
        std::process::exit(2);
    };
    let man = dir.join("man");
    fs::create_dir_all(&man)?;
    // Pages of commands that are no more.
    for old in fs::read_dir(&man)?.flatten().map(|entry| entry.path()) {
        if old.extension().is_some_and(|end| end == "8") {
            fs::remove_file(old)?;
        }
    }
    let mut whole =
        command().disable_help_subcommand(true).mut_subcommands(|inner| inner.disable_help_subcommand(true));
    whole.build();
    page(&whole, "orlop", &man)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command(), "orlop", &dir)?;
    }
    Ok(())
}

/// The page of a command and those of its own commands: `orlop-image-pull.8`.
fn page(command: &Command, name: &str, dir: &Path) -> io::Result<()> {
    let mut text = Vec::new();
    let title = name.to_uppercase();
    let mut shown = command.clone().name(name.to_owned());
    let is_join = name == "orlop-join";
    if is_join {
        // The table of exit codes behind the help is a section here.
        shown = shown.after_help("").after_long_help("");
    }
    let man = Man::new(shown).title(title).section("8").manual("orlop").source(source());
    man.render(&mut text)?;
    if name == "orlop" {
        list(&mut text, "EXIT STATUS", EXIT_CODES)?;
        list(&mut text, "FILES", FILES)?;
    }
    if is_join {
        let codes: Vec<(String, &str)> =
            join_exit_codes().map(|(code, meaning)| (code.to_string(), meaning)).collect();
        let codes: Vec<(&str, &str)> = [("0", "the node is Ready")]
            .into_iter()
            .chain(codes.iter().map(|(code, meaning)| (code.as_str(), *meaning)))
            .collect();
        list(&mut text, "EXIT STATUS", &codes)?;
    }
    fs::write(dir.join(format!("{name}.8")), text)?;
    for inner in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        page(inner, &format!("{name}-{}", inner.get_name()), dir)?;
    }
    Ok(())
}

fn source() -> String {
    format!("orlop {}", env!("CARGO_PKG_VERSION"))
}

fn list(text: &mut Vec<u8>, heading: &str, entries: &[(&str, &str)]) -> io::Result<()> {
    writeln!(text, ".SH {heading:?}")?;
    for (term, meaning) in entries {
        writeln!(text, ".TP\n\\fB{}\\fR\n{}", escape(term), escape(meaning))?;
    }
    Ok(())
}

/// A hyphen is a minus where somebody may copy it; a leading dot or quote would be a request.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
