"""Logits of freshly drawn models: ether logits against transformers; in bfloat16 both against float64."""

import pathlib

import torch

from oracle import (FAMILIES, auto_class, difference, draw_model, draw_tokens, ether_logits, finish, python_logits, report,
                    rng_for, workplace)

DRAWS = 3

print("models against transformers")
for family in FAMILIES:
    rng = rng_for(family)
    for draw in range(DRAWS):
        with workplace() as folder:
            folder = pathlib.Path(folder)
            draw_model(family, rng, folder)
            rows, tokens = draw_tokens(rng, folder)
            expected = python_logits(auto_class(family)(folder), rows)
            report(f"{family} {draw}", difference(ether_logits(rows, tokens, folder), expected))
            # Both round every layer, each in its own places, so the worst of these few logits is a matter of luck: ours may
            # not be farther off than some roundings (7.8e-3 each) and a few times theirs.
            rounded = auto_class(family)(folder).bfloat16()
            with torch.no_grad():
                theirs = [rounded(input_ids=torch.tensor([row])).logits[0].float() for row in rows]
            exact = python_logits(rounded, rows)
            report(f"{family} {draw}, bfloat16", difference(ether_logits(rows, tokens, folder, "--dtype", "bf16"), exact),
                   4 * difference(theirs, exact) + 2e-2)
finish()
