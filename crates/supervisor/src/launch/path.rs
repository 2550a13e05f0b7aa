//! The program's file.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

/// Becomes the program `name`, found as `execvp(3)` finds it, with these arguments and with a value of a
/// variable if there is one; returns why not.
///
/// The kernel is not asked to execute what is not there, as `execvp` does in each directory of PATH:
/// by now every `execve` is a question to the session.
pub(crate) fn execute(
    name: &OsStr,
    arguments: &[OsString],
    variable: Option<(&str, OsString)>,
) -> io::Error {
    let become_it = |file: &Path| {
        let mut command = Command::new(file);
        command.arg0(name).args(arguments);
        if let Some((name, value)) = &variable {
            command.env(name, value);
        }
        command.exec()
    };
    // Without PATH the C library knows where to look.
    match env::var_os("PATH").filter(|_| !name.as_bytes().contains(&b'/')) {
        Some(path) => search(&path, name, become_it),
        None => become_it(Path::new(name)),
    }
}

/// Calls `become_it` with what `path` has of `name`, one after the other. Returns why none of them was it.
fn search(path: &OsStr, name: &OsStr, become_it: impl Fn(&Path) -> io::Error) -> io::Error {
    let mut denied = None;
    for directory in env::split_paths(path) {
        let file = in_directory(&directory, name);
        let error = match file.symlink_metadata() {
            Err(error) if is_passed_over(&error) => error,
            _ => become_it(&file),
        };
        match error.raw_os_error() {
            Some(libc::EACCES) => denied = Some(error),
            _ if is_passed_over(&error) => {}
            _ => return error,
        }
    }
    denied.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

/// An empty directory is the working directory.
fn in_directory(directory: &Path, name: &OsStr) -> PathBuf {
    match directory.as_os_str().is_empty() {
        true => Path::new(".").join(name),
        false => directory.join(name),
    }
}

/// What `execvp` of glibc goes on after (posix/execvpe.c).
fn is_passed_over(error: &io::Error) -> bool {
    let passed_over = [
        libc::EACCES,
        libc::ENOENT,
        libc::ESTALE,
        libc::ENOTDIR,
        libc::ENODEV,
        libc::ETIMEDOUT,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| passed_over.contains(&errno))
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, fs};

    use super::*;

    /// What was tried in which order, and what it ended with.
    fn tried(path: &[&Path], outcome: impl Fn(&Path) -> i32) -> (Vec<PathBuf>, Option<i32>) {
        let tried = RefCell::new(Vec::new());
        let path = env::join_paths(path).unwrap();
        let error = search(&path, OsStr::new("it"), |file| {
            tried.borrow_mut().push(file.to_owned());
            io::Error::from_raw_os_error(outcome(file))
        });
        (tried.into_inner(), error.raw_os_error())
    }

    #[test]
    fn only_what_is_there_is_executed_in_the_order_of_path() {
        let scratch = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| scratch.path().join(name));
        for directory in [&a, &b, &c] {
            fs::create_dir(directory).unwrap();
        }
        let path = [&*a, &b, &c];
        assert_eq!(tried(&path, |_| 0), (Vec::new(), Some(libc::ENOENT)));
        fs::write(b.join("it"), "").unwrap();
        fs::write(c.join("it"), "").unwrap();
        let both = vec![b.join("it"), c.join("it")];
        // One that may not be executed is passed over, and said if no other is there.
        let of_b = |file: &Path| match file.starts_with(&b) {
            true => libc::EACCES,
            false => libc::ENOENT,
        };
        assert_eq!(tried(&path, of_b), (both.clone(), Some(libc::EACCES)));
        // Any other reason ends it.
        let first = vec![both[0].clone()];
        assert_eq!(tried(&path, |_| libc::E2BIG), (first, Some(libc::E2BIG)));
    }
}
