//! Masks: names of a share that a guest does not see, or may not change.
//!
//! A pattern with a slash in front is of a path from the share's root on, any other of the end of a path. A mask covers
//! the name that it matches and all below. Capital letters of ASCII are the same as small ones: there are file systems
//! to which they are.
//!
//! A mask is about paths, and a guest could give what lies below a directory other paths by renaming that directory, or
//! by making a symbolic link that the host follows. So each path has a *way* besides its verdict: how far it has come in
//! which patterns. Below two paths with the same way and no mask over them, all verdicts are the same; a rename between
//! these two, and no other, changes nothing.

use super::glob::{Case, Glob, GlobError, NameGlob};

/// Most bytes that the patterns of a share's masks have together, each counted with some more for the mask itself.
pub const MAX_MASKS_LEN: usize = 2 << 10;

/// Bytes that a mask counts besides its pattern.
const MASK_LEN: usize = 16;

/// Names that programs of the host run or obey by themselves, when somebody works in the folder: the hooks and settings
/// of git, editors, and what sets up environments. [`WantedMasks::protect`] makes them read-only.
///
/// Files that somebody runs on purpose, such as a Makefile, are not in it.
pub const PROTECTED: [&str; 41] = [
    // git: commands of hooks, of aliases, filters, pagers and monitors; and where all these are looked for
    ".git/hooks",
    ".git/config",
    ".git/config.worktree",
    ".git/commondir",
    ".git/modules",
    ".git/worktrees/*/commondir",
    ".git/worktrees/*/config.worktree",
    ".gitconfig",
    // other version control: commands, and where these are looked for
    ".hg/hgrc*",
    ".hg/sharedpath",
    ".hg/requires",
    ".jj/repo/config.toml",
    // commands for hooks of git, of programs that the host's user has installed
    ".husky",
    ".pre-commit-config.yaml",
    "lefthook.*",
    "lefthook-local.*",
    ".lefthook*",
    // environments of a folder
    ".envrc",
    ".direnv",
    ".mise",
    ".mise*.toml",
    "mise*.toml",
    "mise/conf*",
    ".config/mise",
    ".autoenv.zsh",
    // editors and agents: tasks that begin with the folder, paths of programs, settings that are code
    ".vscode",
    "*.code-workspace",
    ".idea",
    ".cursor",
    ".zed",
    ".claude/settings*.json",
    ".mcp.json",
    ".devcontainer",
    ".devcontainer.json",
    ".exrc",
    ".vimrc",
    ".nvimrc",
    ".nvim.lua",
    ".dir-locals.el",
    ".dir-locals-2.el",
    ".project.vim",
];

/// Names that only directories have, with the same option: a file `.git` says where another directory has the hooks.
const ONLY_DIRECTORIES: [&str; 1] = [".git"];

/// The requested masks of a share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedMasks {
    /// Patterns of names that are not there for the guest.
    pub hidden: Vec<String>,
    /// Patterns of names that the guest cannot change.
    pub readonly: Vec<String>,
    /// Whether those of [`PROTECTED`] are among the latter.
    pub protect: bool,
}

impl WantedMasks {
    /// Whether no mask is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hidden.is_empty() && self.readonly.is_empty() && !self.protect
    }
}

/// A mask that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// The pattern is none.
    #[error("mask {pattern:?}: {why}")]
    Glob {
        /// The pattern.
        pattern: String,
        /// Its fault.
        why: GlobError,
    },
    /// The pattern is of no path below a share.
    #[error("mask {0:?} matches nothing: a name in it is empty, . or ..")]
    NoName(String),
    /// There are too many masks, or their patterns are too long.
    #[error("the masks are more than {MAX_MASKS_LEN} bytes")]
    TooMany,
}

/// The acts on a name that a guest may do. The greater verdict holds where two masks match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Everything.
    #[default]
    Open,
    /// Everything, but the name is a directory's or nobody's: a file that the host has there keeps its contents.
    OnlyDirectory,
    /// Nothing that changes it, or that is below.
    ReadOnly,
    /// Nothing: it is not there.
    Hidden,
}

