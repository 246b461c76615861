#!/usr/bin/env python3
"""Tests of `ether train` as a user meets it: what it takes, what it trains, and what it says where it stops.
Usage, in the repository's root: python3 tests/training_test.py build/release/bin/ether [unittest's options]"""
import json
import math
import pathlib
import struct
import subprocess
import sys
import unittest
from unittest import mock

import program
from program import BERT, MODELS, PEFT, ProgramTest, ether, read_tensors, refusal


class Train(ProgramTest):
    def test_names_that_users_bring_along(self):
        for option, hint in {"--learning-rate": "--lr", "--lora_alpha=8": "--alpha", "--max-lenth": "--max-length"}.items():
            self.assertIn(f'did you mean "{hint}"?', refusal("train", option, "1"))
        self.assertNotIn("did you mean", refusal("eval", "--model", BERT, "--data", "x", "--learning-rate", "1"))
        for words, hint in {("eval", "--model", "x", "--dta", "y"): "--data", ("merge", "--otu", "x"): "--out",
                            ("bench", "trainstep"): "train-step", ("--hepl",): "--help"}.items():
            self.assertIn(f'did you mean "{hint}"?', refusal(*words))
        self.assertIn('"false" belongs to no option: each takes one value, and switches none', refusal("train", "--bucketing", "false"))
        for name in ["etherplus", "ether_plus", "ETHER+"]:
            self.assertIn('did you mean "ether+"?', refusal("train", "--method", name))

    def test_sizes_that_suit_the_layers(self):
        for method, key in {"c3a": "block_size", "vblora": "vector_length"}.items():
            run = self.train(method, "--method", method)
            self.assertEqual(json.loads((run / "adapter_config.json").read_text())[key], 16)  # of widths of 32 and 48

    def test_expressions_as_python_reads_them(self):
        files = [self.train(str(number), "--targets", expression) / "adapter_model.safetensors" for number, expression in enumerate(
            [r".*\.(query|value)", r"\A.*\.(?P<which>query|value)\Z", r".*\.(?!key)(query|key|value)"])]
        self.assertEqual(len({file.read_bytes() for file in files}), 1)
        with self.assertRaisesRegex(AssertionError, "is not a regular expression, or has what is not read here .flags, look-behind"):
            self.train("flags", "--targets", "(?i:.*QUERY)")

    def test_decay_of_an_adapter(self):
        runs = [self.train(str(decay), "--method", "lora", "--adapter-weight-decay", decay, "--lr", 0.5, "--warmup", 0, "--clip", 1e-9)
                for decay in (0, 0.5)]
        a = [next(tensor for name, tensor in read_tensors(run / "adapter_model.safetensors").items() if "lora_A" in name) for run in runs]
        plain, decayed = (struct.unpack(f"<{math.prod(shape)}f", data) for _, shape, data in a)
        for one, other in zip(plain, decayed):  # no gradient reaches A while B is zero
            self.assertAlmostEqual(other, 0.75 * one, places=6)

    def test_heads_learn_fast_and_what_is_known_slowly(self):
        def moved(run, name):  # a step of Adam moves each value by the rate, unless its gradient is next to nothing
            tensors = (read_tensors(file)[name] for file in (run / "adapter_model.safetensors", pathlib.Path(BERT, "model.safetensors")))
            now, before = (struct.unpack(f"<{math.prod(shape)}f", data) for _, shape, data in tensors)
            return max(abs(one - other) for one, other in zip(now, before))
        prefix = "base_model.model."
        with mock.patch(f"{__name__}.read_tensors", lambda file, read=read_tensors: {
                name.removeprefix(prefix): tensor for name, tensor in read(file).items()}):
            for words, head, pooler in ([], 1e-2, 5e-5), (["--head-lr", 1e-3, "--module-lr", 1e-4], 1e-3, 1e-4), (
                    ["--method", "head", "--lr", 1e-3], 1e-3, 1e-3):
                run = self.train(f"run{head}{pooler}", "--modules-to-save", "pooler", "--warmup", 0, *words, label="LABEL_")
                self.assertAlmostEqual(moved(run, "classifier.weight") / head, 1, places=2)
                self.assertAlmostEqual(moved(run, "bert.pooler.dense.weight") / pooler, 1, places=2)

    def test_a_head_of_its_own_is_trained_whole(self):
        run = self.train("run", model=MODELS / "roberta", label="LABEL_")
        config, tensors = json.loads((run / "adapter_config.json").read_text()), read_tensors(run / "adapter_model.safetensors")
        self.assertEqual((config["modules_to_save"], config["task_type"]), (["classifier"], "SEQ_CLS"))
        for layer in ("dense", "out_proj"):
            self.assertIn(f"base_model.model.classifier.{layer}.weight", tensors)

    def test_a_models_own_head_is_trained_on_for_its_labels_or_numbers(self):
        own = read_tensors(pathlib.Path(BERT, "model.safetensors"))["classifier.weight"]
        for label in ("", "LABEL_", "x"):
            run = self.train(f"run{label}", "--lr", 1e-12, "--head-lr", 0, label=label)
            kept = read_tensors(run / "adapter_model.safetensors")["base_model.model.classifier.weight"] == own
            self.assertEqual(kept, label != "x")
        told = subprocess.run([program.ETHER, "train", "--model", BERT, "--data", self.folder / "train.csv", "--max-steps", "1", "--out",
                               self.folder / "told"], capture_output=True, text=True).stderr
        self.assertIn("the model's own head is for other labels (LABEL_0, LABEL_1, LABEL_2), so a new one is trained", told)

    def test_dropout_of_the_model(self):
        def loss(name, *words):
            metrics = (self.train(name, *words) / "metrics.jsonl").read_text()
            return next(line["loss"] for line in map(json.loads, metrics.splitlines()) if "loss" in line)
        without = loss("default")
        self.assertEqual(loss("none", "--model-dropout", 0), without)
        self.assertNotEqual(loss("some", "--model-dropout", 0.3), without)
        self.assertIn("--model-dropout: 1 is out of range, expected 0 to 0.99", refusal("train", "--model-dropout", 1))

    def test_an_adapter_is_trained_on(self):
        head, query = "base_model.model.classifier.weight", "base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight"
        first = self.train("first", "--method", "lora", "--rank", 2, "--targets", "query", "--layers", 0)
        still = ["--lr", 1e-12, "--head-lr", 0]
        again = self.train("again", "--adapter", first, *still)
        one, other = (read_tensors(run / "adapter_model.safetensors") for run in (first, again))
        self.assertEqual(list(one), list(other))
        self.assertEqual(one[head], other[head])
        self.assertEqual(*((run / "adapter_config.json").read_text() for run in (first, again)))
        moved = self.train("moved", "--adapter", first)
        self.assertNotEqual(read_tensors(moved / "adapter_model.safetensors")[query], one[query])
        # Its run.toml repeats it, and another method's name, layers or options are refused.
        repeated = self.folder / "repeated"
        ether("train", "--config", moved / "run.toml", "--out", repeated)
        self.assertEqual(*((run / "adapter_model.safetensors").read_bytes() for run in (moved, repeated)))
        command = ["train", "--model", BERT, "--data", self.folder / "train.csv", "--out", self.folder / "x", "--adapter", first]
        self.assertIn("is of method lora, which it keeps, not ether; leave --method out", refusal(*command, "--method", "ether"))
        for words in (["--targets", "query"], ["--rank", 4], ["--modules-to-save", "pooler"]):
            self.assertIn(f"{words[0]}: an --adapter that is trained on keeps its own", refusal(*command, *words))
        self.assertIn("nowhere: no such adapter", refusal(*command[:-1], "nowhere"))
        # A head for other labels is a new one.
        renamed = self.train("renamed", "--adapter", first, *still, label="x")
        self.assertNotEqual(read_tensors(renamed / "adapter_model.safetensors")[head], one[head])
        # That the model's own head is for other labels is said where a new one takes its place, and only there.
        for out, words in (("new", ["--method", "lora"]), ("kept", ["--adapter", renamed])):
            words = [program.ETHER, *command[:5], "--max-steps", 1, "--out", self.folder / out, *words]
            told = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stderr
            self.assertEqual("the model's own head is for other labels" in told, out == "new", told)
        self.assertEqual(json.loads((renamed / "ether.json").read_text())["labels"], ["x0", "x1", "x2"])

    def test_all_methods_of_an_adapter_go_on_at_one_rate(self):
        first = self.train("first", "--method", "lora", "--rank", 2, "--and", "red; ether --targets query")
        again = self.train("again", "--adapter", first, "--lr", 1e-12, "--head-lr", 1e-12)
        for one, other in zip(*(read_tensors(run / "adapter_model.safetensors").values() for run in (first, again))):
            values = [struct.unpack(f"<{len(tensor[2]) // 4}f", tensor[2]) for tensor in (one, other)]
            self.assertLess(max(abs(a - b) for a, b in zip(*values)), 1e-9)

    def test_an_adapter_of_pefts_is_trained_on(self):
        data = self.write("data.csv", "text,label\n" + "".join(f"a b,LABEL_{i % 3}\n" for i in range(6)))
        head = "base_model.model.classifier.weight"
        numbers = self.train("numbers", "--adapter", PEFT / "bert_lora", "--head-lr", 0)
        self.assertEqual(*(read_tensors(folder / "adapter_model.safetensors")[head] for folder in (PEFT / "bert_lora", numbers)))
        for name in ("bert_lora", "bert_adalora", "bert_hra", "bert_bias_all"):
            run = self.folder / name
            ether("train", "--model", BERT, "--adapter", PEFT / name, "--data", data, "--max-steps", 2, "--out", run)
            before, after = (read_tensors(folder / "adapter_model.safetensors") for folder in (PEFT / name, run))
            self.assertLessEqual({key for key in before if "lora" in key or "hra" in key}, set(after))
        self.assertEqual(json.loads((run / "ether.json").read_text())["labels"], ["LABEL_0", "LABEL_1", "LABEL_2"])

    def test_layers_are_not_chosen_for_a_method_without(self):
        self.train("full", "--method", "full", "--targets", "all-linear")
        for option in (["--targets", "query"], ["--exclude", "query"], ["--layers", "0"]):
            with self.assertRaisesRegex(AssertionError, "method head adapts no chosen layers"):
                self.train("head", "--method", "head", *option)


if __name__ == "__main__":
    program.ETHER = sys.argv.pop(1)
    unittest.main()
