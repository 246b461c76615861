"""Training steps on a GPU beside PEFT's and the algorithm that multiplies weights, on the same model, batch and targets, in one run.

    python3 bench/gpu.py [--shapes 135m,1.1b,7b] [--batch 4] [--tokens 512] [--steps 5] [--json FILE]
                         [--targets all-linear,qv] [--only "ETHER n=4,PEFT LoRA r=8"] [--device cuda] [--ether build/release/bin/ether]

Models are Llamas of random bfloat16 weights, made in a temporary folder. Every figure is the median of --steps steps after one that
warms up, in a process of its own; memory is the most that tensors took on the GPU (--device cpu: that the process took). --json appends a line a figure. Needs torch,
transformers and peft that Python finds, and a build that found the same torch (ETHER_TORCH_DIR).
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from train_step import ROOT, TARGETS, last_json, our_step, peer_step

SHAPES = {
    "135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                 vocab_size=49152, tie_word_embeddings=True),
    "1.1b": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
                 vocab_size=32000),
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
               vocab_size=32000),
    "tiny": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=512),
}
MAKE_MODEL = """
import json, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
folder, device, shape = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
torch.set_default_dtype(torch.bfloat16)
with torch.device(device):
    LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, **shape)).save_pretrained(folder)
"""
PEERS = {"PEFT LoRA r=8": ("LoraConfig", dict(r=8, lora_alpha=16)), "PEFT OFT b=32": ("OFTConfig", dict(r=0, oft_block_size=32)),
         "PEFT HRA r=8": ("HRAConfig", dict(r=8))}
OURS = {"none": ("none", []), "ETHER n=1": ("ether", ["--blocks", "1"]), "ETHER n=4": ("ether", []), "ETHER n=32": ("ether", ["--blocks", "32"]),
        "ETHER+ n=1": ("ether+", ["--blocks", "1"]), "ETHER+ n=4": ("ether+", []), "ETHER+ n=32": ("ether+", ["--blocks", "32"]), "LoRA r=8": ("lora", [])}
WEIGHTS = {"ETHER n=4 by weights": ("ether", "4"), "ETHER n=1 by weights": ("ether", "1"), "ETHER+ n=1 by weights": ("ether+", "1")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="135m,1.1b,7b")
    parser.add_argument("--targets", default="all-linear,qv")
    parser.add_argument("--only", help="names of what is run, with commas between")
    parser.add_argument("--batch", default="4")
    parser.add_argument("--tokens", default="512")
    parser.add_argument("--steps", default="5")
    parser.add_argument("--dtype", default="bf16", choices=["f32", "bf16"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--ether", default=str(ROOT / "build/release/bin/ether"))
    options = parser.parse_args()
    sizes = [options.batch, options.tokens, options.steps]
    for shape in options.shapes.split(","):
        with tempfile.TemporaryDirectory() as model:
            subprocess.run([sys.executable, "-c", MAKE_MODEL, model, options.device, json.dumps(SHAPES[shape])], check=True)
            for choice in options.targets.split(","):
                targets = TARGETS if choice == "all-linear" else "q_proj,v_proj"
                measure(model, shape, targets, sizes, options)


def measure(model, shape, targets, sizes, options):
    modules = {"target_modules": targets.split(",")}
    runs = {name: lambda kind=kind, own=own: peer_step(model, options.dtype, sizes, kind, own | modules, options.device)
            for name, (kind, own) in PEERS.items()}
    runs |= {name: lambda method=method, own=own: our_step(options.ether, model, options.dtype, sizes, method,
                                                           ["--targets", targets, *own], options.device)
             for name, (method, own) in OURS.items()}
    runs |= {name: lambda kind=kind, blocks=blocks: last_json(
        [sys.executable, str(ROOT / "bench/ether_weights.py"), model, options.dtype, *sizes, kind, blocks, options.device, targets])
        for name, (kind, blocks) in WEIGHTS.items()}
    if options.only:
        runs = {name: runs[name] for name in options.only.split(",")}
    yardstick = None
    for name, run in runs.items():
        try:
            row = run()
        except SystemExit as failed:  # too large for the GPU, say
            print(f"{shape} {name}: failed: {str(failed).strip().splitlines()[-1]}", flush=True)
            continue
        yardstick = yardstick or row
        memory = "peak_device_bytes" if row["peak_device_bytes"] else "peak_rss_bytes"
        limit = row.get("gemm_limit_tokens_per_second")
        print(f"{shape} {'all linear' if targets == TARGETS else 'q, v':10} {name:22} {row['tokens_per_second']:9.0f} tok/s "
              f"{row[memory] / 1e9:6.2f} GB  {row['tokens_per_second'] / yardstick['tokens_per_second']:.2f} x the first, "
              f"{row[memory] / yardstick[memory]:.2f} of its memory" + (f", {row['tokens_per_second'] / limit:.2f} of the GEMM limit" if limit else ""),
              flush=True)
        if options.json:
            with options.json.open("a") as out:
                out.write(json.dumps({"shape": shape, "targets": targets, "name": name, "dtype": options.dtype, "sizes": sizes} | row) + "\n")


if __name__ == "__main__":
    main()
