//! llama.cpp, built from the sources that the Python package
//! `llama-cpp-python` brings along.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use moewe_models::{Bar, IndexFile};

use crate::process;

const SOURCE: IndexFile<'static> = IndexFile {
    project: "llama-cpp-python",
    file: "llama_cpp_python-0.3.36.tar.gz",
    size_bytes: 76_589_250,
    sha256: "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
};
/// Where it comes from.
pub const VERSION: &str = "llama-cpp-python 0.3.36";
const FOLDER: &str = "llama_cpp_python-0.3.36/vendor/llama.cpp";
const CMAKE: &str = "cmake==4.4.4";
const PROGRAMS: [&str; 3] = ["llama-bench", "llama-completion", "llama-quantize"];

/// The programs of llama.cpp.
pub struct LlamaCpp {
    folder: PathBuf,
}

impl LlamaCpp {
    /// A build that is there already.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let folder = [folder.to_owned(), folder.join("bin")]
            .into_iter()
            .find(|folder| PROGRAMS.iter().all(|name| program(folder, name).exists()))
            .with_context(|| format!("{} lacks one of {PROGRAMS:?}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Builds it in `folder`, unless it is there.
    pub fn build(folder: &Path) -> Result<Self> {
        let build = folder.join("llama.cpp");
        if let Ok(built) = Self::in_folder(&build) {
            return Ok(built);
        }
        fs::create_dir_all(folder)?;
        let archive = moewe_models::fetch_from_index(&SOURCE, folder, &mut Bar::new())?;
        run(Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(folder))?;
        let cmake = cmake(folder)?;
        // There are machines that promise AMX and fault when it is used.
        let amx = match cfg!(target_arch = "x86_64") {
            true => "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16",
            false => "",
        };
        let mut configure = Command::new(&cmake);
        configure.arg("-S").arg(folder.join(FOLDER)).arg("-B").arg(&build);
        configure.args(["GGML_NATIVE", "BUILD_SHARED_LIBS"].map(|name| format!("-D{name}=ON")));
        configure.args(["COMMON", "TOOLS"].map(|name| format!("-DLLAMA_BUILD_{name}=ON")));
        configure.args(
            ["CURL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_SERVER"]
                .map(|name| format!("-DLLAMA_{name}=OFF")),
        );
        configure.arg("-DCMAKE_BUILD_TYPE=Release");
        configure.args(["C", "CXX"].map(|language| format!("-DCMAKE_{language}_FLAGS={amx}")));
        run(&mut configure)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        run(Command::new(&cmake)
            .arg("--build")
            .arg(&build)
            .args(["--config", "Release", "--parallel", &cores, "--target"])
            .args(PROGRAMS))?;
        Self::in_folder(&build)
    }

    /// A command that starts one of its programs.
    pub fn command(&self, name: &str) -> Command {
        Command::new(program(&self.folder, name))
    }

    /// Writes the model `from` in another quantisation to `to`.
    pub fn quantize(&self, from: &Path, to: &Path, quantization: &str) -> Result<()> {
        let part = to.with_extension("gguf.part");
        let mut quantize = self.command("llama-quantize");
        quantize.arg("--allow-requantize").arg(from).arg(&part).arg(quantization);
        process::output(&mut quantize)?;
        Ok(fs::rename(part, to)?)
    }
}

/// The file names of programs on this platform.
fn program(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).with_extension(std::env::consts::EXE_EXTENSION)
}

/// The program `cmake`; from the Python package index if it is missing.
fn cmake(folder: &Path) -> Result<PathBuf> {
    if process::output(Command::new("cmake").arg("--version")).is_ok() {
        return Ok("cmake".into());
    }
    let environment = folder.join("venv");
    let cmake = environment.join("bin/cmake");
    if !cmake.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&environment))
            .context("there is no cmake, and no Python that could fetch it")?;
        run(Command::new(environment.join("bin/python")).args(["-m", "pip", "install", CMAKE]))?;
    }
    Ok(cmake)
}

/// Runs `command`, and shows what it prints on stderr.
fn run(command: &mut Command) -> Result<()> {
    let line = process::line(command);
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("{line} does not start"))?;
    ensure!(status.success(), "{line} failed ({status})");
    Ok(())
}
