//! Rules for file operations.

use std::fmt;

use super::glob::{Glob, GlobError};

/// Most bytes that the patterns of all rules have together, each counted with some more for the rule itself.
pub const MAX_RULES_LEN: usize = 16 << 10;

/// Bytes that a rule counts besides its pattern.
const RULE_LEN: usize = 16;

/// An operation on a file, as rules and events have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A name is looked up, or attributes are read.
    Stat,
    /// A directory is listed.
    ReadDir,
    /// A file is opened.
    Open,
    /// A file is made; a further name is made for one.
    Create,
    /// A directory is made.
    Mkdir,
    /// Permissions are changed.
    Chmod,
    /// A name is removed.
    Remove,
    /// Never happens: a tree is removed name by name.
    RemoveAll,
    /// A name is changed.
    Rename,
    /// A symbolic link is made.
    Symlink,
    /// A symbolic link is read.
    ReadLink,
    /// Bytes are read.
    Read,
    /// Bytes are written, or their space is taken or given back.
    Write,
    /// A file is closed.
    Close,
    /// The bytes that were written are stored for good.
    Sync,
    /// The size is set.
    Truncate,
    /// Anything else: owners, times, extended attributes, holes. Only rules for all operations are about it, and
    /// there are no events of it.
    Other,
}

impl Op {
    /// All of them with their names: the first is the one that events have.
    const NAMED: [(Self, &'static str); 18] = [
        (Self::Stat, "stat"),
        (Self::ReadDir, "readdir"),
        (Self::ReadDir, "read_dir"),
        (Self::Open, "open"),
        (Self::Create, "create"),
        (Self::Mkdir, "mkdir"),
        (Self::Chmod, "chmod"),
        (Self::Remove, "remove"),
        (Self::RemoveAll, "remove_all"),
        (Self::RemoveAll, "removeall"),
        (Self::Rename, "rename"),
        (Self::Symlink, "symlink"),
        (Self::ReadLink, "readlink"),
        (Self::Read, "read"),
        (Self::Write, "write"),
        (Self::Close, "close"),
        (Self::Sync, "sync"),
        (Self::Truncate, "truncate"),
    ];

    /// The name that events have; an operation without one has no events.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Self::NAMED.iter().find(|(op, _)| *op == self).map(|(_, name)| *name)
    }

    /// A number for the operation, if events of it are told.
    #[must_use]
    pub fn code(self) -> Option<u8> {
        let index = Self::NAMED.iter().position(|(op, _)| *op == self)?;
        u8::try_from(index).ok()
    }

    /// The operation of a number.
    #[must_use]
    pub fn of_code(code: u8) -> Option<Self> {
        let (op, _) = Self::NAMED.get(usize::from(code))?;
        Some(*op)
    }

    /// The operation of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(_, known)| known.eq_ignore_ascii_case(name.trim())).map(|(op, _)| *op)
    }
}

/// Several operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ops(u32);

impl Ops {
    const ALL: Self = Self(u32::MAX);

    fn of(op: Op) -> Self {
        Self(1 << op as u32)
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn has(self, op: Op) -> bool {
        self.0 & Self::of(op).0 != 0
    }
}

/// A requested rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedRule {
    /// For messages.
    pub name: String,
    /// `before` or `after`; empty = `before`.
    pub phase: String,
    /// The operations; none = all.
    pub ops: Vec<String>,
    /// The pattern of the paths; empty = all.
    pub path: String,
    /// `allow` or `block`; empty = `allow`.
    pub action: String,
}

/// A rule that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleError {
    /// The rule's place, from 0 on.
    pub index: usize,
    /// The rule's name, if it has one.
    pub name: String,
    /// The fault.
    pub why: Wrong,
}

impl std::error::Error for RuleError {}

/// Such as `rules[1] ("no secrets"): unknown action "blok"`.
impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rules[{}]", self.index)?;
        if !self.name.is_empty() {
            write!(f, " ({:?})", self.name)?;
        }
        write!(f, ": {}", self.why)
    }
}

