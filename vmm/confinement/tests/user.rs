//! Real processes of root's and of others, and their users afterwards.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "tests")]

use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::geteuid;

/// Says how it went, and then what /proc knows of this thread, which stands for a process with no other.
#[test]
#[ignore = "the process that other tests start"]
fn takes_a_user() {
    let taken = confinement::take_own_user();
    println!("\ntaken:\t{taken:?}\npid:\t{}", std::process::id());
    for file in ["status", "limits"] {
        println!("{}", std::fs::read_to_string(format!("/proc/thread-self/{file}")).unwrap());
    }
}

/// The output of a process that starts as `program` does.
fn said(program: &mut Command) -> io::Result<String> {
    let args = ["--exact", "takes_a_user", "--ignored", "--nocapture"];
    let output = program.args(args).output()?;
    Ok(String::from_utf8(output.stdout).unwrap())
}

fn field<'a>(said: &'a str, name: &str) -> Vec<&'a str> {
    let line =
        said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} {said}"));
    line.split_whitespace().collect()
}

#[test]
fn roots_process_becomes_one_of_a_user_of_its_own() {
    if !geteuid().is_root() {
        return skip::skip("root", "only root can become another user");
    }
    let said = said(&mut Command::new(std::env::current_exe().unwrap())).unwrap();
    assert_eq!(field(&said, "taken:"), ["Ok(())"]);
    let id = (0x7800_0000 + field(&said, "pid:")[0].parse::<u32>().unwrap()).to_string();
    // Real, effective, saved, and that of files.
    assert_eq!(field(&said, "Uid:"), [id.as_str(); 4]);
    assert_eq!(field(&said, "Gid:"), [id.as_str(); 4]);
    assert_eq!(field(&said, "Groups:"), [""; 0]);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(&said, set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field(&said, "Max processes")[..2], ["1024", "1024"]);
}

#[test]
fn a_process_of_anybody_else_stays_whose_it_is() {
    let mut program = Command::new(std::env::current_exe().unwrap());
    let mut user = geteuid().as_raw();
    if geteuid().is_root() {
        user = 54321;
        program.uid(user);
    }
    let said = match said(&mut program) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return skip::skip("root", "another user cannot execute this program where it lies");
        }
        said => said.unwrap(),
    };
    assert_eq!(field(&said, "taken:"), ["Ok(())"]);
    assert_eq!(field(&said, "Uid:"), [user.to_string().as_str(); 4]);
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    assert_eq!(field(&said, "Max processes"), field(&limits, "Max processes"));
}

#[test]
fn a_root_that_may_not_become_another_user_stays_root() {
    let setpriv = setpriv().filter(|_| geteuid().is_root());
    let Some(setpriv) = setpriv else {
        return skip::skip("root", "takes root and setpriv(1)");
    };
    // Without the last it could, but its parent could not end it then.
    for missing in ["setuid", "setgid", "kill"] {
        let mut program = Command::new(&setpriv);
        program.arg(format!("--bounding-set=-{missing}")).arg(std::env::current_exe().unwrap());
        let said = said(&mut program).unwrap();
        assert!(field(&said, "taken:")[0].starts_with("Err("), "{said}");
        assert_eq!(field(&said, "Uid:"), ["0"; 4], "{said}");
    }
}

fn setpriv() -> Option<std::path::PathBuf> {
    ["/usr/bin/setpriv", "/bin/setpriv"]
        .into_iter()
        .map(Into::into)
        .find(|path: &std::path::PathBuf| path.exists())
}
