//! seccomp filters as search trees.
//!
//! When a filter is installed, the kernel runs it for every system call number there is, to remember which are always
//! allowed. seccompiler's programs compare one number after the other: 1 ms a thread, where a whole start takes 60.
//! A tree takes a tenth of that, and is as quick when it runs. seccompiler installs it, and says in the tests what it
//! must mean. Not here: what is allowed (`confine`).

use seccompiler::sock_filter;

/// A system call that is allowed if all tests of one of its cases hold, or if it has no case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    call: u32,
    cases: Vec<Vec<Test>>,
}

/// A test of the low 32 bits of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    argument: u8,
    mask: u32,
    value: u32,
}

impl Rule {
    /// Allowed if one of the tests holds, or if there is none.
    pub(super) fn new(call: libc::c_long, tests: Vec<Test>) -> Self {
        Self::any_of(call, tests.into_iter().map(|test| vec![test]).collect())
    }

    /// Allowed if all tests of one case hold.
    pub(super) fn any_of(call: libc::c_long, cases: Vec<Vec<Test>>) -> Self {
        // System call numbers are small; one that is not would never match.
        Self { call: u32::try_from(call).unwrap_or(u32::MAX), cases }
    }
}

impl Test {
    /// The argument has this value.
    pub(super) fn equal(argument: u8, value: u32) -> Self {
        Self { argument, mask: u32::MAX, value }
    }

    /// The argument has none of these bits.
    pub(super) fn clear(argument: u8, bits: u32) -> Self {
        Self { argument, mask: bits, value: 0 }
    }
}

// linux/bpf_common.h
const LOAD: u16 = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
const AND: u16 = code(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K);
const IF_EQUAL: u16 = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
const IF_AT_LEAST: u16 = code(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K);
const JUMP: u16 = code(libc::BPF_JMP | libc::BPF_JA);
const RETURN: u16 = code(libc::BPF_RET | libc::BPF_K);

#[allow(clippy::cast_possible_truncation, reason = "instruction codes have 8 bits")]
const fn code(bits: u32) -> u16 {
    bits as u16
}

// struct seccomp_data of linux/seccomp.h
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// linux/audit.h, `AUDIT_ARCH_X86_64` or `AUDIT_ARCH_AARCH64`: 64-bit, little-endian, the ELF machine.
const AUDIT_ARCH: u32 = 0xc000_0000 | if cfg!(target_arch = "x86_64") { 62 } else { 183 };

const ALLOW: sock_filter = statement(RETURN, libc::SECCOMP_RET_ALLOW);
const KILL: sock_filter = statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS);

const fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

