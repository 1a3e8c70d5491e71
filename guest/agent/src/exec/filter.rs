//! The filter of system calls for programs without privilege, which refuses calls that are not in [`super::calls`].
//!
//! ```text
//!  architecture ─┬─ native ── binary search over ranges of numbers ─▶ allow · EPERM · ENOSYS · look at an argument
//!                ├─ 32-bit ── the same over its own numbers
//!                └─ any other ─▶ EPERM
//! ```
//!
//! Search and ranges keep the filter short: it is installed anew for each program, and run for each of its calls.

use std::sync::LazyLock;

use libc::sock_filter;

use super::arch::NUMBERINGS;
use super::calls::{self, Numbering};

/// A filter for seccomp(2).
#[derive(Debug)]
pub(super) struct Filter(Vec<sock_filter>);

static FILTER: LazyLock<Filter> = LazyLock::new(Filter::new);

/// x86-64's numbers from here on are those of x32, another numbering of the same calls, which is refused as a whole.
const X32: u32 = 0x4000_0000;

/// `CLONE_NEW*` of linux/sched.h that clone(2) takes: a new user namespace would give its maker all capabilities in
/// it.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();

/// Families of sockets that lead out of the guest, or deep into its kernel.
const REFUSED_FAMILIES: [u32; 2] = [libc::AF_VSOCK.cast_unsigned(), libc::AF_ALG.cast_unsigned()];

/// personality(2): Linux, with and without 16-bit ids of users and kernel version 2.6, and the query.
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, u32::MAX];

/// The verdict on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    /// The call fails with EPERM.
    Refuse,
    /// The call fails with ENOSYS.
    Unknown,
    /// The call is allowed unless its first argument has one of these bits.
    WithoutBits(u32),
    /// The call is allowed unless its first argument is one of these.
    Except(&'static [u32]),
    /// The call is allowed if its first argument is one of these.
    Only(&'static [u32]),
}

impl Verdict {
    fn of(name: &str) -> Self {
        match name {
            "clone" => Self::WithoutBits(NAMESPACES),
            // The flags of clone3 are in memory, which no filter sees; a C library falls back to clone.
            "clone3" => Self::Unknown,
            "socket" => Self::Except(&REFUSED_FAMILIES),
            "personality" => Self::Only(&PERSONALITIES),
            _ => Self::Allow,
        }
    }

    /// Appends the instructions that end the filter with this verdict.
    fn emit(self, code: &mut Vec<sock_filter>) {
        match self {
            Self::Allow => code.push(ret(libc::SECCOMP_RET_ALLOW)),
            Self::Refuse => code.push(ret(refusal(libc::EPERM))),
            Self::Unknown => code.push(ret(refusal(libc::ENOSYS))),
            Self::WithoutBits(bits) => {
                code.extend([load(ARGUMENT), jump(JUMP_IF_SET, bits, 1, 0)]);
                Self::Allow.emit(code);
                Self::Refuse.emit(code);
            }
            Self::Except(values) => Self::emit_list(values, Self::Allow, Self::Refuse, code),
            Self::Only(values) => Self::emit_list(values, Self::Refuse, Self::Allow, code),
        }
    }

    fn emit_list(values: &[u32], otherwise: Self, listed: Self, code: &mut Vec<sock_filter>) {
        code.push(load(ARGUMENT));
        for (value, left) in values.iter().zip((1..=values.len()).rev()) {
            code.push(jump(JUMP_IF_EQUAL, *value, left, 0));
        }
        otherwise.emit(code);
        listed.emit(code);
    }
}

/// The calls from this number up to the next range's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    verdict: Verdict,
}

/// All numbers, in order, in as few ranges as possible.
fn ranges(numbering: Numbering) -> Vec<Range> {
    let mut calls: Vec<_> =
        calls::numbers(numbering).map(|(name, number)| (number, Verdict::of(name))).collect();
    calls.sort_unstable_by_key(|(number, _)| *number);
    let mut ranges = vec![Range { first: 0, verdict: Verdict::Refuse }];
    let mut next = 0;
    for (number, verdict) in calls {
        if number > next {
            ranges.push(Range { first: next, verdict: Verdict::Refuse });
        }
        ranges.push(Range { first: number, verdict });
        next = number + 1;
    }
    ranges.push(Range { first: next, verdict: Verdict::Refuse });
    ranges.push(Range { first: calls::NEWEST + 1, verdict: Verdict::Unknown });
    if numbering == Numbering::X86_64 {
        ranges.push(Range { first: X32, verdict: Verdict::Refuse });
    }
    // Of several calls with the same number the last counts; neighbours with the same verdict become one range.
    let mut fewer: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        while fewer.last().is_some_and(|last| last.first >= range.first) {
            fewer.pop();
        }
        if fewer.last().is_none_or(|last| last.verdict != range.verdict) {
            fewer.push(range);
        }
    }
    fewer
}

