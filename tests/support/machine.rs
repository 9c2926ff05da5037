//! A machine that runs one of Debian's kernels: `vm`.

use std::path::Path;
use std::process::{Command, Output};

use super::pair::support;

/// One boot.
pub struct Machine {
    command: Command,
    kernel: &'static str,
}

impl Machine {
    pub fn new(kernel: &'static str) -> Machine {
        let mut command = support("vm");
        command.args(["run", "--timeout", "1200"]);
        Machine { command, kernel }
    }

    /// The command sees a copy of this file or directory in `/in`.
    pub fn input(mut self, path: impl AsRef<Path>) -> Machine {
        self.command.arg("--in").arg(path.as_ref());
        self
    }

    /// An empty filesystem, mounted at `/mnt/NAME`.
    pub fn disk(mut self, kind: &str, size: &str, name: &str) -> Machine {
        self.command.args(["--disk", &format!("{kind}:{size}={name}")]);
        self
    }

    /// More words of the kernel's command line.
    #[cfg(feature = "pretend-guard")]
    pub fn words(mut self, words: &str) -> Machine {
        self.command.args(["--append", words]);
        self
    }

    /// The filesystem in this image, mounted at `/mnt/NAME`; what is written stays in it.
    pub fn image(mut self, path: &Path, name: &str) -> Machine {
        let mut word = path.as_os_str().to_owned();
        word.push(format!("={name}"));
        self.command.arg("--disk").arg(word);
        self
    }

    /// More memory than usual, in MB, and seconds.
    pub fn large(mut self, memory: u32, seconds: u32) -> Machine {
        self.command.args(["--memory", &memory.to_string(), "--timeout", &seconds.to_string()]);
        self
    }

    /// Runs a command; nothing, and a message, if there is no such machine.
    pub fn run(mut self, words: &[&str]) -> Option<Output> {
        let output = self.command.arg(self.kernel).arg("--").args(words).output().unwrap();
        if output.status.code() == Some(3) {
            eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
            return None;
        }
        Some(output)
    }
}
