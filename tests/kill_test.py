#!/usr/bin/env python3
"""Kills training runs with SIGKILL at random moments, resumes them to their end, and compares every file with that of a
run that was left alone: no kill may change a bit of the result.
Usage, in the repository's root: python3 tests/kill_test.py build/release/bin/ether [--tries 100] [--seed 0] [--without VARIANT]
[--shift]"""
import argparse
import collections
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from program import preload

MODELS = pathlib.Path("tests/fixtures/models")
COMMON = "--save-every 3 --threads 2".split()
ETHER = "--method ether+ --dropout 0.1".split()  # where a variant names no method
VARIANTS = {
    "plain": "--model bert --max-steps 25 --batch 4",
    "accumulate": "--model bert --max-steps 25 --batch 2 --accumulate 3 --eval-data --eval-every 4",
    "two epochs in buckets": "--model roberta --epochs 2 --batch 4 --eval-data",
    "bf16": "--model bert --max-steps 25 --batch 4 --dtype bf16 --eval-data --eval-every 5",
    "early stopping": "--model bert --max-steps 60 --batch 4 --eval-data --eval-every 3 --patience 3 --lr 0.05",
    # Whose configuration changes as it trains, so that a better adapter replaces all files of the one before.
    "adalora": "--model bert --method adalora --max-steps 60 --batch 8 --eval-data --eval-every 2 --lr 0.03 --head-lr 0.01 --schedule constant",
    "causal language model": "--model llama_tied --task causal-lm --max-steps 25 --batch 4 --eval-data --eval-every 5",
}
# Which moment a kill aims at; "any" includes the program's start and end.
AIMS = ["any", "training", "checkpoint", "adapter", "evaluation", "first step"]


def write_data(path, rows, chance):
    lines = ["text,label"]
    for _ in range(rows):
        words = [chance.randrange(4, 48) for _ in range(chance.randint(1, 12))]
        lines.append(" ".join(f"w{word}" for word in words) + f",{words[0] % 3}")
    path.write_text("\n".join(lines) + "\n")


