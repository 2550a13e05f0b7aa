//! The same claims without any privilege.

use std::{os::unix::fs::PermissionsExt, process::Command};

const AGAIN: &str = "IOASID_HOST_TEST_UNPRIVILEGED";

#[test]
fn all_of_it_holds_for_a_user_without_privileges() {
    if std::env::var_os(AGAIN).is_some() {
        return;
    }
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: every other test has just shown it");
        return;
    }
    // Where that user can read and run it, unlike a build folder.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("claims");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let run = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
        ])
        .arg(&program)
        .env(AGAIN, "1")
        .current_dir("/")
        .output();
    match run {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: no setpriv");
        }
        run => {
            let run = run.unwrap();
            let said = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success(), "{said}");
            assert!(said.contains("test result: ok"), "{said}");
        }
    }
}
