"""PEFT's methods both ways: what PEFT saves loads in ether with the same logits, and what ether trains loads in PEFT; every
method's merged folder gives transformers the logits that ether has with the adapter, and so does in PEFT the LoRA that a low-rank
one is exported as; three steps of AdamW from the same start move both to the same values."""

import json
import pathlib
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from oracle import (ENCODERS, FAMILIES, TOLERANCE, auto_class, difference, draw_examples, draw_model, draw_tokens, ether,
                    ether_logits, finish, mean_loss, python_logits, report, rng_for, workplace)

NORMS = {"bert": ["LayerNorm"], "roberta": ["LayerNorm"]}
# Options of ether train that small widths need, as PEFT's below. {table}: the word embeddings.
SMALL = {"oft": ["--block-size", 4], "naive": ["--blocks", 4], "vblora": ["--vector-length", 4, "--num-vectors", 7], "fourierft": ["--n-frequency", 16, "--scaling", 5],
         "miss": ["--rank", 4], "adalora": ["--rank", 4, "--target-rank", 2], "lora dora": ["--dora"], "lora pissa": ["--init-lora-weights", "pissa", "--rank", 2], "lora olora": ["--init-lora-weights", "olora", "--rank", 2],
         "lora patterns": ["--targets", r".*\.(query|value|q_proj|v_proj)", "--rslora", "--bias", "lora_only", "--layers", "0",
                           "--rank-pattern", "(query|q_proj)=3", "--alpha-pattern", "(value|v_proj)=2"],
         "lora eva": ["--init-lora-weights", "eva", "--rank", 2], "hra bias": ["--bias", "all"], "lora mica": ["--init-lora-weights", "mica", "--rank", 2], "lora bias": ["--lora-bias", "--targets", "{query}"],
         "lora embeddings": ["--targets", "{table},{query}"],
         "lora dora embeddings": ["--targets", "{table},{query}", "--dora"], "lora table": ["--modules-to-save", "{table}"],
         "vblora largest": ["--vector-length", 4, "--num-vectors", 7, "--save-only-topk-weights"],
         "trainable-tokens": ["--token-indices", "5,9,12"], "lora tokens": ["--token-indices", "5,9"],
         "waveft": ["--n-frequency", 16], "c3a": ["--block-size", 4], "road": ["--group-size", 4], "shira": ["--rank", 2],
         "gralora": ["--rank", 4], "pafi": ["--budget", 0.2], "id3": ["--budget", 0.1], "oft-paper": ["--blocks", 4],
         "ether+ and three": ["--targets", "attention", "--and", "lora --rank 2 --targets attention; magnitude --targets attention; ia3"]}
LOW_RANK = ("ether", "ether+", "hra", "lora", "lora embeddings", "lora pissa", "lora olora", "lora eva", "vera", "delora", "adalora", "lorta", "loha", "randlora", "vblora", "fourierft", "miss",
            "waveft", "c3a", "hira", "gralora", "lokr", "shira", "pafi", "id3")
PEFT_METHODS = ("lora", "lora patterns", "lora bias", "lora embeddings", "lora dora embeddings", "lora table", "lora mica", "vblora largest", "lora dora", "lora pissa", "lora olora", "lora eva", "lora tokens", "trainable-tokens", "hra", "hra bias", "oft", "ia3", "vera", "delora", "adalora", "ln-tuning", "loha", "randlora", "vblora", "fourierft",
                "miss", "boft", "road", "waveft", "c3a", "hira", "gralora", "lokr", "shira", "prefix")


# PEFT's words for the biases of adapted layers.
BIASES = {method: f"{method}_only" for method in ("hra", "oft", "vera", "delora", "randlora", "vblora", "boft", "waveft", "c3a", "gralora")} | {
    "adalora": "lora_only", "fourierft": "fourier_only", "miss": "MiSS_only"}

# What these start with is large, and is taken away again: in PEFT from the base's weights, which are then rounded.
LOGITS_TOLERANCE = {"lora olora": 1e-4, "lora pissa": 1e-4}
# Of AdamW's way: where a gradient is no more than rounding, its step is as long as others, and may lead elsewhere.
STEPS_TOLERANCE = 5e-3
# AdaLoRA counts steps otherwise, PEFT's gradients of C3A are another function's, and PiSSA's and OLoRA's bases differ
# (docs/methods.md); PEFT trains no head beside trainable tokens.
STEPS_DIFFER = {"adalora", "c3a", "lora pissa", "lora olora", "trainable-tokens", "vblora largest", "hra bias"}
# Starts that are made from the model or data, and end in a file as plain LoRA; and by design (docs/methods.md).
STARTS_DIFFER = {"lora pissa", "lora olora", "lora eva", "vblora largest", "prefix"}


