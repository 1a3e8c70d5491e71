//! Where platforms may be named: `target_os` and `target_arch`.

use std::path::Path;

use super::Source;

/// A condition that names a platform.
struct Condition {
    /// The condition as the source spells it.
    name: &'static str,
    /// Folders that exist for the condition: the file that picks among their modules, `mod.rs`, may name it.
    folders: &'static [&'static str],
    /// Further files that may name the condition.
    files: &'static [&'static str],
}

const CONDITIONS: &[Condition] = &[
    Condition { name: "target_os", folders: &["sys"], files: &[] },
    Condition { name: "target_arch", folders: &["arch", "sys"], files: &[] },
];

/// Compares the files with the conditions' places, and the lists of places with the files.
pub(super) fn check(sources: &[Source]) -> Vec<String> {
    // xtask's own files mention the conditions.
    let sources: Vec<&Source> = sources.iter().filter(|source| !source.path.starts_with("xtask")).collect();
    CONDITIONS.iter().flat_map(|condition| condition.check(&sources)).collect()
}

impl Condition {
    fn check(&self, sources: &[&Source]) -> Vec<String> {
        let mut findings = Vec::new();
        for source in sources.iter().filter(|source| !self.has_place(&source.path)) {
            for line in self.lines(source) {
                findings.push(format!(
                    "{}:{line}: {} outside {}",
                    source.path.display(),
                    self.name,
                    self.places()
                ));
            }
        }
        for listed in self.files {
            let of_file = |source: &&&Source| source.path == Path::new(listed);
            if sources.iter().find(of_file).is_none_or(|source| self.lines(source).next().is_none()) {
                findings.push(format!(
                    "xtask/src/tidy/platforms.rs: {listed} does not name {}: take it from the list",
                    self.name
                ));
            }
        }
        findings
    }

    /// The lines that name the condition. A crate for one platform says so on its first line, which does not count.
    fn lines<'a>(&'a self, source: &'a Source) -> impl Iterator<Item = usize> + 'a {
        let lines = source.text.lines().zip(1..);
        let named = |(line, _): &(&str, usize)| line.contains(self.name) && !line.starts_with("#![cfg(");
        lines.filter(named).map(|(_, number)| number)
    }

    fn has_place(&self, path: &Path) -> bool {
        let picks = self.folders.iter().any(|folder| path.ends_with(Path::new(folder).join("mod.rs")));
        picks || self.files.iter().any(|file| path == Path::new(file))
    }

    fn places(&self) -> String {
        self.folders.iter().map(|folder| format!("{folder}/mod.rs")).collect::<Vec<_>>().join(" and ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        let condition = Condition { name: "target_os", folders: &["sys"], files: &["a/src/pick.rs"] };
        let listed =
            Source { path: "a/src/pick.rs".into(), text: "#[cfg(target_os = \"linux\")]".to_owned() };
        condition.check(&[&listed, &Source { path: path.into(), text: text.to_owned() }]).len()
    }

    #[test]
    fn conditions_stand_in_their_places() {
        let line = "//! A.\n#[cfg(target_os = \"linux\")]\n";
        assert_eq!(findings("a/src/lib.rs", "#![cfg(target_os = \"linux\")]\n//! A.\n"), 0);
        assert_eq!(findings("a/src/lib.rs", line), 1);
        assert_eq!(findings("a/src/sys/mod.rs", line), 0);
        assert_eq!(findings("a/src/sys/linux.rs", line), 1);
    }

    #[test]
    fn lists_name_files_that_need_it() {
        let condition = Condition { name: "target_arch", folders: &[], files: &["a/src/lib.rs"] };
        let check = |path: &str, text: &str| {
            condition.check(&[&Source { path: path.into(), text: text.to_owned() }]).len()
        };
        assert_eq!(check("a/src/lib.rs", "cfg!(target_arch = \"x86_64\")"), 0);
        assert_eq!(check("a/src/lib.rs", ""), 1);
        assert_eq!(check("b/src/lib.rs", ""), 1);
    }
}
