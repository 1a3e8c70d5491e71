//! Program `stock-kernel`: prints the path of the product's default kernel, fetching the kernel on first use, and packs
//! an initramfs for it. `cargo xtask` calls this program, so that xtask itself links none of the product's crates. Not
//! here: the emulated host, which boots what this program packs.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use kernels::{Archive, File, Kernel, Store};

/// The product's default kernel.
#[derive(Parser)]
struct Arguments {
    /// The cache directory whose kernel store is used
    cache: PathBuf,
    /// Write an initramfs for the kernel to this file
    #[arg(long)]
    initramfs: Option<PathBuf>,
    /// A module in the initramfs, with the modules it needs
    #[arg(long = "module", requires = "initramfs")]
    modules: Vec<String>,
    /// A file in the initramfs: its path there, and its source
    #[arg(long = "file", requires = "initramfs", value_name = "NAME=PATH", value_parser = named)]
    files: Vec<(String, PathBuf)>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // The error is printed here, because returning it would add a stack if `RUST_BACKTRACE` is set.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let kernel = Store::open(&arguments.cache)?.default_kernel(&|step| eprintln!("{step}"))?;
    if let Some(initramfs) = &arguments.initramfs {
        pack(arguments, &kernel, initramfs)?;
    }
    println!("{}", kernel.path.display());
    Ok(())
}

fn pack(arguments: &Arguments, kernel: &Kernel, initramfs: &Path) -> Result<()> {
    let read = |(name, path): &(String, PathBuf)| -> Result<_> {
        let mode = fs::metadata(path).map(|file| file.permissions().mode() & 0o777);
        let mode = mode.with_context(|| path.display().to_string())?;
        Ok((name.clone(), mode, fs::read(path).with_context(|| path.display().to_string())?))
    };
    let contents = arguments.files.iter().map(read).collect::<Result<Vec<_>>>()?;
    let files: Vec<File<'_>> =
        contents.iter().map(|(name, mode, data)| File { name, mode: *mode, data }).collect();
    let modules: Vec<&str> = arguments.modules.iter().map(String::as_str).collect();
    Ok(Archive { modules: &modules, files: &files }.write(kernel, initramfs)?)
}

/// Splits `NAME=PATH`.
fn named(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=PATH")?;
    Ok((name.to_owned(), PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_name_and_a_path() {
        assert_eq!(named("init=/tmp/a=b"), Ok(("init".to_owned(), PathBuf::from("/tmp/a=b"))));
        assert!(named("init").is_err());
    }
}
