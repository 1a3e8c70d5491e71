//! Acts that other shared folders are known to fail at, from their public bug reports, as cases that must succeed in ours: on a
//! folder that is mounted on this host, and by `share-cases` in a guest.
//!
//! The number of a case is that of the table in docs/shares.md, which has the reports. Not here: cases that want other programs
//! (git, SQLite), raw requests, or a whole sandbox.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a case that fails panics")]

mod contents;
mod host;
mod names;
mod others;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Uid};

pub use host::{Host, Local, act};

/// How many cases want a host.
pub const BOTH: usize = 10;
/// How many cases want none.
pub const ALONE: usize = 21;
/// How many cases are of folders that are only read.
pub const READ_ONLY: usize = 1;

/// A user who has no privilege.
pub const USER: u32 = 1000;

/// A case: its number, its name, and its acts.
type Case = (u32, &'static str, Acts);

/// The acts of a case.
#[derive(Clone, Copy)]
enum Acts {
    /// The guest's alone.
    Guest(fn(&Path)),
    /// The host acts, too, on the same directory.
    Both(fn(&mut Shared<'_>)),
    /// The guest's in a directory that it may only read.
    ReadOnly(fn(&Path)),
}

/// A directory that the host changes meanwhile.
struct Shared<'a> {
    /// Where the guest has it.
    guest: PathBuf,
    /// Its path in what is shared.
    path: String,
    host: &'a mut dyn Host,
    patience: Duration,
}

impl Shared<'_> {
    /// Has the host do something to a name, with more words to say what.
    fn host(&mut self, verb: &str, name: &str, more: &str) -> String {
        let path = format!("{}/{name}", self.path);
        let answer = self.host.ask(&format!("{verb}\t{path}\t{more}"));
        assert!(!answer.starts_with("error"), "the host's {verb} of {path}: {answer}");
        answer
    }

    fn at(&self, name: &str) -> PathBuf {
        self.guest.join(name)
    }

    /// Waits for what the host did to be seen, as long as the promise of the folder's caching allows.
    #[track_caller]
    fn seen(&self, what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() <= self.patience, "not seen within {:?}", self.patience);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Of the cases, those that a folder can be held to.
pub enum Setting<'a> {
    /// Nobody else has the folder.
    Alone,
    /// The host has it, too. The guest sees the host's changes within this time.
    Shared(&'a mut dyn Host, Duration),
    /// The guest may only read it.
    ReadOnly,
}

/// Runs the cases in a folder; `tell` gets the result of each: its number, its name, and a complaint.
pub fn run(folder: &Path, mut setting: Setting<'_>, mut tell: impl FnMut(u32, &str, Option<String>)) {
    for (number, name, acts) in names::CASES.iter().chain(contents::CASES).chain(others::CASES) {
        let path = format!("case-{number}-{}", name.replace(' ', "-"));
        let guest = folder.join(&path);
        let run = || match (*acts, &mut setting) {
            (Acts::Guest(acts), Setting::Alone | Setting::Shared(..)) => {
                fs::create_dir(&guest).unwrap();
                acts(&guest);
                true
            }
            (Acts::Both(acts), Setting::Shared(host, patience)) => {
                let made = host.ask(&format!("directory\t{path}\t"));
                assert_eq!(made, "", "the host makes {path}");
                acts(&mut Shared {
                    guest: guest.clone(),
                    path: path.clone(),
                    host: &mut **host,
                    patience: *patience,
                });
                true
            }
            (Acts::ReadOnly(acts), Setting::ReadOnly) => {
                acts(folder);
                true
            }
            _ => false,
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(false) => {}
            Ok(true) => tell(*number, name, None),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                tell(*number, name, Some(text.unwrap_or_default()));
            }
        }
    }
}

/// Acts as a user without privilege, in these groups.
fn as_user(user: u32, groups: &[u32], acts: impl FnOnce() + Send) {
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_thread_groups(&groups).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            acts();
        });
        if let Err(panic) = thread.join() {
            resume_unwind(panic);
        }
    });
}

/// The names in a directory, sorted.
fn listed(directory: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}