/// The answer of masks about a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The acts that the guest may do on it.
    pub verdict: Verdict,
    /// The verdict that holds for all below.
    covered: Verdict,
    /// Patterns by their index, and how many of their names come before what is below the path: some, not all.
    way: Vec<(usize, usize)>,
}

impl Seen {
    /// Whether a mask may match a path below this one because of this one's names.
    #[must_use]
    pub fn is_on_the_way(&self) -> bool {
        !self.way.is_empty()
    }

    /// Whether a file or a directory may have the one name as well as the other: no mask is over either, and what is
    /// below the one is masked just as it is below the other.
    #[must_use]
    pub fn is_as_good_as(&self, other: &Self) -> bool {
        (self.verdict, other.verdict) == (Verdict::Open, Verdict::Open) && self.way == other.way
    }
}

/// Masks that are in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masks(Vec<Mask>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mask {
    names: Vec<NameGlob>,
    /// Whether the first name is one in the share's root.
    from_root: bool,
    verdict: Verdict,
}

impl Masks {
    /// Reads masks.
    pub fn new(wanted: &WantedMasks) -> Result<Self, MaskError> {
        let given = wanted.hidden.iter().map(|glob| (glob, Verdict::Hidden));
        let given = given.chain(wanted.readonly.iter().map(|glob| (glob, Verdict::ReadOnly)));
        let mut masks = Vec::new();
        let mut len = 0;
        for (pattern, verdict) in given {
            len += MASK_LEN + pattern.len();
            if len > MAX_MASKS_LEN {
                return Err(MaskError::TooMany);
            }
            masks.push(Mask::new(pattern, verdict)?);
        }
        if wanted.protect {
            let ours = PROTECTED.into_iter().map(|glob| (glob, Verdict::ReadOnly));
            for (pattern, verdict) in ours.chain(ONLY_DIRECTORIES.map(|glob| (glob, Verdict::OnlyDirectory)))
            {
                masks.push(Mask::new(pattern, verdict)?);
            }
        }
        Ok(Self(masks))
    }

    /// Whether nothing is masked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The answer about a share's root.
    #[must_use]
    pub fn root(&self) -> Seen {
        let from_root = self.0.iter().enumerate().filter(|(_, mask)| mask.from_root);
        Seen { way: from_root.map(|(index, _)| (index, 0)).collect(), ..Seen::default() }
    }

    /// The answer about a name in a directory.
    #[must_use]
    pub fn below(&self, directory: &Seen, name: &[u8]) -> Seen {
        let mut seen = Seen { verdict: directory.covered, covered: directory.covered, way: Vec::new() };
        let anywhere = self.0.iter().enumerate().filter(|(_, mask)| !mask.from_root);
        let begun = anywhere.map(|(index, _)| (index, 0)).chain(directory.way.iter().copied());
        for (index, count) in begun {
            let Some(mask) = self.0.get(index) else { continue };
            match mask.names.get(count) {
                Some(glob) if glob.matches(name, Case::Ignored) => {}
                _ => continue,
            }
            if count + 1 < mask.names.len() {
                seen.way.push((index, count + 1));
                continue;
            }
            seen.verdict = seen.verdict.max(mask.verdict);
            if mask.verdict != Verdict::OnlyDirectory {
                seen.covered = seen.covered.max(mask.verdict);
            }
        }
        seen.way.sort_unstable();
        seen
    }

    /// The answer about a path from the share's root on, without a slash in front; the root's is empty.
    #[must_use]
    pub fn look(&self, path: &[u8]) -> Seen {
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        names.fold(self.root(), |directory, name| self.below(&directory, name))
    }
}

