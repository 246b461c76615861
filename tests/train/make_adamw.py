"""Prints the table of tests/train/optimizer_test.cpp: torch.optim.AdamW on f(x) = sum(c x^2 / 2), float64.

Run in the oracle environment:  .venv-oracle/bin/python tests/train/make_adamw.py
"""

import torch

START, CURVATURE = [0.5, -1.25, 2.0], [1.0, 10.0, 0.01]


def run(steps, **options):
    x = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([x], **options)
    for _ in range(steps):
        optimizer.zero_grad()
        (torch.tensor(CURVATURE, dtype=torch.float64) * x**2 / 2).sum().backward()
        optimizer.step()
    return ", ".join(f"{value:.15g}" for value in x.tolist())


for options in (dict(lr=0.1, weight_decay=0.0), dict(lr=0.05, weight_decay=0.1),
                dict(lr=0.1, weight_decay=0.02, betas=(0.8, 0.95), eps=1e-3)):
    for steps in (1, 2, 25):
        print(steps, options, "{" + run(steps, **options) + "}")