const fn branch(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// The program that allows these calls and kills the process at any other.
pub(super) fn program(rules: &[Rule]) -> Vec<sock_filter> {
    let mut rules = rules.to_vec();
    rules.sort_unstable_by_key(|rule| rule.call);
    // seccomp(2): numbers mean something else in another architecture.
    let mut program = vec![
        statement(LOAD, ARCHITECTURE),
        branch(IF_EQUAL, AUDIT_ARCH, 1, 0),
        KILL,
        statement(LOAD, NUMBER),
    ];
    program.extend(tree(&rules));
    program
}

fn tree(rules: &[Rule]) -> Vec<sock_filter> {
    let (left, right) = rules.split_at(rules.len() / 2);
    let (left, pivot) = match (left, right) {
        (_, []) => return vec![KILL],
        ([], [rule, ..]) => return leaf(rule),
        (_, [pivot, ..]) => (tree(left), pivot),
    };
    let mut code = match u8::try_from(left.len()) {
        Ok(over) => vec![branch(IF_AT_LEAST, pivot.call, over, 0)],
        // An unconditional jump reaches further than a conditional one.
        Err(_) => {
            let over = u32::try_from(left.len()).unwrap_or(u32::MAX);
            vec![branch(IF_AT_LEAST, pivot.call, 0, 1), statement(JUMP, over)]
        }
    };
    code.extend(left);
    code.extend(tree(right));
    code
}

fn leaf(rule: &Rule) -> Vec<sock_filter> {
    let mut code = vec![branch(IF_EQUAL, rule.call, 1, 0), KILL];
    rule.cases.iter().for_each(|tests| code.extend(case(tests)));
    code.push(if rule.cases.is_empty() { ALLOW } else { KILL });
    code
}

/// Allows if all tests hold, and else goes on behind. There are six arguments, and a test of each is at most three
/// instructions, so its jumps are short.
fn case(tests: &[Test]) -> Vec<sock_filter> {
    let mut code = vec![ALLOW];
    for test in tests.iter().rev() {
        let behind = u8::try_from(code.len()).unwrap_or(u8::MAX);
        code.insert(0, branch(IF_EQUAL, test.value, 0, behind));
        if test.mask != u32::MAX {
            code.insert(0, statement(AND, test.mask));
        }
        code.insert(0, statement(LOAD, ARGUMENTS + 8 * u32::from(test.argument)));
    }
    code
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeMap;

    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };

    use super::super::confine::rules;
    use super::*;

    /// What a program returns for a call with these arguments, and in how many steps.
    fn run(program: &[sock_filter], arch: u32, call: u32, arguments: [u64; 6]) -> (u32, usize) {
        let load = |at: u32| match at {
            NUMBER => call,
            ARCHITECTURE => arch,
            _ => {
                let argument = arguments[usize::try_from((at - ARGUMENTS) / 8).unwrap()];
                u32::try_from(argument >> (8 * ((at - ARGUMENTS) % 8)) & 0xffff_ffff).unwrap()
            }
        };
        let (mut at, mut a, mut steps) = (0, 0, 0);
        loop {
            let op = &program[at];
            steps += 1;
            at += 1;
            let mut jump = |yes: bool| at += usize::from(if yes { op.jt } else { op.jf });
            match op.code {
                LOAD => a = load(op.k),
                AND => a &= op.k,
                IF_EQUAL => jump(a == op.k),
                IF_AT_LEAST => jump(a >= op.k),
                JUMP => at += op.k as usize,
                RETURN => return (op.k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// The same rules by seccompiler.
    fn reference(rules: &[Rule]) -> BpfProgram {
        let condition = |test: &Test| {
            let op = match test.mask {
                u32::MAX => SeccompCmpOp::Eq,
                mask => SeccompCmpOp::MaskedEq(mask.into()),
            };
            SeccompCondition::new(test.argument, SeccompCmpArgLen::Dword, op, test.value.into()).unwrap()
        };
        let rules: BTreeMap<i64, Vec<SeccompRule>> = rules
            .iter()
            .map(|rule| {
                let case =
                    |tests: &Vec<Test>| SeccompRule::new(tests.iter().map(condition).collect()).unwrap();
                (rule.call.into(), rule.cases.iter().map(case).collect())
            })
            .collect();
        let (kill, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
        let architecture = std::env::consts::ARCH.try_into().unwrap();
        SeccompFilter::new(rules, kill, allow, architecture).unwrap().try_into().unwrap()
    }

    #[test]
    fn the_tree_means_what_seccompiler_says() {
        const IOCTLS: &[u32] = &[0xae80, 0x4020_ae46];
        let rules = rules(IOCTLS);
        let (ours, theirs) = (program(&rules), reference(&rules));
        let own = u64::from(std::process::id());
        let values =
            [0, 1, 2, 3, 4, 5, 7, 0x5421, 0xae80, 0xae81, 0x4020_ae46, 1 << 32, own, own + 1, u64::MAX];
        let mut allowed = 0;
        for call in (0..600).chain([1 << 30, u32::MAX]) {
            for (value, argument) in values.into_iter().flat_map(|value| (0..3).map(move |at| (value, at))) {
                let mut arguments = [0x11; 6];
                arguments[argument] = value;
                // With a second argument, too.
                for other in [0x11, 1, 0x8_0001] {
                    arguments[(argument + 1) % 3] = other;
                    let (verdict, _) = run(&ours, AUDIT_ARCH, call, arguments);
                    let expected = run(&theirs, AUDIT_ARCH, call, arguments).0;
                    assert_eq!(verdict, expected, "{call} {arguments:x?}");
                    allowed += u32::from(verdict == libc::SECCOMP_RET_ALLOW);
                }
            }
        }
        // The one call with two tests at once.
        let pair = libc::SYS_socketpair.try_into().unwrap();
        for (family, kind, expected) in [
            (libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::SECCOMP_RET_ALLOW),
            (libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::SECCOMP_RET_KILL_PROCESS),
            (libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::SECCOMP_RET_KILL_PROCESS),
        ] {
            let arguments = [family, kind, 0, 0, 0, 0].map(|argument| u64::try_from(argument).unwrap());
            assert_eq!(run(&ours, AUDIT_ARCH, pair, arguments).0, expected, "{family} {kind}");
        }
        assert!(allowed > 1000);
    }

    #[test]
    fn another_architecture_is_killed_whatever_it_calls() {
        let program = program(&rules(&[]));
        for call in 0..600 {
            assert_eq!(run(&program, 0x4000_0003, call, [0; 6]).0, libc::SECCOMP_RET_KILL_PROCESS);
        }
    }

    #[test]
    fn no_decision_takes_long() {
        let program = program(&rules(&[1, 2, 3, 4, 5, 6]));
        let steps = (0..600).map(|call| run(&program, AUDIT_ARCH, call, [0; 6]).1);
        assert!(steps.max().unwrap() < 50);
        let total: usize = (0..450).map(|call| run(&program, AUDIT_ARCH, call, [0; 6]).1).sum();
        assert!(total < 450 * 16, "{total}");
    }
}
