#!/usr/bin/env python3
"""Where a training step's time goes, and how far each part is from what the machine could do: two pictures.

    bench/roofline.py --model DIR [--method ether] [--batch 2] [--tokens 256] [--out docs]

Samples `ether bench train-step` with perf (cpu-clock, so that no counters are needed), sorts the samples by what they
belong to, and counts each part's floating-point operations and the bytes that it must at least move. Writes step-time.svg and roofline.svg, and
prints the table. The model is one of the Llama family, in float32; the machine should have nothing else to do.
"""

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import tempfile
import time

from train_step import ROOT, last_json

COLOURS = {"products": "#1f4e79", "attention": "#0072b2", "rows": "#d55e00", "loss": "#008f68", "rest": "#8a8a8a"}
NAMES = {"products": "base products and head", "attention": "attention",
         "rows": "between products: norms, reflections, SwiGLU, rotary", "loss": "cross entropy", "rest": "autograd, allocator, sums, waiting"}
# What a sample's symbol belongs to; the first that fits. Code that oneDNN has generated has no symbol.
SYMBOLS = [("loss", r"cross_?entropy"), ("attention", r"attention|tile_by"), ("products", r"\[JIT\]|dnnl|gemm|mkl_|multiply_panels"),
           ("rows", r"rank1|norm|swiglu|rotary|rotate|RowOp|Rows|elementwise|scale|permute|overlay|dropout")]


def shares(command):
    """{part: share of the samples of the steps}"""
    with tempfile.TemporaryDirectory(prefix="ether-roofline-") as folder:
        samples = pathlib.Path(folder) / "perf.data"
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            time.sleep(5)  # past loading and the first step
            subprocess.run(["perf", "record", "-q", "-e", "cpu-clock", "-p", str(process.pid), "-o", samples, "--", "sleep", "10"],
                           check=True, stdout=subprocess.DEVNULL)
            if process.poll() is not None:
                raise SystemExit("the steps ended before the samples did; raise --steps")
            process.kill()
        told = subprocess.run(["perf", "report", "-i", samples, "--no-children", "--stdio", "-n", "-t", "|", "--sort", "dso,symbol"],
                              check=True, capture_output=True, text=True).stdout
    found = dict.fromkeys(COLOURS, 0.0)
    for line in told.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if line.startswith("#") or len(fields) < 4 or not fields[1].isdigit():
            continue
        name = " ".join(fields[2:])
        part = next((part for part, pattern in SYMBOLS if re.search(pattern, name, re.IGNORECASE)), "rest")
        found[part] += int(fields[1])
    whole = sum(found.values())
    return {part: share / whole for part, share in found.items()}


def work(config, batch, tokens):
    """{part: (operations, bytes)} of a step: forward, and backward to the inputs. Bytes: what must at least come from memory
    or go there, where a layer's values of all tokens are more than the caches hold."""
    d, f, layers, vocabulary = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    heads, width = config["num_attention_heads"], config["head_dim"]
    kv, q, rows = config["num_key_value_heads"] * width, heads * width, batch * tokens
    layer = [(d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)]  # in, out
    sites = layer * layers + [(d, vocabulary)]
    weights = sum(a * b for a, b in sites)
    # A sequence a thread: each reads every weight twice. Each product reads its input and writes its output, both ways.
    products = (4 * weights * rows, 4 * (2 * weights * batch + 2 * rows * sum(a + b for a, b in layer * layers)))
    attention = (7 * layers * heads * width * (tokens + 1) * rows, 4 * rows * layers * (6 * q + 6 * kv))
    reflected = sum(a for a, _ in layer)
    # Forward: a reflection 4 operations a value, a norm 4, SwiGLU 8, rotary 3, a sum 1. Backward about twice, and forward again.
    values = 4 * reflected + 2 * 4 * d + 8 * f + 3 * (q + kv) + 2 * d
    # What the products wrote is read, what they read is written; backward reads both, with their gradients.
    between = 4 * rows * layers * 3 * (reflected + sum(b for _, b in layer))
    loss = (10 * rows * vocabulary, 4 * 3 * rows * vocabulary)
    return {"products": products, "attention": attention, "rows": (4 * values * layers * rows, between), "loss": loss}


def bar(found, seconds, title):
    width, left, scale = 900, 20, 860
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {112 + 22 * len(found)}" font-family="sans-serif" font-size="14">',
           f'<rect width="{width}" height="{112 + 22 * len(found)}" fill="white"/><text x="{left}" y="28" font-size="16">{title}</text>']
    x = left
    for number, (part, share) in enumerate(found.items()):
        out.append(f'<rect x="{x:.1f}" y="44" width="{share * scale:.1f}" height="36" fill="{COLOURS[part]}"/>')
        y = 110 + 22 * number
        out.append(f'<rect x="{left}" y="{y - 11}" width="12" height="12" fill="{COLOURS[part]}"/>'
                   f'<text x="{left + 20}" y="{y}">{NAMES[part]}: {100 * share:.1f}%, {1000 * share * seconds:.0f} ms</text>')
        x += share * scale
    return "\n".join(out) + "\n</svg>\n"


