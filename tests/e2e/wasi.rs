//! The program for WASI runtimes, in an embedder of `wasmtime-wasi`, says what
//! the command says. Under Python's `wasmtime`, tests/wasi says more of it.

use std::path::Path;

use moewe_tests::{model, moewe_ok, root};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::p2::bindings::sync::Command;
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};

/// What a program has of the system.
struct System {
    ctx: WasiCtx,
    table: ResourceTable,
}

impl WasiView for System {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.ctx, table: &mut self.table }
    }
}

/// The program, compiled.
struct Program {
    engine: Engine,
    component: Component,
    linker: Linker<System>,
}

impl Program {
    fn load() -> Self {
        let path = root().join("target/moewe-wasi.wasm");
        assert!(path.exists(), "{} is missing; `cargo xtask guest` builds it", path.display());
        let engine = Engine::default();
        let component = Component::from_file(&engine, path).unwrap();
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker).unwrap();
        Self { engine, component, linker }
    }

    /// Runs it with one folder, which it may read; answers whether it succeeded,
    /// and what it wrote to the standard output and the standard error.
    fn run(&self, folder: &Path, arguments: &[&str]) -> (bool, String, String) {
        let outputs = [(); 2].map(|()| MemoryOutputPipe::new(1 << 20));
        let [stdout, stderr] = outputs.clone();
        let ctx = WasiCtx::builder()
            .arg("moewe-wasi.wasm")
            .args(arguments)
            .preopened_dir(folder, "/models", FsPerms::ReadOnly)
            .unwrap()
            .stdout(stdout)
            .stderr(stderr)
            .build();
        let system = System { ctx, table: ResourceTable::new() };
        let mut store = Store::new(&self.engine, system);
        let command = Command::instantiate(&mut store, &self.component, &self.linker).unwrap();
        let status = command.wasi_cli_run().call_run(&mut store).unwrap();
        let [stdout, stderr] =
            outputs.map(|output| String::from_utf8(output.contents().to_vec()).unwrap());
        (status.is_ok(), stdout, stderr)
    }
}

#[test]
fn the_program_in_wasmtime_wasi_says_what_the_command_says() {
    let program = Program::load();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for name in ["mixtral-q4_k_m", "qwen2moe-q8_0"] {
        std::fs::copy(model(name), &path).unwrap();
        let arguments = ["Hello there", "-n", "24", "--temp", "0"];
        let expected = moewe_ok(["run", path.to_str().unwrap()].iter().chain(&arguments));
        assert!(!expected.trim().is_empty(), "{name}");
        let arguments = [&["model.gguf"], &arguments[..]].concat();
        let (succeeded, stdout, stderr) = program.run(folder.path(), &arguments);
        assert!(succeeded && stderr.is_empty(), "{name}: {stderr}");
        assert_eq!(stdout, expected, "{name}");
    }

    std::fs::remove_file(&path).unwrap();
    let (succeeded, stdout, stderr) = program.run(folder.path(), &["model.gguf", "Hello"]);
    assert!(!succeeded && stdout.is_empty(), "{stdout}");
    assert!(stderr.starts_with("moewe: ") && stderr.lines().count() == 1, "{stderr:?}");
    assert!(["model.gguf", "/models"].iter().all(|word| stderr.contains(word)), "{stderr}");
}