def options_of(method, family, folder):
    """SMALL's, with this family's names. Without --bias where the drawn model has no biases in its attention."""
    names = dict(table="word_embeddings", query="query") if family in ENCODERS else dict(table="embed_tokens", query="q_proj")
    options = [str(option).replace("{table}", names["table"]).replace("{query}", names["query"]) for option in SMALL.get(method, [])]
    if "--bias" in options and not any(name.endswith(f"{names['query']}.bias") for name in load_file(folder / "base" / "model.safetensors")):
        at = options.index("--bias")
        del options[at:at + 2]
    return options


def draw_config(method, family, rng):
    names = (["query", "key", "value", "dense"] if family in ENCODERS else
             ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    task = "SEQ_CLS" if family in ENCODERS else "CAUSAL_LM"
    if method == "ia3":
        targets = rng.sample(names, rng.randint(1, len(names)))
        if rng.random() < 0.3:
            return peft.IA3Config(task_type=task, target_modules=rf".*\.({'|'.join(names)})", feedforward_modules=r".*(down_proj|output\.dense)")
        return peft.IA3Config(task_type=task, target_modules=targets,
                              feedforward_modules=[name for name in targets if name in ("down_proj", "output.dense")])
    if method == "ln-tuning":
        norms = NORMS.get(family, ["input_layernorm", "norm"])
        return peft.LNTuningConfig(task_type=task, target_modules=rng.choice([norms, rf".*\.({'|'.join(norms)})"]))
    table = "word_embeddings" if family in ENCODERS else "embed_tokens"
    if method == "trainable-tokens":
        return peft.TrainableTokensConfig(task_type=task, token_indices=[9, 5, 12], target_modules=[table])
    rank, alpha = rng.randint(1, 6), rng.randint(1, 8)
    if method == "prefix":
        return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=rank)
    config_class, options = {
        "lora": (peft.LoraConfig, dict(r=rank, lora_alpha=alpha, use_rslora=rng.random() < 0.5)),
        "lora patterns": (peft.LoraConfig, dict(r=rank, lora_alpha=alpha, use_rslora=rng.random() < 0.5)),
        "lora dora": (peft.LoraConfig, dict(r=rank, lora_alpha=alpha, use_dora=True)),
        "lora pissa": (peft.LoraConfig, dict(r=2, lora_alpha=alpha, init_lora_weights="pissa")),
        "lora olora": (peft.LoraConfig, dict(r=2, lora_alpha=alpha, init_lora_weights="olora")),
        "lora eva": (peft.LoraConfig, dict(r=2, lora_alpha=alpha, init_lora_weights="eva")),
        "lora bias": (peft.LoraConfig, dict(r=rank, lora_alpha=alpha, lora_bias=True)),
        "lora embeddings": (peft.LoraConfig, dict(r=rank, lora_alpha=alpha, use_rslora=rng.random() < 0.5)),
        "lora dora embeddings": (peft.LoraConfig, dict(r=rank, lora_alpha=alpha, use_dora=True)),
        "lora table": (peft.LoraConfig, dict(r=rank, lora_alpha=alpha, modules_to_save=[table])),
        "lora tokens": (peft.LoraConfig, dict(r=rank, lora_alpha=alpha, trainable_token_indices=[5, 9])),
        "hra bias": (peft.HRAConfig, dict(r=rank, bias=rng.choice(["all", "hra_only"]))),
        "hra": (peft.HRAConfig, dict(r=rank, apply_GS=rng.random() < 0.5)),
        "oft": (peft.OFTConfig, dict(oft_block_size=rng.choice([4, 8]), block_share=rng.random() < 0.5,
                                     use_cayley_neumann=rng.random() < 0.5, num_cayley_neumann_terms=rank)),
        "vera": (peft.VeraConfig, dict(r=rank, projection_prng_key=alpha, save_projection=rng.random() < 0.5)),
        "delora": (peft.DeloraConfig, dict(r=rank, delora_lambda=alpha)),
        "adalora": (peft.AdaLoraConfig, dict(init_r=rank, target_r=1, lora_alpha=alpha, total_step=5)),
        "loha": (peft.LoHaConfig, dict(r=rank, alpha=alpha)),
        "randlora": (peft.RandLoraConfig, dict(r=rank, randlora_alpha=alpha)),
        "vblora": (peft.VBLoRAConfig, dict(r=rank, num_vectors=7, vector_length=4, topk=rng.randint(1, 4))),
        "vblora largest": (peft.VBLoRAConfig, dict(r=rank, num_vectors=7, vector_length=4, topk=rng.randint(2, 4), save_only_topk_weights=True)),
        "fourierft": (peft.FourierFTConfig, dict(n_frequency=16, scaling=float(alpha), random_loc_seed=rank)),
        "boft": (peft.BOFTConfig, dict(boft_block_size=rng.choice([2, 4]))),
        "road": (peft.RoadConfig, dict(group_size=rng.choice([2, 4]), variant=rng.choice(["road_1", "road_2", "road_4"]))),
        "waveft": (peft.WaveFTConfig, dict(n_frequency=16, scaling=float(alpha), random_loc_seed=rank, use_idwt=rng.random() < 0.7)),
        "c3a": (peft.C3AConfig, dict(block_size=rng.choice([2, 4]))),
        "hira": (peft.HiraConfig, dict(r=rank)),
        "gralora": (peft.GraloraConfig, dict(r=2 * rank, alpha=alpha, gralora_k=2, hybrid_r=rng.randint(0, 2))),
        "lokr": (peft.LoKrConfig, dict(r=rank, alpha=alpha, decompose_both=rng.random() < 0.5, decompose_factor=rng.choice([-1, 2, 4]))),
        "shira": (peft.ShiraConfig, dict(r=rng.randint(1, 2), random_seed=rng.choice([None, alpha]))),
        "miss": (peft.MissConfig, dict(r=rng.randint(1, 4), mini_r=4, init_weights=rng.choice([True, "mini"]))),
        "lora mica": (peft.LoraConfig, dict(r=2, lora_alpha=alpha, init_lora_weights="mica")),
    }[method]
    if method in BIASES and rng.random() < 0.4:
        options["bias"] = rng.choice(["all", BIASES[method]])
    targets = rng.choice(["all-linear", rng.sample(names, rng.randint(1, len(names)))])
    if method == "lora patterns":
        norm = "LayerNorm" if family in ENCODERS else "input_layernorm"
        options |= rng.choice([dict(bias="all"), dict(bias="lora_only"), dict(modules_to_save=[norm])])
        selection = rng.choice([dict(layers_to_transform=[0]), dict(exclude_modules=names[1:2]), {}])
        targets = names if selection else rf".*\.({'|'.join(names)})"
        return config_class(task_type=task, target_modules=targets, rank_pattern={names[0]: rank + 1}, alpha_pattern={names[2]: alpha + 1},
                            **options, **selection)
    if method.endswith("embeddings"):
        targets = [table, names[0]]
    return config_class(task_type=task, target_modules=targets, **options)


