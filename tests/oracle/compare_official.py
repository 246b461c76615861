"""Checkpoints of ETHER's published code (github.com/mwbini/ether) through tools/import-official: the logits that ether has with
them are those of transformers on weights that were multiplied as that code does, with its names, its shapes and its fused,
interleaved q, k and v. The multiplication is checked first against numbers of the published code."""

import json
import pathlib
import subprocess
import sys

import torch
from oracle import ROOT, auto_class, difference, draw_config, draw_tokens, ether, ether_logits, finish, fixtures, python_logits, report, rng_for, workplace
from transformers import LlamaConfig, LlamaForCausalLM

NUMBERS = ROOT / "tests/fixtures/official/ether"
LIT_NAMES = {"attn.proj": "self_attn.o_proj", "mlp.fc_1": "mlp.gate_proj", "mlp.fc_2": "mlp.up_proj", "mlp.proj": "mlp.down_proj"}


def blocks_of(u, v=None):
    """The n matrices of an ETHER (u) or ETHER+ (u, v), vectors (n, size)."""
    unit = lambda x: x / x.norm(dim=1, keepdim=True)
    outer = lambda x: unit(x)[:, :, None] * unit(x)[:, None, :]
    eye = torch.eye(u.shape[1], dtype=u.dtype)
    return eye - 2 * outer(u) if v is None else eye - outer(u) + outer(v)


def on_output(weight, matrices):
    return torch.block_diag(*matrices) @ weight


def on_input(weight, matrices):
    """Block i meets the i-th n-th of the weight's memory, read in rows of in / n."""
    pieces = weight.flatten().chunk(len(matrices))
    return torch.cat([(piece.view(-1, matrix.shape[0]) @ matrix).flatten() for piece, matrix in zip(pieces, matrices)]).view_as(weight)


def multiplied(weight, tensors, suffix, first, second):
    """first and second: what R, R2 and R3, R4 are applied by."""
    for apply, (u, v) in ((first, ("R", "R2")), (second, ("R3", "R4"))):
        vectors = [tensors[f"ether_{name}{suffix}"] for name in (u, v) if f"ether_{name}{suffix}" in tensors]
        if vectors:
            weight = apply(weight, blocks_of(*(x.reshape(x.shape[-2:]) for x in vectors)))
    return weight


