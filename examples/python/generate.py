"""Runs moewe in Python, with nothing of moewe but one file.

`python generate.py MODEL.gguf "The capital of France is"`; needs the package
`wasmtime`, and `target/moewe-wasi.wasm`, which `cargo xtask guest` builds.
"""

import sys
from pathlib import Path

from wasmtime import Engine, Store, WasiConfig
from wasmtime.component import Component, Linker

PROGRAM = Path(__file__).resolve().parents[2] / "target" / "moewe-wasi.wasm"

model, prompt, *options = sys.argv[1:]
model = Path(model).resolve()

engine = Engine()
program = Component.from_file(engine, PROGRAM)

# The sandbox sees the model's folder and nothing else.
wasi = WasiConfig()
wasi.argv = ["moewe", model.name, prompt, *options]
wasi.preopen_dir(str(model.parent), "/models", False)
wasi.inherit_stdout()
wasi.inherit_stderr()

store = Store(engine)
store.set_wasi(wasi)
linker = Linker(engine)
linker.add_wasip2()
instance = linker.instantiate(store, program)

[name] = [name for name in program.type.exports(engine) if name.startswith("wasi:cli/run@")]
run = program.get_export_index("run", program.get_export_index(name))
status = instance.get_func(store, run)(store)
sys.exit(0 if status.tag == "ok" else 1)
