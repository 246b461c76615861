#!/usr/bin/env python3
"""The same seed, machine and threads give the same bits, wherever buffers lie: trains each method on each task again and
again, with the heap's blocks and the model file's tensors moved, and compares the adapters. Then says by how much another
number of threads changes them.
Usage, in the repository's root: python3 tests/determinism_test.py build/release/bin/ether [--runs 20] [--model DIR]"""
import argparse
import json
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile

from kill_test import MODELS, write_data
from program import preload, read_tensors

TASKS = {"classify": "bert", "regression": "bert", "causal-lm": "llama_tied"}  # regression: to classify by real numbers
# Defaults that are too large for the fixtures.
SMALL = {"oft": "--block-size 8", "naive": "--blocks 4", "vblora": "--vector-length 4 --num-vectors 16", "fourierft": "--n-frequency 64",
         "waveft": "--n-frequency 64", "miss": "--rank 8", "c3a": "--block-size 4", "road": "--group-size 8", "shira": "--rank 4",
         "pafi": "--budget 0.1", "id3": "--budget 0.1", "trainable-tokens": "--token-indices 34,43,17,9,13,22,30,12"}
LACKING = {("causal-lm", "head"), ("causal-lm", "bitfit"), ("causal-lm", "hiwi"),
           ("causal-lm", "unipelt")}  # a head of its own, biases; gates are for classification


def copy_with_header_room(model, to, room):
    """The same model whose tensors lie `room` bytes further in their file, a multiple of 8."""
    shutil.copytree(model, to)
    path = to / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes((size + room).to_bytes(8, "little") + data[8 : 8 + size] + b" " * room + data[8 + size :])


def values(path):
    """All of an adapter's trained values; places are integers."""
    tensors = read_tensors(path).values()
    return [value for dtype, _, data in tensors if dtype == "F32" for value in struct.unpack(f"<{len(data) // 4}f", data)]


class Trainings:
    def __init__(self, program, folder, steps, model):
        self.program, self.folder, self.steps, self.model, self.shifts = program, folder, steps, model, preload(program, "shifted_memory")
        data = folder / "train.csv"
        write_data(data, 61, random.Random(0))
        (folder / "real.csv").write_text(re.sub(r"(?m)(\d)$", r"\1.5", data.read_text()))

    def train(self, task, method, number, threads=2):
        """One run's adapter file, with everything moved but in run 0."""
        out, copy = self.folder / "run", self.folder / "model"
        for old in (out, copy):
            shutil.rmtree(old, ignore_errors=True)
        copy_with_header_room(self.model or MODELS / TASKS[task], copy, 8 * (number % 8))
        data, name = ("real.csv", "classify") if task == "regression" else ("train.csv", task)
        command = [self.program, "train", "--model", copy, "--task", name, "--data", self.folder / data, "--method", method,
                   *([] if self.model else SMALL.get(method, "").split()), "--max-steps", self.steps, "--batch", 8, "--threads", threads, "--out", out]
        shifted = {"LD_PRELOAD": str(self.shifts), "SHIFT": str(number)} if number else {}
        done = subprocess.run([*map(str, command)], env={**os.environ, **shifted}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return out / "adapter_model.safetensors"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--methods", nargs="+", help="these alone; else all")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--model", type=pathlib.Path, help="a BERT of real size, for --task classify alone")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    tasks = ["classify"] if options.model else options.tasks
    inspected = subprocess.run([options.program, "inspect", MODELS / "bert", "--json"], capture_output=True, check=True)
    methods = options.methods or list(json.loads(inspected.stdout)["methods"])
    for task in tasks:
        for method in methods:
            if (task, method) in LACKING:
                continue
            with tempfile.TemporaryDirectory(prefix="ether-determinism-") as folder:
                trainings = Trainings(os.path.abspath(options.program), pathlib.Path(folder), options.steps, options.model)
                first = trainings.train(task, method, 0).read_bytes()
                for number in range(1, options.runs):
                    if trainings.train(task, method, number).read_bytes() != first:
                        sys.exit(f"{task}, {method}: run {number} differs from the first")
                two = values(trainings.train(task, method, 0))
                one = values(trainings.train(task, method, 0, threads=1))
            difference = max(abs(a - b) for a, b in zip(one, two))
            print(f"{task:10} {method:9} {options.runs} runs of {options.steps} steps agree to the bit; one thread instead of two moves "
                  f"values by at most {difference:.1g} (largest value {max(map(abs, two)):.2g})", flush=True)


if __name__ == "__main__":
    main()
