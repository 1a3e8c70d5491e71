//! Variables for a guest, from `-e` and `--env-file`.
//!
//! Files come first, then `-e`; the sandbox lets later ones win. Not here: the image's variables.

use std::path::{Path, PathBuf};

/// The variables of the options.
pub(crate) fn collect(files: &[PathBuf], options: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path)
            .map_err(|error| anyhow::anyhow!("environment file {}: {error}", path.display()))?;
        variables.append(&mut file(path, &text)?);
    }
    for option in options {
        variables.push(variable(option)?);
    }
    Ok(variables)
}

/// One `NAME=VALUE` or `NAME` a line; blank lines and those that start with `#` are skipped; quotes mean nothing.
fn file(path: &Path, text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    let place = |number| move || format!("{}:{}", path.display(), number + 1);
    lines
        .map(|(number, line)| variable(line).map_err(|e| anyhow::anyhow!("{}: {e}", place(number)())))
        .collect()
}

/// `NAME=VALUE`, or `NAME` to copy it from this process.
fn variable(text: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => {
            let value = std::env::var(text);
            (text, value.map_err(|_| anyhow::anyhow!("invalid environment variable {text:?}: not set here"))?)
        }
    };
    policy::names::env(name, &value)?;
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let path = std::env::var("PATH").unwrap();
        let collected = collect(&[], &["A=1".into(), "B=x=y".into(), "C=".into(), "PATH".into()]).unwrap();
        let pairs: Vec<_> = collected.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("A", "1"), ("B", "x=y"), ("C", ""), ("PATH", &path)]);
        for (option, expected) in [
            ("NO_SUCH_VARIABLE_HERE", "invalid environment variable \"NO_SUCH_VARIABLE_HERE\": not set here"),
            ("=1", "invalid environment variable \"\""),
            ("A B=1", "invalid environment variable \"A B\""),
        ] {
            assert_eq!(collect(&[], &[option.into()]).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read() {
        let error = collect(&["/no/such/file".into()], &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "environment file /no/such/file: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn files() {
        let text = "# comment\n\n  # another\nA=1\nB=\"quoted\"\r\nC= spaced \n";
        let variables = file(Path::new("f"), text).unwrap();
        let expected = [("A", "1"), ("B", "\"quoted\""), ("C", " spaced ")];
        assert_eq!(variables, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let error = file(Path::new("f"), "A=1\nB C=2\n").unwrap_err();
        assert_eq!(error.to_string(), "f:2: invalid environment variable \"B C\"");
    }
}
