//! Fetches the default kernel into the cache directory given and prints what the store then holds.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cache = std::env::args().nth(1).ok_or("usage: fetch CACHE AGENT")?;
    let agent = std::env::args().nth(2).ok_or("usage: fetch CACHE AGENT")?;
    let store = kernels::Store::open(Path::new(&cache))?;
    let kernel = store.default_kernel(&|step| eprintln!("{step}"))?;
    println!("{kernel:#?}\n{:#?}", store.list()?);
    println!(
        "{}",
        kernels::initramfs(
            Path::new(&cache),
            &kernel,
            Path::new(&agent),
            kernels::Extras::default(),
            &Default::default()
        )?
        .display()
    );
    Ok(())
}
