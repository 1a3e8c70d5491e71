//! A guest that tries whatever it can to change what is protected, and to read what is hidden: acts at random, by names
//! and by nodes and handles that it had before.

use ::rules::Guarded;
use fuse::{Access, Errno, FileSystem, Gone, Handle, NodeId, OpenFlags, RenameHow, SetAttributes};

use crate::guest::{Counted, ROOT, View, folder, masks};

/// Names that meet: those of the masks, in both cases, and some that mean nothing.
const NAMES: [&str; 12] = [
    ".git",
    ".GIT",
    "hooks",
    "config",
    "pre-commit",
    "commondir",
    "HEAD",
    ".env",
    "a",
    "b",
    "c",
    "worktrees",
];

/// Targets of links, from different depths.
const TARGETS: [&str; 6] = [".git", "../a", "a", ".", "../b/hooks", "../../.env"];

const HOST: &str = "host";
const SECRET: &str = "secret";
const GITDIR: &str = "gitdir: /host";

/// The host's files, each of which no guest changes or reads.
const PROTECTED: [&str; 3] = [".git/hooks/pre-commit", ".git/config", "a/.git/config"];
const HIDDEN: [&str; 2] = [".env", "a/b/.env"];

/// The host's file that says where another directory has the hooks. A guest may remove it, and no more.
const GIT_FILE: &str = "b/.git";

struct Guest {
    view: View<Guarded>,
    /// Nodes that the guest has heard of; the same one may come again.
    nodes: Vec<NodeId>,
    open: Vec<(NodeId, Handle)>,
}

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<usize> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(usize::from(*first))
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        let number = self.byte()?;
        all.get(number % all.len()).copied()
    }
}

fn script(data: &[u8]) {
    let (host, view) = folder(masks(&[".env"], &[], true));
    host_files(&host);
    host.0.let_go(ROOT, Gone::Everything);
    let mut guest = Guest { view, nodes: vec![ROOT], open: Vec::new() };
    let mut script = Script(data);
    while guest.act(&mut script).is_some() {}
    check(&host);
    host.0.let_go(ROOT, Gone::Everything);
}

fn host_files(host: &View<Counted>) {
    let directory = |path: &str| {
        path.split('/').fold(ROOT, |parent, name| {
            host.look_up(parent, name).unwrap_or_else(|_| host.mkdir(parent, name).unwrap())
        })
    };
    let files = PROTECTED.map(|path| (path, HOST)).into_iter().chain(HIDDEN.map(|path| (path, SECRET)));
    for (path, contents) in files.chain([(".git/HEAD", "ref"), ("b/c", "text"), (GIT_FILE, GITDIR)]) {
        let parent = path.rsplit_once('/').map_or(ROOT, |(parent, _)| directory(parent));
        let name = path.rsplit('/').next().unwrap();
        host.write(parent, name, contents).unwrap();
    }
}

impl Guest {
    fn heard(&mut self, node: fuse::Result<NodeId>) {
        self.nodes.extend(node.ok());
    }

    fn act(&mut self, script: &mut Script<'_>) -> Option<()> {
        let act = script.byte()?;
        let (node, name) = (script.pick(&self.nodes)?, script.pick(&NAMES)?);
        match act % 16 {
            0..=2 => self.heard(self.view.look_up(node, name)),
            3 | 4 => self.heard(self.view.mkdir(node, name)),
            5 => self.heard(self.view.symlink(node, name, script.pick(&TARGETS)?)),
            6 => {
                let link = self.view.link(script.pick(&self.nodes)?, node, name);
                self.heard(link);
            }
            7 | 8 => {
                if let Ok((node, handle)) = self.view.create(node, name) {
                    self.nodes.push(node);
                    self.open.push((node, handle));
                }
            }
            9 => {
                let flags = if act & 16 == 0 { OpenFlags::empty() } else { OpenFlags::TRUNCATE };
                let access = script.pick(&[Access::Read, Access::Write, Access::ReadWrite])?;
                self.open.extend(self.view.open(node, access, flags).ok().map(|handle| (node, handle)));
            }
            10..=12 => {
                let (to, new) = (script.pick(&self.nodes)?, script.pick(&NAMES)?);
                let how = script.pick(&[RenameHow::Replace, RenameHow::Keep, RenameHow::Exchange])?;
                // An error is as good as anything.
                let _ = self.view.rename((node, name), (to, new), how);
            }
            13 => {
                let _ = self.view.unlink(node, name).or_else(|_| self.view.rmdir(node, name));
            }
            14 => {
                let change = SetAttributes { size: Some(0), ..SetAttributes::default() };
                let _ = self.view.change(node, change);
                if act & 16 == 0 {
                    self.view.forget(node, 1);
                }
            }
            _ => self.list(node),
        }
        self.use_all();
        Some(())
    }

    fn list(&mut self, node: NodeId) {
        for (name, node) in self.view.list(node, true).unwrap_or_default() {
            assert!(!name.eq_ignore_ascii_case(".env"), "a hidden name is listed");
            self.nodes.extend(node);
        }
    }

    /// Reads and writes by every handle there is.
    fn use_all(&self) {
        for (node, handle) in self.open.iter().copied() {
            let read = self.view.read_from(node, handle).unwrap_or_default();
            assert_ne!(read, SECRET.as_bytes(), "a hidden file is read");
            let _ = self.view.write_to(node, handle, b"guest");
        }
    }
}