def peft_to_ether(method, family, rng, folder):
    model = peft.get_peft_model(auto_class(family)(folder / "base"), draw_config(method, family, rng))
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "peft" / method)
    rows, tokens = draw_tokens(rng, folder)
    ours = ether_logits(rows, tokens, folder / "base", "--adapter", folder / "peft" / method)
    report(f"{family}: {method} of PEFT's", difference(ours, python_logits(model, rows)), LOGITS_TOLERANCE.get(method, TOLERANCE))


def trained(family, method, rng, folder):
    """The run folder of a few steps on the drawn model."""
    out = folder / method
    data = draw_examples(rng, folder / f"{method}.jsonl")
    ether("train", "--model", folder / "base", "--task", "classify" if family in ENCODERS else "causal-lm", "--data", data,
          "--method", method.split()[0], "--out", out, *options_of(method, family, folder), "--max-steps", 3, "--batch", 8,
          "--lr", 1e-3 if method == "full" else 2e-2,
          *([] if method != "head" else ["--modules-to-save", "classifier" if family in ENCODERS else "norm"]))
    return out


def ether_to_peft(method, family, rng, folder):
    out = trained(family, method, rng, folder)
    rows, tokens = draw_tokens(rng, folder)
    ours = ether_logits(rows, tokens, folder / "base", "--adapter", out)
    model = peft.PeftModel.from_pretrained(auto_class(family)(folder / "base"), out)
    report(f"{family}: {method} of ours in PEFT", difference(python_logits(model, rows), ours), LOGITS_TOLERANCE.get(method, TOLERANCE))


def merged(family, method, rng, folder):
    out = trained(family, method, rng, folder) if not (folder / method).exists() else folder / method
    rows, tokens = draw_tokens(rng, folder)
    ours = ether_logits(rows, tokens, folder / "base", "--adapter", out)
    ether("merge", "--model", folder / "base", "--adapter", out, "--out", folder / "merged" / method)
    report(f"{family}: {method} merged, in transformers",
           difference(python_logits(auto_class(family)(folder / "merged" / method), rows), ours), LOGITS_TOLERANCE.get(method, TOLERANCE))