def contents(run):
    """Every file of a run that must not depend on kills, without the time that things took."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or name == ".lock" or name.endswith(".html"):  # the page shows the run's time and place
            continue
        data = path.read_bytes()
        if name == "metrics.jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            data = [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines]
        elif name.endswith("state.json"):
            # Logs hold times, and the hash is of their lengths, too.
            data = {k: v for k, v in json.loads(data).items() if k not in ("logs", "state_hash")}
        elif name == "run.toml":
            data = [line for line in data.splitlines() if not line.startswith(b"out =")]
        elif "tfevents" in name:
            data = len(data)  # of fixed width, but for times
        found[name] = data
    return found


def lines_of(log):
    """Those that are complete."""
    return [json.loads(line) for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def evaluates(log):
    """Whether the run has told of a step, and not yet of the evaluation that follows."""
    lines = lines_of(log)
    rhythm = {line["step"] for line in lines if "eval" in line}
    return bool(rhythm and "eval" not in lines[-1] and lines[-1]["step"] % min(rhythm) == 0)


class Killer:
    def __init__(self, program, folder, chance, shifts=None):
        self.program, self.folder, self.chance, self.shifts = program, folder, chance, shifts
        self.references, self.durations, self.hits = {}, {}, collections.Counter()
        write_data(folder / "train.csv", 61, chance)
        write_data(folder / "dev.csv", 20, chance)

    def command(self, variant, out):
        if (out / "run.toml").exists():
            return [self.program, "train", "--resume", out]
        words = [word if word != "--eval-data" else f"--eval-data={self.folder / 'dev.csv'}" for word in VARIANTS[variant].split()]
        words[1] = MODELS / words[1]
        method = [] if "--method" in words else ETHER
        return [self.program, "train", *words, *method, *COMMON, "--data", self.folder / "train.csv", "--out", out]

    def start(self, variant, out, log, shifted=True):
        environment = dict(os.environ)
        if self.shifts and shifted:
            environment |= {"LD_PRELOAD": str(self.shifts), "SHIFT": str(self.chance.randrange(1000))}
        return subprocess.Popen([*map(str, self.command(variant, out))], stdout=log, stderr=log, env=environment)

    def reference(self, variant):
        if variant not in self.references:
            out = self.folder / "undisturbed" / variant.replace(" ", "-")
            begin = time.monotonic()
            with open(self.folder / "log", "w+b") as log:
                assert self.start(variant, out, log, shifted=False).wait() == 0, (self.folder / "log").read_text()
            self.durations[variant] = time.monotonic() - begin
            self.references[variant] = contents(out)
        return self.references[variant]

    def wait_for_aim(self, process, aim, out, duration):
        """Returns when the process is where it is to be killed, or has ended."""
        written = out / "checkpoints" if aim == "checkpoint" else out

        def half_written():
            try:
                return any(".tmp-" in entry.name for entry in os.scandir(written))
            except FileNotFoundError:
                return False

        def until(reached):
            while process.poll() is None and not reached():
                time.sleep(0.0001)

        deadline = time.monotonic() + self.chance.uniform(0, duration)
        if aim == "any":
            until(lambda: time.monotonic() > deadline)
            return
        log = out / "metrics.jsonl"
        before = log.stat().st_size if log.exists() else -1
        until(lambda: log.exists() and log.stat().st_size != before)  # made, or cut to the checkpoint's length
        if aim == "first step":
            until(lambda: (out / "run.toml").exists())
            time.sleep(self.chance.uniform(0, 0.01))
            return
        deadline = time.monotonic() + self.chance.uniform(0, duration / 2)
        if aim == "training":
            until(lambda: time.monotonic() > deadline)
            return
        if aim == "evaluation":
            until(lambda: time.monotonic() > deadline)
            until(lambda: evaluates(log))
            time.sleep(self.chance.choice([0, self.chance.uniform(0, 0.002)]))
            return
        for _ in range(self.chance.randint(0, 3)):
            until(half_written)
            until(lambda: not half_written())
        until(half_written)
        time.sleep(self.chance.choice([0, 0, self.chance.uniform(0, 0.005)]))

    def attempt(self, number, variant):
        """One run, killed one to four times; returns what differs from the undisturbed one, or nothing."""
        expected = self.reference(variant)
        out = self.folder / f"run-{number}"
        story = []
        for kills_left in range(self.chance.randint(1, 4), -1, -1):
            aim = self.chance.choice(AIMS) if kills_left else "the end"
            with open(self.folder / "log", "w+b") as log:
                process = self.start(variant, out, log)
                if kills_left:
                    self.wait_for_aim(process, aim, out, self.durations[variant])
                    process.kill()
                code = process.wait()
            story.append(aim)
            if code == 0:
                break
            if code != -9:
                return f"killed at {', '.join(story[:-1])}; then: {(self.folder / 'log').read_text().strip()[-500:]}"
            self.hits[self.state_of(out)] += 1
        found = contents(out)
        different = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
        if different:
            return f"killed at {', '.join(story[:-1])}; these files differ: {', '.join(different)}"
        subprocess.run(["rm", "-r", out], check=True)
        return None

    def state_of(self, out):
        """In what state a kill left the folder."""
        if not (out / "run.toml").exists():
            return "before the run had its run.toml"
        if any(".tmp-" in path.name for path in (out / "checkpoints").iterdir()):
            return "in the middle of a checkpoint"
        if any(".tmp-" in path.name for path in out.iterdir()):
            return "in the middle of an adapter or another file"
        if evaluates(out / "metrics.jsonl"):
            return "in the middle of an evaluation"
        steps = [line["step"] for line in lines_of(out / "metrics.jsonl")]
        newest = max(int(path.name[5:]) for path in (out / "checkpoints").iterdir())
        return "between steps after the last checkpoint" if steps and steps[-1] > newest else "at a checkpoint or a start"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", choices=VARIANTS, action="append", default=[])
    parser.add_argument("--shift", action="store_true", help="each process has its buffers elsewhere")
    options = parser.parse_args()
    variants = [name for name in VARIANTS if name not in options.without]
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ether-kill-") as folder:
        killer = Killer(os.path.abspath(options.program), pathlib.Path(folder), random.Random(options.seed),
                        preload(options.program, "shifted_memory") if options.shift else None)
        for number in range(options.tries):
            variant = variants[number % len(variants)]
            if problem := killer.attempt(number, variant):
                print(f"try {number}, {variant}: {problem}")
                sys.exit(1)
    kills = sum(killer.hits.values())
    print(f"{options.tries} runs killed {kills} times ended as if never killed, in {time.monotonic() - begin:.0f} s; kills came:")
    for state, count in killer.hits.most_common():
        print(f"{count:6} {state}")


if __name__ == "__main__":
    main()
