//! Sandboxes with a network, before servers of the test's own: what is reached, what is not, and what is told of it.

mod world;

use std::net::Ipv4Addr;
use std::process::Command;

use blackbox::rpc::Server;
use blackbox::{Done, Home, IMAGE, done, end, kill_and_wait, machine, read_until, refused, spawn};
use rustix::process::Pid;
use serde_json::json;

use crate::Test;
use world::{DNS, EVIL, HTTP, INSIDE, OK, QUIET, WEB, World};

pub(crate) use world::missing;

pub(crate) const TESTS: &[Test] = &[
    ("network::what_is_listed_is_reached_and_nothing_else", what_is_listed_is_reached_and_nothing_else),
    ("network::the_list_changes_while_a_sandbox_runs", the_list_changes_while_a_sandbox_runs),
    ("network::the_public_internet_is_open_and_nothing_else", the_public_internet_is_open_and_nothing_else),
    ("network::clients_change_the_list", clients_change_the_list),
    ("network::without_its_process_nothing_leaves", without_its_process_nothing_leaves),
    ("network::a_host_without_taps", a_host_without_taps),
];

/// `matchlock run` with a network in which the test's DNS server is asked.
fn run(home: &Home, options: &[&str]) -> Command {
    let mut command = home.matchlock(["run", "--machine", &machine(), "--image", IMAGE, "--memory", "256"]);
    let kernel = std::env::var("MATCHLOCK_TEST_KERNEL").unwrap_or_default();
    if !kernel.is_empty() {
        command.args(["--kernel", &kernel]);
    }
    command.args(["--dns-servers", DNS]).args(options);
    command
}

/// Starts a sandbox that stays, and returns its id.
fn detached(world: &World, home: &Home, options: &[&str]) -> String {
    let done = world.within(|| done(run(home, &["-d"]).args(options)));
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    done.stdout.trim_end().to_owned()
}

/// Runs a script in a sandbox.
fn exec(home: &Home, id: &str, script: &str) -> Done {
    home.done(["exec", id, "--", "sh", "-c", script])
}

/// The address of a host, in a script. Of the built-in image's programs, which have no libraries, only `nslookup` asks
/// servers.
fn address(host: &str) -> String {
    match host.parse::<Ipv4Addr>() {
        Ok(address) => address.to_string(),
        Err(_) => format!("$(nslookup -type=a {host} 2>/dev/null | sed -n 's/^Address: //p' | head -n 1)"),
    }
}

/// A script that asks a server and prints the end of its answer, or the word `nothing`.
fn fetch(host: &str) -> String {
    let (address, request) = (address(host), r"GET / HTTP/1.0\r\n\r\n");
    let ask = format!("printf '{request}' | nc -w 20 {address} {HTTP} 2>/dev/null");
    format!("{ask} | tail -n 1 | grep . || echo nothing")
}

/// A script that asks a server on port 80 for a host's page, and prints the answer.
fn request(address: Ipv4Addr, host: &str) -> String {
    // The input of nc has no end: half of a connection that ends is a client that gave up.
    let ask = format!(r"printf 'GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n' >&3");
    format!("rm -f /tmp/ask; mkfifo /tmp/ask; exec 3<>/tmp/ask; {ask}; nc -w 20 {address} {WEB} <&3")
}

/// Runs a command that succeeds, and returns its output.
#[track_caller]
fn output(done: Done) -> String {
    assert_eq!(done.status, 0, "{done:?}");
    done.stdout
}

fn denied(home: &Home, id: &str) -> String {
    output(home.done(["audit", id, "--denied"]))
}

