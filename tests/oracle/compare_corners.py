"""Adapters as hubs and older programs have them, read as PEFT reads them: names that match nothing, whole paths beside layers, our
keywords as plain names, bases without a head, saved embeddings, pruned AdaLoRA, patterns with dots. And ours of such choices, in PEFT."""

import json
import pathlib

import peft
import torch
import transformers
from oracle import (ENCODERS, auto_class, difference, draw_examples, draw_model, draw_tokens, ether, ether_logits, finish, python_logits, report,
                    rng_for, workplace)

LORA = dict(r=2, lora_alpha=3)
ATTENTION = {"bert": "query", "roberta": "query", "llama": "q_proj", "qwen2": "q_proj"}


def shaken(model, rng):
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def pruned(model, rows):
    """After three steps of AdaLoRA, which zeroes triplets."""
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for step in range(1, 5):
        output = model(input_ids=torch.tensor([max(rows, key=len)]))
        output[0].square().mean().backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()


def compared(name, family, config, rng, folder, headless=False, train=None, change_file=None, **saving):
    """An adapter of that configuration, from PEFT to ether; on the base model without its head where that is asked."""
    base = auto_class(family)(folder / "base")
    inner = base.base_model if headless else base
    model = shaken(peft.get_peft_model(inner, config), rng)
    rows, tokens = draw_tokens(rng, folder)
    if train:
        train(model, rows)
    out = folder / "adapter" / name.replace(" ", "-")
    model.save_pretrained(out, **saving)
    if change_file:
        file = out / "adapter_config.json"
        written = json.loads(file.read_text())
        change_file(written)
        file.write_text(json.dumps(written))
    ours = ether_logits(rows, tokens, folder / "base", "--adapter", out)
    report(f"{family}: {name}", difference(ours, python_logits(base if headless else model, rows)))


def targets_of(family):
    return "intermediate.dense" if family in ENCODERS else "up_proj"


def from_peft(family, rng, folder):
    name = ATTENTION[family]
    encoder = family in ENCODERS
    task = "SEQ_CLS" if encoder else "CAUSAL_LM"
    block = "encoder.layer.0.attention.self" if encoder else "layers.0.self_attn"
    lora = lambda targets, **options: peft.LoraConfig(task_type=task, target_modules=targets, **LORA | options)
    compared("names that match nothing", family, lora([name, "c_attn", "wte"]), rng, folder)
    compared("a keyword of ours excluded", family, lora([name, "dense" if encoder else "up_proj"], exclude_modules=["mlp", "attention"]), rng, folder)
    last = json.loads((folder / "base" / "config.json").read_text())["num_hidden_layers"] - 1
    path = f"{family if encoder else 'model'}.{block.replace('0', str(last))}.{name}"
    compared("a whole path beside layers", family, lora([path, name], layers_to_transform=[0]), rng, folder)
    compared("a pattern whose dots match anything", family, lora([name], alpha_pattern={block.replace("_", ".") + "." + name: 40}), rng, folder)
    for headless in (False, True):  # an expression for the paths of the other one fits nothing
        where = f"{block}.{name}".replace(".", r"\.")
        prefix = family if encoder else "model"
        for start in ("^", rf"^{prefix}\."):
            compared(f"a pattern from {start}{', no head' if headless else ''}", family,
                     peft.LoraConfig(task_type=None if headless else task, target_modules=[name], alpha_pattern={start + where: 64}, **LORA), rng, folder,
                     headless)
    compared("two patterns that fit", family, lora([name], alpha_pattern={f".*{name}": 40, name: 4}), rng, folder)
    compared("a C3A pattern of two", family, peft.C3AConfig(task_type=task, target_modules=[name, targets_of(family)], block_size=4,
                                                            block_size_pattern={f"{name}|{targets_of(family)}": 2}), rng, folder)
    compared("AdaLoRA without alpha", family, peft.AdaLoraConfig(task_type=task, target_modules=[name], init_r=3, target_r=2, lora_alpha=0, total_step=9),
             rng, folder)
    if not encoder and not json.loads((folder / "base" / "config.json").read_text())["tie_word_embeddings"]:
        compared("PiSSA of the head", family, lora([name, "lm_head"], init_lora_weights="pissa"), rng, folder)
    compared("fan_in_fan_out, which linear layers ignore", family, lora([name]), rng, folder, change_file=lambda config: config.update(fan_in_fan_out=True))
    compared("BOFT of several factors without CUDA", family, peft.BOFTConfig(task_type=task, target_modules=[name], boft_block_size=4,
                                                                             boft_n_butterfly_factor=2), rng, folder)
    compared("no lora_alpha", family, lora([name], lora_alpha=8), rng, folder, change_file=lambda config: config.pop("lora_alpha"))
    whole = ["pooler"] if family == "bert" else ["classifier"] if encoder else ["self_attn"]
    targets = [targets_of(family)]
    compared("biases and whole modules", family, lora(targets, bias="all", modules_to_save=whole), rng, folder)
    compared("saved embeddings", family, lora([name]), rng, folder, save_embedding_layers=True)
    compared("no head", family, peft.LoraConfig(target_modules=rf".*layers?\.\d+\..*({name}|dense|up_proj)",
                                                exclude_modules=rf"{block.replace('.', chr(92) + '.')}.*", **LORA), rng, folder, headless=True)
    for headless in (False, True):
        config = peft.AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=1, deltaT=1, total_step=4, target_modules=[name],
                                    task_type=None if headless else task)
        compared(f"pruned AdaLoRA{', no head' if headless else ''}", family, config, rng, folder, headless, pruned)


