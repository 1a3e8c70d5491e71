//! `cargo xtask check`: checks the workspace for platforms that this host does not have, by the compiler and its lints.
//!
//! `xtask/unported.toml` lists the crates that do not check yet, with a reason each. The list must agree with the
//! result in both directions, so it only shrinks. The check links nothing, so it compiles no C: crates that contain C
//! get a script in place of the compiler, which reports success.

mod toolchain;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use self::toolchain::Toolchain;
use crate::sh;
use crate::steps::Steps;
use crate::test::{self, Counts};

/// The platforms to come, as rustc names them.
const TARGETS: [&str; 2] = ["aarch64-unknown-linux-musl", "aarch64-apple-darwin"];

/// The crates that do not check yet: a table for each platform, a reason for each crate.
const UNPORTED: &str = "xtask/unported.toml";

/// A script in place of the C compiler: it makes its output file, empty, and reports success for any other call.
const COMPILER: &str = "#!/bin/sh
while [ $# -gt 0 ]; do
    if [ \"$1\" = -o ]; then : > \"$2\"; fi
    shift
done
";

/// A script in place of the archiver: it makes empty archives.
const ARCHIVER: &str = "#!/bin/sh
for word; do
    case $word in *.a) : > \"$word\" ;; esac
done
";

/// Checks one platform, or all of them.
pub(crate) fn run(only: Option<&str>) -> Result<()> {
    if let Some(target) = only.filter(|target| !TARGETS.contains(target)) {
        bail!("no platform {target}; there are {}", TARGETS.join(", "));
    }
    test::told(|steps| {
        targets(TARGETS.into_iter().filter(|target| only.is_none_or(|only| only == *target)), steps)
    })
}

/// Checks all platforms.
pub(crate) fn all(steps: &mut Steps) -> Result<Counts> {
    targets(TARGETS.into_iter(), steps)
}

fn targets(targets: impl Iterator<Item = &'static str>, steps: &mut Steps) -> Result<Counts> {
    let unported = unported()?;
    let mut counts = Counts::default();
    for target in targets {
        let listed = unported.get(target).cloned().unwrap_or_default();
        match steps.take(target, || check(target, &listed))? {
            Outcome::Skipped(reason) => {
                println!("SKIP check for {target}: {reason}");
                counts.skipped += 1;
            }
            Outcome::Checked(findings) if findings.is_empty() => counts.passed += 1,
            Outcome::Checked(findings) => {
                findings.iter().for_each(|finding| println!("{target}: {finding}"));
                counts.failed += 1;
            }
        }
    }
    Ok(counts)
}

/// The result for one platform.
enum Outcome {
    /// The disagreements between crates and list.
    Checked(Vec<String>),
    /// The reason why the platform could not be checked here.
    Skipped(String),
}

fn check(target: &str, listed: &BTreeMap<String, String>) -> Result<Outcome> {
    let toolchain = match Toolchain::provide(target) {
        Ok(toolchain) => toolchain,
        Err(reason) => return Ok(Outcome::Skipped(format!("{reason:#}"))),
    };
    let members = members(&sh::output(sh::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?)?;
    let build = Build::read(&compile(&toolchain, target)?, &members);
    let findings = build.findings(listed);
    if findings.is_empty() {
        println!(
            "{target}: {} crates check, {} are listed in {UNPORTED}",
            members.len() - listed.len(),
            listed.len()
        );
    } else {
        build.show(listed);
    }
    Ok(Outcome::Checked(findings))
}

/// Runs the compiler and its lints over every library and program; returns cargo's account, a JSON value per line.
fn compile(toolchain: &Toolchain, target: &str) -> Result<String> {
    let tools = tools()?;
    let variable = |tool: &str| format!("{tool}_{}", target.replace('-', "_"));
    let mut cargo = toolchain.check();
    let format = if std::io::stderr().is_terminal() { "json-diagnostic-rendered-ansi" } else { "json" };
    cargo.args(["--workspace", "--keep-going", "--message-format", format]);
    cargo.args(["--target", target]).args(sh::quiet());
    cargo.env(variable("CC"), tools.join("cc")).env(variable("AR"), tools.join("ar"));
    // SDKROOT stands for the place of Apple's headers; without it the crate `cc` asks a program that only a Mac has.
    cargo.env("SDKROOT", &tools);
    output_of_some(&mut cargo)
}

/// Returns cargo's output, although crates that do not check make cargo fail. Progress is shown on a terminal only: in
/// a log it would consist of expected failures.
fn output_of_some(cargo: &mut Command) -> Result<String> {
    let complaints = tempfile::tempfile()?;
    if !std::io::stderr().is_terminal() {
        cargo.stderr(complaints.try_clone()?);
    }
    let output = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?.wait_with_output()?;
    let printed = String::from_utf8(output.stdout)?;
    let finished = printed.lines().last().is_some_and(|line| line.contains("\"build-finished\""));
    if !finished {
        let mut complaints = complaints;
        std::io::Seek::rewind(&mut complaints)?;
        std::io::copy(&mut complaints, &mut std::io::stderr())?;
        bail!("cargo: {}", output.status);
    }
    Ok(printed)
}

/// Writes the scripts that stand in for the tools of C; returns their directory.
fn tools() -> Result<PathBuf> {
    let directory = sh::target().join("cross");
    fs::create_dir_all(&directory)?;
    for (name, script) in [("cc", COMPILER), ("ar", ARCHIVER)] {
        let path = directory.join(name);
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(directory)
}

fn unported() -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let text = fs::read_to_string(sh::root().join(UNPORTED)).context(UNPORTED)?;
    let table: toml::Table = text.parse().context(UNPORTED)?;
    let reasons = |table: toml::Table| -> Option<BTreeMap<_, _>> {
        table.into_iter().map(|(name, reason)| Some((name, reason.as_str()?.to_owned()))).collect()
    };
    table
        .into_iter()
        .map(|(target, crates)| match crates {
            toml::Value::Table(crates) if TARGETS.contains(&target.as_str()) => {
                Ok((target, reasons(crates).with_context(|| format!("{UNPORTED}: a reason is a text"))?))
            }
            _ => bail!("{UNPORTED}: {target} is no platform that is checked"),
        })
        .collect()
}

/// A crate of the workspace.
struct Member {
    id: String,
    name: String,
    /// Its library and programs: kind and name.
    parts: BTreeSet<(String, String)>,
}

fn members(metadata: &str) -> Result<Vec<Member>> {
    let metadata: Value = serde_json::from_str(metadata).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata: no packages")?;
    packages
        .iter()
        .map(|package| {
            let text =
                |name: &str| package[name].as_str().map(str::to_owned).context("cargo metadata: a package");
            let parts = package["targets"].as_array().into_iter().flatten().filter_map(part).collect();
            Ok(Member { id: text("id")?, name: text("name")?, parts })
        })
        .collect()
}

/// A library or a program, from a value that cargo calls a target.
fn part(target: &Value) -> Option<(String, String)> {
    let kind = target["kind"][0].as_str()?;
    let is_checked = matches!(kind, "lib" | "bin");
    is_checked.then(|| Some((kind.to_owned(), target["name"].as_str()?.to_owned())))?
}

/// Cargo's account of one build.
struct Build<'a> {
    members: &'a [Member],
    /// The parts that were checked, by the packages' ids.
    checked: BTreeMap<String, BTreeSet<(String, String)>>,
    /// The compiler's complaints: the package's id, the words.
    complaints: Vec<(String, String)>,
}

impl<'a> Build<'a> {
    fn read(account: &str, members: &'a [Member]) -> Self {
        let mut build = Self { members, checked: BTreeMap::new(), complaints: Vec::new() };
        for message in account.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let Some(id) = message["package_id"].as_str().map(str::to_owned) else { continue };
            match message["reason"].as_str() {
                Some("compiler-artifact") => {
                    build.checked.entry(id).or_default().extend(part(&message["target"]));
                }
                Some("compiler-message") => {
                    let words = message["message"]["rendered"].as_str().unwrap_or_default();
                    build.complaints.push((id, words.to_owned()));
                }
                _ => {}
            }
        }
        build
    }

    /// Whether every part of the member was checked without a complaint.
    fn checks(&self, member: &Member) -> bool {
        let complained = self.complaints.iter().any(|(id, _)| *id == member.id);
        let none = BTreeSet::new();
        !complained && self.checked.get(&member.id).unwrap_or(&none).is_superset(&member.parts)
    }

    /// The disagreements between crates and list.
    fn findings(&self, listed: &BTreeMap<String, String>) -> Vec<String> {
        let mut findings = Vec::new();
        for member in self.members {
            match (self.checks(member), listed.contains_key(&member.name)) {
                (false, false) => {
                    findings.push(format!("{} does not check, or a crate that it uses", member.name))
                }
                (true, true) => findings.push(format!("{} checks: take it from {UNPORTED}", member.name)),
                _ => {}
            }
        }
        let is_member = |name: &String| self.members.iter().any(|member| member.name == *name);
        for name in listed.keys().filter(|name| !is_member(name)) {
            findings.push(format!("{UNPORTED} lists {name}, which is no crate of the workspace"));
        }
        findings
    }

    /// Shows the compiler's complaints, except those about listed crates.
    fn show(&self, listed: &BTreeMap<String, String>) {
        let is_known = |id: &String| {
            self.members.iter().any(|member| member.id == *id && listed.contains_key(&member.name))
        };
        for (_, words) in self.complaints.iter().filter(|(id, _)| !is_known(id)) {
            eprint!("{words}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METADATA: &str = r#"{"packages": [
        {"id": "a-1", "name": "a", "targets": [{"kind": ["lib"], "name": "a"}, {"kind": ["test"], "name": "t"}]},
        {"id": "b-1", "name": "b", "targets": [{"kind": ["lib"], "name": "b"}, {"kind": ["bin"], "name": "p"}]}
    ]}"#;

    fn artifact(id: &str, kind: &str, name: &str) -> String {
        format!(
            r#"{{"reason": "compiler-artifact", "package_id": "{id}", "target": {{"kind": ["{kind}"], "name": "{name}"}}}}"#
        )
    }

    fn findings(account: &[String], listed: &[&str]) -> Vec<String> {
        let members = members(METADATA).expect("metadata");
        let listed = listed.iter().map(|name| ((*name).to_owned(), "a reason".to_owned())).collect();
        Build::read(&account.join("\n"), &members).findings(&listed)
    }

    #[test]
    fn crates_and_list_hold_each_other() {
        let a = || artifact("a-1", "lib", "a");
        let b = || artifact("b-1", "lib", "b");
        let program = || artifact("b-1", "bin", "p");
        assert_eq!(findings(&[a(), b(), program()], &[]), Vec::<String>::new());
        assert_eq!(findings(&[a()], &["b"]), Vec::<String>::new());
        // One part of a listed crate does not check.
        assert_eq!(findings(&[a(), b()], &["b"]), Vec::<String>::new());
        assert_eq!(findings(&[a(), b()], &[]).len(), 1);
        // A single warning is enough.
        let warning = r#"{"reason": "compiler-message", "package_id": "a-1", "message": {"rendered": "w"}}"#;
        assert_eq!(findings(&[warning.to_owned(), a(), b(), program()], &[]).len(), 1);
        // A crate that is listed without need, and a listed name that is no crate.
        assert_eq!(findings(&[a(), b(), program()], &["b"]).len(), 1);
        assert_eq!(findings(&[a(), b(), program()], &["c"]).len(), 1);
    }

    #[test]
    fn the_list_in_the_tree_can_be_read() {
        let unported = unported().expect("list");
        assert!(unported.values().flat_map(BTreeMap::values).all(|reason| !reason.is_empty()));
    }

    #[test]
    fn the_stand_ins_make_what_they_are_asked_for() {
        let tools = tools().expect("tools");
        let directory = tempfile::tempdir().expect("directory");
        let in_directory = |name: &str| directory.path().join(name);
        let run = |tool: &str, words: &[&str], output: &str| {
            let mut command = Command::new(tools.join(tool));
            assert!(command.args(words).arg(in_directory(output)).status().expect("tool").success());
            assert_eq!(fs::metadata(in_directory(output)).expect("output").len(), 0);
        };
        run("cc", &["-O2", "-c", "a.c", "-o"], "a.o");
        run("ar", &["cq"], "liba.a");
    }
}