def roofline(points, peak, bandwidth, title):
    """points: {part: (operations a byte, operations a second)}"""
    width, height, left, right, top, bottom = 900, 520, 80, 30, 50, 60
    low_x, high_x = 0.1, 10 ** math.ceil(math.log10(max(x for x, _ in points.values())))
    low_y, high_y = 10 ** math.floor(math.log10(min(y for _, y in points.values()))), 10 ** math.ceil(math.log10(peak))

    def x(value):
        return left + math.log(value / low_x) / math.log(high_x / low_x) * (width - left - right)

    def y(value):
        return height - bottom - math.log(value / low_y) / math.log(high_y / low_y) * (height - top - bottom)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
           f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="28" font-size="16">{title}</text>']
    for power in range(round(math.log10(low_x)), round(math.log10(high_x)) + 1):
        out.append(f'<path d="M{x(10 ** power):.1f} {top}V{height - bottom}" stroke="#ddd"/>'
                   f'<text x="{x(10 ** power):.1f}" y="{height - bottom + 18}" text-anchor="middle">{10 ** power:g}</text>')
    for power in range(round(math.log10(low_y)), round(math.log10(high_y)) + 1):
        out.append(f'<path d="M{left} {y(10 ** power):.1f}H{width - right}" stroke="#ddd"/>'
                   f'<text x="{left - 8}" y="{y(10 ** power) + 4:.1f}" text-anchor="end">{10 ** power / 1e9:g}</text>')
    ridge, start = peak / bandwidth, max(low_x, low_y / bandwidth)
    out.append(f'<path d="M{x(start):.1f} {y(start * bandwidth):.1f}L{x(ridge):.1f} {y(peak):.1f}H{width - right}" fill="none" '
               f'stroke="black" stroke-width="2"/><text x="{x(ridge) + 6:.1f}" y="{y(peak) - 8:.1f}">{peak / 1e9:.0f} GFLOP/s</text>'
               f'<text x="{x(ridge / 12):.1f}" y="{y(peak / 12) - 14:.1f}" text-anchor="end">{bandwidth / 1e9:.1f} GB/s</text>')
    for part, (a, b) in points.items():
        place = f'x="{x(a) - 10:.1f}" y="{y(b) + 20:.1f}" text-anchor="end"' if x(a) > width / 2 else f'x="{x(a) + 12:.1f}" y="{y(b) + 5:.1f}"'
        out.append(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="6" fill="{COLOURS[part]}"/>'
                   f'<text {place} fill="{COLOURS[part]}">{NAMES[part]}: {b / min(peak, a * bandwidth):.2f} of the roof</text>')
    out.append(f'<text x="{(left + width) / 2}" y="{height - 14}" text-anchor="middle">operations a byte that must be moved</text>'
               f'<text transform="translate(22 {height / 2}) rotate(-90)" text-anchor="middle">GFLOP/s</text></svg>')
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--method", default="ether")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs")
    parser.add_argument("--ether", type=pathlib.Path, default=ROOT / "build/release/bin/ether")
    options = parser.parse_args()
    os.environ["OMP_WAIT_POLICY"] = "passive"
    step = [options.ether, "bench", "train-step", "--model", options.model, "--method", options.method, "--targets", "all-linear",
            "--batch", str(options.batch), "--tokens", str(options.tokens)]
    measured = last_json([*step, "--steps", "5", "--json"])
    bandwidth = last_json([options.ether, "bench", "mixed-batch", "--model", options.model, "--method", options.method, "--json"])["read_bytes_per_second"]
    found = shares([*step, "--steps", str(options.steps)])
    seconds, peak = measured["median_seconds"], measured["gemm_flops_per_second"]
    counts = work(json.loads((options.model / "config.json").read_text()), options.batch, options.tokens)
    points = {part: (operations / moved, operations / (found[part] * seconds)) for part, (operations, moved) in counts.items()}
    title = (f"a step of {options.method}, {options.batch} x {options.tokens} tokens, float32: {1000 * seconds:.0f} ms, "
             f"{measured['tokens_per_second'] / measured['gemm_limit_tokens_per_second']:.2f} of the GEMM limit")
    (options.out / "step-time.svg").write_text(bar(found, seconds, "Where the time goes: " + title))
    (options.out / "roofline.svg").write_text(roofline(points, peak, bandwidth, "Roofline: " + title))
    print(title + f"; {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s")
    for part, share in found.items():
        text = f"{NAMES[part]:55} {100 * share:5.1f}%"
        if part in points:
            a, b = points[part]
            text += f"  {a:7.1f} operations a byte, {b / 1e9:6.1f} GFLOP/s, {b / min(peak, a * bandwidth):.2f} of the roof"
        print(text)


if __name__ == "__main__":
    main()
