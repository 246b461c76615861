"""Logits of freshly drawn models: ether logits against transformers."""

import pathlib

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
finish()
