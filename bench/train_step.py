"""Training steps of ether and of PEFT on the same model, batch and targets, in one run; prints both and the ratio.

    .venv-oracle/bin/python bench/train_step.py [--model DIR] [--batch 2] [--tokens 256] [--dtype f32] [--methods ether,ether+]

Without --model a random-weight Llama of SmolLM-135M's shape is made in a temporary folder. Every figure is the median
of --steps steps after one that warms up, in a process of its own; peak memory is that process's. Needs `make oracle`'s
environment and an otherwise idle machine.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

TARGETS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
ROOT = pathlib.Path(__file__).resolve().parent.parent

MAKE_MODEL = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                             num_key_value_heads=3, vocab_size=49152, max_position_embeddings=2048,
                             tie_word_embeddings=True, rope_theta=100000.0)).save_pretrained(sys.argv[1])
"""


def last_json(command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command[:3]))} ... failed:\n{result.stderr}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def peer_step(model, dtype, sizes, kind="LoraConfig", options={"r": 8, "lora_alpha": 16}, device="cpu"):
    """PEFT's step with a configuration of that class; sizes: batch, tokens, steps, as text. An option that is None is left out."""
    settings = {"target_modules": TARGETS.split(",")} | options
    return last_json([sys.executable, str(ROOT / "bench/peer.py"), model, dtype, *sizes, device, kind,
                      json.dumps({key: value for key, value in settings.items() if value is not None})])


def our_step(ether, model, dtype, sizes, method, options=(), device="cpu"):
    return last_json([ether, "bench", "train-step", "--model", model, "--method", method, *options, "--batch", sizes[0], "--tokens", sizes[1],
                      "--steps", sizes[2], "--dtype", dtype, "--device", device, "--json"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--batch", default="2")
    parser.add_argument("--tokens", default="256")
    parser.add_argument("--steps", default="5")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--methods", default="none,ether,ether+,lora")
    parser.add_argument("--memory", default="fast", choices=["fast", "low"], help="of ether's steps")
    parser.add_argument("--ether", default=str(ROOT / "build/release/bin/ether"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if not model:
            model = folder
            subprocess.run([sys.executable, "-c", MAKE_MODEL, folder], check=True, capture_output=True)
        sizes = [options.batch, options.tokens, options.steps]
        peer = peer_step(model, options.dtype, sizes)
        print(f"PEFT LoRA r=8   {peer['tokens_per_second']:7.0f} tok/s  {peer['peak_rss_bytes'] / 1e9:5.2f} GB")
        for method in options.methods.split(","):
            ours = our_step(options.ether, model, options.dtype, sizes, method, ["--memory", options.memory])
            print(f"ether {method:9} {ours['tokens_per_second']:7.0f} tok/s  {ours['peak_rss_bytes'] / 1e9:5.2f} GB  "
                  f"{ours['tokens_per_second'] / peer['tokens_per_second']:.2f} x PEFT LoRA, "
                  f"{ours['peak_rss_bytes'] / peer['peak_rss_bytes']:.2f} of its memory, "
                  f"{ours['tokens_per_second'] / ours['gemm_limit_tokens_per_second']:.2f} of the GEMM limit "
                  f"({ours['gemm']}, {ours['gemm_flops_per_second'] / 1e9:.0f} GFLOP/s)")


if __name__ == "__main__":
    main()
