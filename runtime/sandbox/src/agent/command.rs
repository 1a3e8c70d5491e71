//! The request that starts a guest program, merged from image, sandbox and call: command, environment, directory,
//! user.
//!
//! Pure. Not here: checks of names (`policy`), and the guest's search for the program.

use guest_protocol::{ExecRequest, Program, Stdio};
use images::ImageConfig;
use serde::{Deserialize, Serialize};

/// Lowest layer of every environment: the variables that the agent itself runs with.
const BASE_ENV: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/"),
    ("TERM", "linux"),
];

/// A request to run a program in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program: an argument vector, or a shell command.
    pub program: Program,
    /// Variables for this program; they override all others.
    pub env: Vec<(String, String)>,
    /// Working directory; `None` = the image's.
    pub working_dir: Option<String>,
    /// User; `None` = the image's.
    pub user: Option<String>,
    /// Standard streams.
    pub stdio: Stdio,
    /// Processes that the program starts may outlive it, until the stream is dropped.
    pub detached: bool,
    /// The program is PID 1 of its namespace: the sandbox's own command, unless the sandbox has an init above it.
    #[serde(default)]
    pub first: bool,
}

/// Values that a sandbox sets in place of its image's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageOverrides {
    /// User; empty = the image's.
    pub user: String,
    /// Working directory; empty = the image's.
    pub working_dir: String,
    /// Working directory if neither sandbox nor image has one; empty = none.
    pub workspace: String,
    /// Arguments to the entrypoint.
    pub cmd: Option<Vec<String>>,
    /// Environment, each `NAME=VALUE`.
    pub env: Option<Vec<String>>,
}

impl ImageOverrides {
    /// The image's configuration with this sandbox's values in place.
    pub(crate) fn apply(&self, image: ImageConfig) -> ImageConfig {
        let first = |texts: [&String; 3]| texts.into_iter().find(|text| !text.is_empty()).cloned();
        let none = String::new();
        ImageConfig {
            user: first([&self.user, &image.user, &none]).unwrap_or_default(),
            working_dir: first([&self.working_dir, &image.working_dir, &self.workspace]).unwrap_or_default(),
            entrypoint: image.entrypoint,
            cmd: self.cmd.clone().unwrap_or(image.cmd),
            env: self.env.clone().unwrap_or(image.env),
            volumes: image.volumes,
        }
    }
}

/// The part of a request that every program of a sandbox shares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Defaults {
    pub(crate) image: ImageConfig,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) privileged: bool,
}

impl Defaults {
    /// Merges a call with the defaults into the agent's request.
    pub(crate) fn request(&self, exec: Exec) -> ExecRequest {
        ExecRequest {
            program: exec.program,
            env: merge(&self.image.env, &self.env, &exec.env),
            working_dir: exec.working_dir.unwrap_or_else(|| self.image.working_dir.clone()),
            user: exec.user.unwrap_or_else(|| self.image.user.clone()),
            stdio: exec.stdio,
            privileged: self.privileged,
            detached: exec.detached,
            first: exec.first,
        }
    }
}

/// Merges environments, lowest to highest: base, image, sandbox, request. A variable keeps its first place.
fn merge(
    image: &[String],
    sandbox: &[(String, String)],
    request: &[(String, String)],
) -> Vec<(String, String)> {
    let base = BASE_ENV.iter().copied();
    // An entry without `=` is no variable.
    let image = image.iter().filter_map(|entry| entry.split_once('='));
    let given = sandbox.iter().chain(request).map(|(name, value)| (name.as_str(), value.as_str()));
    let mut merged: Vec<(String, String)> = Vec::new();
    for (name, value) in base.chain(image).chain(given) {
        match merged.iter_mut().find(|(present, _)| present == name) {
            Some((_, present)) => value.clone_into(present),
            None => merged.push((name.to_owned(), value.to_owned())),
        }
    }
    merged
}

/// The command of a sandbox: entrypoint, then the arguments or else the image's.
///
/// An entrypoint given here replaces the image's but keeps its `Cmd`, unlike Docker's.
pub(crate) fn command(image: &ImageConfig, entrypoint: Option<&[String]>, args: &[String]) -> Vec<String> {
    let entrypoint = entrypoint.unwrap_or(&image.entrypoint);
    let args = if args.is_empty() { &image.cmd } else { args };
    entrypoint.iter().chain(args).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        text.split_whitespace()
            .filter_map(|pair| pair.split_once('='))
            .map(|(a, b)| (a.into(), b.into()))
            .collect()
    }

    fn strings(text: &str) -> Vec<String> {
        text.split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn later_layers_win_and_keep_the_place() {
        let merged = merge(
            &strings("PATH=/image A=image B=image bare"),
            &pairs("B=vm C=vm"),
            &pairs("C=exec HOME=/h"),
        );
        assert_eq!(merged, pairs("PATH=/image HOME=/h TERM=linux A=image B=vm C=exec"));
        assert_eq!(merge(&[], &[], &[])[0].0, "PATH");
        assert_eq!(merge(&strings("A=x=y"), &[], &[]).last().unwrap().1, "x=y");
    }

    #[test]
    fn directory_and_user_come_from_the_image_unless_asked_for() {
        let image = ImageConfig { user: "app".into(), working_dir: "/srv".into(), ..Default::default() };
        let defaults = Defaults { image, ..Default::default() };
        let exec = Exec {
            program: Program::Argv(vec![]),
            env: vec![],
            working_dir: None,
            user: None,
            stdio: Stdio::Null,
            detached: false,
            first: false,
        };
        let request = defaults.request(exec.clone());
        assert_eq!((request.user.as_str(), request.working_dir.as_str()), ("app", "/srv"));
        let request =
            defaults.request(Exec { working_dir: Some("/".into()), user: Some("0".into()), ..exec });
        assert_eq!((request.user.as_str(), request.working_dir.as_str()), ("0", "/"));
    }

    #[test]
    fn overrides_of_the_image() {
        let image = ImageConfig {
            user: "app".into(),
            working_dir: "/srv".into(),
            cmd: strings("run"),
            env: strings("A=1"),
            ..Default::default()
        };
        assert_eq!(ImageOverrides::default().apply(image.clone()), image);
        let workspace = ImageOverrides { workspace: "/workspace".into(), ..Default::default() };
        assert_eq!(workspace.apply(image.clone()).working_dir, "/srv");
        assert_eq!(workspace.apply(ImageConfig::default()).working_dir, "/workspace");
        let overrides = ImageOverrides {
            user: "0".into(),
            working_dir: "/tmp".into(),
            cmd: Some(vec![]),
            env: Some(strings("B=2")),
            ..workspace
        };
        let expected = ImageConfig {
            user: "0".into(),
            working_dir: "/tmp".into(),
            env: strings("B=2"),
            ..Default::default()
        };
        assert_eq!(overrides.apply(image), expected);
    }

    #[test]
    fn entrypoints() {
        let image =
            ImageConfig { entrypoint: strings("/entry -x"), cmd: strings("cmd arg"), ..Default::default() };
        let entry = strings("sleep");
        for (entrypoint, args, expected) in [
            (None, "", "/entry -x cmd arg"),
            (None, "a b", "/entry -x a b"),
            (Some(&entry[..]), "", "sleep cmd arg"),
            (Some(&entry[..]), "10", "sleep 10"),
            (Some(&[][..]), "", "cmd arg"),
            (Some(&[][..]), "a", "a"),
        ] {
            assert_eq!(command(&image, entrypoint, &strings(args)), strings(expected));
        }
        assert!(command(&ImageConfig::default(), None, &[]).is_empty());
    }
}
