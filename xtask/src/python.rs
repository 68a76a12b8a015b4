//! The tests that are written in Python, and what Python fetches for tests.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::{output, root};
use crate::{debian, process};

/// Where the package `llama-cpp-python` has llama.cpp, as the benchmark unpacks it.
const LLAMA_CPP: &str = "llama_cpp_python-0.3.36/vendor/llama.cpp";

/// An environment of its own for the tests.
pub struct Python {
    program: PathBuf,
}

impl Python {
    /// Makes the environment, unless it is there.
    pub fn new() -> Result<Self> {
        let environment = output("venv");
        // Made last.
        if !environment.join("bin/pip").exists() {
            if !can_make_environments() {
                debian::require(&["python3-venv"])
                    .context("the tests need Python 3.9 or later as `python3`, with `venv`")?;
            }
            process::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        }
        Ok(Self { program: environment.join("bin/python") })
    }

    fn pip(&self, command: &str) -> Command {
        let mut pip = Command::new(&self.program);
        pip.args(["-m", "pip", command, "--disable-pip-version-check"]);
        pip
    }

    /// The folder of llama.cpp's sources, fetched if they are missing. All that lies in it
    /// are vocabularies and chat templates.
    pub fn llama_cpp(&self) -> Result<PathBuf> {
        let folder = output("bench");
        let sources = folder.join(LLAMA_CPP);
        if sources.join("models/templates").exists() {
            return Ok(sources);
        }
        fs::create_dir_all(&folder)?;
        process::run(
            self.pip("download")
                .args(["--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes"])
                .arg("--requirement")
                .arg(root().join("tests/tokenizers/llama-cpp.txt"))
                .arg("--dest")
                .arg(&folder),
        )?;
        // Gets its name when it is complete.
        let parts = folder.join("vocabularies");
        let models = Path::new(LLAMA_CPP).join("models");
        fs::create_dir_all(&parts)?;
        process::run(
            Command::new("tar")
                .arg("xzf")
                .arg(folder.join("llama_cpp_python-0.3.36.tar.gz"))
                .arg("-C")
                .arg(&parts)
                .arg(&models),
        )?;
        fs::create_dir_all(&sources)?;
        fs::rename(parts.join(&models), sources.join("models"))?;
        fs::remove_dir_all(&parts)?;
        Ok(sources)
    }

    /// Runs the tests in a folder of `tests`, with these environment variables.
    pub fn test(&self, name: &str, variables: &[(&str, &OsStr)]) -> Result<()> {
        let tests = root().join("tests").join(name);
        let requirements = tests.join("requirements.txt");
        process::run(self.pip("install").arg("--requirement").arg(requirements))?;
        process::run(
            Command::new(&self.program)
                .args(["-B", "-m", "unittest", "discover", "--verbose", "--start-directory"])
                .arg(&tests)
                .envs(variables.iter().copied()),
        )
    }
}

fn can_make_environments() -> bool {
    let output = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    output.is_ok_and(|output| output.status.success())
}
