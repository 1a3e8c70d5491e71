//! Walls around programs in a sandbox: acts against its kernel and agent fail, and ordinary work succeeds.

use std::fs;

use blackbox::{Home, done, done_with_input};

use crate::archive::docker_archive;
use crate::{Test, images};

pub(crate) const TESTS: &[Test] = &[
    ("walls::the_kernel_starts_nothing_for_a_program", the_kernel_starts_nothing_for_a_program),
    ("walls::the_kernel_is_not_to_be_written", the_kernel_is_not_to_be_written),
    ("walls::what_containers_may_do_works", what_containers_may_do_works),
    ("walls::device_nodes_of_images_and_volumes_are_useless", device_nodes_of_images_and_volumes_are_useless),
    ("walls::privilege_takes_them_down", privilege_takes_them_down),
    ("walls::privilege_loads_modules", privilege_loads_modules),
];

pub(crate) const TESTS_OF_IMAGES: &[Test] = &[("walls::a_distribution_works", a_distribution_works)];

/// Runs a script in a sandbox of its own, and returns its output.
fn script(options: &[&str], text: &str) -> String {
    let home = Home::new();
    let done = done(home.run(options).args(["--", "sh", "-c", text]));
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    home.assert_nothing_left();
    done.stdout
}

/// Puts a program where the kernel looks for helpers, and gives the kernel two reasons to start it: a core to be
/// piped somewhere, and a program of a format that needs a module. The kernel waits for both before the shell goes
/// on.
const HELPERS: &str = "printf '#!/bin/sh\\nid -u >/tmp/ran.$1\\n' >/tmp/helper; chmod 755 /tmp/helper
    echo '|/tmp/helper core' 2>/dev/null >/proc/sys/kernel/core_pattern
    sh -c 'ulimit -c unlimited; sh -c \"kill -SEGV \\$\\$\"; true' >/dev/null 2>&1
    mkdir -p /sbin; rm -f /sbin/modprobe; cp /tmp/helper /sbin/modprobe
    echo /sbin/modprobe 2>/dev/null >/proc/sys/kernel/modprobe
    printf '\\377\\376\\375\\374' >/tmp/format; chmod 755 /tmp/format; /tmp/format 2>/dev/null
    i=0; while [ ! -e /tmp/ran.core ] && [ $i -lt 20 ]; do i=$((i+1)); sleep 0.1; done
    ls /tmp | grep ran\n";

fn the_kernel_starts_nothing_for_a_program() {
    let left = "cat /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe";
    assert_eq!(script(&[], &format!("{HELPERS} {left}")), "core\n\n");
}

/// Modules on demand: by name, by a file system's name and by a device that is opened. Without privilege none are
/// loaded.
fn privilege_loads_modules() {
    let by_name = "modprobe bridge && test -d /sys/module/bridge && test -d /sys/module/stp && echo bridge";
    let by_the_kernel = "mount -t fuse -o fd=9 x /mnt 2>/dev/null; test -d /sys/module/fuse && echo fuse
        : 9<>/dev/net/tun && test -d /sys/module/tun && echo tun";
    let for_all = "stat -c %a /dev/fuse /dev/net/tun | sort -u";
    let read_only = "touch /lib/modules/$(uname -r)/x 2>&1 | sed 's/.*: //'";
    let text = format!("mkdir -p /mnt; {by_name}; {by_the_kernel}; {for_all}; {read_only}");
    assert_eq!(script(&["--privileged"], &text), "bridge\nfuse\ntun\n666\nRead-only file system\n");
    let none = "ls /lib/modules 2>/dev/null; ls -d /dev/fuse /dev/net 2>/dev/null; modprobe bridge 2>/dev/null || echo none";
    assert_eq!(script(&[], none), "none\n");
}

