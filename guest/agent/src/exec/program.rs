//! The strings of an execve, prepared before clone: argument vector, environment, and the paths to try.

use std::ffi::{CString, c_char};

use guest_protocol::{ExecFailure, ExecRequest, Program};

/// The search path of a request without `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program's strings, with the arrays of pointers that execve takes.
pub(super) struct Strings {
    /// The paths to try, in order.
    pub(super) candidates: Vec<CString>,
    /// The program's name in the request.
    pub(super) name: String,
    /// Working directory.
    pub(super) directory: CString,
    arguments: Pointers,
    environment: Pointers,
}

/// Strings and a null-terminated array of pointers to them. A `CString` owns heap memory, so moving it moves no bytes.
struct Pointers {
    _strings: Vec<CString>,
    array: Vec<*const c_char>,
}

impl Pointers {
    fn new(strings: Vec<CString>) -> Self {
        let array = strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Self { _strings: strings, array }
    }
}

impl Strings {
    /// Prepares a request; `home` replaces `HOME`.
    pub(super) fn new(request: &ExecRequest, home: Option<Vec<u8>>) -> Result<Self, ExecFailure> {
        let (name, arguments) = match &request.program {
            Program::Shell(text) => ("sh", vec![c_string("sh")?, c_string("-c")?, c_string(text.as_str())?]),
            Program::Argv(arguments) => {
                let name = arguments.first().map(String::as_str).unwrap_or_default();
                (name, arguments.iter().map(|text| c_string(text.as_str())).collect::<Result<_, _>>()?)
            }
        };
        let mut environment = Vec::with_capacity(request.env.len() + 1);
        for (key, value) in &request.env {
            if key.is_empty() || key.contains('=') {
                return Err(ExecFailure::Other(format!("{key:?} is no name of an environment variable")));
            }
            if key != "HOME" || home.is_none() {
                environment.push(c_string(format!("{key}={value}"))?);
            }
        }
        if let Some(home) = home {
            environment.push(c_string([b"HOME=", home.as_slice()].concat())?);
        }
        let path = request.env.iter().rev().find(|(key, _)| key == "PATH").map(|(_, path)| path.as_str());
        let directory = if request.working_dir.is_empty() { "/" } else { request.working_dir.as_str() };
        Ok(Self {
            candidates: candidates(name, path.unwrap_or(DEFAULT_PATH))?,
            name: name.to_owned(),
            directory: c_string(directory)?,
            arguments: Pointers::new(arguments),
            environment: Pointers::new(environment),
        })
    }

    /// `argv`, valid as long as `self`.
    pub(super) fn arguments(&self) -> *const *const c_char {
        self.arguments.array.as_ptr()
    }

    /// `envp`, valid as long as `self`.
    pub(super) fn environment(&self) -> *const *const c_char {
        self.environment.array.as_ptr()
    }
}

/// POSIX.1-2024 §8.3: a name with a slash is a path; any other name is searched in each prefix of PATH, an empty
/// prefix being the current directory.
fn candidates(name: &str, path: &str) -> Result<Vec<CString>, ExecFailure> {
    if name.is_empty() {
        return Ok(Vec::new());
    }
    if name.contains('/') {
        return Ok(vec![c_string(name)?]);
    }
    path.split(':')
        .map(|prefix| match prefix {
            "" => c_string(name),
            prefix => c_string(format!("{}/{name}", prefix.trim_end_matches('/'))),
        })
        .collect()
}

fn c_string(text: impl Into<Vec<u8>>) -> Result<CString, ExecFailure> {
    CString::new(text)
        .map_err(|_| ExecFailure::Other("a string of the request contains a NUL byte".to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use guest_protocol::Stdio;

    use super::*;

    fn paths(name: &str, path: &str) -> Vec<String> {
        candidates(name, path).unwrap().into_iter().map(|path| path.into_string().unwrap()).collect()
    }

    #[test]
    fn search_path() {
        assert_eq!(paths("ls", "/bin:/usr/bin/"), ["/bin/ls", "/usr/bin/ls"]);
        assert_eq!(paths("ls", ":/bin:"), ["ls", "/bin/ls", "ls"]);
        assert_eq!(paths("./ls", "/bin"), ["./ls"]);
        assert_eq!(paths("/x/ls", "/bin"), ["/x/ls"]);
        assert_eq!(paths("ls", "/"), ["/ls"]);
        assert_eq!(paths("ls", ""), ["ls"]);
        assert_eq!(paths("", "/bin"), [""; 0]);
    }

    fn request(env: &[(&str, &str)]) -> ExecRequest {
        ExecRequest {
            program: Program::Argv(vec!["x".into()]),
            env: env.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            working_dir: String::new(),
            user: String::new(),
            stdio: Stdio::Null,
            privileged: false,
            detached: false,
            first: false,
        }
    }

    fn environment(env: &[(&str, &str)], home: Option<&str>) -> Vec<String> {
        let strings = Strings::new(&request(env), home.map(|home| home.as_bytes().to_vec())).unwrap();
        strings.environment._strings.into_iter().map(|text| text.into_string().unwrap()).collect()
    }

    #[test]
    fn home_replaces() {
        assert_eq!(environment(&[("A", "b=c"), ("HOME", "/")], Some("/home/u")), ["A=b=c", "HOME=/home/u"]);
        assert_eq!(environment(&[("HOME", "/")], None), ["HOME=/"]);
    }

    #[test]
    fn bad_strings_are_refused() {
        for env in [("", "x"), ("A=B", "x"), ("A", "x\0y"), ("A\0", "x")] {
            assert!(matches!(Strings::new(&request(&[env]), None), Err(ExecFailure::Other(_))), "{env:?}");
        }
        let mut bad = request(&[]);
        bad.working_dir = "/\0".into();
        assert!(Strings::new(&bad, None).is_err());
    }

    #[test]
    fn path_of_the_request_counts() {
        let strings = Strings::new(&request(&[("PATH", "/a:/b")]), None).unwrap();
        assert_eq!(strings.candidates, [c"/a/x".to_owned(), c"/b/x".to_owned()]);
        assert_eq!(Strings::new(&request(&[]), None).unwrap().candidates.len(), 6);
    }
}
