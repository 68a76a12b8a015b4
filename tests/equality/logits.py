#!/usr/bin/env python3
"""Shows that models say the same to the bit, whatever way they run.

    python3 tests/equality/logits.py target/debug/moewe shared/golden [MODEL.gguf...]
    python3 tests/equality/logits.py target/debug/moewe --old OLD/moewe shared/golden

Runs `moewe logits` for every model of the folder, which has the tokens as well: the file
as it is and packed, the weights attached and read, without a budget, with the least
memory that works and with half of the experts more, on one thread and several, in the
guest with 32-bit addresses and in the one with 64-bit ones, for each format of the KV cache.
It prints the SHA-256 of each array, and of all. All of a model and a format must be equal,
and with two programs those of both, packed files included. What the older program, or the
only one, refuses is left out; one that does not know an option is compared without it.
"""

import argparse
import functools
import hashlib
import itertools
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

# More than a chunk of the KV cache, so that attention goes through two.
N_TOKENS = 80
PACKED_FILE = "packed file"
THREADS = ["1", "2", "3"]
GUESTS = ["32", "64"]
# Of programs that let nobody choose.
ONLY_GUEST, ONLY_KV = ["32"], ["f32"]
KV_FORMATS = ["f16", "f32", "q8_0"]


class Refused(Exception):
    """What the program says in place of an answer."""


def call(moewe, *args):
    process = subprocess.run([moewe, *args], capture_output=True, text=True)
    if process.returncode != 0:
        raise Refused(process.stderr.strip() or f"exit code {process.returncode}")
    return process.stdout


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def half_of_experts(moewe, model):
    plan = json.loads(call(moewe, "plan", "--json", model))
    return plan["n_experts"] * plan["expert_bytes"] // 2


def logits(moewe, model, tokens, folder, more=None, *options):
    """The SHA-256 of the logits, with `more` memory than the least that works."""
    out = folder / "logits.npy"
    args = ["logits", model, "--tokens", tokens, "--out", out, *options]
    if more is None:
        call(moewe, *args)
        return sha256(out)
    budget = 1 << 20
    while True:
        try:
            call(moewe, *args, "--memory", str(budget))
            return sha256(out)
        except Refused as refused:
            # The least is a matter of what the process takes, so it may change.
            least = re.search(r"(\d+) are the least", str(refused))
            if least is None or int(least.group(1)) + more <= budget:
                raise
            budget = int(least.group(1)) + more


def pack(moewe, model, folder):
    """A packed copy, or none if the model has nothing to pack."""
    packed = folder / "model.packed.gguf"
    try:
        call(moewe, "pack", model, "--force", "--out", packed)
    except Refused as refused:
        if "nothing to pack" not in str(refused):
            raise
        return None
    return packed


def choices(programs, option, values, only):
    """What all of the programs can do."""
    return values if all_know(programs, option) else only


@functools.cache
def knows(program, option):
    return option in call(program, "logits", "--help")


def all_know(programs, option):
    return all(knows(program, option) for program in programs)


def chosen(moewe, option, value):
    return [option, value] if knows(moewe, option) else []


def sums(moewe, model, tokens, folder, guests, kv_formats):
    """Each way to run `model`, and the SHA-256 of what comes out."""
    # Memory, and whether weights are attached: a budget wants them to be.
    modes = {"attach": (None, "attach"), "read": (None, "read")}
    half = half_of_experts(moewe, model)
    if half > 0:
        modes |= {"least memory": (0, "attach"), "half of experts": (half, "attach")}
    files = {"as it is": model}
    if packed := pack(moewe, model, folder):
        files["packed"] = packed
        yield PACKED_FILE, sha256(packed)
    ways = itertools.product(kv_formats, guests, files, modes, THREADS)
    for kv, guest, file, mode, threads in ways:
        more, weights = modes[mode]
        options = ["-t", threads, "--weights", weights, *chosen(moewe, "--kv", kv)]
        options += chosen(moewe, "--guest", guest)
        sum = logits(moewe, files[file], tokens, folder, more, *options)
        yield f"{kv:4}  {guest} bits  {file:8}  {mode:15}  {threads} threads", sum


def check(programs, model, tokens, folder, total, guests, kv_formats):
    """Prints and adds up the sums; answers how many there are, and what is wrong."""
    try:
        logits(programs[0], model, tokens, folder)
    except Refused as refused:
        print(f"{model.name}: left out: {refused}", flush=True)
        return 0, []
    found = []
    for program in programs:
        try:
            found.append(dict(sums(program, model, tokens, folder, guests, kv_formats)))
        except Refused as refused:
            return 0, [f"{model.name}: {program}: {refused}"]
    for way, sum in found[-1].items():
        print(f"{model.name:26}  {way:52}  {sum}", flush=True)
        total.update(sum.encode())
    faults = []
    for way in sorted(found[0].keys() | found[-1].keys()):
        if found[0].get(way) != found[-1].get(way):
            faults.append(f"{model.name}: {way}: the programs differ")
    for ways in found:
        for kv in kv_formats:
            if len({sum for way, sum in ways.items() if way.startswith(kv)}) != 1:
                faults.append(f"{model.name}: the ways to run it with {kv} differ")
    return len(found[-1]), faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("moewe", help="the command")
    parser.add_argument("--old", help="an older command to compare it with")
    parser.add_argument("golden", type=pathlib.Path, help="a folder of models and tokens")
    parser.add_argument("models", nargs="*", type=pathlib.Path, metavar="MODEL.gguf")
    parser.add_argument("--kv", nargs="+", default=KV_FORMATS, help="formats of the KV cache")
    arguments = parser.parse_args()
    programs = [arguments.old, arguments.moewe] if arguments.old else [arguments.moewe]
    models = sorted(arguments.golden.glob("*.gguf")) + arguments.models
    guests = choices(programs, "--guest", GUESTS, ONLY_GUEST)
    kv_formats = choices(programs, "--kv", arguments.kv, ONLY_KV)
    n, faults, total, start = 0, [], hashlib.sha256(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="moewe-equality-") as name:
        folder = pathlib.Path(name)
        tokens = folder / "tokens.json"
        ids = json.loads((arguments.golden / "tokens600.json").read_text())["ids"]
        tokens.write_text(json.dumps({"ids": ids[:N_TOKENS]}))
        for model in models:
            n_more, more = check(
                programs, model, tokens, folder, total, guests, kv_formats
            )
            n, faults = n + n_more, faults + more
    if n == 0:
        faults.append("no model ran")
    print(f"{n} sums, {len(faults)} faults, {time.monotonic() - start:.0f} s; of all: "
          f"{total.hexdigest()}")
    sys.exit("\n".join(faults) or None)


if __name__ == "__main__":
    main()
