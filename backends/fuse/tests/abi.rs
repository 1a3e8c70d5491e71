//! The structures and numbers of `fuse_abi` are those of the kernel's header, as a C compiler sees it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write;
use std::process::Command;

use fuse_abi::linux as abi;

/// The lines that the C program prints, and those that this crate expects of it.
#[derive(Default)]
struct Comparison {
    program: String,
    expected: String,
    /// The first minor version of the protocol whose header has the following lines.
    since: u32,
}

impl Comparison {
    fn line(&mut self, name: &str, c: &str, value: u64) {
        let since = self.since;
        writeln!(self.program, "#if FUSE_KERNEL_MINOR_VERSION >= {since}").unwrap();
        writeln!(self.program, "printf(\"{name} %llu\\n\", (unsigned long long)({c}));").unwrap();
        // With an older header the program prints the line without values.
        writeln!(self.program, "#else\nputs(\"{name} -\");\n#endif").unwrap();
        writeln!(self.expected, "{name} {value}").unwrap();
    }
}

macro_rules! structures {
    ($to:ident: $($name:ident { $($field:ident),* })*) => {$(
        let size = u64::try_from(size_of::<abi::$name>()).unwrap();
        $to.line(stringify!($name), concat!("sizeof(struct ", stringify!($name), ")"), size);
        $(
            // A field that is a keyword of Rust's has an underscore at its end in Rust.
            let field = stringify!($field).strip_suffix('_').unwrap_or(stringify!($field));
            let offset = u64::try_from(std::mem::offset_of!(abi::$name, $field)).unwrap();
            let name = format!("{}.{field}", stringify!($name));
            $to.line(&name, &format!("offsetof(struct {}, {field})", stringify!($name)), offset);
        )*
    )*};
}

macro_rules! constants {
    ($to:ident: $($name:ident)*) => {$(
        $to.line(stringify!($name), stringify!($name), abi::$name.into());
    )*};
}

macro_rules! opcodes {
    ($to:ident: $($name:ident)*) => {$(
        $to.line(stringify!($name), stringify!($name), (abi::fuse_opcode::$name as u32).into());
    )*};
}

fn comparison() -> Comparison {
    let mut to = Comparison { since: 31, ..Default::default() };
    requests(&mut to);
    replies(&mut to);
    numbers(&mut to);
    to
}

fn requests(to: &mut Comparison) {
    structures! { to:
        fuse_in_header { len, opcode, unique, nodeid, uid, gid, pid }
        fuse_init_in { major, minor, max_readahead, flags }
        fuse_forget_in { nlookup }
        fuse_forget_one { nodeid, nlookup }
        fuse_batch_forget_in { count }
        fuse_getattr_in { getattr_flags, fh }
        fuse_setattr_in { valid, fh, size, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, uid, gid }
        fuse_mknod_in { mode, rdev }
        fuse_mkdir_in { mode }
        fuse_rename_in { newdir }
        fuse_rename2_in { newdir, flags }
        fuse_link_in { oldnodeid }
        fuse_open_in { flags, open_flags }
        fuse_create_in { flags, mode, open_flags }
        fuse_release_in { fh }
        fuse_read_in { fh, offset, size }
        fuse_write_in { fh, offset, size, write_flags, flags }
        fuse_fsync_in { fh, fsync_flags }
        fuse_getxattr_in { size }
        fuse_fallocate_in { fh, offset, length, mode }
        fuse_lseek_in { fh, offset, whence }
        fuse_copy_file_range_in { fh_in, off_in, nodeid_out, fh_out, off_out, len, flags }
    }
    to.since = 34;
    structures! { to: fuse_syncfs_in { padding } }
    to.since = 36;
    structures! { to:
        fuse_init_in { flags2 }
        fuse_secctx { size }
        fuse_secctx_header { size, nr_secctx }
    }
    to.since = 38;
    structures! { to:
        fuse_in_header { total_extlen }
        fuse_ext_header { size, type_ }
    }
    to.since = 39;
    // Some headers of version 38 have no groups.
    structures! { to:
        fuse_supp_groups { nr_groups, groups }
    }
    structures! { to: fuse_statx_in { getattr_flags, fh, sx_flags, sx_mask } }
    to.since = 31;
}

fn replies(to: &mut Comparison) {
    structures! { to:
        fuse_out_header { len, error, unique }
        fuse_init_out {
            major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
            map_alignment
        }
        fuse_attr {
            ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev,
            blksize, flags
        }
        fuse_attr_out { attr_valid, attr_valid_nsec, attr }
        fuse_entry_out { nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec, attr }
        fuse_open_out { fh, open_flags }
        fuse_write_out { size }
        fuse_kstatfs { blocks, bfree, bavail, files, ffree, bsize, namelen, frsize }
        fuse_statfs_out { st }
        fuse_getxattr_out { size }
        fuse_lseek_out { offset }
        fuse_dirent { ino, off, namelen, type_, name }
        fuse_direntplus { entry_out, dirent }
    }
    to.since = 36;
    structures! { to: fuse_init_out { flags2 } }
    to.since = 39;
    structures! { to:
        fuse_sx_time { tv_sec, tv_nsec }
        fuse_statx {
            mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask, atime, btime, ctime,
            mtime, rdev_major, rdev_minor, dev_major, dev_minor
        }
        fuse_statx_out { attr_valid, attr_valid_nsec, flags, stat }
    }
    to.since = 31;
}

