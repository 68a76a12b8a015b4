#!/usr/bin/env python3
"""Runs moewe in fresh control groups whose limit is what --memory allows.

    sudo python3 tests/memory/budgets.py target/debug/moewe MODEL.gguf...

Ten runs for each of three budgets and each model: cold, warm, with an empty cache of
compiled code, and as the 256th use of a full one. None may be killed, reach its limit,
or write another text than the rest, and the least memory that a model works with must
not depend on what was compiled before. It takes some seconds for a run of a small model
and half a minute for one of 4 GB.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

BUDGET_DIVISORS = [8, 4, 2]
N_USES = 256
FLOOR_DIFFERENCE_MAX = 5 << 20
PROMPT = "Once upon a time there was a fox who lived at the edge of a wood"
STATES = ["cold", "warm", "first"] * 3 + [f"use {N_USES}"]


class Group:
    """A fresh control group for one process, of version 1 or 2."""

    def __init__(self, name, limit):
        parent = pathlib.Path("/sys/fs/cgroup/memory")
        self.is_v1 = parent.is_dir()
        self.path = (parent if self.is_v1 else pathlib.Path("/sys/fs/cgroup")) / name
        self.path.mkdir()
        self.write("memory.limit_in_bytes" if self.is_v1 else "memory.max", limit)

    def write(self, name, value):
        (self.path / name).write_text(f"{value}\n")

    def enter(self):
        self.write("cgroup.procs", os.getpid())

    def peak(self):
        name = "memory.max_usage_in_bytes" if self.is_v1 else "memory.peak"
        return int((self.path / name).read_text())

    def n_failures(self):
        """How often the limit was reached."""
        if self.is_v1:
            return int((self.path / "memory.failcnt").read_text())
        events = (self.path / "memory.events").read_text()
        return int(re.search(r"^max (\d+)", events, re.MULTILINE).group(1))

    def remove(self):
        self.path.rmdir()


def run(args, cache, **options):
    env = {**os.environ, "MOEWE_CACHE": str(cache)}
    return subprocess.run(args, env=env, capture_output=True, text=True, **options)


def forget(*files):
    """Has the page cache forget files, as far as nobody maps them."""
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno()) if os.access(path, os.W_OK) else None
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def command(moewe, model, budget):
    return [moewe, "run", model, PROMPT, "-n", "8", "-c", "64", "-t", "2", "--temp", "0",
            "--memory", str(budget)]


def floor(moewe, model, cache):
    """The least memory that works, as the refusal of less names it."""
    refusal = run(command(moewe, model, 1 << 20), cache).stderr
    return int(re.search(r"(\d+) are the least", refusal).group(1))


def budgets(size, least):
    """Shares of the file, or what is more than the least where those are too small."""
    if size // BUDGET_DIVISORS[0] >= least:
        return [(f"1/{divisor}", size // divisor) for divisor in BUDGET_DIVISORS]
    more = [("least", 0), ("least + 1/8", size // 8), ("least + 1/2", size // 2)]
    return [(name, least + bytes) for name, bytes in more]


def files(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


def check(moewe, model, folder):
    """Answers how many runs there were, and what went wrong."""
    full, empty = folder / "full", folder / "empty"
    floors = [floor(moewe, model, cache) for cache in (full, full, empty)]
    print(f"{model}: the least is {floors[1]} bytes, with an empty cache {floors[2]}")
    faults = []
    if max(floors) - min(floors) > FLOOR_DIFFERENCE_MAX:
        faults.append(f"the least depends on what was compiled: {floors}")
    for _ in range(N_USES):
        run([moewe, "tokenize", model, "a"], full, check=True)
    texts, n = set(), 0
    size = os.path.getsize(model)
    for name, budget in budgets(size, max(floors)):
        for state in STATES:
            cache = full
            if state == "first":
                shutil.rmtree(empty, ignore_errors=True)
                cache = empty
            elif state == "cold":
                forget(model, moewe, *files(full))
            group = Group(f"moewe-budgets-{os.getpid()}-{n}", budget)
            process = run(command(moewe, model, budget), cache, preexec_fn=group.enter)
            peak, n_failures = group.peak(), group.n_failures()
            group.remove()
            n += 1
            print(f"{name:12} {state:8} {budget:>11} allowed, {peak:>11} taken, limit reached "
                  f"{n_failures} times, exit code {process.returncode}", flush=True)
            what = f"{model}, {name}, {state}"
            texts.add(process.stdout)
            if process.returncode != 0:
                faults.append(f"{what}: {process.returncode}: {process.stderr.strip()}")
            if n_failures > 0 or peak > budget:
                faults.append(f"{what}: {peak} bytes of {budget}, limit reached {n_failures} times")
    if len(texts) != 1 or "" in texts:
        faults.append(f"{model}: the texts differ: {texts}")
    return n, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("moewe", help="the command")
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    arguments = parser.parse_args()
    n, faults = 0, []
    with tempfile.TemporaryDirectory(prefix="moewe-budgets-") as folder:
        for i, model in enumerate(arguments.models):
            n_more, more = check(arguments.moewe, model, pathlib.Path(folder, str(i)))
            n, faults = n + n_more, faults + more
    print(f"{n} runs, {len(faults)} faults")
    sys.exit("\n".join(faults) or None)


if __name__ == "__main__":
    main()