def started(family, method, folder, start, ours):
    """How far the moments of an adapter's first values are from those of PEFT's for the same configuration, in standard errors; what
    PEFT starts with one value must be that value. Values of one kind are taken together, so that there are many."""
    config = peft.PeftConfig.from_pretrained(start)
    config.inference_mode = False
    if method == "adalora":
        config.rank_pattern = None  # of the run's end
    torch.manual_seed(len(method))
    model = peft.get_peft_model(auto_class(family)(folder / "base"), config)
    base = {"base_model.model." + name for name in auto_class(family)(folder / "base").state_dict()}
    theirs = {name: tensor for name, tensor in peft.get_peft_model_state_dict(model).items()
              if name.replace(".base_layer.", ".") not in base and name in ours}  # a tied head's copies are not
    assert theirs
    worst = 0
    for kind in {name.rsplit(".", 2)[-1] if not name.endswith(".weight") else name.rsplit(".", 2)[1] for name in theirs}:
        names = [name for name in theirs if name == kind or f".{kind}" in name]
        a, b = (torch.cat([values[name].double().flatten() for name in names]) for values in (theirs, ours))
        if a.var(correction=0) == 0:
            worst = max(worst, 0 if torch.equal(a, b) else float("inf"))
            continue
        for power in (1, 2, 4):
            error = ((a ** power).var() + (b ** power).var()).div(a.numel()).sqrt()
            worst = max(worst, ((a ** power).mean() - (b ** power).mean()).abs().div(error).item())
    report(f"{family}: {method}, first values in standard errors", worst, tolerance=5)


def stepped(family, method, rng, folder):
    """How far three steps with PEFT end from ours, in the length of their way. One batch holds all examples, so that no order matters."""
    data = draw_examples(rng, folder / "steps.jsonl", count=9)
    run = folder / "steps" / method
    ether("train", "--model", folder / "base", "--task", "classify" if family in ENCODERS else "causal-lm", "--data", data, "--method",
          method.split()[0], *options_of(method, family, folder), "--out", run, "--max-steps", 3, "--batch", 9, "--save-every", 1, "--keep", 9, "--lr", 5e-3,
          "--head-lr", 5e-3, "--module-lr", 5e-3, "--schedule", "constant", "--warmup", 0)

    def in_file(name, tensor):
        if name == "prompt_embeddings":
            return name, tensor
        return ("base_model.model." if "." in name and method != "prefix" else "base_model.") + name, tensor

    def values(step):
        tensors = load_file(run / "checkpoints" / f"step-{step:09}" / "state.safetensors")
        return dict(in_file(key.removeprefix("parameter/"), tensor) for key, tensor in tensors.items() if key.startswith("parameter/"))

    start = folder / "steps" / f"{method} start"
    start.mkdir()
    (start / "adapter_config.json").write_text((run / "adapter_config.json").read_text())
    save_file(values(0), start / "adapter_model.safetensors")
    if method not in STARTS_DIFFER:
        started(family, method, folder, start, values(0))
    if method in STEPS_DIFFER:
        return
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "base" / "tokenizer.json"))
    examples = [json.loads(line) for line in data.read_text().splitlines()]
    rows, labels = [tokenizer(example["text"])["input_ids"] for example in examples], ["abc".index(example["label"]) for example in examples]

    def in_peft(dtype):
        base = auto_class(family)(folder / "base")
        if method == "prefix":  # PEFT trains none that comes from a file
            config = peft.PeftConfig.from_pretrained(start)
            config.inference_mode = False
            model = peft.get_peft_model(base, config).train()
            peft.set_peft_model_state_dict(model, values(0))
        else:
            model = peft.PeftModel.from_pretrained(base, start, is_trainable=True).train()
        model.to(dtype)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0)
        for _ in range(3):
            optimizer.zero_grad()
            mean_loss(model, family, rows, labels).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1)
            optimizer.step()
        return peft.get_peft_model_state_dict(model)

    def apart(some, others):
        return sum((some[name] - others[name]).square().sum() for name in ours if name in theirs).sqrt()

    theirs, ours, before = in_peft(torch.float32), values(3), values(0)
    way, distance = apart(theirs, before), apart(theirs, ours)
    if distance > STEPS_TOLERANCE * way:  # as far as rounding alone may lead from a gradient that is none
        tolerance = max(STEPS_TOLERANCE, 2 * (apart(theirs, in_peft(torch.float64)) / way).item())
    else:
        tolerance = STEPS_TOLERANCE
    report(f"{family}: {method}, three steps", (distance / way).item(), tolerance)


