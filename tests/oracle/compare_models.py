"""Freshly drawn models against transformers: logits, of rows alone and of padded batches, from files of several kinds; in
bfloat16 both against float64; and the gradients of all weights."""

import json
import pathlib

import torch
import transformers
from safetensors.torch import load_file

from oracle import (CLASSIFIERS, ENCODERS, FAMILIES, auto_class, difference, draw_examples, draw_model, draw_tokens, ether,
                    ether_logits, finish, mean_loss, padded_logits, python_logits, report, rng_for, strip_prefix, workplace)

DRAWS = 3



def gradients(family, rng, folder):
    """Of the mean loss by every weight: ether's as AdamW's first moments hold them after one step of full fine-tuning."""
    labels = ["LABEL_0", "LABEL_1", "LABEL_2"]  # of the model's own head
    data = draw_examples(rng, folder / "examples.jsonl", 9, labels)
    task = "classify" if family in ENCODERS else "causal-lm"
    ether("train", "--model", folder, "--task", task, "--data", data, "--method", "full", "--out", folder / "run", "--max-steps", 1,
          "--batch", 9, "--clip", 0, "--keep", 2)
    state = load_file(folder / "run/checkpoints/step-000000001/state.safetensors")
    moments = {name: tensor for name, tensor in state.items() if name.endswith(".exp_avg")}
    ours = {name.removeprefix("optimizer/").removesuffix(".exp_avg"): tensor / (1 - 0.9) for name, tensor in moments.items()}
    examples = [json.loads(line) for line in data.read_text().splitlines()]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = auto_class(family)(folder).double()
    model.train()  # dropout is drawn as 0
    mean_loss(model, family, [tokenizer(example["text"])["input_ids"] for example in examples],
              [labels.index(example["label"]) for example in examples]).backward()
    theirs = {name: parameter.grad.float() for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(theirs) <= set(ours), set(theirs) - set(ours)
    scale = 1 / max(gradient.abs().max().item() for gradient in theirs.values())
    report(f"{family}, gradients of {len(theirs)} tensors",
           difference([ours[name] * scale for name in theirs], [gradient * scale for gradient in theirs.values()]))


print("models against transformers")
for family in FAMILIES:
    rng = rng_for(family)
    for draw in range(DRAWS):
        with workplace() as folder:
            folder = pathlib.Path(folder)
            draw_model(family, rng, folder)
            rows, tokens = draw_tokens(rng, folder)
            ours, expected = ether_logits(rows, tokens, folder), python_logits(auto_class(family)(folder), rows)
            report(f"{family} {draw}", difference(ours, expected))
            report(f"{family} {draw}, padded", difference(ours, padded_logits(auto_class(family)(folder), rows)))
            # Both round every layer, each in its own places, so the worst of these few logits is a matter of luck: ours may
            # not be farther off than some roundings (7.8e-3 each) and a few times theirs.
            rounded = auto_class(family)(folder).bfloat16()
            with torch.no_grad():
                theirs = [rounded(input_ids=torch.tensor([row])).logits[0].float() for row in rows]
            exact = python_logits(rounded, rows)
            report(f"{family} {draw}, bfloat16", difference(ether_logits(rows, tokens, folder, "--dtype", "bf16"), exact),
                   4 * difference(theirs, exact) + 2e-2)
    with workplace() as folder:
        folder = pathlib.Path(folder)
        draw_model(family, rng, folder)
        gradients(family, rng, folder)
        rows, tokens = draw_tokens(rng, folder)
        model = auto_class(family)(folder)
        strip_prefix(model, folder)
        report(f"{family}, names without prefix", difference(ether_logits(rows, tokens, folder), python_logits(model, rows)))
    for classifier in [False, True] if family in CLASSIFIERS else [False]:
        with workplace() as folder:
            folder = pathlib.Path(folder)
            draw_model(family, rng, folder, classifier, shard_size="2KB")
            rows, tokens = draw_tokens(rng, folder)
            model = auto_class(family, classifier)(folder)
            kind = f"{'classifier ' if classifier else ''}in {len(list(folder.glob('model-*.safetensors')))} files"
            ours = ether_logits(rows, tokens, folder)
            report(f"{family} {kind}", difference(ours, python_logits(model, rows)))
            report(f"{family} {kind}, padded", difference(ours, padded_logits(model, rows)))
finish()
