#!/usr/bin/env python3
"""A long run of a tiny model: what a process holds must not grow with its steps, nor a step take longer.
Usage, in the repository's root: python3 tests/soak_test.py build/release/bin/ether [--steps 20000] [--any-speed]"""
import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

from kill_test import MODELS, write_data


def resident_bytes(process):
    """Anonymous memory; pages of mapped files come and go with the system's cache."""
    for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None  # the process is ending


def steps_in(log):
    return log.read_bytes().count(b"\n") if log.exists() else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--any-speed", action="store_true", help="for machines that do other work beside")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    warm = min(1000, options.steps // 2)
    with tempfile.TemporaryDirectory(prefix="ether-soak-") as folder:
        folder = pathlib.Path(folder)
        write_data(folder / "train.csv", 200, random.Random(0))
        write_data(folder / "dev.csv", 40, random.Random(1))
        command = [options.program, "train", "--model", MODELS / "bert", "--data", folder / "train.csv", "--eval-data",
                   folder / "dev.csv", "--max-steps", options.steps, "--batch", 8, "--eval-every", 500, "--save-every", 250,
                   "--dropout", 0.1, "--out", folder / "run"]
        log, samples = folder / "run" / "metrics.jsonl", []
        with open(folder / "log", "w+b") as words:
            process = subprocess.Popen([*map(str, command)], stdout=words, stderr=words)
            while process.poll() is None:
                step = steps_in(log)
                try:
                    memory, files = resident_bytes(process.pid), len(os.listdir(f"/proc/{process.pid}/fd"))
                except FileNotFoundError:
                    break
                if step and memory:
                    samples.append((step, memory, files))
                time.sleep(0.2)
            if process.wait() != 0:
                sys.exit((folder / "log").read_text())
        lines = [json.loads(line) for line in log.read_bytes().splitlines()]

    # The least of a fifth of the samples: between two returns of freed memory a process holds some that is free.
    fifth = max(1, len(samples) // 5)
    early = [sample for sample in samples if sample[0] >= warm][:fifth]
    late = samples[-fifth:]

    def least(chosen):
        return min(sample[1] for sample in chosen)

    growth = least(late) / least(early) - 1
    # A tiny model's step is short of the clock's other customers: the median of each tenth.
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line][warm:]
    part = max(1, len(rates) // 10)
    speed = statistics.median(rates[-part:]) / statistics.median(rates[:part]) - 1
    # Without those that are open for the length of a save.
    leaked = min(sample[2] for sample in late) - min(sample[2] for sample in early)
    print(f"{options.steps} steps: {least(early) / 1e6:.1f} MB after step {warm}, {100 * growth:+.2f}% at the end; "
          f"{leaked:+} file descriptors; speed {100 * speed:+.1f}% from the first tenth to the last")
    if growth >= 0.01 or leaked > 0 or (speed < -0.03 and not options.any_speed):
        sys.exit("it grows, leaks or slows down")


if __name__ == "__main__":
    main()