def started_by_data(family, rng, folder):
    """EVA's start on one batch of all examples, and PEFT's."""
    data = draw_examples(rng, folder / "eva.jsonl", count=9)
    run = folder / "steps" / "eva start"
    # PEFT's cannot watch a pooler, which reads one token of a text.
    targets = (["query", "key", "value", "intermediate.dense", "output.dense"] if family in ENCODERS else
               ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    ether("train", "--model", folder / "base", "--task", "classify" if family in ENCODERS else "causal-lm", "--data", data, "--method", "lora",
          *SMALL["lora eva"], "--targets", ",".join(targets), "--out", run, "--max-steps", 1, "--batch", 9, "--keep", 2)
    prefix, suffix = "parameter/", ".lora_A.weight"
    ours = {name[len(prefix):-len(suffix)]: a for name, a in load_file(run / "checkpoints/step-000000000/state.safetensors").items()
            if name.startswith(prefix) and name.endswith(suffix)}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "base" / "tokenizer.json"), pad_token="[PAD]")
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    batch = {key: value for key, value in tokenizer(texts, padding=True, return_tensors="pt").items() if key != "token_type_ids"}
    config = peft.LoraConfig(task_type="SEQ_CLS" if family in ENCODERS else "CAUSAL_LM", r=2, target_modules=targets, init_lora_weights="eva",
                             eva_config=peft.EvaConfig())
    model = peft.get_peft_model(auto_class(family)(folder / "base"), config)
    theirs = {name.removeprefix("base_model.model."): a.float() for name, a in
              peft.get_eva_state_dict(model, [batch], show_progress_bar=False).items()}
    ranks = sum(abs(a.shape[0] - (ours[name].shape[0] if name in ours else 0)) for name, a in theirs.items())
    report(f"{family}: EVA's ranks, of {sum(a.shape[0] for a in theirs.values())} apart", ranks, tolerance=2)
    apart = max(1 - (a[:k] @ theirs[name][:k].T).diagonal().abs().min().item() for name, a in ours.items()
                if (k := min(a.shape[0], theirs[name].shape[0])))
    report(f"{family}: EVA's directions", apart, tolerance=1e-3)


def exported(family, method, rng, folder):
    """The LoRA that is the run's adapter, in PEFT, against ours and against the merged model in transformers."""
    rows, tokens = draw_tokens(rng, folder)
    ours = ether_logits(rows, tokens, folder / "base", "--adapter", folder / method)
    out = folder / "exported" / method
    ether("export", "--model", folder / "base", "--adapter", folder / method, "--to", "lora", "--out", out)
    found = python_logits(peft.PeftModel.from_pretrained(auto_class(family)(folder / "base"), out), rows)
    merged_model = auto_class(family)(folder / "merged" / method)
    of_merged = python_logits(merged_model, rows)
    with torch.no_grad():  # some drawn models make much of a weight's last bit
        for parameter in merged_model.parameters():
            parameter.mul_(1 + torch.finfo(torch.float32).eps * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    tolerance = max(LOGITS_TOLERANCE.get(method, TOLERANCE), 2 * difference(python_logits(merged_model, rows), of_merged))
    report(f"{family}: {method} exported as LoRA, in PEFT", difference(found, ours), tolerance)
    report(f"{family}: {method} exported as LoRA and merged", difference(found, of_merged), tolerance)


print("adapters against PEFT and transformers")
for family in (sys.argv[1].split(",") if len(sys.argv) > 1 else FAMILIES):
    rng = rng_for("adapters " + family)
    with workplace() as folder:
        folder = pathlib.Path(folder)
        draw_model(family, rng, folder / "base")
        (folder / "merged").mkdir()
        (folder / "steps").mkdir()
        started_by_data(family, rng, folder)
        for method in PEFT_METHODS:
            peft_to_ether(method, family, rng, folder)
            ether_to_peft(method, family, rng, folder)
            stepped(family, method, rng, folder)
        # RED adds a bias to the MLP's output, for which only some architectures have a place.
        more = ["red", "bitfit", "hiwi"] if family in ENCODERS else ["red"] if family == "llama" else []
        # Nor has Mistral one for a bias of its query projection.
        unmerged = {"prefix", "lora bias"} if family == "mistral" else {"prefix"}
        for method in (*(method for method in PEFT_METHODS if method not in unmerged), "ether", "ether+", "oft-paper", "naive", "lorta", "pafi", "id3", "ether+ and three", *more, "full", "head"):
            merged(family, method, rng, folder)
        for method in LOW_RANK:
            exported(family, method, rng, folder)
finish()
