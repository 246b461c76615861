#!/usr/bin/env python3
"""How long a run takes to begin, and a merge to write, on a model of SmolLM-135M's shape with random weights.

    bench/start_and_merge.py MODEL [--times 7]

MODEL is a folder with a tokenizer (any; the texts have a few words). Begin: from the process's start to the checkpoint that stands before
step 1, beside `ether --version`, which loads libtorch and does nothing. Merge: what `ether merge --json` says about its writing, beside `cp`
and `sync -d` of the same file in the same folder. Medians; the files are in the page cache.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def seconds(command):
    start = time.monotonic()
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return time.monotonic() - start


def begin(ether, model, data, out):
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    process = subprocess.Popen([str(word) for word in (ether, "train", "--model", model, "--task", "causal-lm", "--data", data, "--method", "ether", "--batch", 1,
                                                       "--max-length", 16, "--max-steps", 1, "--out", out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / "checkpoints/step-000000000").exists():
        time.sleep(0.001)
    found = time.monotonic() - start
    if process.wait():
        raise SystemExit("ether train failed")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--ether", default=str(ROOT / "build/release/bin/ether"))
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    median = lambda measure: statistics.median(measure() for _ in range(options.times))  # noqa: E731
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        folder = pathlib.Path(folder)
        data = folder / "data.jsonl"
        data.write_text('{"text": "a few words"}\n' * 4)
        run = folder / "run"
        begin(options.ether, options.model, data, run)  # warms the page cache
        load = median(lambda: seconds([options.ether, "--version"]))
        first = median(lambda: begin(options.ether, options.model, data, run))
        source, copy, merged = options.model / "model.safetensors", folder / "copy", folder / "merged"

        def copied():
            copy.unlink(missing_ok=True)
            return seconds(["sh", "-c", f"cp '{source}' '{copy}' && sync -d '{copy}'"])

        def written():
            shutil.rmtree(merged, ignore_errors=True)
            done = subprocess.run([options.ether, "merge", "--model", options.model, "--adapter", run, "--out", merged, "--json"],
                                  check=True, capture_output=True, text=True)
            return json.loads(done.stdout)["write_seconds"]

        copying, merging = median(copied), median(written)
    print(json.dumps({"libtorch_load_seconds": round(load, 3), "begin_of_step_1_seconds": round(first, 3), "of_which_ours": round(first - load, 3),
                      "cp_and_sync_seconds": round(copying, 3), "merge_write_seconds": round(merging, 3), "merge_of_cp": round(copying / merging, 2)}))


if __name__ == "__main__":
    main()
