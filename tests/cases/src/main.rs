//! `share-cases FOLDER alone|readonly|MILLISECONDS`: the cases in a guest. Prints `ok NUMBER NAME` or `FAILED NUMBER NAME: WHY`
//! for each. With a time, in which the host's acts are seen, it asks for these by lines that begin with `host`, each answered by a
//! line on its standard input.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program of tests")]

use std::io::{Write, stdin, stdout};
use std::path::Path;
use std::time::Duration;

use share_cases::{Host, Setting, run};

/// A host at the other end of the standard streams.
struct Remote;

impl Host for Remote {
    fn ask(&mut self, line: &str) -> String {
        println!("host\t{line}");
        stdout().flush().unwrap();
        let mut answer = String::new();
        stdin().read_line(&mut answer).unwrap();
        answer.trim_end_matches('\n').to_owned()
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (folder, setting) = (args.next().unwrap(), args.next().unwrap());
    let mut host = Remote;
    let setting = match setting.as_str() {
        "alone" => Setting::Alone,
        "readonly" => Setting::ReadOnly,
        time => Setting::Shared(&mut host, Duration::from_millis(time.parse().unwrap())),
    };
    run(Path::new(&folder), setting, |number, name, complaint| match complaint {
        None => println!("ok {number} {name}"),
        Some(why) => println!("FAILED {number} {name}: {}", why.replace('\n', " ")),
    });
}
