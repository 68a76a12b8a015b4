"""The programs for WASI runtimes, under a stock one: Python's `wasmtime`. One has 32-bit
addresses, the other 64-bit ones.

`cargo xtask test` sets everything up. The model is the file that the
environment variable MOEWE_SMOLLM2 names; MOEWE is the command `moewe`.
"""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

from wasmtime import Config, Engine, Store, WasiConfig
from wasmtime.component import Component, Linker

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = [ROOT / "target" / name for name in ["moewe-wasi.wasm", "moewe-wasi-wide.wasm"]]
GOLDEN = ROOT.parent / "shared" / "golden" / "smollm2.json"


def skip(missing):
    """Nothing may be skipped where CI is true."""
    if os.environ.get("CI") == "true":
        raise FileNotFoundError(missing)
    raise unittest.SkipTest(missing)


def setUpModule():
    global engine, narrow, wide
    if not PROGRAMS[0].exists():
        raise FileNotFoundError(f"{PROGRAMS[0]} is missing; `cargo xtask guest` builds it")
    engine = Engine(Config())
    narrow, wide = [
        Component.from_file(engine, path) if path.exists() else None for path in PROGRAMS
    ]


def both():
    """The two programs; skips the rest of a test if one is missing."""
    yield narrow
    if wide is None:
        skip(f"{PROGRAMS[1]} is missing: there was no toolchain for wasm64")
    yield wide


def exported(program, prefix):
    [name] = [name for name in program.type.exports(engine) if name.startswith(prefix)]
    return name


def run(*arguments, folders=(), program=None):
    """Runs a program, the one with 32-bit addresses if none is named; returns whether it
    succeeded, and what it wrote."""
    program = program or narrow
    stdout, stderr = bytearray(), bytearray()

    def collect(stream):
        def write(data):
            stream.extend(data)
            return len(data)

        return write

    wasi = WasiConfig()
    wasi.argv = ["moewe-wasi.wasm", *arguments]
    wasi.stdout_custom = collect(stdout)
    wasi.stderr_custom = collect(stderr)
    for folder, guest_path in folders:
        wasi.preopen_dir(str(folder), guest_path, False)
    store = Store(engine)
    store.set_wasi(wasi)
    linker = Linker(engine)
    linker.add_wasip2()
    instance = linker.instantiate(store, program)
    interface = program.get_export_index(exported(program, "wasi:cli/run@"))
    function = instance.get_func(store, program.get_export_index("run", interface))
    result = function(store)
    return result, stdout.decode(), stderr.decode()


class Shape(unittest.TestCase):
    def test_imports_wasi_only(self):
        for program in both():
            imports = list(program.type.imports(engine))
            self.assertTrue(imports)
            for name in imports:
                self.assertRegex(name, r"^wasi:")

    def test_exports_a_command_only(self):
        for program in both():
            exports = list(program.type.exports(engine))
            self.assertEqual(exports, [exported(program, "wasi:cli/run@")])


class Mistakes(unittest.TestCase):
    def assert_one_line(self, result, *words):
        status, stdout, stderr = result
        self.assertEqual((status.tag, stdout), ("err", ""))
        self.assertRegex(stderr, r"\Amoewe: [^\n]+\n\Z")
        for word in words:
            self.assertIn(word, stderr)

    def test_no_arguments(self):
        self.assert_one_line(run(), "MODEL", "--help")

    def test_no_folder(self):
        self.assert_one_line(run("none.gguf", "Hi"), "none.gguf", "opened no folder", "--dir")

    def test_no_such_file(self):
        with TemporaryDirectory() as one, TemporaryDirectory() as two:
            folders = [(one, "/one"), (two, "/two")]
            for name in ["none.gguf", "/one/none.gguf", "/elsewhere/none.gguf"]:
                self.assert_one_line(run(name, "Hi", folders=folders), name, "/one, /two")

    def test_outside_of_the_folder(self):
        with TemporaryDirectory() as outside:
            inside = Path(outside) / "inside"
            inside.mkdir()
            (Path(outside) / "secret.gguf").write_bytes(b"GGUF")
            name = "/inside/../secret.gguf"
            self.assert_one_line(run(name, "Hi", folders=[(inside, "/inside")]), name, "permit")

    def test_no_model(self):
        with TemporaryDirectory() as folder:
            (Path(folder) / "empty.gguf").touch()
            (Path(folder) / "folder.gguf").mkdir()
            for name in ["empty.gguf", "/models/folder.gguf"]:
                self.assert_one_line(run(name, "Hi", folders=[(folder, "/models")]), name)


class Text(unittest.TestCase):
    """The text is that of `moewe run`, with the model's folder as the only
    folder; in a chat it is llama.cpp's too."""

    @classmethod
    def setUpClass(cls):
        model = os.environ.get("MOEWE_SMOLLM2")
        if not model or not Path(model).exists():
            skip("MOEWE_SMOLLM2 names no file; `cargo xtask test` sets it")
        cls.model = Path(model).resolve()

    def generate(self, name, prompt, *options, program=None):
        folders = [(self.model.parent, "/models")]
        options = ["-n", "24", "--temp", "0", *options]
        status, stdout, stderr = run(name, prompt, *options, folders=folders, program=program)
        self.assertEqual((status.tag, stderr), ("ok", ""))
        return stdout

    def output_of(self, *command):
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def test_continues_a_prompt_as_the_command_does(self):
        prompt = "The capital of France is"
        arguments = [self.model, prompt, "-n", "24", "--temp", "0"]
        expected = self.output_of(os.environ["MOEWE"], "run", *arguments)
        self.assertIn("Paris", expected)
        for program in both():
            text = self.generate(self.model.name, prompt, program=program)
            self.assertEqual(text, expected)

    def test_the_example_continues_a_prompt_as_the_command_does(self):
        arguments = [self.model, "The capital of France is", "-n", "24", "--temp", "0"]
        expected = self.output_of(os.environ["MOEWE"], "run", *arguments)
        example = ROOT / "examples" / "python" / "generate.py"
        self.assertEqual(self.output_of(sys.executable, example, *arguments), expected)

    def test_answers_in_a_chat_as_llama_cpp_does(self):
        if not GOLDEN.exists():
            skip(f"the reference {GOLDEN} is absent")
        [case] = [case for case in json.loads(GOLDEN.read_text())["cases"] if "chat" in case]
        [message] = case["chat"]
        answer = self.generate(f"/models/{self.model.name}", message["content"], "--chat")
        self.assertEqual(answer, case["greedy_text"] + "\n")


if __name__ == "__main__":
    unittest.main()
