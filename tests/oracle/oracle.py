"""What the comparisons share: drawing models, running ether, and measuring agreement."""

import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

transformers.utils.logging.disable_progress_bar()

ROOT = pathlib.Path(__file__).resolve().parents[2]
ETHER = os.environ.get("ETHER", ROOT / "build/release/bin/ether")
SEED = int(os.environ.get("ORACLE_SEED", "1"))
ENCODERS = {"bert", "roberta"}
TOLERANCE = 1e-5  # relative to max(1, largest reference value)

_spec = importlib.util.spec_from_file_location("make_models", ROOT / "tests/fixtures/make_models.py")
fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixtures)

# Each family's configuration and usual task; and that of language models which classify.
FAMILIES = {
    "bert": (transformers.BertConfig, transformers.BertForSequenceClassification),
    "roberta": (transformers.RobertaConfig, transformers.RobertaForSequenceClassification),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}

CLASSIFIERS = {
    "llama": transformers.LlamaForSequenceClassification,
    "mistral": transformers.MistralForSequenceClassification,
    "qwen2": transformers.Qwen2ForSequenceClassification,
    "qwen3": transformers.Qwen3ForSequenceClassification,
}

failures = []


def report(name, difference, tolerance=TOLERANCE):
    good = difference <= tolerance
    print(f"  {'ok    ' if good else 'FAILED'} {name}: {difference:.1e}", flush=True)
    if not good:
        failures.append(name)


def finish():
    sys.exit(1 if failures else 0)


def ether(*arguments):
    done = subprocess.run([ETHER, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"ether {' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout


def draw_config(family, rng):
    """A small random configuration of the family; widths divide by 4, so that every method's defaults fit."""
    heads = rng.choice([1, 2, 4])
    head_dim = 4 * rng.choice([1, 2, 3, 5])
    config = dict(vocab_size=fixtures.VOCABULARY, hidden_size=heads * head_dim, num_hidden_layers=rng.randint(1, 3),
                  num_attention_heads=heads, intermediate_size=4 * rng.randint(2, 20), max_position_embeddings=128,
                  pad_token_id=0)
    if family in ENCODERS:
        config.update(num_labels=3, hidden_act=rng.choice(["gelu", "gelu_new", "relu"]),
                      layer_norm_eps=rng.choice([1e-12, 1e-5]), type_vocab_size=rng.choice([1, 2]),
                      hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # training, too, is compared
        return config
    config.update(num_key_value_heads=rng.choice([n for n in (1, 2, 4) if heads % n == 0]), bos_token_id=1,
                  eos_token_id=2, tie_word_embeddings=rng.random() < 0.5, rms_norm_eps=rng.choice([1e-6, 1e-5]))
    theta = rng.choice([500.0, 10000.0, 1e6])
    config["rope_parameters"] = rng.choice([
        dict(rope_type="default", rope_theta=theta),
        dict(rope_type="linear", rope_theta=theta, factor=rng.choice([2.0, 3.5])),
        dict(rope_type="llama3", rope_theta=theta, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
             original_max_position_embeddings=32)])
    if family == "llama":
        config.update(attention_bias=rng.random() < 0.5, mlp_bias=rng.random() < 0.5)
    if family == "mistral":
        config["sliding_window"] = rng.choice([None, 3, 20])
    if family == "qwen2" and rng.random() < 0.5:
        config.update(use_sliding_window=True, sliding_window=rng.choice([3, 20]), max_window_layers=1)
    if family == "qwen3":
        config["head_dim"] = 4 * rng.choice([2, 3, 4])
    return config


def draw_model(family, rng, folder, classifier=False, shard_size="5GB"):
    """Saves a random model and its tokenizer; a family's language model as a classifier if asked to."""
    config_class, model_class = FAMILIES[family]
    config = config_class(**draw_config(family, rng))
    if classifier:
        config.num_labels, model_class = 3, CLASSIFIERS[family]
    model = model_class(config).float().eval()
    fixtures.draw(model, rng.randrange(1 << 30))
    model.save_pretrained(folder, max_shard_size=shard_size)
    (folder / "tokenizer.json").write_text(json.dumps(fixtures.tokenizer()))


def draw_tokens(rng, folder):
    rows = [[rng.randrange(4, fixtures.VOCABULARY) for _ in range(rng.choice([1, 2, 7, 33, 64, 65, 100]))]
            for _ in range(4)]
    file = folder / "tokens.json"
    file.write_text(json.dumps(rows))
    return rows, file


def strip_prefix(model, folder):
    """Names the stored tensors as those of the base model, without "bert." or "model." in front."""
    for file in folder.glob("*.safetensors"):
        tensors = {name.removeprefix(model.base_model_prefix + "."): tensor.clone() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})


def draw_examples(rng, file, count=24, labels="abc"):
    """Training texts of the fixtures' words, in three classes."""
    lines = [{"text": " ".join(f"w{rng.randrange(4, fixtures.VOCABULARY)}" for _ in range(rng.randint(3, 12))),
              "label": labels[i % 3]} for i in range(count)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def ether_logits(rows, tokens, model, *more):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "logits.safetensors"
        ether("logits", "--model", model, "--tokens", tokens, "--out", out, *more)
        tensors = load_file(out)
        return [tensors[f"logits.{row}"].clone() for row in range(len(rows))]


def padded_logits(model, rows):
    """All rows in one batch, padded on the right, in float64."""
    model = model.double().eval()
    ids, mask = fixtures.padded(rows)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
    return [row if row.dim() == 1 else row[: len(tokens)] for row, tokens in zip(logits, rows)]


def python_logits(model, rows):
    """Each row alone, in float64."""
    model = model.double().eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0].float() for row in rows]


def difference(actual, expected):
    largest = max(1.0, max(t.abs().max().item() for t in expected))
    worst = max((a - e).abs().max().item() if a.shape == e.shape else float("inf") for a, e in zip(actual, expected))
    return float("inf") if worst != worst else worst / largest


def auto_class(family, classifier=False):
    classifies = family in ENCODERS or classifier
    auto = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModelForCausalLM
    return lambda folder: auto.from_pretrained(folder, dtype=torch.float32)


def mean_loss(model, family, rows, labels):
    """Cross entropy of rows of token ids, each alone: over rows for a classifier, over next tokens for a language model."""
    cross_entropy = torch.nn.functional.cross_entropy
    ids = [torch.tensor([row]) for row in rows]
    if family in ENCODERS:
        return sum(cross_entropy(model(input_ids=row).logits, torch.tensor([label])) for row, label in zip(ids, labels)) / len(rows)
    total = sum(cross_entropy(model(input_ids=row).logits[0, :-1], row[0, 1:], reduction="sum") for row in ids)
    return total / sum(row.shape[1] - 1 for row in ids)


def workplace():
    return tempfile.TemporaryDirectory(prefix="ether-oracle-")


def rng_for(name):
    return random.Random(f"{SEED} {name}")
