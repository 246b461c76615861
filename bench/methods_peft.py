"""PEFT's side of bench/methods.py: methods_peft.py ADAPTER_FOLDER RATE SEED MODEL TRAIN JUDGE BATCH

Trains PEFT's own implementation, from its own start, with the configuration in ADAPTER_FOLDER and the settings of `ether train`'s defaults
(AdamW, warm-up of a tenth, linear decay, clipping at 1, the head at 1e-2, the model's own dropout off), for one epoch. Prints accuracy and trained values as JSON.
"""

import json
import pathlib
import sys

import peft
import torch
import transformers

folder, rate, seed, model_folder, train, judge, batch_size = sys.argv[1:]
rate, seed, batch_size = float(rate), int(seed), int(batch_size)


def read(path):
    rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


texts, labels = read(train)
names = sorted(set(labels))
tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
torch.manual_seed(seed)
model = transformers.AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=len(names), dtype=torch.float32,
                                                                           hidden_dropout_prob=0, attention_probs_dropout_prob=0)
config = peft.PeftConfig.from_pretrained(folder)
config.inference_mode = False
model = peft.get_peft_model(model, config)
head = [p for n, p in model.named_parameters() if p.requires_grad and "classifier" in n]
adapter = [p for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n]
optimizer = torch.optim.AdamW([{"params": adapter, "lr": rate}, {"params": head, "lr": 1e-2}], weight_decay=0)
steps = (len(texts) + batch_size - 1) // batch_size
schedule = transformers.get_linear_schedule_with_warmup(optimizer, max(1, round(0.1 * steps)), steps)


def batches(texts, labels, order):
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        encoded = tokenizer([texts[i] for i in rows], truncation=True, max_length=64, padding=True, return_tensors="pt")
        yield encoded, torch.tensor([names.index(labels[i]) for i in rows])


model.train()
for step, (encoded, wanted) in enumerate(batches(texts, labels, torch.randperm(len(texts)).tolist()), 1):
    model(**encoded, labels=wanted).loss.backward()
    torch.nn.utils.clip_grad_norm_(adapter + head, 1)
    optimizer.step()
    schedule.step()
    if hasattr(model.base_model, "update_and_allocate"):
        model.base_model.update_and_allocate(step)
    optimizer.zero_grad()
model.eval()
texts, labels = read(judge)
with torch.no_grad():
    hits = sum((model(**encoded).logits.argmax(1) == wanted).sum().item()
               for encoded, wanted in batches(texts, labels, sorted(range(len(texts)), key=lambda i: len(texts[i]))))
print(json.dumps({"accuracy": hits / len(texts), "macro_f1": None, "parameters": sum(p.numel() for p in adapter), "bytes": None}))
