"""A training step of every method beside PEFT's own, on the same model, batch and targets, in one run; a table of ratios.

    .venv-oracle/bin/python bench/methods_step.py [--methods lora,hra] [--batch 2] [--tokens 256] [--steps 3] [--json FILE]

The model has SmolLM-135M's shape and random weights; all seven linear layers of each block are adapted, in float32. Every figure
is the median of --steps steps after one that warms up, in a process of its own; ours and PEFT's of a method follow each other,
and our LoRA and ETHER, to which all are compared as well, are measured first and last. Needs `make oracle`'s environment and an
otherwise idle machine with 20 GB. --json appends a line a method, and those that are there already are not measured again.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from train_step import MAKE_MODEL, ROOT, our_step, peer_step

# PEFT's configuration, and our options for the same adapter.
PEERS = {
    "lora": ("LoraConfig", dict(r=8, lora_alpha=16), []),
    "lora --dora": ("LoraConfig", dict(r=8, lora_alpha=16, use_dora=True), ["--dora"]),
    "hra": ("HRAConfig", dict(r=8), []),
    "oft": ("OFTConfig", dict(r=0, oft_block_size=32), []),
    "boft": ("BOFTConfig", dict(boft_block_size=4), []),
    "boft --block-size 32": ("BOFTConfig", dict(boft_block_size=32), ["--block-size", "32"]),
    "ia3": ("IA3Config", dict(feedforward_modules=["down_proj"]), ["--feedforward-modules", "down_proj"]),
    "road": ("RoadConfig", dict(group_size=64), []),
    "vera": ("VeraConfig", dict(r=256), []),
    "delora": ("DeloraConfig", dict(r=8), []),
    "adalora": ("AdaLoraConfig", dict(init_r=12, target_r=8, total_step=1000), []),
    "loha": ("LoHaConfig", dict(r=8), []),
    "lokr": ("LoKrConfig", dict(r=8), []),
    "gralora": ("GraloraConfig", dict(r=32, alpha=64), []),
    "randlora": ("RandLoraConfig", dict(r=32), []),
    "vblora --vector-length 64": ("VBLoRAConfig", dict(r=4, num_vectors=256, vector_length=64), ["--vector-length", "64"]),
    "fourierft": ("FourierFTConfig", dict(n_frequency=1000), []),
    "waveft": ("WaveFTConfig", dict(n_frequency=2592), []),
    "c3a --block-size 192": ("C3AConfig", dict(block_size=192), ["--block-size", "192"]),
    "hira": ("HiraConfig", dict(r=32), []),
    "shira": ("ShiraConfig", dict(r=32), []),
    "miss": ("MissConfig", dict(r=64), []),
    "prefix": ("PrefixTuningConfig", dict(num_virtual_tokens=10, task_type="CAUSAL_LM", target_modules=None), []),
    "trainable-tokens": ("TrainableTokensConfig", dict(token_indices=list(range(16)), target_modules=["embed_tokens"]),
                         ["--token-indices", ",".join(map(str, range(16)))]),
    "ln-tuning": ("LNTuningConfig", dict(target_modules=["input_layernorm", "post_attention_layernorm", "norm"]), []),
}
# Those without a peer in PEFT.
OWN = {"ether": [], "ether+": [], "ether --blocks 32": ["--blocks", "32"], "ether+ --blocks 32": ["--blocks", "32"], "none": [], "naive": ["--blocks", "32"],
       "oft-paper": ["--blocks", "32"], "lorta": [], "red": [], "pafi": [], "id3": [], "magnitude": [], "bottleneck": [], "hiwi": ["--on", "weight"],
       "unipelt": ["--gates", "none"], "full": []}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods")
    parser.add_argument("--batch", default="2")
    parser.add_argument("--tokens", default="256")
    parser.add_argument("--steps", default="3")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--ether", default=str(ROOT / "build/release/bin/ether"))
    options = parser.parse_args()
    sizes = [options.batch, options.tokens, options.steps]
    done = {json.loads(line)["method"] for line in options.json.read_text().splitlines()} if options.json and options.json.exists() else set()
    with tempfile.TemporaryDirectory() as model:
        subprocess.run([sys.executable, "-c", MAKE_MODEL, model], check=True, capture_output=True)

        def ours(name):
            words = PEERS[name][2] if name in PEERS else OWN[name]
            return our_step(options.ether, model, "f32", sizes, name.split()[0], words)

        yardsticks = {name: ours(name)["tokens_per_second"] for name in ("ether", "lora")}
        for name in options.methods.split(",") if options.methods else [*PEERS, *OWN]:
            if name in done:
                continue
            row = {"method": name, "ours": ours(name), "peft": None}
            if name in PEERS:
                try:
                    row["peft"] = peer_step(model, "f32", sizes, *PEERS[name][:2])
                except SystemExit as failed:  # one of PEFT's may need more memory than there is
                    print(f"{name}: PEFT failed: {str(failed).strip().splitlines()[-1]}", flush=True)
            row["of_our_ether"] = row["ours"]["tokens_per_second"] / yardsticks["ether"]
            row["of_our_lora"] = row["ours"]["tokens_per_second"] / yardsticks["lora"]
            mine, theirs = row["ours"], row["peft"]
            print(f"{name:26} {mine['tokens_per_second']:6.0f} tok/s {mine['peak_rss_bytes'] / 1e9:5.2f} GB {mine['trainable_parameters']:9,} trained | "
                  f"{row['of_our_ether']:.2f} of ETHER's speed, {row['of_our_lora']:.2f} of LoRA's"
                  + (f" | PEFT {theirs['tokens_per_second']:6.0f} tok/s {theirs['peak_rss_bytes'] / 1e9:5.2f} GB {theirs['trainable_parameters']:9,}: "
                     f"{mine['tokens_per_second'] / theirs['tokens_per_second']:.2f} x as fast, "
                     f"{mine['peak_rss_bytes'] / theirs['peak_rss_bytes']:.2f} of its memory" if theirs else ""), flush=True)
            if options.json:
                with options.json.open("a") as out:
                    out.write(json.dumps(row) + "\n")
        last = {name: ours(name)["tokens_per_second"] for name in yardsticks}
        print("yardsticks, first and last: " + ", ".join(f"{name} {yardsticks[name]:.0f} and {last[name]:.0f} tok/s" for name in last))


if __name__ == "__main__":
    main()
