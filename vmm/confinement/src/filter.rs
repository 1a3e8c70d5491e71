//! seccomp filters as search trees.
//!
//! When a filter is installed, the kernel runs it for every system call number there is, to remember which calls are
//! always allowed. A program that compares one number after the other takes 1 ms for that, where a whole start takes
//! 60; a tree takes a tenth of that time, and is as quick when it runs. The tests compare the trees with seccompiler's
//! programs for the same rules. Not here: which calls are allowed (`profile`).

use std::io;

use libc::sock_filter;

use crate::arch::AUDIT_ARCH;
use crate::calls::Call;

/// The consequence of a call that a profile does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forbidden {
    /// The process is killed: for programs of this project, all of whose calls are known.
    Kill,
    /// The call looks absent (ENOSYS): for programs of others, whose libraries try calls and go on without them.
    Absent,
    /// The call is refused with this error number.
    Refuse(u16),
    /// The call is allowed after all: for filters that name only forbidden calls.
    Allow,
}

impl Forbidden {
    const fn verdict(self) -> sock_filter {
        let action = match self {
            Self::Kill => libc::SECCOMP_RET_KILL_PROCESS,
            Self::Absent => libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
            Self::Refuse(error) => libc::SECCOMP_RET_ERRNO | error as u32,
            Self::Allow => libc::SECCOMP_RET_ALLOW,
        };
        statement(RETURN, action)
    }
}

/// A test of the low 32 bits of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    argument: u8,
    mask: u32,
    value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Is(u32),
    OwnProcess,
}

impl Test {
    /// The argument has this value.
    #[must_use]
    pub const fn is(argument: u8, value: i32) -> Self {
        Self { argument, mask: u32::MAX, value: Value::Is(value.cast_unsigned()) }
    }

    /// The argument has none of these bits.
    #[must_use]
    pub const fn lacks(argument: u8, bits: i32) -> Self {
        Self { argument, mask: bits.cast_unsigned(), value: Value::Is(0) }
    }

    /// The argument has all of these bits.
    #[must_use]
    pub const fn has(argument: u8, bits: i32) -> Self {
        Self { argument, mask: bits.cast_unsigned(), value: Value::Is(bits.cast_unsigned()) }
    }

    /// The argument is the id of the process that compiles the filter.
    #[must_use]
    pub const fn is_own_process(argument: u8) -> Self {
        Self { argument, mask: u32::MAX, value: Value::OwnProcess }
    }

    fn value(self) -> u32 {
        match self.value {
            Value::Is(value) => value,
            Value::OwnProcess => std::process::id(),
        }
    }
}

/// The rule for one system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    call: u32,
    /// Allowed if all tests of one case hold, or if there is no case.
    cases: Vec<Vec<Test>>,
    /// The consequence if no case holds.
    otherwise: Forbidden,
}

/// The rules of a filter, at most one for each call.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
    otherwise: Forbidden,
}

impl Rules {
    /// No rule yet: every call has the consequence `otherwise`.
    pub(crate) fn new(otherwise: Forbidden) -> Self {
        Self { rules: Vec::new(), otherwise }
    }

    /// Allows a call with any arguments, whatever other rules say of the call.
    pub(crate) fn allow(&mut self, call: Call) {
        if let Some(rule) = self.rule(call) {
            *rule = Rule { cases: Vec::new(), otherwise: Forbidden::Allow, ..rule.clone() };
        }
    }

    /// Allows a call if all of the tests hold.
    pub(crate) fn allow_if(&mut self, call: Call, tests: &[Test]) {
        if let Some(rule) = self.rule(call).filter(|rule| rule.otherwise != Forbidden::Allow) {
            rule.cases.push(tests.to_vec());
        }
    }

    /// Gives a call a consequence of its own, which it has unless one of its cases holds.
    pub(crate) fn forbid(&mut self, call: Call, how: Forbidden) {
        if let Some(rule) = self.rule(call) {
            rule.otherwise = how;
        }
    }

    fn rule(&mut self, call: Call) -> Option<&mut Rule> {
        let call = call.get()?;
        let at = match self.rules.binary_search_by_key(&call, |rule| rule.call) {
            Ok(at) => at,
            Err(at) => {
                self.rules.insert(at, Rule { call, cases: Vec::new(), otherwise: self.otherwise });
                at
            }
        };
        self.rules.get_mut(at)
    }

    /// The program that enforces the rules. Calls of another architecture have the consequence of unlisted calls and
    /// are never allowed, because their numbers mean other calls (seccomp(2)).
    pub(crate) fn compile(&self) -> Filter {
        let foreign = if self.otherwise == Forbidden::Allow { Forbidden::Absent } else { self.otherwise };
        let mut program = vec![
            statement(LOAD, ARCHITECTURE),
            branch(IF_EQUAL, AUDIT_ARCH, 1, 0),
            foreign.verdict(),
            statement(LOAD, NUMBER),
        ];
        program.extend(tree(&self.rules, self.otherwise.verdict()));
        Filter(program)
    }
}