/// Appends a binary search for the number in the accumulator.
fn search(ranges: &[Range], code: &mut Vec<sock_filter>) {
    match ranges {
        [] => Verdict::Refuse.emit(code),
        [range] => range.verdict.emit(code),
        ranges => {
            let (low, high) = ranges.split_at(middle(ranges));
            let mut below = Vec::new();
            search(low, &mut below);
            let middle = high.first().map_or(0, |range| range.first);
            code.push(jump(JUMP_IF_AT_LEAST, middle, below.len(), 0));
            code.append(&mut below);
            search(high, code);
        }
    }
}

/// The place to split two or more ranges so that both halves have as many known numbers: the kernel runs the filter
/// for each of them when it is installed.
fn middle(ranges: &[Range]) -> usize {
    let first = ranges.first().map_or(0, |range| range.first);
    let last = ranges.last().map_or(0, |range| range.first.min(calls::NEWEST));
    let half = first.midpoint(last.max(first));
    ranges.partition_point(|range| range.first <= half).clamp(1, ranges.len() - 1)
}

impl Filter {
    fn new() -> Self {
        let mut code = vec![load(ARCHITECTURE)];
        for (architecture, numbering) in NUMBERINGS {
            let mut calls = vec![load(NUMBER)];
            search(&ranges(*numbering), &mut calls);
            // A conditional jump would not reach that far.
            code.push(jump(JUMP_IF_EQUAL, *architecture, 1, 0));
            code.push(sock_filter {
                code: JUMP,
                jt: 0,
                jf: 0,
                k: calls.len().try_into().unwrap_or(u32::MAX),
            });
            code.append(&mut calls);
        }
        Verdict::Refuse.emit(&mut code);
        Self(code)
    }

    /// The filter, made on first use.
    pub(super) fn get() -> &'static Self {
        &FILTER
    }

    /// The filter's instructions.
    pub(super) fn instructions(&self) -> &[sock_filter] {
        &self.0
    }
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_IF_SET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offset of seccomp_data.nr.
const NUMBER: u32 = 0;
/// Offset of seccomp_data.arch.
const ARCHITECTURE: u32 = 4;
/// Offset of the lower half of `seccomp_data.args[0]`. The kernel ignores the upper half of every argument that is
/// checked here.
const ARGUMENT: u32 = 16;

const fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

const fn ret(value: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: value }
}