impl Mask {
    fn new(pattern: &str, verdict: Verdict) -> Result<Self, MaskError> {
        let relative = pattern.strip_prefix('/');
        let glob = Glob::new(relative.unwrap_or(pattern));
        let glob = glob.map_err(|why| MaskError::Glob { pattern: pattern.to_owned(), why })?;
        let names = glob.into_names();
        if names.iter().any(|name| name.is_empty() || name.is(".") || name.is("..")) {
            return Err(MaskError::NoName(pattern.to_owned()));
        }
        Ok(Self { names, from_root: relative.is_some(), verdict })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(hidden: &[&str], readonly: &[&str]) -> WantedMasks {
        let owned = |globs: &[&str]| globs.iter().map(ToString::to_string).collect();
        WantedMasks { hidden: owned(hidden), readonly: owned(readonly), protect: false }
    }

    fn masks(hidden: &[&str], readonly: &[&str]) -> Masks {
        Masks::new(&wanted(hidden, readonly)).unwrap()
    }

    #[test]
    fn a_mask_covers_what_it_matches_and_all_below() {
        let masks = masks(&[".env*", "/secret"], &["a/b", "/top/*/end"]);
        for (path, expected) in [
            ("", Verdict::Open),
            (".env", Verdict::Hidden),
            ("x/y/.env.local", Verdict::Hidden),
            ("x/.ENV/below/it", Verdict::Hidden),
            ("env", Verdict::Open),
            ("secret", Verdict::Hidden),
            ("secret/x", Verdict::Hidden),
            ("x/secret", Verdict::Open),
            ("a", Verdict::Open),
            ("a/b", Verdict::ReadOnly),
            ("x/a/b/c", Verdict::ReadOnly),
            ("a/x/b", Verdict::Open),
            ("a/a/b", Verdict::ReadOnly),
            ("a/b/.env", Verdict::Hidden),
            ("top/1/end", Verdict::ReadOnly),
            ("top/end", Verdict::Open),
            ("x/top/1/end", Verdict::Open),
        ] {
            assert_eq!(masks.look(path.as_bytes()).verdict, expected, "{path}");
        }
    }

    #[test]
    fn renames_that_would_change_a_verdict_are_found() {
        let masks = Masks::new(&WantedMasks { protect: true, ..wanted(&["/services/*/.env"], &[]) }).unwrap();
        let good =
            |from: &str, to: &str| masks.look(from.as_bytes()).is_as_good_as(&masks.look(to.as_bytes()));
        for (from, to) in [("x", "y"), ("x", "a/b/y"), ("services/a", "services/b"), ("repo", "other/repo")] {
            assert!(good(from, to) && good(to, from), "{from} {to}");
        }
        for (from, to) in [
            (".git", "x"),
            (".GIT", "x"),
            ("a/.git", "b/.git"),
            (".git/hooks", "x"),
            (".git/hooks/a", "x"),
            (".git/hooks/a", ".git/hooks/b"),
            (".git/config.lock", ".git/config"),
            ("services/a", "x"),
            ("services", "x"),
            ("services/a/.env", "services/a/x"),
            (".git/worktrees", ".git/x"),
            (".git/worktrees/a", "x"),
        ] {
            assert!(!good(from, to) && !good(to, from), "{from} {to}");
        }
        assert!(good(".git/HEAD.lock", ".git/HEAD") && good(".git/worktrees/a", ".git/worktrees/b"));
        assert!(masks.look(b"x/.git").is_on_the_way() && !masks.look(b"x").is_on_the_way());
        assert!(masks.look(b"services/a").is_on_the_way() && !masks.look(b"services/a/b").is_on_the_way());
        assert_eq!(masks.look(b"x/.git").verdict, Verdict::OnlyDirectory);
        assert_eq!(masks.look(b"x/.git/objects").verdict, Verdict::Open);
    }

    #[test]
    fn all_names_by_which_a_program_finds_its_settings_are_protected() {
        let masks = Masks::new(&WantedMasks { protect: true, ..WantedMasks::default() }).unwrap();
        let verdict = |path: &str| masks.look(path.as_bytes()).verdict;
        for path in [
            "lefthook.yml",
            "lefthook.yaml",
            "lefthook.toml",
            "lefthook.jsonc",
            "lefthook-local.yml",
            ".lefthook.json",
            ".lefthook-local.toml",
            ".lefthook/pre-commit/run",
            ".lefthook-local/pre-commit/run",
            ".config/lefthook.yaml",
            ".config/lefthook-local.yml",
            "mise.toml",
            "mise.local.toml",
            "mise.test.local.toml",
            ".mise.toml",
            ".mise.local.toml",
            ".miserc.toml",
            ".mise/config.toml",
            "mise/config.toml",
            "mise/config.local.toml",
            "mise/conf.d/a.toml",
            ".config/mise.toml",
            ".config/mise/config.toml",
            ".hg/hgrc",
            ".hg/hgrc-not-shared",
            ".hg/sharedpath",
            ".hg/requires",
            ".claude/settings.json",
            ".claude/settings.local.json",
        ] {
            assert_eq!(verdict(path), Verdict::ReadOnly, "{path}");
            assert_eq!(verdict(&format!("sub/{path}")), Verdict::ReadOnly, "sub/{path}");
        }
        for path in [
            "lefthook/main.go",
            "mise",
            "mise/tasks/build",
            "premise.toml",
            ".hg/store/data",
            ".hg/dirstate",
            ".claude/agents/a.md",
            "settings.json",
        ] {
            assert_eq!(verdict(path), Verdict::Open, "{path}");
        }
    }

    #[test]
    fn wrong_ones_are_refused() {
        let error = |pattern: &str| Masks::new(&wanted(&[pattern], &[])).unwrap_err();
        for pattern in ["", "/", "a/", "a//b", "/a/../b", "./a", "//a"] {
            assert_eq!(error(pattern), MaskError::NoName(pattern.into()), "{pattern}");
        }
        assert_eq!(error("a/**/b"), MaskError::Glob { pattern: "a/**/b".into(), why: GlobError::TwoStars });
        let many: Vec<_> = (0..MAX_MASKS_LEN / MASK_LEN).map(|_| "a".to_owned()).collect();
        let many = WantedMasks { readonly: many, ..WantedMasks::default() };
        assert_eq!(Masks::new(&many), Err(MaskError::TooMany));
        assert!(Masks::new(&WantedMasks::default()).unwrap().is_empty());
    }

    proptest! {
        /// The reason why a rename between two ways that are the same is harmless.
        #[test]
        fn what_is_below_two_ways_that_are_the_same_is_masked_alike(
            hidden in prop::collection::vec("/?[ab*](/[ab*]){0,2}", 0..3),
            readonly in prop::collection::vec("/?[ab*](/[ab*]){0,2}", 0..3),
            one in "[abc](/[abc]){0,2}",
            other in "[abc](/[abc]){0,2}",
            below in "[abc](/[abc]){0,3}",
        ) {
            let masks = Masks::new(&WantedMasks { hidden, readonly, protect: false }).unwrap();
            let look = |path: &str| masks.look(path.as_bytes());
            if look(&one).is_as_good_as(&look(&other)) {
                let verdict = |path: &str| look(&format!("{path}/{below}")).verdict;
                prop_assert_eq!(verdict(&one), verdict(&other));
            }
        }

        /// Path by path, with patterns as texts.
        #[test]
        fn verdicts_are_those_of_the_patterns(
            hidden in prop::collection::vec("/?[ab*](/[ab*]){0,2}", 0..3),
            readonly in prop::collection::vec("/?[ab*](/[ab*]){0,2}", 0..3),
            path in "[abc](/[abc]){0,4}",
        ) {
            let masks = Masks::new(&WantedMasks { hidden: hidden.clone(), readonly: readonly.clone(), protect: false });
            let names: Vec<_> = path.split('/').collect();
            let covers = |pattern: &String| (1..=names.len()).any(|end| {
                let whole = format!("/{}", names[..end].join("/"));
                match pattern.strip_prefix('/') {
                    Some(_) => Glob::new(pattern).unwrap().matches(whole.as_bytes()),
                    None => (0..end).any(|start| {
                        Glob::new(pattern).unwrap().matches(names[start..end].join("/").as_bytes())
                    }),
                }
            });
            let expected = if hidden.iter().any(covers) {
                Verdict::Hidden
            } else if readonly.iter().any(covers) {
                Verdict::ReadOnly
            } else {
                Verdict::Open
            };
            prop_assert_eq!(masks.unwrap().look(path.as_bytes()).verdict, expected);
        }
    }
}
