//! This process's arguments, as other users see them.
//!
//! Everyone can read `/proc/PID/cmdline` for as long as the process lives, and `-e TOKEN=…` has a value in it. The
//! kernel shows the memory of the arguments, so the values are overwritten there. If that is not possible they stay;
//! `-e TOKEN` and `--env-file` never show any. Not here: the arguments of a program that started this one, such as
//! sudo.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;

/// Replaces a value.
const MASK: &[u8] = b"***";

/// proc_pid_stat(5): the fields `arg_start` and `arg_end`, counted from the one after the program's name.
const ARG_START: usize = 45;

/// Overwrites the values of these `NAME=VALUE` in the visible arguments. The arguments must have been read before.
pub(crate) fn hide(arguments: &[OsString], variables: &[String]) {
    if variables.iter().any(|variable| variable.contains('='))
        && let Err(error) = overwrite(arguments, variables)
    {
        tracing::debug!("values in the arguments stay visible: {error}");
    }
}

fn overwrite(arguments: &[OsString], variables: &[String]) -> io::Result<()> {
    let (start, end) = shown_at(&fs::read("/proc/self/stat")?).ok_or(io::ErrorKind::InvalidData)?;
    let length: usize = arguments.iter().map(|argument| argument.len() + 1).sum();
    // The memory would not be that of these arguments.
    if start == 0 || end.checked_sub(start) != Some(length as u64) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut shown = Vec::with_capacity(length);
    for argument in arguments {
        shown.extend_from_slice(masked(argument, variables).as_bytes());
        shown.push(0);
    }
    // No mask is longer than its value, and the padding hides the value's length.
    shown.resize(length, 0);
    File::options().write(true).open("/proc/self/mem")?.write_all_at(&shown, start)
}

/// The place of the arguments, from `/proc/PID/stat`. The program's name in it may be cut off anywhere, so it need
/// not be text.
fn shown_at(stat: &[u8]) -> Option<(u64, u64)> {
    let fields = str::from_utf8(stat.rsplit(|byte| *byte == b')').next()?).ok()?;
    let mut fields = fields.split_whitespace().skip(ARG_START);
    let mut number = || fields.next()?.parse().ok();
    Some((number()?, number()?))
}

/// An argument without the value of a variable.
fn masked(argument: &OsStr, variables: &[String]) -> OsString {
    let bytes = argument.as_bytes();
    for variable in variables {
        let Some((name, value)) = variable.split_once('=') else { continue };
        // The variable by itself, or after `--env=`, `-e` and switches such as `-ite`.
        let behind =
            bytes.strip_suffix(variable.as_bytes()).filter(|flag| flag.is_empty() || flag.starts_with(b"-"));
        if let Some(flag) = behind {
            let mask = MASK.get(..value.len()).unwrap_or(MASK);
            return OsString::from_vec([flag, name.as_bytes(), b"=", mask].concat());
        }
    }
    argument.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        for name in [&b"matchlock"[..], b"", b"a) S 1 (", b"matchlock-abcd\xc3", b"\xff)\xff"] {
            let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
            let stat = [b"1 (", name, b") ", fields.join(" ").as_bytes(), b"\n"].concat();
            assert_eq!(shown_at(&stat), Some((48, 49)), "{name:?}");
            assert_eq!(shown_at(&stat[..stat.len() / 2]), None);
        }
        assert_eq!(shown_at(b""), None);
    }

    #[test]
    fn values_are_masked_and_nothing_else() {
        let variables = ["TOKEN=s3cr3t=".to_owned(), "A=1".to_owned(), "NAME".to_owned(), "E=".to_owned()];
        for (argument, expected) in [
            ("TOKEN=s3cr3t=", "TOKEN=***"),
            ("--env=TOKEN=s3cr3t=", "--env=TOKEN=***"),
            ("-eTOKEN=s3cr3t=", "-eTOKEN=***"),
            ("-ite=A=1", "-ite=A=*"),
            ("E=", "E="),
            ("NAME", "NAME"),
            ("run", "run"),
            ("xA=1", "xA=1"),
            ("TOKEN=other", "TOKEN=other"),
        ] {
            let masked = masked(OsStr::new(argument), &variables);
            assert_eq!(masked, expected);
            assert!(masked.len() <= argument.len());
        }
    }
}