/// Tries to open every file for writing, and prints those that opened. Pressure files are left out, as writing to one
/// only asks for notifications.
fn the_kernel_is_not_to_be_written() {
    let opened = script(
        &[],
        "find /proc /sys/kernel /sys/power -path '/proc/[0-9]*' -prune -o -path /proc/self -prune -o -path /proc/pressure -prune -o -path /proc/thread-self -prune -o -type f -perm -200 -print |
            while read -r file; do { true >>\"$file\"; } 2>/dev/null && echo \"$file\"; done
        for disk in /dev/vda /dev/vdb /dev/mem /dev/kmsg /dev/hvc0; do test -e $disk && echo $disk; done
        for file in kcore keys timer_list; do test -s /proc/$file && cat /proc/$file | head -c 1 | wc -c; done
        for directory in /proc/acpi /proc/scsi /sys/firmware; do ls -A $directory 2>/dev/null; done
        { echo b >/proc/sysrq-trigger; } 2>/dev/null
        true",
    );
    assert_eq!(opened, "");
}

fn what_containers_may_do_works() {
    let text = "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\\t'
        ping -c 1 127.0.0.1 >/dev/null && echo ping
        touch /tmp/f && chown 12:34 /tmp/f && chmod 4755 /tmp/f && stat -c '%u:%g %a' /tmp/f
        mkdir -p /jail/bin && cp /bin/busybox /jail/bin/ && chroot /jail /bin/busybox echo jail
        mknod /made c 1 3 && mkfifo /pipe && stat -c %F /made /pipe
        (echo x >/made) 2>/dev/null || echo useless
        su -s /bin/sh -c 'id -u' nobody
        echo x >/dev/null && head -c 4 /dev/urandom | wc -c && head -c 2 /dev/zero | wc -c && ls /dev/pts | grep -c ptmx
        echo x >/dev/shm/x && cat /dev/shm/x && cat /proc/sys/kernel/ostype";
    let kept = "00000000a80425fb";
    let expected = format!(
        "CapInh:0000000000000000\nCapPrm:{kept}\nCapEff:{kept}\nCapBnd:{kept}\nCapAmb:0000000000000000\n\
         ping\n12:34 4755\njail\ncharacter special file\nfifo\nuseless\n65534\n4\n2\n1\nx\nLinux\n"
    );
    assert_eq!(script(&[], text), expected);
}

/// The root's own disk, as a device node that everybody may read and write, in an image and on a volume.
fn device_nodes_of_images_and_volumes_are_useless() {
    let home = Home::with_own_images();
    let created = home.done(["volume", "create", "nodes", "--size", "16"]);
    assert_eq!(created.status, 0, "{created:?}");
    let busybox = fs::read("/bin/busybox").unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(busybox.len() as u64);
    header.set_mode(0o755);
    archive.append_data(&mut header, "bin/busybox", busybox.as_slice()).unwrap();
    header.set_entry_type(tar::EntryType::Block);
    header.set_device_major(254).unwrap();
    header.set_device_minor(16).unwrap();
    header.set_mode(0o666);
    header.set_size(0);
    archive.append_data(&mut header, "node", &[][..]).unwrap();
    let layer = archive.into_inner().unwrap();
    let imported =
        done_with_input(&mut home.matchlock(["image", "import", "nodes:1"]), &docker_archive(&[layer]));
    assert_eq!(imported.status, 0, "{imported:?}");
    let run = |options: &[&str], script: &str| {
        let script = format!("busybox() {{ /bin/busybox \"$@\"; }}; {script}");
        let mut command = home.run(["--image", "nodes:1", "--disk", "@nodes:/data"]);
        done(command.args(options).args(["--", "/bin/busybox", "sh", "-c", &script]))
    };
    let made = run(
        &["--privileged"],
        "busybox mknod -m 666 /data/node b 254 16; busybox chmod 777 /data; : </node && echo opens",
    );
    assert_eq!((made.status, made.stdout.as_str()), (0, "opens\n"), "{made:?}");
    for user in ["0", "1000"] {
        let refused = run(
            &["-u", user],
            "for node in /node /data/node; do busybox stat -c '%F %t:%T' $node; busybox head -c 1 $node; done",
        );
        let expected = "block special file fe:10\nblock special file fe:10\n";
        let refusals = refused.stderr.matches("Permission denied").count();
        assert_eq!((refused.stdout.as_str(), refusals), (expected, 2), "{user}: {refused:?}");
    }
    home.assert_nothing_left();
}

fn privilege_takes_them_down() {
    let more = "test -b /dev/vdb && mknod /made c 1 3 && echo x >/made && echo 0 >/proc/sys/kernel/panic && mount -t tmpfs x /mnt 2>/dev/null
        grep -q ' /sys sysfs rw' /proc/self/mounts && ls /sys/firmware | grep -c . >/dev/null && echo all";
    assert_eq!(
        script(&["--privileged"], &format!("mkdir -p /mnt; {HELPERS} {more}")),
        "ran.-q\nran.core\nall\n"
    );
}

/// Acts of package managers and of a distribution's programs. Each line prints the result of one. To start a thread,
/// the C library tries clone3 first.
const PROGRAM: &str = "
import errno, os, socket, subprocess, threading
def attempt(act):
    try:
        act()
        return 'works'
    except OSError as error:
        return errno.errorcode[error.errno]
open('/srv/file', 'w').close()
print('owner', attempt(lambda: os.chown('/srv/file', 33, 33)))
print('set-user-id', attempt(lambda: os.chmod('/srv/file', 0o4755)))
print('file capability', attempt(lambda: os.setxattr('/srv/file', 'security.capability', bytes.fromhex('0100000200040000000000000000000000000000'))))
print('device', attempt(lambda: os.mknod('/srv/null', 0o20666, os.makedev(1, 3))), attempt(lambda: open('/srv/null')))
print('raw', attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)))
print('vsock', attempt(lambda: socket.socket(40, socket.SOCK_STREAM)), 'alg', attempt(lambda: socket.socket(38, socket.SOCK_SEQPACKET)))
thread = threading.Thread(target=lambda: print('thread')); thread.start(); thread.join()
print(subprocess.run(['python3', '-c', 'print(1)'], capture_output=True, text=True, user=33, group=33).stdout.strip())
os.setgid(33); os.setuid(33)
print('ping', attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)))
print('port', attempt(lambda: socket.socket().bind(('127.0.0.1', 80))))
";
const SAYS: &str = "owner works\nset-user-id works\nfile capability works\ndevice works EACCES\nraw works\nvsock EPERM alg EPERM\n\
    thread\n1\nping works\nport works\n";

fn a_distribution_works() {
    let home = Home::with_own_images();
    images::import(&home, "python", &images::fixtures().unwrap().join("python.docker.tar"));
    let done = images::run(&home, &[], "python", &["python3", "-c", PROGRAM]);
    assert_eq!(done, images::printed(SAYS));
    home.assert_nothing_left();
}