/// A compiled filter.
#[derive(Debug)]
#[must_use = "a filter that is not installed holds nothing back"]
pub struct Filter(Vec<sock_filter>);

impl Filter {
    /// Installs the filter for the calling thread and those that it starts. The thread needs no_new_privs. The method
    /// makes one system call, and neither allocates nor takes a lock, so it may run between fork(2) and execve(2).
    pub fn install(&self) -> io::Result<()> {
        self.load(0)
    }

    /// Does the same as [`Filter::install`], for every thread of the process.
    pub fn install_for_all_threads(&self) -> io::Result<()> {
        self.load(libc::SECCOMP_FILTER_FLAG_TSYNC)
    }

    fn load(&self, flags: libc::c_ulong) -> io::Result<()> {
        let len = u16::try_from(self.0.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog { len, filter: self.0.as_ptr().cast_mut() };
        let set = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: the kernel only reads `program` and the `len` instructions it points to, which outlive the call.
        match unsafe { libc::syscall(libc::SYS_seccomp, set, flags, &raw const program) } {
            0 => Ok(()),
            // seccomp(2): with TSYNC, the result is the id of a thread that cannot take the filter because it has
            // another one.
            thread if thread > 0 => Err(io::ErrorKind::ResourceBusy.into()),
            _ => Err(io::Error::last_os_error()),
        }
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

const fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

const fn branch(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn tree(rules: &[Rule], otherwise: sock_filter) -> Vec<sock_filter> {
    let (left, right) = rules.split_at(rules.len() / 2);
    let (left, pivot) = match (left, right) {
        (_, []) => return vec![otherwise],
        ([], [rule, ..]) => return leaf(rule, otherwise),
        (_, [pivot, ..]) => (tree(left, otherwise), pivot),
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
    code.extend(tree(right, otherwise));
    code
}

fn leaf(rule: &Rule, otherwise: sock_filter) -> Vec<sock_filter> {
    let mut code = vec![branch(IF_EQUAL, rule.call, 1, 0), otherwise];
    rule.cases.iter().for_each(|tests| code.extend(case(tests)));
    code.push(rule.otherwise.verdict());
    code
}

/// Allows the call if all tests hold, and otherwise goes on behind the case. There are six arguments, and the test of
/// each is at most three instructions, so the jumps are short.
fn case(tests: &[Test]) -> Vec<sock_filter> {
    let mut code = vec![Forbidden::Allow.verdict()];
    for test in tests.iter().rev() {
        let behind = u8::try_from(code.len()).unwrap_or(u8::MAX);
        code.insert(0, branch(IF_EQUAL, test.value(), 0, behind));
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
        SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    };

    use super::*;
    use crate::calls;

    /// An instruction: code, jumps, operand.
    type Instruction = (u16, u8, u8, u32);

    fn ours(rules: &Rules) -> Vec<Instruction> {
        rules.compile().0.iter().map(|op| (op.code, op.jt, op.jf, op.k)).collect()
    }

    /// The result of a program for a call with these arguments, and the number of its steps.
    fn run(program: &[Instruction], arch: u32, call: u32, arguments: [u64; 6]) -> (u32, usize) {
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
            let (code, jt, jf, k) = program[at];
            steps += 1;
            at += 1;
            let mut jump = |yes: bool| at += usize::from(if yes { jt } else { jf });
            match code {
                LOAD => a = load(k),
                AND => a &= k,
                IF_EQUAL => jump(a == k),
                IF_AT_LEAST => jump(a >= k),
                JUMP => at += k as usize,
                RETURN => return (k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// The same rules compiled by seccompiler, which has no rule that forbids.
    fn reference(rules: &Rules, otherwise: SeccompAction) -> Vec<Instruction> {
        let condition = |test: &Test| {
            let op = match test.mask {
                u32::MAX => SeccompCmpOp::Eq,
                mask => SeccompCmpOp::MaskedEq(mask.into()),
            };
            SeccompCondition::new(test.argument, SeccompCmpArgLen::Dword, op, test.value().into()).unwrap()
        };
        let rules: BTreeMap<i64, Vec<SeccompRule>> = rules
            .rules
            .iter()
            .map(|rule| {
                let case =
                    |tests: &Vec<Test>| SeccompRule::new(tests.iter().map(condition).collect()).unwrap();
                (rule.call.into(), rule.cases.iter().map(case).collect())
            })
            .collect();
        let architecture = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, architecture).unwrap();
        let program: seccompiler::BpfProgram = filter.try_into().unwrap();
        program.iter().map(|op| (op.code, op.jt, op.jf, op.k)).collect()
    }

    /// Rules of every kind, as many as the largest profile has.
    fn rules(otherwise: Forbidden) -> Rules {
        let mut rules = Rules::new(otherwise);
        for call in calls::RUNTIME.iter().chain(calls::DEVICES) {
            rules.allow(*call);
        }
        let stream = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        rules.allow_if(calls::SOCKETPAIR, &[Test::is(0, libc::AF_UNIX), Test::is(1, stream)]);
        for request in [0x5421, 0xae80, 0x4020_ae46] {
            rules.allow_if(calls::IOCTL, &[Test::is(1, request)]);
        }
        rules.allow_if(calls::TGKILL, &[Test::is_own_process(0)]);
        rules.allow_if(calls::MMAP, &[Test::lacks(2, libc::PROT_EXEC)]);
        rules.allow_if(calls::CLONE, &[Test::has(0, libc::CLONE_THREAD)]);
        rules.allow_if(calls::READ, &[Test::is(0, 77)]); // allowed with any arguments already
        rules
    }

    #[test]
    fn the_tree_means_what_seccompiler_says() {
        let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
        for (otherwise, action) in
            [(Forbidden::Kill, SeccompAction::KillProcess), (Forbidden::Absent, absent)]
        {
            let rules = rules(otherwise);
            let (ours, theirs) = (ours(&rules), reference(&rules, action));
            let own = u64::from(std::process::id());
            let values = [
                0,
                1,
                2,
                3,
                4,
                5,
                7,
                0x5421,
                0xae80,
                0xae81,
                0x4020_ae46,
                0x1_0000,
                1 << 32,
                own,
                own + 1,
                u64::MAX,
            ];
            let mut allowed = 0;
            for call in (0..600).chain([1 << 30, u32::MAX]) {
                for (value, argument) in
                    values.into_iter().flat_map(|value| (0..3).map(move |at| (value, at)))
                {
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
            assert!(allowed > 1000);
        }
    }

    #[test]
    fn all_tests_of_a_case_must_hold() {
        let ours = ours(&rules(Forbidden::Kill));
        let pair = calls::SOCKETPAIR.get().unwrap();
        let (unix, stream) = (libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC);
        for (family, kind, expected) in [
            (unix, stream, libc::SECCOMP_RET_ALLOW),
            (unix, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::SECCOMP_RET_KILL_PROCESS),
            (libc::AF_INET, stream, libc::SECCOMP_RET_KILL_PROCESS),
        ] {
            let arguments = [family, kind, 0, 0, 0, 0].map(|argument| u64::try_from(argument).unwrap());
            assert_eq!(run(&ours, AUDIT_ARCH, pair, arguments).0, expected, "{family} {kind}");
        }
    }

    #[test]
    fn one_call_can_have_an_end_of_its_own() {
        let mut rules = rules(Forbidden::Kill);
        rules.forbid(calls::CLONE3, Forbidden::Absent);
        rules.forbid(calls::CLONE, Forbidden::Refuse(13));
        let ours = ours(&rules);
        let of = |call: Call, first| run(&ours, AUDIT_ARCH, call.get().unwrap(), [first, 0, 0, 0, 0, 0]).0;
        assert_eq!(of(calls::CLONE3, 0), libc::SECCOMP_RET_ERRNO | 38);
        assert_eq!(of(calls::CLONE, 0), libc::SECCOMP_RET_ERRNO | 13);
        assert_eq!(of(calls::CLONE, 0x1_0000), libc::SECCOMP_RET_ALLOW);
        assert_eq!(of(calls::EXECVE, 0), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn another_architecture_is_never_allowed() {
        for (otherwise, expected) in [
            (Forbidden::Kill, libc::SECCOMP_RET_KILL_PROCESS),
            (Forbidden::Absent, libc::SECCOMP_RET_ERRNO | 38),
            (Forbidden::Allow, libc::SECCOMP_RET_ERRNO | 38),
        ] {
            let ours = ours(&rules(otherwise));
            for call in 0..600 {
                assert_eq!(run(&ours, 0x4000_0003, call, [0; 6]).0, expected);
            }
        }
    }

    #[test]
    fn no_decision_takes_long() {
        let ours = ours(&rules(Forbidden::Kill));
        let steps = (0..600).map(|call| run(&ours, AUDIT_ARCH, call, [0; 6]).1);
        assert!(steps.max().unwrap() < 50);
        let total: usize = (0..450).map(|call| run(&ours, AUDIT_ARCH, call, [0; 6]).1).sum();
        assert!(total < 450 * 16, "{total}");
    }
}
