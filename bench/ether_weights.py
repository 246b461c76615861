"""Training steps of the algorithm that ETHER's published code uses, in plain PyTorch: every adapted weight is multiplied by its
block-diagonal reflections anew in each step. What reflecting activations saves is measured beside it.

    bench/ether_weights.py MODEL f32|bf16 BATCH TOKENS STEPS ether|ether+ BLOCKS DEVICE TARGETS

Prints the JSON that bench/peer.py prints. One-sided ETHER reflects inputs, ETHER+ both sides.
"""

import sys

import torch
from torch import nn

from peer import load, measure


class ReflectedWeight(nn.Module):
    def __init__(self, linear, kind, blocks):
        super().__init__()
        self.linear = linear
        signs = [-2.0] if kind == "ether" else [-1.0, 1.0]
        self.signs = signs
        self.inner = self._vectors(linear.in_features, blocks, len(signs))
        self.outer = self._vectors(linear.out_features, blocks, len(signs)) if kind == "ether+" else None

    def _vectors(self, width, blocks, count):
        return nn.ParameterList(nn.Parameter(torch.randn(blocks, width // blocks, device=self.linear.weight.device)) for _ in range(count))

    def _transform(self, vectors):
        size = vectors[0].shape[1]
        transform = torch.eye(size, device=vectors[0].device)[None]
        for sign, vector in zip(self.signs, vectors):
            unit = vector / vector.norm(dim=1, keepdim=True)
            transform = transform + sign * unit[:, :, None] * unit[:, None, :]
        return transform.to(self.linear.weight.dtype)  # (blocks, size, size), symmetric

    def forward(self, x):
        weight = self.linear.weight
        inner = self._transform(self.inner)
        pieces = weight.unflatten(1, inner.shape[:2]).transpose(0, 1)  # (blocks, out, size)
        weight = torch.bmm(pieces, inner).transpose(0, 1).flatten(1)
        if self.outer is not None:
            outer = self._transform(self.outer)
            weight = torch.bmm(outer, weight.unflatten(0, outer.shape[:2])).flatten(0, 1)
        return nn.functional.linear(x, weight, self.linear.bias)


def main():
    folder, dtype, batch, tokens, steps, kind, blocks, device, targets = sys.argv[1:]
    model = load(folder, dtype, device).requires_grad_(False)
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if leaf in targets.split(","):
            setattr(model.get_submodule(parent), leaf, ReflectedWeight(module, kind, int(blocks)))
    measure(model.train(), int(batch), int(tokens), int(steps), device)


if __name__ == "__main__":
    main()