fn numbers(to: &mut Comparison) {
    constants! { to:
        FUSE_ROOT_ID FUSE_KERNEL_VERSION
        FUSE_ASYNC_READ FUSE_ATOMIC_O_TRUNC FUSE_BIG_WRITES FUSE_AUTO_INVAL_DATA FUSE_DO_READDIRPLUS
        FUSE_READDIRPLUS_AUTO FUSE_ASYNC_DIO FUSE_WRITEBACK_CACHE FUSE_PARALLEL_DIROPS FUSE_MAX_PAGES
        FUSE_CACHE_SYMLINKS
        FATTR_MODE FATTR_UID FATTR_GID FATTR_SIZE FATTR_ATIME FATTR_MTIME FATTR_FH FATTR_ATIME_NOW FATTR_MTIME_NOW
        FATTR_CTIME FUSE_GETATTR_FH FUSE_FSYNC_FDATASYNC FUSE_WRITE_CACHE FOPEN_DIRECT_IO FOPEN_KEEP_CACHE
        FOPEN_CACHE_DIR
    }
    opcodes! { to:
        FUSE_LOOKUP FUSE_FORGET FUSE_GETATTR FUSE_SETATTR FUSE_READLINK FUSE_SYMLINK FUSE_MKNOD FUSE_MKDIR
        FUSE_UNLINK FUSE_RMDIR FUSE_RENAME FUSE_LINK FUSE_OPEN FUSE_READ FUSE_WRITE FUSE_STATFS FUSE_RELEASE
        FUSE_FSYNC FUSE_SETXATTR FUSE_GETXATTR FUSE_LISTXATTR FUSE_REMOVEXATTR FUSE_FLUSH FUSE_INIT FUSE_OPENDIR
        FUSE_READDIR FUSE_RELEASEDIR FUSE_FSYNCDIR FUSE_GETLK FUSE_SETLK FUSE_SETLKW FUSE_ACCESS FUSE_CREATE
        FUSE_INTERRUPT FUSE_BMAP FUSE_DESTROY FUSE_IOCTL FUSE_POLL FUSE_NOTIFY_REPLY FUSE_BATCH_FORGET
        FUSE_FALLOCATE FUSE_READDIRPLUS FUSE_RENAME2 FUSE_LSEEK FUSE_COPY_FILE_RANGE FUSE_SETUPMAPPING
        FUSE_REMOVEMAPPING
    }
    to.since = 32;
    constants! { to: FUSE_SUBMOUNTS FUSE_ATTR_SUBMOUNT }
    to.since = 33;
    constants! { to:
        FUSE_HANDLE_KILLPRIV_V2 FATTR_KILL_SUIDGID FUSE_WRITE_KILL_SUIDGID FUSE_OPEN_KILL_SUIDGID
    }
    to.since = 34;
    opcodes! { to: FUSE_SYNCFS }
    to.since = 36;
    constants! { to: FUSE_INIT_EXT FUSE_SECURITY_CTX }
    to.since = 37;
    opcodes! { to: FUSE_TMPFILE }
    to.since = 39;
    constants! { to: FUSE_DIRECT_IO_ALLOW_MMAP }
    opcodes! { to: FUSE_STATX }
}

#[test]
fn structures_are_those_of_the_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let (source, program) = (directory.path().join("abi.c"), directory.path().join("abi"));
    let comparison = comparison();
    let text = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/fuse.h>\nint main(void) {{\n{}return 0;\n}}\n",
        comparison.program
    );
    std::fs::write(&source, text).unwrap();
    let compiled = match Command::new("cc").arg("-o").arg(&program).arg(&source).output() {
        Ok(output) => output,
        Err(error) => return skip::skip("cc", format!("no C compiler: {error}")),
    };
    let complaint = String::from_utf8_lossy(&compiled.stderr);
    if complaint.contains("linux/fuse.h: No such file") {
        return skip::skip("linux-libc-dev", "no linux/fuse.h (package linux-libc-dev)");
    }
    assert!(compiled.status.success(), "{complaint}");
    let printed = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();
    let lines: Vec<_> = printed.lines().zip(comparison.expected.lines()).collect();
    assert_eq!(lines.len(), comparison.expected.lines().count());
    let known: Vec<_> = lines.iter().filter(|(c, _)| !c.ends_with(" -")).collect();
    assert!(known.len() > 250, "the header knows {} of {}", known.len(), lines.len());
    for (c, ours) in known {
        assert_eq!(c, ours);
    }
}
