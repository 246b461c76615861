"""`ether predict` and `ether eval` beside transformers' pipeline on the same merged classifier and texts, in one run.

    .venv-oracle/bin/python bench/predict.py --model DIR --adapter RUN --data test.jsonl

The pipeline's time is that of its fastest batch size, model and tokenizer loaded beforehand, texts sorted by length;
ether's is that of its whole process. Also counts how many labels agree. Needs `make oracle`'s environment and an
otherwise idle machine.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*command):
    start = time.perf_counter()
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command[:3]))} ... failed:\n{result.stderr}")
    return time.perf_counter() - start, result.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", default="1,8,32,128")
    parser.add_argument("--ether", default=str(ROOT / "build/release/bin/ether"))
    options = parser.parse_args()
    texts = [json.loads(line)["text"] for line in open(options.data)]
    base = ["--model", options.model, "--adapter", options.adapter]
    with tempfile.TemporaryDirectory() as folder:
        merged = pathlib.Path(folder) / "merged"
        run(options.ether, "merge", *base, "--out", merged)
        predict, evaluation = [], []
        for _ in range(options.repeats):
            seconds, output = run(options.ether, "predict", *base, "--input", options.data, "--json")
            predict.append(seconds)
            evaluation.append(run(options.ether, "eval", *base, "--data", options.data)[0])
        ours = [json.loads(line)["label"] for line in output.splitlines()]

        from transformers import pipeline

        classify = pipeline("text-classification", model=str(merged), device="cpu")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        best = None
        for batch in map(int, options.batches.split(",")):
            start = time.perf_counter()
            found = classify([texts[i] for i in order], batch_size=batch, truncation=True)
            seconds = time.perf_counter() - start
            print(f"pipeline, batches of {batch:4}  {seconds:6.2f} s")
            if best is None or seconds < best:
                best = seconds
        theirs = {i: entry["label"] for i, entry in zip(order, found)}
    agree = sum(theirs[i] == label for i, label in enumerate(ours))
    for name, times in (("predict", predict), ("eval", evaluation)):
        middle = sorted(times)[len(times) // 2]
        print(f"ether {name:8} {middle:6.2f} s, {best / middle:.2f} x the pipeline's best")
    print(f"{agree} of {len(texts)} labels agree")


if __name__ == "__main__":
    main()
