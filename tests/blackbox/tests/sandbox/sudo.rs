//! Sandboxes started with real sudo belong to the user who called it: files, records, and the right to end them.
//!
//! A user who may run one program as root is made for the test, and removed with it. Only root can write to that
//! program's directory, so that the permission is good for nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use blackbox::{Done, IMAGE, done, end, machine, read_until, spawn};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("sudo::files_are_the_users", files_are_the_users),
    ("sudo::files_of_root_stay_roots", files_of_root_stay_roots),
    ("sudo::machines_are_nobodys", machines_are_nobodys),
    ("sudo::supervisors_are_the_users", supervisors_are_the_users),
    ("sudo::shares_are_the_users", shares_are_the_users),
    ("sudo::a_home_of_another_user", a_home_of_another_user),
    ("sudo::the_end_of_input_ends_roots_server", the_end_of_input_ends_roots_server),
];

const PROGRAMS: [&str; 9] = [
    "matchlock",
    "matchlock-broker",
    "matchlock-vmm",
    "matchlock-devices",
    "matchlock-launcher",
    "matchlock-shares",
    "matchlock-arrival",
    "matchlock-egress",
    "matchlock-guest",
];

/// The reason why there can be no such user here, if there is one.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root can add a user and a sudo rule".to_owned());
    }
    for (program, package) in [("sudo", "sudo"), ("useradd", "passwd")] {
        let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).exists());
        if !found {
            return Some(format!("{program} is not installed (package {package})"));
        }
    }
    let rules = Path::new("/etc/sudoers.d");
    (!rules.is_dir()).then(|| format!("{} is not there", rules.display()))
}

/// A user who may run the program under test as root.
struct User {
    name: String,
    uid: u32,
    gid: u32,
    /// The directory of programs and home.
    directory: tempfile::TempDir,
    rule: PathBuf,
}

impl User {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("mltest-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new().prefix("matchlock-test-").tempdir_in("/opt").unwrap();
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let programs = blackbox::program().unwrap();
        for program in PROGRAMS {
            let to = directory.path().join(program);
            fs::copy(programs.with_file_name(program), &to).unwrap();
            fs::set_permissions(to, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let rule = Path::new("/etc/sudoers.d").join(&name);
        let home = directory.path().join("home");
        fs::create_dir(&home).unwrap();
        run(Command::new("useradd")
            .args(["--no-create-home", "--shell", "/bin/sh", "--home-dir"])
            .arg(&home)
            .arg(&name));
        // From here on, dropping the user undoes everything.
        let mut user = Self { name, uid: 0, gid: 0, directory, rule };
        user.uid = id(&user.name, "-u");
        user.gid = id(&user.name, "-g");
        let program = user.program();
        fs::write(&user.rule, format!("{} ALL=(root) NOPASSWD: {}\n", user.name, program.display())).unwrap();
        fs::set_permissions(&user.rule, PermissionsExt::from_mode(0o440)).unwrap();
        let cache = blackbox::real_cache().canonicalize().unwrap();
        run(Command::new("cp").arg("-a").arg(cache).arg(home.join("cache")));
        fs::create_dir(home.join(".cache")).unwrap();
        fs::rename(home.join("cache"), home.join(".cache/matchlock")).unwrap();
        run(Command::new("chown").arg("-R").arg(format!("{}:{}", user.uid, user.gid)).arg(&home));
        user
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("matchlock")
    }

    fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// The user's own command.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.uid(self.uid).gid(self.gid).current_dir(self.home()).stdin(Stdio::null());
        command.env_remove("SUDO_USER").env("HOME", self.home());
        command
    }

    /// Runs the program without sudo.
    fn done(&self, arguments: &[&str]) -> Done {
        done(self.command(&self.program()).args(arguments))
    }

    /// Runs the program with sudo.
    fn sudo(&self, arguments: &[&str]) -> Done {
        done(self.command(Path::new("sudo")).arg("-n").arg(self.program()).args(arguments))
    }

    fn run_detached(&self, more: &[&str]) -> String {
        let done = self.detach(more);
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
        done.stdout.trim_end().to_owned()
    }

    fn detach(&self, more: &[&str]) -> Done {
        let kernel = std::env::var("MATCHLOCK_TEST_KERNEL").unwrap_or_default();
        let machine = machine();
        let arguments = [
            "run",
            "-d",
            "--machine",
            &machine,
            "--image",
            IMAGE,
            "--kernel",
            &kernel,
            "--memory",
            "256",
            "--no-network",
        ];
        self.sudo(&[&arguments, more].concat())
    }

    /// The process id of a sandbox's supervisor.
    fn supervisor(&self, id: &str) -> String {
        let vm: serde_json::Value = serde_json::from_str(&self.done(&["get", id]).stdout).unwrap();
        vm["pid"].as_u64().unwrap().to_string()
    }

    fn assert_owns_everything(&self) {
        let mut directories = vec![self.home()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).unwrap().flatten() {
                let metadata = entry.metadata().unwrap();
                let owner = (metadata.uid(), metadata.gid());
                assert_eq!(owner, (self.uid, self.gid), "{}", entry.path().display());
                if metadata.is_dir() {
                    directories.push(entry.path());
                }
            }
        }
    }

