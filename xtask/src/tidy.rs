//! Rules that no compiler checks: which crate may use which, that a manifest names nothing that is not used, where
//! platforms may be named, that every file says what it is, that none grows past its limit, that the sentences of
//! comments begin with their subject, and that every fuzz body has its target.
//!
//! A list of exceptions is checked in both directions: an exception that is not listed is a finding, and so is an entry
//! that is not needed.

mod fuzz;
mod layers;
mod manifests;
mod platforms;
mod rooms;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::sh;

/// Most lines of a source file. A file that grows past this limit needs another design.
const MAX_FILE_LINES: usize = 800;

/// Words that leave a sentence without a subject if they begin it.
const RELATIVE: [&str; 5] = ["What ", "Who ", "Whoever ", "Whatever ", "Whose "];

/// A member of the workspace.
struct Member {
    folder: String,
    manifest: toml::Table,
}

impl Member {
    fn read(folder: &str) -> Result<Self> {
        Ok(Self { folder: folder.to_owned(), manifest: manifest(&Path::new(folder).join("Cargo.toml"))? })
    }

    /// The crate's name.
    fn name(&self) -> &str {
        let package = self.manifest.get("package").and_then(|package| package.get("name"));
        package.and_then(toml::Value::as_str).unwrap_or_default()
    }
}

/// A Rust file that git knows or would add.
struct Source {
    /// The path from the top of the checkout.
    path: PathBuf,
    text: String,
}

/// Checks all rules, prints every finding, and fails if there is one.
pub(crate) fn run() -> Result<()> {
    let workspace = manifest(Path::new("Cargo.toml"))?;
    let members =
        members(&workspace).iter().map(|folder| Member::read(folder)).collect::<Result<Vec<_>>>()?;
    let sources = sources()?;
    let lock = manifest(Path::new("Cargo.lock"))?;
    let mut findings = layers::check(&members);
    findings.extend(manifests::check(&workspace, &lock, &members, &sources));
    findings.extend(platforms::check(&sources));
    findings.extend(rooms::check(&sources));
    findings.extend(sources.iter().flat_map(file));
    findings.extend(fuzz::check(&sources, &manifest(Path::new("fuzz/Cargo.toml"))?));
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings", findings.len());
    }
    println!(
        "tidy: layers, rooms, manifests, platforms, module docs, file lengths and fuzz targets are in order"
    );
    Ok(())
}

fn manifest(path: &Path) -> Result<toml::Table> {
    let text = fs::read_to_string(sh::root().join(path)).with_context(|| path.display().to_string())?;
    text.parse().with_context(|| path.display().to_string())
}

/// The folders of the workspace's members.
fn members(workspace: &toml::Table) -> Vec<String> {
    let members = workspace.get("workspace").and_then(|workspace| workspace.get("members")?.as_array());
    members.into_iter().flatten().filter_map(|member| member.as_str().map(str::to_owned)).collect()
}

fn sources() -> Result<Vec<Source>> {
    let list = sh::output(sh::command("git").args(["ls-files", "-co", "--exclude-standard", "--", "*.rs"]))?;
    let exists = |path: &PathBuf| sh::root().join(path).is_file();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(sh::root().join(&path)).with_context(|| path.display().to_string())?;
        Ok(Source { path, text })
    };
    list.lines().map(PathBuf::from).filter(exists).map(read).collect()
}

/// The findings about a file by itself.
fn file(source: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    let shown = source.path.display();
    let lines = source.text.lines().count();
    if lines > MAX_FILE_LINES {
        findings.push(format!("{shown}: {lines} lines, the limit is {MAX_FILE_LINES}"));
    }
    // A crate for one platform says so on its first line, before its documentation.
    let first = source.text.lines().find(|line| !line.starts_with("#![cfg("));
    if !first.is_some_and(|line| line.starts_with("//!")) {
        findings.push(format!("{shown}: opens without `//!`"));
    }
    for (number, _) in source.text.lines().enumerate().filter(|(_, line)| lacks_subject(line)) {
        findings.push(format!("{shown}:{}: a sentence begins without its subject", number + 1));
    }
    findings
}

/// Whether a sentence of this line begins with a [`RELATIVE`] word, if the line is a comment.
fn lacks_subject(line: &str) -> bool {
    let comment = line.trim_start().strip_prefix("//").unwrap_or_default();
    let mut sentences = comment.trim_start_matches(['/', '!', ' ']).split(". ");
    sentences.any(|sentence| RELATIVE.iter().any(|word| sentence.starts_with(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_held_to_their_rules() {
        let findings =
            |text: &str| file(&Source { path: "a/src/lib.rs".into(), text: text.to_owned() }).len();
        assert_eq!(findings("//! A.\n"), 0);
        assert_eq!(findings("#![cfg(target_os = \"linux\")]\n//! A.\n"), 0);
        assert_eq!(findings("mod a;\n"), 1);
        assert_eq!(findings("//! A.\n/// What it does.\n    // Whatever a.\n// Whole.\n"), 2);
        assert_eq!(findings("//! A. What b.\n// A: what b. Who\nlet a = \". What \";\n"), 1);
        assert_eq!(findings(&"//! A.\n".repeat(801)), 1);
    }

    #[test]
    fn members_are_those_of_the_manifest() {
        let workspace: toml::Table = "[workspace]\nmembers = [\"a\", \"b/c\"]\n".parse().expect("toml");
        assert_eq!(members(&workspace), ["a", "b/c"]);
        assert!(members(&toml::Table::new()).is_empty());
    }
}
