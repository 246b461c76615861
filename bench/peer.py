"""Training steps of PEFT: what the benches run of it, in a process of its own.

    bench/peer.py MODEL f32|bf16 BATCH TOKENS STEPS DEVICE CONFIG OPTIONS

CONFIG is the name of one of PEFT's configurations, OPTIONS its arguments as JSON. Prints a JSON object.
"""

import json
import resource
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def load(folder, dtype, device):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(folder, dtype={"f32": torch.float32, "bf16": torch.bfloat16}[dtype]).to(device)


def measure(model, batch, tokens, steps, device, after_step=lambda step: None):
    """Trains on random tokens and prints the median of `steps` steps after one that warms up, and the memory's peaks."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (batch, tokens), device=device)
    seconds = []
    for step in range(steps + 1):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        after_step(step + 1)
        optimizer.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"tokens_per_second": batch * tokens / statistics.median(seconds[1:]),
                      "trainable_parameters": sum(parameter.numel() for parameter in trained),
                      "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                      "peak_device_bytes": torch.cuda.max_memory_allocated() if device != "cpu" else 0}))


def main():
    import peft

    folder, dtype, batch, tokens, steps, device, kind, options = sys.argv[1:]
    model = peft.get_peft_model(load(folder, dtype, device), getattr(peft, kind)(**json.loads(options))).train()
    adalora = getattr(model.base_model, "update_and_allocate", lambda step: None)
    measure(model, int(batch), int(tokens), int(steps), device, adalora)


if __name__ == "__main__":
    main()