def fused_rows(heads, groups, size):
    """Which rows of the fused matrix are q's, k's and v's: each group has its queries, a key and a value."""
    rows = {"q": [], "k": [], "v": []}
    for row in range((heads + 2 * groups) * size):
        place = row // size % (heads // groups + 2)
        rows["k" if place == heads // groups else "v" if place == heads // groups + 1 else "q"].append(row)
    return rows


def multiply_fused(weight, tensors, rows):
    weight = weight.clone()
    for letter in "qkv":
        weight[rows[letter]] = multiplied(weight[rows[letter]], tensors, letter, on_output, on_input)
    return weight


def numbers_of_the_published_code():
    read = lambda array: torch.tensor(array["data"], dtype=torch.float64).reshape(array["shape"])
    worst = 0
    for file in sorted(NUMBERS.glob("*.json")):
        case = json.loads(file.read_text())
        if "oft" in file.name or "merged_weight" not in case.get("outputs", {}):
            continue
        config, tensors = case["config"], {name: read(value) for name, value in case["parameters"].items()}
        if file.name.startswith("qkv"):
            heads, groups = config["n_head"], config["n_query_groups"]
            found = multiply_fused(tensors["weight"], tensors, fused_rows(heads, groups, config["in_features"] // heads))
        else:
            flipped = config.get("flip_side") and "HH" not in config["Htype"]
            found = multiplied(tensors["weight"], tensors, "", *((on_output, on_input) if flipped else (on_input, on_output)))
        worst = max(worst, (found - read(case["outputs"]["merged_weight"])).abs().max().item())
    report("the published code's merged weights", worst, 1e-12)


def draw_checkpoint(config, kind, n, modules, flip, generator):
    """As finetune/ether.py saves it: the ether_* tensors of the model by their names there."""
    width, inner, groups = config.hidden_size, config.intermediate_size, config.num_key_value_heads
    keys = width // config.num_attention_heads * groups
    parts = {"ether": [""], "etherplus": ["", "2"], "etherplusHH": ["", "2", "3", "4"]}[kind]
    tensors = {}

    def add(module, first, second, letter="", lead=()):
        for part in parts:
            size = (first if part in ("", "2") else second) // n
            tensors[f"{module}.ether_R{part}{letter}"] = torch.randn(*lead, n, size, generator=generator)

    for block in range(config.num_hidden_layers):
        path = f"transformer.h.{block}."
        for letter in set(modules) & set("qkv"):
            add(path + "attn.attn", width if letter == "q" else keys, width, letter, lead=(1,))
        if "attn.proj" in modules:
            add(path + "attn.proj", width, width)
        if "mlp" in modules:
            add(path + "mlp.fc_1", width, inner)
            add(path + "mlp.fc_2", width, inner)
            add(path + "mlp.proj", *((width, inner) if flip else (inner, width)))
    if "lm_head" in modules:
        add("lm_head", width, config.vocab_size)
    return tensors


def multiply(model, tensors, flip):
    """A transformers model's weights as the published code multiplies lit-gpt's."""
    config = model.config
    rows = fused_rows(config.num_attention_heads, config.num_key_value_heads, config.hidden_size // config.num_attention_heads)
    of = lambda module: {name.rpartition(".")[2]: value.double() for name, value in tensors.items() if name.startswith(module + ".ether_")}
    with torch.no_grad():
        for block, layer in enumerate(model.model.layers):
            matrices = {letter: getattr(layer.self_attn, f"{letter}_proj").weight for letter in "qkv"}
            fused = torch.empty(sum(map(len, rows.values())), config.hidden_size, dtype=torch.float64)
            for letter in "qkv":
                fused[rows[letter]] = matrices[letter].double()
            fused = multiply_fused(fused, of(f"transformer.h.{block}.attn.attn"), rows)
            for letter in "qkv":
                matrices[letter].copy_(fused[rows[letter]])
            for lit, name in LIT_NAMES.items():
                weight = layer.get_submodule(name).weight
                sides = (on_output, on_input) if lit == "mlp.proj" and flip else (on_input, on_output)
                weight.copy_(multiplied(weight.double(), of(f"transformer.h.{block}.{lit}"), "", *sides))
        weight = model.lm_head.weight
        weight.copy_(multiplied(weight.double(), of("lm_head"), "", on_input, on_output))


def importer(*arguments):
    return subprocess.run([sys.executable, ROOT / "tools/import-official", *map(str, arguments)], capture_output=True, text=True)


def imported(*arguments):
    done = importer(*arguments)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads((arguments[-1] / "adapter_config.json").read_text())


def refused(name, told, *arguments):
    done = importer(*arguments)
    good = done.returncode == 1 and told in done.stderr and done.stderr.count("\n") == 1 and not arguments[-1].exists()
    report(f"refused: {name}{'' if good else ': ' + done.stderr}", 0 if good else 1, 0)


def save(tensors, file):
    torch.save({"model": tensors}, file)
    return file


CASES = [  # type, n, what is adapted, groups of queries share keys, flip_side; what the folder says
    ("ether", 2, "q v", False, False, ("output", "block-diagonal")),
    ("ether", 4, "q", True, False, ("output", "block-diagonal")),
    ("ether", 2, "k v", True, False, ("output", "block-diagonal")),
    ("ether", 4, "attn.proj mlp lm_head", False, False, ("input", "official")),
    ("ether", 1, "attn.proj mlp", False, False, ("input", "block-diagonal")),
    ("etherplus", 2, "q k v", False, False, ("output", "block-diagonal")),
    ("etherplus", 4, "q v attn.proj mlp", False, True, ("both", "official")),
    ("etherplus", 4, "attn.proj mlp", True, False, ("input", "official")),
    ("etherplusHH", 4, "q k v attn.proj mlp", False, False, ("both", "official")),
    ("etherplusHH", 2, "q v lm_head", False, False, ("both", "official")),
    ("etherplusHH", 1, "attn.proj mlp", True, False, ("both", "block-diagonal")),
]


def draw_llama(rng, folder, shared):
    """A Llama of four heads whose widths four divides, with a key for each or for every other one."""
    config = draw_config("llama", rng) | dict(num_attention_heads=4, hidden_size=4 * rng.choice([4, 8]), num_key_value_heads=2 if shared else 4,
                                              intermediate_size=4 * rng.randint(13, 20), tie_word_embeddings=False)
    model = LlamaForCausalLM(LlamaConfig(**config)).float().eval()
    fixtures.draw(model, rng.randrange(1 << 30))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(fixtures.tokenizer()))
    return model.config


print("checkpoints of ETHER's published code")
numbers_of_the_published_code()
rng = rng_for("official")
generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
with workplace() as folder:
    folder = pathlib.Path(folder)
    for number, (kind, n, modules, shared, flip, told) in enumerate(CASES):
        base, out = folder / f"base{number}", folder / f"adapter{number}"
        config = draw_llama(rng, base, shared)
        tensors = draw_checkpoint(config, kind, n, modules.split(), flip, generator)
        written = imported(save(tensors, folder / "checkpoint.pth"), "--model", base, "--out", out)
        rows, tokens = draw_tokens(rng, folder)
        expected = auto_class("llama")(base)
        multiply(expected, tensors, flip)
        name = f"{kind}, n {n}, {modules}{', shared keys' if shared else ''}{', flip_side' if flip else ''}"
        report(name, difference(ether_logits(rows, tokens, base, "--adapter", out), python_logits(expected, rows)))
        report(f"{name}: side and layout", 0 if (written["side"], written["layout"]) == told else 1, 0)

    base = folder / "base"
    config = draw_llama(rng, base, False)
    draw = lambda kind, n, modules, flip=False: draw_checkpoint(config, kind, n, modules.split(), flip, generator)

    # Sides that one ETHER cannot hold: two adapters, merged one after the other.
    mixed = draw("ether", 4, "q v attn.proj")
    file = save(mixed, folder / "mixed.pth")
    refused("two sides of one vector", "convert twice, with --only output and --only input", file, "--model", base, "--out", folder / "no")
    for side in ("output", "input"):
        imported(file, "--model", base, "--only", side, "--out", folder / side)
    ether("merge", "--model", base, "--adapter", folder / "output", "--out", folder / "half")
    rows, tokens = draw_tokens(rng, folder)
    expected = auto_class("llama")(base)
    multiply(expected, mixed, False)
    report("two sides of one vector, merged one after the other",
           difference(ether_logits(rows, tokens, folder / "half", "--adapter", folder / "input"), python_logits(expected, rows)))

    # The paper's layout is another function.
    inside = draw("ether", 4, "attn.proj")
    imported(save(inside, folder / "inside.pth"), "--model", base, "--layout", "block-diagonal", "--out", folder / "paper")
    expected = auto_class("llama")(base)
    with torch.no_grad():
        for block, layer in enumerate(expected.model.layers):
            weight = layer.self_attn.o_proj.weight
            weight.copy_(weight.double() @ torch.block_diag(*blocks_of(inside[f"transformer.h.{block}.attn.proj.ether_R"].double())))
    report("layout block-diagonal", difference(ether_logits(rows, tokens, base, "--adapter", folder / "paper"), python_logits(expected, rows)))

    name = "transformer.h.0.attn.attn.ether_Rq"
    good = draw("ether", 2, "q")
    for what, told, tensors in [
            ("OFT", "Htype oft", {name: torch.zeros(1, 2, 8, 8)}),
            ("another architecture", "belongs to no layer of a Llama", {"transformer.h.0.mlp.fc.ether_R": torch.ones(2, 8)}),
            ("no adapter", "holds no tensor named ether_*", {"lm_head.weight": torch.ones(2, 2)}),
            ("another width", "wide in --model", {key: torch.ones(1, 2, 3) for key in good}),
            ("a missing block", "is --model its base?", {name: good[name]} if config.num_hidden_layers > 1 else {}),
            ("a block too many", "but the model of --model ends with block", good | {"transformer.h.9.attn.attn.ether_Rq": good[name]}),
            ("not a number", "holds NaN", good | {name: good[name] * float("nan")}),
            ("two numbers of blocks", "layers differ in the number of blocks", good | draw("ether", 4, "v")),
            ("two types", "layers differ in Htype", good | draw("etherplus", 2, "v")),
            ("half a type", "ether knows R alone", {key.replace("_R", "_R3"): value for key, value in good.items()})]:
        if tensors:
            refused(what, told, save(tensors, folder / "wrong.pth"), "--model", base, "--out", folder / "no")
    (folder / "text.pth").write_text("no pickle")
    refused("no checkpoint", "cannot be read as a torch checkpoint", folder / "text.pth", "--model", base, "--out", folder / "no")
    refused("no model", "config.json: not a model's configuration", folder / "wrong.pth", "--model", folder, "--out", folder / "no")
finish()