const fn refusal(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

/// A jump over this many instructions. A distance over eight bits makes a filter that the kernel refuses, which a
/// test would show.
fn jump(code: u16, k: u32, yes: usize, no: usize) -> sock_filter {
    let reach = |offset: usize| u8::try_from(offset).unwrap_or(u8::MAX);
    sock_filter { code, jt: reach(yes), jf: reach(no), k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The filter's verdict, computed as the kernel does.
    fn verdict(architecture: u32, number: u32, argument: u32) -> u32 {
        let code = Filter::get().instructions();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let step = code[at];
            at += 1;
            let over = |yes: bool| usize::from(if yes { step.jt } else { step.jf });
            match step.code {
                LOAD => {
                    accumulator = match step.k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        ARGUMENT => argument,
                        other => panic!("loads from {other}"),
                    }
                }
                JUMP => at += usize::try_from(step.k).unwrap_or(usize::MAX),
                JUMP_IF_EQUAL => at += over(accumulator == step.k),
                JUMP_IF_AT_LEAST => at += over(accumulator >= step.k),
                JUMP_IF_SET => at += over(accumulator & step.k != 0),
                RETURN => return step.k,
                other => panic!("code {other}"),
            }
        }
    }

    fn expected(verdict: Verdict, argument: u32) -> u32 {
        let allowed = match verdict {
            Verdict::Allow => true,
            Verdict::Refuse => false,
            Verdict::Unknown => return refusal(libc::ENOSYS),
            Verdict::WithoutBits(bits) => argument & bits == 0,
            Verdict::Except(values) => !values.contains(&argument),
            Verdict::Only(values) => values.contains(&argument),
        };
        if allowed { libc::SECCOMP_RET_ALLOW } else { refusal(libc::EPERM) }
    }

    /// Arguments that the filter tells apart for some call.
    const ARGUMENTS: [u32; 12] =
        [0, 1, 2, 8, 38, 40, 0x2_0000, 0x2_0008, 0x1000_0000, 0x1_0000, 0x7e02_0000, u32::MAX];

    #[test]
    fn every_number_gets_what_the_table_says() {
        for (architecture, numbering) in NUMBERINGS {
            for number in (0..1024).chain([X32 - 1, u32::MAX >> 1]) {
                let call = calls::numbers(*numbering).find(|(_, known)| *known == number);
                let verdict_of = match call {
                    Some((name, _)) => Verdict::of(name),
                    None if *numbering == Numbering::X86_64 && number >= X32 => Verdict::Refuse,
                    None if number > calls::NEWEST => Verdict::Unknown,
                    None => Verdict::Refuse,
                };
                for argument in ARGUMENTS {
                    assert_eq!(
                        verdict(*architecture, number, argument),
                        expected(verdict_of, argument),
                        "{numbering:?}, call {number} {call:?}, argument {argument:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn other_architectures_are_refused() {
        for architecture in [0, 0xc000_003f, 0x4000_0028, u32::MAX] {
            assert_eq!(verdict(architecture, 0, 0), refusal(libc::EPERM), "{architecture:#x}");
        }
    }

    #[test]
    fn x32_is_refused() {
        for (architecture, _) in NUMBERINGS.iter().filter(|(_, calls)| *calls == Numbering::X86_64) {
            for number in [X32, X32 + 1, X32 + 39, X32 + 1000, u32::MAX] {
                assert_eq!(verdict(*architecture, number, 0), refusal(libc::EPERM), "{number:#x}");
            }
        }
    }

    /// A sample of the numbers, compared with the C library's.
    #[test]
    fn the_table_has_the_kernels_numbers() {
        for (name, number) in [
            ("read", libc::SYS_read),
            ("clone", libc::SYS_clone),
            ("clone3", libc::SYS_clone3),
            ("socket", libc::SYS_socket),
            ("personality", libc::SYS_personality),
            ("openat2", libc::SYS_openat2),
            ("seccomp", libc::SYS_seccomp),
            ("faccessat2", libc::SYS_faccessat2),
        ] {
            let found = calls::numbers(NUMBERINGS[0].1).find(|(known, _)| *known == name);
            assert_eq!(found.map(|(_, number)| i64::from(number)), Some(number), "{name}");
        }
        for (name, refused) in [
            ("ptrace", libc::SYS_ptrace),
            ("mount", libc::SYS_mount),
            ("setns", libc::SYS_setns),
            ("unshare", libc::SYS_unshare),
            ("bpf", libc::SYS_bpf),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("keyctl", libc::SYS_keyctl),
            ("init_module", libc::SYS_init_module),
        ] {
            let number = u32::try_from(refused).unwrap_or(u32::MAX);
            assert_eq!(verdict(NUMBERINGS[0].0, number, 0), refusal(libc::EPERM), "{name}");
        }
    }

    #[test]
    fn numbers_are_unique_and_known() {
        for numbering in [Numbering::X86_64, Numbering::I386, Numbering::Aarch64] {
            let mut numbers: Vec<_> = calls::numbers(numbering).map(|(_, number)| number).collect();
            let count = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), count, "{numbering:?}");
            assert!(numbers.last().is_some_and(|last| *last <= calls::NEWEST), "{numbering:?}");
        }
    }

    /// BPF_MAXINSNS is 4096; the filter is far shorter, and no jump was truncated.
    #[test]
    fn it_is_short() {
        let code = Filter::get().instructions();
        assert!(code.len() < 600, "{}", code.len());
        assert!(code.iter().all(|step| step.jt < u8::MAX && step.jf < u8::MAX));
    }
}
