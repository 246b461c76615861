"""Today's ratios to the peers beside the committed ones; fails where one is more than 10% worse. `make bench` runs it.

    .venv-oracle/bin/python bench/check.py [--update] [--rounds N]

On the 135M Llama shape (random weights, float32, 2 x 256, all linear layers): speed and peak memory of a training step beside PEFT's LoRA
r = 8, the share of the machine's GEMM limit, and the time of a forward pass with another adapter in each of 128 rows beside the base
model's. bench/results/ratios.json holds the committed ones by kind of machine (its vectors and cores), since ratios differ between these;
--update writes today's there. Needs `make oracle`'s environment and an otherwise idle machine; some seven minutes on two cores,
for each round; a ratio is the median of its rounds.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from train_step import MAKE_MODEL, ROOT, last_json, our_step, peer_step

RATIOS = ROOT / "bench/results/ratios.json"
STEPS = ["2", "256", "5"]
METHODS = ("none", "ether", "ether+", "lora")
STEPS_OF = {method: (method, []) for method in METHODS} | {"ether+ --memory low": ("ether+", ["--memory", "low"])}
WORST = 0.9


def machine():
    flags = pathlib.Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    vectors = next((name for name in ("avx512_bf16", "avx512f", "avx2") if name in flags), "other")
    return f"{vectors}, {len(os.sched_getaffinity(0))} cores"


def measure(ether, model):
    """Ratios by name, and whether more is better. The peer's step is measured before every second one of ours and in
    the end, since a machine's speed may move within minutes."""
    peers, steps = [], {}
    for i, (name, (method, options)) in enumerate(STEPS_OF.items()):
        if i % 2 == 0:
            peers.append(peer_step(model, "f32", STEPS))
        print(f"  measuring {name}", file=sys.stderr, flush=True)
        steps[name] = our_step(ether, model, "f32", STEPS, method, options)
    peers.append(peer_step(model, "f32", STEPS))
    peer = {key: statistics.median(each[key] for each in peers) for key in ("tokens_per_second", "peak_rss_bytes")}
    for name, ours in steps.items():
        yield f"{name}: speed, of PEFT LoRA's", ours["tokens_per_second"] / peer["tokens_per_second"], True
        yield f"{name}: share of the GEMM limit", ours["tokens_per_second"] / ours["gemm_limit_tokens_per_second"], True
        yield f"{name}: memory, of PEFT LoRA's", ours["peak_rss_bytes"] / peer["peak_rss_bytes"], False
    for method in METHODS[1:]:
        mixed = last_json([ether, "bench", "mixed-batch", "--model", model, "--method", method, "--json"])
        yield f"{method}: 128 adapters in a batch, of the base's time", mixed["mixed_seconds"] / mixed["base_seconds"], False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ether", default=str(ROOT / "build/release/bin/ether"))
    options = parser.parse_args()
    kind = machine()
    all_ratios = json.loads(RATIOS.read_text()) if RATIOS.exists() else {}
    committed, today, fallen = all_ratios.get(kind, {}), {}, []
    with tempfile.TemporaryDirectory() as model:
        subprocess.run([sys.executable, "-c", MAKE_MODEL, model], check=True, capture_output=True)
        rounds = [list(measure(options.ether, model)) for _ in range(options.rounds)]
        print(f"{kind}\n{'':58} today  committed")
        for row in zip(*rounds):
            (name, _, more_is_better), ratio = row[0], statistics.median(ratio for _, ratio, _ in row)
            today[name] = round(ratio, 3)
            known = committed.get(name)
            worse = known is not None and (ratio < WORST * known if more_is_better else ratio > known / WORST)
            print(f"{name:58} {ratio:5.2f}  {'' if known is None else f'{known:5.2f}'}{'  WORSE' if worse else ''}")
            if worse:
                fallen.append(name)
    if options.update:
        all_ratios[kind] = today
        RATIOS.write_text(json.dumps(all_ratios, indent=1) + "\n")
    elif not committed:
        sys.exit(f"nothing to compare with: {RATIOS.relative_to(ROOT)} has no ratios of such a machine; --update writes these there")
    elif fallen:
        sys.exit(f"more than 10% worse than committed: {', '.join(fallen)}")


if __name__ == "__main__":
    main()