    /// The processes of the user's sandboxes, including root's.
    fn processes(&self) -> Vec<String> {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let programs = processes.filter_map(|entry| fs::read_link(entry.path().join("exe")).ok());
        let programs = programs.filter(|program| program.starts_with(self.directory.path()));
        programs.map(|program| program.display().to_string()).collect()
    }

    fn assert_no_process(&self) {
        let start = Instant::now();
        while !self.processes().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(10), "still there: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.rule);
        let _ = Command::new("userdel").arg(&self.name).output();
    }
}

fn run(command: &mut Command) {
    let done = done(command);
    assert_eq!(done.status, 0, "{command:?}: {done:?}");
}

fn id(name: &str, which: &str) -> u32 {
    done(Command::new("id").args([which, name])).stdout.trim_end().parse().unwrap()
}

fn files_are_the_users() {
    let user = User::new();
    assert_eq!(user.done(&["volume", "create", "sudo", "--size", "16"]).status, 0);
    let id = user.run_detached(&["--disk", "@sudo:/data:ro"]);
    user.assert_owns_everything();
    assert!(user.done(&["volume", "rm", "sudo"]).stderr.contains("volume sudo is in use"));
    assert!(user.home().join(".matchlock/vms").join(&id).is_dir());

    // The user needs no sudo for a sandbox that exists.
    assert!(user.done(&["list"]).stdout.contains(&id));
    assert_eq!(user.done(&["exec", &id, "--", "id", "-u"]).stdout, "0\n");
    assert_eq!(user.done(&["log", &id]).status, 0);
    assert_eq!(user.done(&["kill", &id]), success(&format!("Killed {id}\n")));
    user.assert_owns_everything();
    assert_eq!(user.done(&["rm", &id]), success(&format!("Removed {id}\n")));
    user.assert_no_process();

    // A disk is the user's or nobody's.
    assert_eq!(user.done(&["volume", "rm", "sudo"]), success("Removed volume sudo\n"));
    let roots = user.directory.path().join("roots.ext4");
    fs::write(&roots, "").unwrap();
    fs::set_permissions(&roots, PermissionsExt::from_mode(0o600)).unwrap();
    let disk = format!("{}:/data", roots.display());
    let denied = user.sudo(&["run", "--machine", &machine(), "--image", IMAGE, "--disk", &disk, "true"]);
    let why = format!("matchlock: invalid disk mount \"{disk}\": permission denied\n");
    assert_eq!((denied.status, denied.stderr), (1, why));

    // A client that killed its server leaves files that can be removed without sudo.
    let id = user.run_detached(&[]);
    let vm: serde_json::Value = serde_json::from_str(&user.done(&["get", &id]).stdout).unwrap();
    let owner = rustix::process::Pid::from_raw(vm["pid"].as_i64().unwrap().try_into().unwrap()).unwrap();
    blackbox::kill_and_wait(owner);
    user.assert_no_process();
    assert_eq!(user.done(&["rm", &id]), success(&format!("Removed {id}\n")));
    assert_eq!(blackbox::names(&user.home().join(".matchlock/vms")), Vec::<String>::new());

    // Sudo can remove the user's as well.
    assert_eq!(user.sudo(&["prune"]), success("Pruned 0 VMs\n"));
    user.assert_owns_everything();
}