/// Looks at everything as the host does.
fn check(host: &View<Counted>) {
    for (path, contents) in
        PROTECTED.map(|path| (path, HOST)).into_iter().chain(HIDDEN.map(|path| (path, SECRET)))
    {
        // A directory that may move has taken its files along, if it is not the root's.
        let Ok(node) = host.walk(path) else {
            assert!(path.starts_with("a/"), "{path} is gone");
            continue;
        };
        assert_eq!(host.read(node).as_deref(), Ok(contents), "{path}");
    }
    let mut counts = (0, 0);
    look_at(host, ROOT, "", &mut counts);
    assert_eq!(counts, (PROTECTED.len(), HIDDEN.len()), "protected and hidden files");
}

/// Every name below a directory: none that git of the host would obey is the guest's.
fn look_at(host: &View<Counted>, directory: NodeId, path: &str, counts: &mut (usize, usize)) {
    let is_git = path.rsplit('/').next().is_some_and(|name| name.eq_ignore_ascii_case(".git"));
    for name in host.names(directory) {
        let (node, below) = (host.look_up(directory, &name).unwrap(), format!("{path}/{name}"));
        let is_directory = host.list(node, false).is_ok();
        let lower = name.to_ascii_lowercase();
        match lower.as_str() {
            ".git" => {
                let is_the_hosts = || host.read(node).as_deref() == Ok(GITDIR);
                assert!(is_directory || is_the_hosts(), "{below} is no directory, and not the host's file");
            }
            ".env" => assert_eq!(host.read(node).as_deref(), Ok(SECRET), "{below}"),
            "hooks" if is_git => assert!(is_directory, "{below} is no directory"),
            "config" | "commondir" if is_git => assert_eq!(host.read(node).as_deref(), Ok(HOST), "{below}"),
            "worktrees" if is_git => assert!(is_directory || host.read(node).is_ok(), "{below} is a link"),
            _ if path.to_ascii_lowercase().ends_with("/.git/hooks") => {
                assert_eq!(host.read(node).as_deref(), Ok(HOST), "{below}");
            }
            _ => {}
        }
        if is_directory {
            look_at(host, node, &below, counts);
        } else if let Ok(contents) = host.read(node) {
            assert!(contents != GITDIR || lower == ".git", "{below} is the host's .git by another name");
            counts.0 += usize::from(contents == HOST);
            counts.1 += usize::from(contents == SECRET);
        }
    }
}

#[test]
fn nothing_gets_around_a_mask() {
    // Moving `.git` away and back, with a hook made meanwhile; a link to another directory; an exchange.
    // Then a file `.git`: written, emptied by opening and by its size, and written by another name.
    let examples: [&[u8]; 8] = [
        &[0, 0, 0, 10, 0, 0, 0, 8, 0, 0, 0, 8, 3, 1, 2, 7, 1, 4, 10, 0, 8, 0, 0, 0],
        &[3, 0, 8, 3, 1, 2, 7, 2, 4, 5, 0, 9, 0, 10, 0, 8, 0, 0, 2],
        &[0, 0, 8, 10, 0, 8, 0, 10, 0, 0, 1, 0, 7, 2, 3],
        &[7, 0, 8, 6, 1, 0, 1, 10, 0, 8, 0, 3, 0, 15, 0, 0, 9, 1, 0, 2],
        &[0, 0, 9, 0, 1, 0, 9, 2, 0, 1],
        &[0, 0, 9, 0, 1, 0, 25, 2, 0, 0],
        &[0, 0, 9, 0, 1, 0, 30, 2, 0],
        &[0, 0, 9, 0, 1, 0, 6, 0, 10, 2, 9, 2, 0, 1],
    ];
    let examples = examples.map(<[u8]>::to_vec);
    fuzzed::run("rules_evasions", 2000, &examples, &["\x0a\0\0\0", "\x03\0\0", "\0\0\0", "\x07"], script);
}

#[test]
fn a_git_file_of_the_host_says_what_it_said() {
    let (host, guest) = folder(masks(&[], &[], true));
    host_files(&host);
    let (b, file) = (guest.walk("b").unwrap(), guest.walk(GIT_FILE).unwrap());
    let empty = OpenFlags::TRUNCATE;
    for (access, flags) in
        [(Access::Write, OpenFlags::empty()), (Access::ReadWrite, OpenFlags::empty()), (Access::Read, empty)]
    {
        assert_eq!(guest.open(file, access, flags), Err(Errno::EROFS));
    }
    let cut = SetAttributes { size: Some(0), ..SetAttributes::default() };
    assert_eq!(guest.change(file, cut), Err(Errno::EROFS));
    assert_eq!(guest.link(file, ROOT, "alias"), Err(Errno::EROFS));
    assert_eq!(guest.create(b, ".git").err(), Some(Errno::EPERM));
    assert_eq!(guest.read(file).as_deref(), Ok(GITDIR));
    assert_eq!(host.read(host.walk(GIT_FILE).unwrap()).as_deref(), Ok(GITDIR));
    // Without it, git of the host finds the repository around it, and there may be a directory.
    let mode = SetAttributes { mode: Some(0o600), ..SetAttributes::default() };
    assert_eq!(guest.change(file, mode), Ok(()));
    assert_eq!(guest.unlink(b, ".git"), Ok(()));
    assert_eq!(guest.create(b, ".git").err(), Some(Errno::EPERM));
    assert!(guest.mkdir(b, ".git").is_ok());
}