/// The fault of a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// There is no such phase.
    #[error("unknown phase {0:?}; there are before, after")]
    Phase(String),
    /// There is no such operation.
    #[error("unknown operation {0:?}")]
    Op(String),
    /// There is no such action.
    #[error("unknown action {0:?}; there are allow, block")]
    Action(String),
    /// An operation that is done cannot be blocked.
    #[error("phase \"after\" cannot block")]
    BlockAfter,
    /// The pattern is none.
    #[error("path {path:?}: {why}")]
    Glob {
        /// The pattern.
        path: String,
        /// Its fault.
        why: GlobError,
    },
    /// Paths begin with a slash, and the pattern does not.
    #[error("path {0:?} matches nothing: paths of the guest begin with /")]
    Relative(String),
    /// There are too many rules, or their patterns are too long.
    #[error("the rules are more than {MAX_RULES_LEN} bytes")]
    TooMany,
}

/// Rules that are in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    blocks: Vec<Block>,
    /// The operations that any of them is about.
    ops: Ops,
}

/// An operation that matches is not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    ops: Ops,
    /// All paths if none.
    path: Option<Glob>,
}

impl Rules {
    /// Reads rules. One that allows has no effect: it does not shield from those after it.
    pub fn new(wanted: &[WantedRule]) -> Result<Self, RuleError> {
        let mut rules = Self::default();
        let mut len = 0;
        for (index, rule) in wanted.iter().enumerate() {
            let wrong = |why| RuleError { index, name: rule.name.clone(), why };
            len += RULE_LEN + rule.path.len();
            if len > MAX_RULES_LEN {
                return Err(wrong(Wrong::TooMany));
            }
            if let Some(block) = read(rule).map_err(wrong)? {
                rules.ops = rules.ops.or(block.ops);
                rules.blocks.push(block);
            }
        }
        Ok(rules)
    }

    /// Whether nothing is blocked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether there may be a path at which an operation is blocked.
    #[must_use]
    pub fn are_about(&self, op: Op) -> bool {
        self.ops.has(op)
    }

    /// Whether an operation is blocked at a path, which is absolute and clean.
    #[must_use]
    pub fn forbid(&self, op: Op, path: &[u8]) -> bool {
        let matches = |glob: &Glob| glob.matches(path);
        self.are_about(op)
            && self.blocks.iter().any(|block| block.ops.has(op) && block.path.as_ref().is_none_or(matches))
    }
}