/// Root without sudo, but with the user's `HOME`.
fn a_home_of_another_user() {
    let user = User::new();
    let root = |arguments: &[&str]| {
        let mut command = Command::new(user.program());
        done(command.args(arguments).env_remove("SUDO_USER").env("HOME", user.home()).stdin(Stdio::null()))
    };
    assert_eq!(root(&["volume", "create", "mine", "--size", "16"]).status, 0);
    let started =
        root(&["run", "-d", "--machine", &machine(), "--image", IMAGE, "--memory", "256", "--no-network"]);
    assert_eq!((started.status, started.stderr.as_str()), (0, ""));
    let id = started.stdout.trim_end();
    user.assert_owns_everything();
    assert!(user.done(&["list"]).stdout.contains(id));
    assert_eq!(root(&["kill", id]), success(&format!("Killed {id}\n")));
    user.assert_owns_everything();
    user.assert_no_process();
    assert_eq!(user.done(&["rm", id]), success(&format!("Removed {id}\n")));
}

/// The permission to run this program as root must not let the user read root's files, through links in the user's
/// directories or by name, nor kill root's processes.
fn files_of_root_stay_roots() {
    let user = User::new();
    let secret = user.directory.path().join("secret");
    fs::write(&secret, "hunter2\n").unwrap();
    // Root's supplementary groups do not open the file either.
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o640)).unwrap();
    let denied = |arguments: &[&str]| {
        let done = user.sudo(arguments);
        assert_ne!(done.status, 0, "{done:?}");
        assert!(!format!("{done:?}").contains("hunter2"), "{done:?}");
    };
    denied(&["run", "--image", IMAGE, "--env-file", secret.to_str().unwrap(), "--", "env"]);

    assert_eq!(user.sudo(&["volume", "create", "mine", "--size", "16"]).status, 0);
    let link = |to: &Path, name: &str| {
        let name = user.home().join(name);
        let directory = name.parent().unwrap();
        for command in [
            vec!["mkdir", "-p", directory.to_str().unwrap()],
            vec!["ln", "-s", to.to_str().unwrap(), name.to_str().unwrap()],
        ] {
            run(user.command(Path::new(command[0])).args(&command[1..]));
        }
    };
    link(&secret, ".cache/matchlock/volumes/link.ext4");
    denied(&["volume", "cp", "link", "copy"]);
    link(&secret, ".matchlock/vms/vm-00000001/logs/vm.log");
    denied(&["log", "vm-00000001"]);

    // A record and a lock that the user made by hand.
    let id = user.run_detached(&[]);
    let vm: serde_json::Value = serde_json::from_str(&user.done(&["get", &id]).stdout).unwrap();
    let mut victim = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let statement = format!("UPDATE vms SET pid = {} WHERE id = '{id}'", victim.id());
    let database = rusqlite::Connection::open(user.home().join(".matchlock/state.db")).unwrap();
    database.execute(&statement, []).unwrap();
    drop(database);
    let lock = user.home().join(".matchlock/vms").join(&id).join("lock");
    fs::remove_file(&lock).unwrap();
    std::os::unix::fs::symlink("/dev/null", &lock).unwrap();
    let null = fs::File::open("/dev/null").unwrap();
    null.lock().unwrap();
    let _ = user.sudo(&["gc", "--force-running", &id]);
    assert!(victim.try_wait().unwrap().is_none(), "root's process was killed");
    null.unlock().unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    let owner = rustix::process::Pid::from_raw(vm["pid"].as_i64().unwrap().try_into().unwrap()).unwrap();
    blackbox::kill_and_wait(owner);
    user.assert_no_process();
}