fn what_is_listed_is_reached_and_nothing_else() {
    let (world, home) = (World::new(), Home::new());
    let id = detached(&world, &home, &["--allow-host", "ok.test,ok.test:8080,inside.test:8080"]);
    let get = |host: &str| exec(&home, &id, &fetch(host)).stdout;
    assert_eq!(get("ok.test"), format!("server {OK}\n"), "{}", home.done(["audit", &id]).stdout);
    assert_eq!(get("evil.test"), "nothing\n");
    assert_eq!(get(&EVIL.to_string()), "nothing\n");
    // The name is allowed, its address is not; and neither is an address that nobody was told.
    assert_eq!(get("inside.test"), "nothing\n");
    assert_eq!(get(&INSIDE.to_string()), "nothing\n");
    // On port 80, each request says for whom it is.
    let page = output(exec(&home, &id, &request(OK, "ok.test")));
    assert!(page.starts_with("HTTP/1.1 200 ") && page.contains(&format!("server {OK}\n")), "{page}");
    let page = output(exec(&home, &id, &request(OK, "evil.test")));
    assert!(page.starts_with("HTTP/1.1 403 ") && page.contains("host not in allowlist"), "{page}");
    // A denied name does not exist, and nobody outside hears of it.
    let lookup = exec(&home, &id, "nslookup evil.test 2>&1");
    assert!(lookup.status != 0 && lookup.stdout.contains("NXDOMAIN"), "{lookup:?}");
    let asked = world.asked();
    assert!(
        asked.iter().any(|name| name == "ok.test") && !asked.iter().any(|name| name == "evil.test"),
        "{asked:?}"
    );
    let denied = denied(&home, &id);
    for expected in [
        "dns denied A evil.test: host not in allowlist [default:closed]\n",
        "dns filtered A inside.test: ",
        &format!("tcp denied {EVIL}:{HTTP}: host not in allowlist [default:closed]\n"),
    ] {
        assert!(denied.contains(expected), "{expected} in {denied}");
    }
    assert!(!denied.contains(&format!("{OK}:{HTTP}")), "{denied}");
    let all = output(home.done(["audit", &id, "--json"]));
    assert!(all.contains(r#""outcome":"opened""#) && all.lines().all(|line| line.starts_with('{')), "{all}");
    assert_eq!(world.interfaces(), 1);
    output(home.done(["kill", &id]));
    home.assert_no_process();
    assert!(output(home.done(["audit", &id])).contains("tcp ended "), "the audit outlives the sandbox");
    output(home.done(["rm", &id]));
    refused(&home.done(["audit", &id]), &format!("VM {id} not found"));
    home.assert_nothing_left();
}

fn the_list_changes_while_a_sandbox_runs() {
    let (world, home) = (World::new(), Home::new());
    let id = detached(&world, &home, &["--allow-host", "ok.test:8080"]);
    let get = |host: &str| exec(&home, &id, &fetch(host)).stdout;
    let change = |verb: &str, hosts: &str| home.done(["allow-list", verb, &id, hosts]);
    assert_eq!(get("evil.test"), "nothing\n");
    let added = output(change("add", "evil.test:7000-8080, ok.test:8080"));
    let now = "Current allow-list: ok.test:8080,evil.test:7000-8080\n";
    assert_eq!(added, format!("Added to {id}: evil.test:7000-8080\n{now}"));
    assert_eq!(get("evil.test"), format!("server {EVIL}\n"));
    refused(&change("add", "http://x"), "invalid host pattern \"http://x\"");
    assert_eq!(output(change("delete", "never.test")), format!("No hosts were removed from {id}\n{now}"));
    let explain = || home.done(["explain", "--sandbox", &id, "GET", "http://evil.test:8080/"]);
    assert_eq!(explain().status, 0);

    // A connection that is open is cut when its host goes.
    // The input of nc has no end, so that nc does not end its half of the connection.
    let listen =
        format!("mkfifo /tmp/open; exec 3<>/tmp/open; nc {} {QUIET} <&3; echo cut", address("evil.test"));
    let mut open = spawn(&mut home.matchlock(["exec", "-i", &id, "--", "sh", "-c", &listen]));
    read_until(&mut open, "hello");
    let deleted = output(change("delete", "evil.test:7000-8080"));
    assert_eq!(
        deleted,
        format!("Removed from {id}: evil.test:7000-8080\nCurrent allow-list: ok.test:8080\n")
    );
    assert!(end(open).stdout.ends_with("cut\n"));
    assert_eq!(get("evil.test"), "nothing\n");
    let explained = explain();
    assert_eq!(
        (explained.status, explained.stdout.as_str()),
        (1, "name denied: host not in allowlist [default:closed]\n")
    );
    // An emptied list allows nothing.
    let emptied = output(change("delete", "ok.test:8080"));
    assert!(emptied.ends_with("Current allow-list: (empty: no host is allowed)\n"), "{emptied}");
    assert_eq!((get("ok.test"), explain().status), ("nothing\n".to_owned(), 1));
    assert!(denied(&home, &id).contains("(policy; "), "a flow that was cut");
    output(home.done(["kill", &id]));
    assert!(home.done(["allow-list", "add", &id, "a.test"]).stderr.contains("is not running"));
    output(home.done(["rm", &id]));
    home.assert_nothing_left();
}

fn the_public_internet_is_open_and_nothing_else() {
    let (world, home) = (World::new(), Home::new());
    let id = detached(&world, &home, &["--deny-host", "evil.test", "--mtu", "1300"]);
    let get = |host: &str| exec(&home, &id, &fetch(host)).stdout;
    assert_eq!(get("ok.test"), format!("server {OK}\n"));
    assert_eq!(get(&OK.to_string()), format!("server {OK}\n"));
    for closed in ["evil.test", "inside.test", "10.9.9.9", "169.254.169.254", "198.18.0.1", "127.0.0.1"] {
        assert_eq!(get(closed), "nothing\n", "{closed}");
    }
    let link = output(exec(&home, &id, "cat /sys/class/net/eth0/mtu /etc/resolv.conf"));
    assert_eq!(link, format!("1300\nnameserver {DNS}\n"));
    let unavailable = "allow-list updates unavailable: sandbox was started without network interception";
    refused(&home.done(["allow-list", "add", &id, "ok.test"]), unavailable);
    // Another sandbox, at the same time, has the same addresses and sees nothing of this one.
    let both = format!("{}; ip -4 address show eth0 | grep -c 198.18.0.2/30", fetch("ok.test"));
    let other = world.within(|| done(run(&home, &[]).args(["--", "sh", "-c", &both])));
    assert_eq!((other.status, other.stdout), (0, format!("server {OK}\n1\n")), "{}", other.stderr);
    let none = world.within(|| done(run(&home, &["--no-network"]).args(["--", "ls", "/sys/class/net"])));
    assert_eq!((none.stdout.as_str(), none.stderr.as_str()), ("lo\n", ""));
    assert_eq!(get("ok.test"), format!("server {OK}\n"));
    output(home.done(["kill", &id]));
    output(home.done(["rm", &id]));
    assert_eq!(world.interfaces(), 1);
    home.assert_nothing_left();
}

fn clients_change_the_list() {
    const VM: i64 = -32000;
    const INVALID_PARAMS: i64 = -32602;
    let (world, home) = (World::new(), Home::new());
    let mut server = world.within(|| Server::start(&home));
    let network = |hosts: &[&str]| json!({"network": {"allowed_hosts": hosts, "block_private_ips": true, "dns_servers": [DNS]}});
    server.create(network(&["ok.test:8080"]));
    let get = |server: &mut Server, host: &str| server.exec(&fetch(host)).1;
    assert_eq!(get(&mut server, "ok.test"), format!("server {OK}\n"));
    assert_eq!(get(&mut server, "evil.test"), "nothing\n");
    let hosts = json!({"hosts": [" evil.test:8080 ", "ok.test:8080"]});
    let all = json!(["ok.test:8080", "evil.test:8080"]);
    let added = json!({"added": ["evil.test:8080"], "allowed_hosts": all});
    assert_eq!(server.call("allow_list_add", hosts), Ok(added));
    assert_eq!(get(&mut server, "evil.test"), format!("server {EVIL}\n"));
    let removed = json!({"removed": all, "allowed_hosts": []});
    assert_eq!(server.call("allow_list_delete", json!({"hosts": all})), Ok(removed));
    assert_eq!(get(&mut server, "ok.test"), "nothing\n");
    let wrong = "invalid configuration: hosts: invalid host pattern \"http://x\": is a URL";
    let refusals = [(json!({"hosts": ["http://x"]}), wrong), (json!({"hosts": [" "]}), "hosts is required")];
    for (params, message) in refusals {
        let refused = server.call("allow_list_add", params);
        assert!(
            refused.as_ref().is_err_and(|(code, text)| *code == INVALID_PARAMS && text.starts_with(message)),
            "{refused:?}"
        );
    }
    server.create(network(&[]));
    assert_eq!(get(&mut server, "ok.test"), format!("server {OK}\n"));
    let unavailable = "allow-list updates unavailable: sandbox was started without network interception";
    let refused = server.call("allow_list_add", json!({"hosts": ["ok.test"]}));
    assert_eq!(refused, Err((VM, unavailable.to_owned())));
    assert_eq!(server.call("close", json!({"timeout_seconds": 20})), Ok(json!({})));
    assert_eq!(server.end().0.code(), Some(0));
    home.assert_no_process();
}

fn without_its_process_nothing_leaves() {
    let (world, home) = (World::new(), Home::new());
    let id = detached(&world, &home, &[]);
    let get = |host: &str| exec(&home, &id, &fetch(host)).stdout;
    assert_eq!(get("ok.test"), format!("server {OK}\n"));
    // Linux shows 15 bytes of a program's name.
    let processes = home.processes();
    let egress = processes.iter().find_map(|process| process.strip_suffix(" matchlock-egres"));
    let egress = Pid::from_raw(egress.unwrap().parse().unwrap()).unwrap();
    let mut log = spawn(&mut home.matchlock(["log", "-f", &id]));
    kill_and_wait(egress);
    read_until(&mut log, "matchlock: the sandbox has no network any more: ");
    blackbox::signal(&log, rustix::process::Signal::INT);
    end(log);
    for host in ["ok.test".to_owned(), OK.to_string()] {
        assert_eq!(get(&host), "nothing\n");
    }
    output(home.done(["kill", &id]));
    let told = output(home.done(["inspect", &id]));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let step = &told["lifecycle"]["cleanup"]["network"];
    assert_eq!(step["status"], "error", "{told}");
    assert!(step["error"].as_str().unwrap().contains("signal: 9"), "{step}");
    output(home.done(["rm", &id]));
    home.assert_nothing_left();
}

/// A sandbox that needs a network does not start without one, another says that it has none.
fn a_host_without_taps() {
    let home = Home::new();
    let without = |options: &[&str]| {
        let mut command = Command::new("unshare");
        let run = run(&home, options);
        command.args(["--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$0\" \"$@\""]);
        command.arg(run.get_program()).args(run.get_args()).args(["--", "echo", "up"]);
        for (name, value) in run.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        done(&mut command)
    };
    let lack = "/dev/net/tun does not exist";
    for options in [&["--allow-host", "ok.test"][..], &["--network", "tap"]] {
        let refusal = without(options);
        refused(&refusal, &format!("no network for the sandbox: {lack}"));
        assert!(refusal.stderr.contains("\nhint: --no-network runs it without one"), "{refusal:?}");
    }
    let plain = without(&[]);
    assert_eq!((plain.status, plain.stdout.as_str()), (0, "up\n"), "{plain:?}");
    let line = format!("matchlock: the sandbox has no network: {lack}");
    assert!(plain.stderr.starts_with(&line) && plain.stderr.lines().count() == 1, "{plain:?}");
    let quiet = without(&["--no-network"]);
    assert_eq!((quiet.status, quiet.stderr.as_str()), (0, ""), "{quiet:?}");
    home.assert_nothing_left();
}
