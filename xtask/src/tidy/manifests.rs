//! Checks that a manifest names nothing that is not used: each dependency stands in the source of its crate, each entry
//! of `[workspace.dependencies]` in a manifest, and each package of a profile in the lock file.

use super::{Member, Source};

/// Compares the manifests with the sources and with each other.
pub(super) fn check(
    workspace: &toml::Table,
    lock: &toml::Table,
    members: &[Member],
    sources: &[Source],
) -> Vec<String> {
    let mut findings: Vec<String> = members.iter().flat_map(|member| unused(member, sources)).collect();
    let shared = workspace.get("workspace").and_then(|workspace| workspace.get("dependencies"));
    for name in keys(shared) {
        let by_member = |member: &Member| {
            dependencies(&member.manifest).chain(test_dependencies(&member.manifest)).any(|used| used == name)
        };
        if !members.iter().any(by_member) {
            findings.push(format!("Cargo.toml: no member depends on {name}"));
        }
    }
    let locked = lock.get("package").and_then(toml::Value::as_array);
    let locked: Vec<&str> =
        locked.into_iter().flatten().filter_map(|entry| entry.get("name")?.as_str()).collect();
    for profile in tables(workspace.get("profile")) {
        for package in keys(profile.get("package")).filter(|name| *name != "*" && !locked.contains(name)) {
            findings.push(format!("Cargo.toml: a profile names {package}, which nothing depends on"));
        }
    }
    findings
}

/// The names in `[dependencies]` and `[target.*.dependencies]`; dependencies of tests are not limited by layers.
pub(super) fn dependencies(manifest: &toml::Table) -> impl Iterator<Item = &str> {
    let targets = tables(manifest.get("target")).map(|target| target.get("dependencies"));
    std::iter::once(manifest.get("dependencies")).chain(targets).flat_map(keys)
}

fn test_dependencies(manifest: &toml::Table) -> impl Iterator<Item = &str> {
    keys(manifest.get("dev-dependencies"))
}

fn tables(value: Option<&toml::Value>) -> impl Iterator<Item = &toml::Value> {
    value.and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::values)
}

fn keys(value: Option<&toml::Value>) -> impl Iterator<Item = &str> {
    value.and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys).map(String::as_str)
}

/// The dependencies of a member that its source does not name.
fn unused(member: &Member, sources: &[Source]) -> Vec<String> {
    let own = || sources.iter().filter(|source| source.path.starts_with(&member.folder));
    let product = || own().map(|source| product(source, &member.folder));
    let finding = |name: &str, who: &str| format!("{}/Cargo.toml: {name}: {who} uses it", member.folder);
    let mut findings = Vec::new();
    for name in dependencies(&member.manifest).filter(|name| !product().any(|text| names(text, name))) {
        findings.push(finding(
            name,
            if own().any(|source| names(&source.text, name)) { "only a test" } else { "nothing" },
        ));
    }
    // A crate that depends on itself turns on a feature for its own tests.
    for name in test_dependencies(&member.manifest).filter(|name| *name != member.name()) {
        if !own().any(|source| names(&source.text, name)) {
            findings.push(finding(name, "no test"));
        }
    }
    findings
}

/// The part of a file that is no test: nothing of a file of tests, otherwise everything above the module of tests.
fn product<'a>(source: &'a Source, folder: &str) -> &'a str {
    let path = source.path.strip_prefix(folder).unwrap_or(&source.path);
    let is_test = path.iter().any(|part| part == "tests" || part == "tests.rs");
    if is_test || !path.starts_with("src") {
        return "";
    }
    source.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

/// Whether a line of code names the crate: in a path (`name::`), or alone in a `use`.
fn names(text: &str, name: &str) -> bool {
    let name = name.replace('-', "_");
    text.lines().map(str::trim_start).filter(|line| !line.starts_with("//")).any(|line| {
        line.match_indices(&name).any(|(at, _)| {
            let (before, after) = (&line[..at], &line[at + name.len()..]);
            let part_of_path = before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            let imported = (before.ends_with("use ") || before.ends_with("extern crate "))
                && after.starts_with([';', ' ']);
            !part_of_path && (after.starts_with("::") || imported)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_dependencies_count() {
        let manifest: toml::Table =
            "[target.'cfg(unix)'.dependencies]\na = \"1\"\n[dependencies]\nb = \"1\"\n"
                .parse()
                .expect("toml");
        assert_eq!(dependencies(&manifest).collect::<Vec<_>>(), ["b", "a"]);
    }

    #[test]
    fn a_crate_is_named_in_code_by_its_whole_name() {
        assert!(names("use a_b::C;", "a-b"));
        assert!(names("use {a::B, c::D};", "c"));
        assert!(names("    let x = a::b();", "a"));
        assert!(names("use a;\n", "a"));
        assert!(names("pub use a as b;\n", "a"));
        for other in
            ["// a::b", "/// See a::b", "use b::a::C;", "use ba::C;", "let a = 1;", "use ab;", "a: u8"]
        {
            assert!(!names(other, "a"), "{other}");
        }
    }

    #[test]
    fn what_is_not_used_is_found() {
        let count = |manifest: &str, path: &str, text: &str| {
            let manifest = format!("[package]\nname = \"x\"\n{manifest}").parse().expect("toml");
            let member = Member { folder: "x".to_owned(), manifest };
            unused(&member, &[Source { path: path.into(), text: text.to_owned() }]).len()
        };
        let (normal, test) = ("[dependencies]\na = \"1\"\n", "[dev-dependencies]\na = \"1\"\nx = \"1\"\n");
        assert_eq!(count(normal, "x/src/lib.rs", "use a::B;"), 0);
        assert_eq!(count(normal, "x/src/lib.rs", "#[cfg(test)]\nmod tests {\nuse a::B;"), 1);
        assert_eq!(count(normal, "x/src/b/tests.rs", "use a::B;"), 1);
        assert_eq!(count(normal, "x/tests/b.rs", "use a::B;"), 1);
        assert_eq!(count(normal, "y/src/lib.rs", "use a::B;"), 1);
        assert_eq!(count(test, "x/tests/b.rs", "use a::B;"), 0);
        assert_eq!(count(test, "x/src/lib.rs", "#[cfg(test)]\nmod tests {\nuse a::B;"), 0);
        assert_eq!(count(test, "x/src/lib.rs", ""), 1);
    }

    #[test]
    fn the_workspace_names_what_its_members_use() {
        let workspace = "[workspace.dependencies]\na = \"1\"\nb = \"1\"\n[profile.dev.package.\"*\"]\n[profile.dev.package.c]\n";
        let member =
            Member { folder: "x".to_owned(), manifest: "[dependencies]\na = \"1\"".parse().expect("toml") };
        let source = Source { path: "x/src/lib.rs".into(), text: "use a::B;".to_owned() };
        let lock = "[[package]]\nname = \"a\"\n".parse().expect("toml");
        let findings = check(&workspace.parse().expect("toml"), &lock, &[member], &[source]);
        assert_eq!(findings.len(), 2, "{findings:?}");
    }
}