/// The user owns a file that the guest's root makes in a shared directory. The guest reads no file there that the user may not.
fn shares_are_the_users() {
    let user = User::new();
    let (mine, roots) = (user.home().join("mine"), user.directory.path().join("roots"));
    for (directory, owner, mode) in [(&mine, user.uid, 0o755), (&roots, 0, 0o700)] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("secret"), "hunter2\n").unwrap();
        fs::set_permissions(directory.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
        fs::set_permissions(directory, PermissionsExt::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(directory, Some(owner), Some(owner)).unwrap();
    }
    let volumes =
        [&mine, &roots].map(|directory| format!("{}:/{}:host_fs", directory.display(), name(directory)));
    let id = user.run_detached(&["-v", &volumes[0], "-v", &volumes[1]]);
    let script = "echo x > /mine/new && chown 5:6 /mine/new && stat -c %u:%g /mine/new; \
                  cat /mine/secret; ls /roots; cat /roots/secret; echo x > /roots/new";
    let done = user.done(&["exec", &id, "--", "sh", "-c", script]);
    assert_eq!(done.stdout, "5:6\n", "{done:?}");
    assert_eq!(done.stderr.to_lowercase().matches("permission denied").count(), 4, "{done:?}");
    let new = fs::metadata(mine.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (user.uid, user.gid));
    assert_eq!(blackbox::names(&roots), ["secret"]);
    assert_eq!(user.done(&["kill", &id]), success(&format!("Killed {id}\n")));
    user.assert_no_process();
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap()
}

/// Only a broker is root's. No process of its machine belongs to root, to the user, or to the user of another
/// sandbox's process.
fn machines_are_nobodys() {
    let user = User::new();
    let ids = [user.run_detached(&[]), user.run_detached(&[])];
    let mut users = BTreeSet::new();
    for id in &ids {
        assert_eq!(user.done(&["exec", id, "echo", "hi"]), success("hi\n"));
        let supervisor = user.supervisor(id);
        assert_eq!(status(&supervisor, "Uid:"), vec![user.uid.to_string(); 4]);
        let broker = broker(&supervisor);
        assert_eq!(status(&broker, "Uid:"), ["0"; 4]);
        let processes = descendants(&broker);
        assert!(!processes.is_empty());
        assert_eq!(descendants(&supervisor).len(), 1 + processes.len());
        for pid in processes {
            let ids = status(&pid, "Uid:");
            let who = format!("{:?}: {ids:?}", status(&pid, "Name:"));
            assert!(ids[0].parse::<u32>().unwrap() > 0x7800_0000, "{who}");
            assert_eq!((&ids, &vec![ids[0].clone(); 4]), (&status(&pid, "Gid:"), &ids), "{who}");
            assert_eq!(status(&pid, "Groups:"), [""; 0], "{who}");
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                assert_eq!(status(&pid, set), ["0000000000000000"], "{who}");
            }
            assert_eq!(
                (status(&pid, "NoNewPrivs:"), status(&pid, "Seccomp:")),
                (one("1"), one("2")),
                "{who}"
            );
            users.insert((ids[0].clone(), id));
        }
    }
    let different: BTreeSet<_> = users.iter().map(|(user, _)| user).collect();
    assert_eq!(different.len(), users.len(), "{users:?}");
    ids.iter().for_each(|id| assert_eq!(user.done(&["kill", id]).status, 0));
    user.assert_no_process();
}

