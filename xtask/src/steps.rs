//! Where the time of a long task goes: each step with the time that passed and the processor time of its processes.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;

/// The steps taken so far.
#[derive(Debug, Default)]
pub(crate) struct Steps(Vec<Step>);

#[derive(Debug)]
struct Step {
    name: String,
    wall: Duration,
    cpu: Duration,
}

impl Steps {
    /// Takes a step, which is recorded whether it succeeds or not.
    pub(crate) fn take<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let (start, cpu) = (Instant::now(), children());
        let result = step();
        let cpu = children().saturating_sub(cpu);
        self.0.push(Step { name: name.to_owned(), wall: start.elapsed(), cpu });
        result
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |time: fn(&Step) -> Duration| self.0.iter().map(time).sum();
        let all =
            Step { name: "together".to_owned(), wall: sum(|step| step.wall), cpu: sum(|step| step.cpu) };
        writeln!(f, "{:<28}{:>10}{:>12}", "where the time went", "minutes", "of the CPU")?;
        for step in self.0.iter().chain([&all]) {
            let minutes = |time: Duration| time.as_secs_f64() / 60.0;
            writeln!(f, "{:<28}{:>10.1}{:>12.1}", step.name, minutes(step.wall), minutes(step.cpu))?;
        }
        Ok(())
    }
}

/// Processor time of the processes that this process has started and waited for, and of their own children.
fn children() -> Duration {
    fs::read_to_string("/proc/self/stat").ok().and_then(|stat| of_children(&stat)).unwrap_or_default()
}

/// `cutime` and `cstime` of proc(5), in ticks of a hundredth of a second, which do not depend on the kernel's own tick.
fn of_children(stat: &str) -> Option<Duration> {
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = fields.split_whitespace().skip(13).take(2).map(|field| field.parse::<u64>().ok());
    Some(Duration::from_millis(10 * ticks.sum::<Option<u64>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_told_from_the_process_itself() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 700 50 20 0 1 0";
        assert_eq!(of_children(stat), Some(Duration::from_millis(7500)));
        assert_eq!(of_children("7 (a"), None);
    }

    #[test]
    fn a_step_that_fails_is_listed_too() {
        let mut steps = Steps::default();
        assert!(steps.take("one", || anyhow::bail!("no") as Result<()>).is_err());
        steps.take("two", || Ok(())).expect("a step");
        let shown = steps.to_string();
        assert_eq!(shown.lines().count(), 4, "{shown}");
        assert!(shown.contains("one") && shown.contains("together"), "{shown}");
    }

    #[test]
    fn a_childs_processor_time_counts() {
        let mut steps = Steps::default();
        let script = "import os\nwhile os.times().user + os.times().system < 0.2: pass";
        let run = || Ok(std::process::Command::new("python3").args(["-c", script]).status()?);
        assert!(steps.take("busy", run).expect("python3").success());
        assert!(steps.0[0].cpu >= Duration::from_millis(150), "{steps:?}");
    }
}
