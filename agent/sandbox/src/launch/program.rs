//! Finding and executing the program, and saying why it cannot be, in the words users know from other runtimes.

use std::convert::Infallible;
use std::ffi::CString;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::execve;

/// Where a program is looked for if the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program, its arguments and its environment, as the kernel takes them.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    candidates: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Prepares. `None` if there is no program, or a string holds a zero byte.
    pub fn new(args: &[String], env: &[String]) -> Option<Self> {
        let name = args.first().filter(|name| !name.is_empty())?.clone();
        let terminated = |text: &String| CString::new(text.as_bytes()).ok();
        let candidates = candidates(&name, env).iter().map(terminated).collect::<Option<_>>()?;
        Some(Program {
            candidates,
            args: args.iter().map(terminated).collect::<Option<_>>()?,
            env: env.iter().map(terminated).collect::<Option<_>>()?,
            name,
        })
    }

    /// Becomes the program; returns only to say why not.
    pub fn execute(&self) -> String {
        let mut denied = None;
        for candidate in &self.candidates {
            match execve::<CString, CString>(candidate, &self.args, &self.env) {
                Ok(never) => absurd(never),
                Err(Errno::ENOENT | Errno::ENOTDIR) if !exists(candidate) => {}
                Err(Errno::EACCES) => denied = Some(candidate),
                Err(errno) => return format!("exec {}: {}", candidate.to_string_lossy(), words(errno)),
            }
        }
        let name = &self.name;
        match denied {
            Some(path) if Path::new(&*path.to_string_lossy()).is_dir() => {
                format!("exec: {name:?}: is a directory")
            }
            Some(_) => format!("exec: {name:?}: permission denied"),
            None if name.contains('/') => format!("exec: {name:?}: stat {name}: no such file or directory"),
            None => format!("exec: {name:?}: executable file not found in $PATH"),
        }
    }
}

fn absurd(never: Infallible) {
    match never {}
}

fn exists(path: &CString) -> bool {
    Path::new(&*path.to_string_lossy()).exists()
}

/// As C libraries and Go say it: a script whose interpreter is missing is "no such file or directory".
fn words(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

fn candidates(name: &str, env: &[String]) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    // An empty element would mean the working directory, from which nothing should be run by its bare name.
    path.split(':').filter(|part| !part.is_empty()).map(|part| format!("{part}/{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs;

    fn text(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    }

    #[test]
    fn bare_names_are_looked_for_in_path() {
        assert_eq!(candidates("sh", &text(&["PATH=/a::/b"])), ["/a/sh", "/b/sh"]);
        assert_eq!(candidates("./sh", &text(&["PATH=/a"])), ["./sh"]);
        assert_eq!(candidates("sh", &[]).len(), 6);
    }

    #[test]
    fn failures_are_said_as_users_know_them() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().to_str().unwrap();
        let file = |name: &str, mode: &str, content: &str| {
            programs::write(&directory.path().join(name), content, mode).unwrap();
        };
        file("plain", "644", "x");
        file("odd", "755", "\x01\x02\x03\x04");
        file("script", "755", "#!/no/such/interpreter\n");
        let env = vec![format!("PATH={place}")];
        let say = |name: &str| Program::new(&text(&[name]), &env).unwrap().execute();
        assert_eq!(say("foo"), r#"exec: "foo": executable file not found in $PATH"#);
        assert_eq!(say("/no/foo"), r#"exec: "/no/foo": stat /no/foo: no such file or directory"#);
        assert_eq!(say("plain"), r#"exec: "plain": permission denied"#);
        assert_eq!(say("odd"), format!("exec {place}/odd: exec format error"));
        assert_eq!(say("script"), format!("exec {place}/script: no such file or directory"));
        assert_eq!(say("/"), r#"exec: "/": is a directory"#);
    }

    #[test]
    fn zero_bytes_and_nothing_are_no_program() {
        assert!(Program::new(&text(&["a\0b"]), &[]).is_none());
        assert!(Program::new(&[], &[]).is_none());
        assert!(Program::new(&text(&[""]), &[]).is_none());
    }
}