/// While a guest runs, no thread of its supervisor has anything of root's; what has does not outlive the sandbox, nor the
/// sandbox it. The user may end the sandbox, and so may root.
fn supervisors_are_the_users() {
    let user = User::new();
    let port =
        (600..1024).rev().find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap();
    let detached = user.detach(&["--publish", &format!("127.0.0.1:{port}:7")]);
    let said = format!("Forwarding 127.0.0.1:{port} -> sandbox:7\n");
    assert_eq!((detached.status, detached.stderr), (0, said));
    let id = detached.stdout.trim_end().to_owned();
    assert_eq!(user.done(&["exec", &id, "echo", "hi"]), success("hi\n"));
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let supervisor = user.supervisor(&id);
    let threads = blackbox::names(&Path::new("/proc").join(&supervisor).join("task"));
    assert!(threads.len() > 1, "{threads:?}");
    for thread in threads {
        let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
        assert_eq!(status(&thread, "Uid:"), vec![uid; 4]);
        assert_eq!(status(&thread, "Gid:"), vec![gid.clone(); 4]);
        assert_eq!(status(&thread, "Groups:"), [gid]);
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(status(&thread, set), ["0000000000000000"], "{set}");
        }
    }
    let broker = broker(&supervisor);
    assert_eq!((status(&broker, "Threads:"), status(&broker, "NoNewPrivs:")), (one("1"), one("1")));

    blackbox::kill_and_wait(rustix::process::Pid::from_raw(broker.parse().unwrap()).unwrap());
    user.assert_no_process();
    assert!(user.done(&["list"]).stdout.contains("crashed"));
    assert_eq!(user.done(&["rm", &id]), success(&format!("Removed {id}\n")));

    let id = user.run_detached(&[]);
    let forced = user.sudo(&["gc", "--force-running", &id]);
    assert_eq!((forced.status, forced.stderr.as_str()), (0, ""), "{forced:?}");
    user.assert_no_process();
    user.assert_owns_everything();
}

/// The process that stays root's beside a supervisor.
fn broker(supervisor: &str) -> String {
    let is_broker = |pid: &String| status(pid, "Name:") == ["matchlock-broke"];
    descendants(supervisor).into_iter().find(is_broker).unwrap()
}

fn one(value: &str) -> Vec<String> {
    vec![value.to_owned()]
}

/// A line of a process's status.
fn status(pid: &str, name: &str) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    value.split_whitespace().map(str::to_owned).collect()
}

/// The children of a process, and their descendants.
fn descendants(pid: &str) -> Vec<String> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        for child in fs::read_to_string(task.path().join("children")).unwrap().split_whitespace() {
            found.push(child.to_owned());
            found.extend(descendants(child));
        }
    }
    found
}

/// A client cannot kill a server that is root's, but it can hang up.
fn the_end_of_input_ends_roots_server() {
    let user = User::new();
    let machine = machine();
    let mut sudo = user.command(Path::new("sudo"));
    let rpc = sudo.arg("-n").arg(user.program()).args(["rpc", "--machine", &machine]);
    let mut rpc = spawn(rpc.stdin(Stdio::piped()));
    let kernel = std::env::var("MATCHLOCK_TEST_KERNEL").unwrap_or_default();
    let params =
        serde_json::json!({"image": IMAGE, "kernel": {"ref": kernel}, "resources": {"memory_mb": 256}});
    let call = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "create", "params": params});
    writeln!(rpc.stdin.as_mut().unwrap(), "{call}").unwrap();
    let answer: serde_json::Value = serde_json::from_str(&read_until(&mut rpc, "\n")).unwrap();
    let id = answer["result"]["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    user.assert_owns_everything();
    assert_eq!(user.done(&["exec", &id, "echo", "hi"]), success("hi\n"));
    assert!(user.processes().len() > 1, "the server and its machine");

    drop(rpc.stdin.take());
    assert_eq!(end(rpc).status, 0);
    user.assert_no_process();
    assert_eq!(user.done(&["rm", &id]), success(&format!("Removed {id}\n")));
    assert_eq!(blackbox::names(&user.home().join(".matchlock/vms")), Vec::<String>::new());
}

fn success(stdout: &str) -> Done {
    Done { status: 0, stdout: stdout.to_owned(), stderr: String::new() }
}