def to_peft(family, rng, folder):
    """Methods that do not start as the base, so that a layer which PEFT alone adapts is seen."""
    data = draw_examples(rng, folder / "examples.jsonl")
    rows, tokens = draw_tokens(rng, folder)
    path = "model.layers.0.self_attn.q_proj"
    for name, words in {
            "c3a on a layer and the head": ["c3a", "--block-size", 4, "--targets", "q_proj,lm_head", "--layers", "0"],
            "fourierft on a layer by its path": ["fourierft", "--n-frequency", 8, "--targets", f"{path},v_proj", "--layers", "0"],
            "c3a but for a layer": ["c3a", "--block-size", 4, "--targets", "q_proj,down_proj", "--exclude", "down_proj"],
            "vera but for a layer": ["vera", "--rank", 4, "--targets", "q_proj,down_proj", "--exclude", "down_proj"],
            "c3a but for a keyword": ["c3a", "--block-size", 4, "--targets", "q_proj,up_proj", "--exclude", "mlp"],
            "c3a by an expression but for a keyword": ["c3a", "--block-size", 4, "--targets", ".*(q_proj|up_proj)", "--exclude", "attention"]}.items():
        out = folder / name.replace(" ", "-")
        ether("train", "--model", folder / "base", "--task", "causal-lm", "--data", data, "--out", out, "--max-steps", 1, "--method", *words)
        model = peft.PeftModel.from_pretrained(auto_class(family)(folder / "base"), out)
        report(f"{family}: {name}, in PEFT", difference(python_logits(model, rows), ether_logits(rows, tokens, folder / "base", "--adapter", out)))


def hidden_states(family, rng, folder):
    """Adapters of an encoder without a head: merged for transformers, and anew for PEFT."""
    load = lambda folder: transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    base = folder / "headless"
    auto_class(family)(folder / "base").base_model.save_pretrained(base)
    rows, _ = draw_tokens(rng, folder)
    shortest = min(rows, key=len)

    def states(model):
        with torch.no_grad():
            return [model.double().eval()(input_ids=torch.tensor([row])).last_hidden_state.float() for row in (shortest, rows[0])]

    task = dict(task_type="FEATURE_EXTRACTION")
    for name, config in {"LoRA": peft.LoraConfig(target_modules=[ATTENTION[family], "dense"], exclude_modules=["pooler.dense"], **LORA, **task),
                         "LoRA by a path": peft.LoraConfig(target_modules=["encoder.layer.0.attention.self.query"], **LORA, **task),
                         "IA3": peft.IA3Config(target_modules=["key", "intermediate.dense"], feedforward_modules=[], **task),
                         "AdaLoRA": peft.AdaLoraConfig(init_r=3, target_r=2, total_step=9, target_modules=[ATTENTION[family]], **task)}.items():
        adapter = folder / f"headless-{name.replace(' ', '-')}"
        model = shaken(peft.get_peft_model(load(base), config), rng)
        model.save_pretrained(adapter)
        expected = states(model)
        verb = lambda verb, *words: ether(verb, "--model", base, "--adapter", adapter, "--out", f"{adapter}-{verb}", *words)
        verb("merge", "--dtype", "f32")
        report(f"{family}: {name} of hidden states, merged", difference(states(load(f"{adapter}-merge")), expected))
        verb("import")
        report(f"{family}: {name} of hidden states, anew", difference(states(peft.PeftModel.from_pretrained(load(base), f"{adapter}-import")), expected))
        if name != "IA3":  # biases are scaled, too
            verb("export", "--dtype", "f32")
            report(f"{family}: {name} of hidden states, as LoRA", difference(states(peft.PeftModel.from_pretrained(load(base), f"{adapter}-export")), expected))


for family in ATTENTION:
    print(f"corners of {family} adapters")
    with workplace() as folder:
        folder = pathlib.Path(folder)
        rng = rng_for(f"corners {family}")
        draw_model(family, rng, folder / "base")
        from_peft(family, rng, folder)
        if family in ENCODERS:
            hidden_states(family, rng, folder)
        else:
            to_peft(family, rng, folder)
finish()