/// A rule that blocks, if it does.
fn read(rule: &WantedRule) -> Result<Option<Block>, Wrong> {
    let word = |text: &str| text.trim().to_ascii_lowercase();
    let is_before = match word(&rule.phase).as_str() {
        "" | "before" => true,
        "after" => false,
        _ => return Err(Wrong::Phase(rule.phase.clone())),
    };
    let blocks = match word(&rule.action).as_str() {
        "" | "allow" => false,
        "block" => true,
        _ => return Err(Wrong::Action(rule.action.clone())),
    };
    let op = |name: &String| Op::named(name).ok_or_else(|| Wrong::Op(name.clone()));
    let ops = rule.ops.iter().map(op).collect::<Result<Vec<_>, _>>()?;
    let glob = |path: &str| match Glob::new(path) {
        Ok(glob) if glob.is_absolute() => Ok(glob),
        Ok(_) => Err(Wrong::Relative(path.to_owned())),
        Err(why) => Err(Wrong::Glob { path: path.to_owned(), why }),
    };
    let path = Some(rule.path.as_str()).filter(|path| !path.is_empty()).map(glob).transpose()?;
    match (is_before, blocks) {
        (false, true) => Err(Wrong::BlockAfter),
        (_, false) => Ok(None),
        (true, true) if ops.is_empty() => Ok(Some(Block { ops: Ops::ALL, path })),
        (true, true) => {
            let ops = ops.into_iter().map(Ops::of).fold(Ops::default(), Ops::or);
            Ok(Some(Block { ops, path }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(phase: &str, ops: &[&str], path: &str, action: &str) -> WantedRule {
        let ops = ops.iter().map(ToString::to_string).collect();
        WantedRule { name: String::new(), phase: phase.into(), ops, path: path.into(), action: action.into() }
    }

    fn block(ops: &[&str], path: &str) -> WantedRule {
        rule("", ops, path, "block")
    }

    fn why(rule: WantedRule) -> Wrong {
        Rules::new(&[WantedRule::default(), rule]).unwrap_err().why
    }

    #[test]
    fn what_matches_first_or_later_is_blocked() {
        let allow = rule("", &[], "/w/a", "allow");
        let rules =
            Rules::new(&[allow.clone(), block(&["write", "CREATE"], "/w/*"), block(&[], "/w/x/[ab]")])
                .unwrap();
        assert!(rules.forbid(Op::Write, b"/w/a") && rules.forbid(Op::Create, b"/w/b"));
        assert!(
            !rules.forbid(Op::Read, b"/w/a")
                && !rules.forbid(Op::Write, b"/w/a/b")
                && !rules.forbid(Op::Write, b"/w")
        );
        for op in [Op::Stat, Op::Read, Op::Close, Op::RemoveAll, Op::Other] {
            assert!(rules.forbid(op, b"/w/x/a") && !rules.forbid(op, b"/w/x/c"), "{op:?}");
        }
        let everywhere = Rules::new(&[block(&["remove"], "")]).unwrap();
        assert!(everywhere.forbid(Op::Remove, b"/any/where") && !everywhere.forbid(Op::Write, b"/any/where"));
        assert!(everywhere.are_about(Op::Remove) && !everywhere.are_about(Op::Other));
        assert!(Rules::new(&[allow]).unwrap().is_empty() && !everywhere.is_empty());
    }

    #[test]
    fn every_operation_has_a_name() {
        for name in [
            "stat",
            "readdir",
            "open",
            "create",
            "mkdir",
            "chmod",
            "remove",
            "remove_all",
            "rename",
            "symlink",
            "readlink",
            "read",
            "write",
            "close",
            "sync",
            "truncate",
        ] {
            let op = Op::named(name).unwrap();
            assert_eq!((op.name(), Op::of_code(op.code().unwrap())), (Some(name), Some(op)));
        }
        assert_eq!((Op::named("read_dir"), Op::named("removeall")), (Some(Op::ReadDir), Some(Op::RemoveAll)));
        assert_eq!((Op::named("other"), Op::named(""), Op::Other.name()), (None, None, None));
        assert_eq!((Op::Other.code(), Op::of_code(u8::MAX)), (None, None));
    }

    #[test]
    fn nothing_unknown_is_taken_for_something_else() {
        assert_eq!(why(rule("", &["write", "wriet"], "", "")), Wrong::Op("wriet".into()));
        assert_eq!(why(rule("", &["*"], "", "")), Wrong::Op("*".into()));
        assert_eq!(why(rule("", &[], "", "blok")), Wrong::Action("blok".into()));
        assert_eq!(why(rule("", &[], "", "mutate_write")), Wrong::Action("mutate_write".into()));
        assert_eq!(why(rule("during", &[], "", "")), Wrong::Phase("during".into()));
        assert_eq!(why(rule("After", &[], "/a", "block")), Wrong::BlockAfter);
        assert_eq!(why(block(&[], "*.txt")), Wrong::Relative("*.txt".into()));
        assert_eq!(why(block(&[], "*")), Wrong::Relative("*".into()));
        let glob = Wrong::Glob { path: "/w/[".into(), why: GlobError::Class };
        assert_eq!(why(block(&[], "/w/[")), glob);
        // A rule that only allows is in order as well, or it is refused.
        assert_eq!(why(rule("", &[], "/w/[", "allow")), glob);
        let named = WantedRule { name: "no secrets".into(), ..rule("", &[], "", "blok") };
        assert_eq!(
            Rules::new(&[WantedRule::default(), named]).unwrap_err().to_string(),
            "rules[1] (\"no secrets\"): unknown action \"blok\"; there are allow, block"
        );
    }

    #[test]
    fn there_is_an_end_to_rules() {
        let many = vec![block(&[], "/a"); MAX_RULES_LEN / (RULE_LEN + 2) + 1];
        assert_eq!(Rules::new(&many).unwrap_err().why, Wrong::TooMany);
        assert!(Rules::new(&many[1..]).is_ok());
    }
}
