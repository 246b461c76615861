#!/usr/bin/env python3
"""Tests of the program itself, as a user meets it: what it prints, and what it says where it stops.
Usage, in the repository's root: python3 tests/program_test.py build/release/bin/ether [unittest's options]"""
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import unittest
from unittest import mock

import program
from program import BERT, MODELS, PEFT, ProgramTest, change_tensors, ether, header_file, read_tensors, refusal


class Inspect(ProgramTest):
    def test_dtypes_are_spelled_as_they_are_typed(self):
        run = self.train("run")
        self.assertEqual(json.loads(ether("inspect", BERT, "--json"))["sites"][0]["dtype"], "f32")
        self.assertEqual(json.loads(ether("inspect", run, "--json"))["tensors"][0]["dtype"], "f32")
        merge = ["merge", "--model", BERT, "--adapter", run, "--json", "--out"]
        self.assertEqual(json.loads(ether(*merge, self.folder / "merged"))["dtype"], "f32")

    def test_a_new_head_is_no_part_of_the_model(self):
        file = (MODELS / "bert_bare" / "model.safetensors").read_bytes()
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
        stored = sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
        shown = json.loads(ether("inspect", MODELS / "bert_bare", "--json"))
        self.assertEqual(shown["parameters"], stored)
        self.assertEqual(shown["new_head_parameters"], 2 * shown["hidden_size"] + 2)
        self.assertIn(f"{stored} parameters (and 66 of a new head for 2 classes)", ether("inspect", MODELS / "bert_bare"))
        self.assertEqual(json.loads(ether("inspect", BERT, "--json"))["new_head_parameters"], 0)

    def test_a_checkpoint_is_told_from_an_adapter(self):
        run = self.train("run")
        told = refusal("inspect", run / "checkpoints" / "step-000000001")
        self.assertIn(f"step-000000001: holds a run's checkpoint, from which ether train --resume {run}/ goes on", told)
        self.assertIn(f"the adapter is in {run}/", told)

    def test_what_to_inspect_may_be_named_in_a_file_or_in_the_cache(self):
        file = self.write("own.toml", f"folder = '{BERT}'\njson = true\n")
        self.assertEqual(ether("inspect", "--config", file), ether("inspect", BERT, "--json"))
        run = self.train("run")
        cached = self.folder / "hf" / "hub" / "models--org--adapter"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("1234")
        shutil.copytree(run, cached / "snapshots" / "1234")
        tokens = ["--tokens", MODELS / "bert" / "tokens.json"]
        with mock.patch.dict(os.environ, HOME=str(self.folder), HF_HOME="~/hf"):
            self.assertEqual(ether("inspect", "org/adapter", "--json"), ether("inspect", run, "--json"))
            for number, name in enumerate([run, "org/adapter"]):
                ether("logits", "--model", BERT, "--adapter", name, *tokens, "--out", self.folder / f"{number}.safetensors")
            told = refusal("logits", "--model", BERT, "--adapter", "org/nothere", *tokens, "--out", self.folder / "x")
        self.assertEqual(*(read_tensors(self.folder / f"{number}.safetensors") for number in (0, 1)))
        self.assertIn("org/nothere: no such adapter; looked for the folder", told)


class Config(ProgramTest):
    def test_a_file_repeats_a_run_and_the_command_line_wins(self):
        run = self.train("run", "--modules-to-save", "pooler", "--bucketing", "--lr", "0.25", "--method", "lora", "--rank", 2)
        ether("train", "--config", run / "run.toml", "--out", self.folder / "again", "--lr", "0.5")
        lines = [(folder / "run.toml").read_text().splitlines() for folder in (run, self.folder / "again")]
        self.assertEqual([pair for pair in zip(*lines) if pair[0] != pair[1]],
                         [(f"out = '{run}'", f"out = '{self.folder / 'again'}'"), ("lr = 0.25", "lr = 0.5")])

    def test_what_is_wrong_is_told_with_its_line(self):
        for text, words in {
            'model = "x\ndata = "y"\n': ':1: Error while parsing string: ',
            "model = 'x'\n[train]\n": ":2: options stand at the top level of the file, as key = value; remove the line [train]",
            "\nlearning_rate = 1\n": ':2: unknown key "learning_rate"; did you mean "lr"?',
            "batch = [1, 2]\n": ':1: "batch" takes one value, found a list of 2',
        }.items():
            file = self.write("own.toml", text)
            self.assertIn(str(file) + words, refusal("train", "--config", file))
        self.assertIn("none.toml: cannot open", refusal("train", "--config", self.folder / "none.toml"))

    def test_a_runs_file_is_for_training(self):
        told = refusal("eval", "--config", self.train("run") / "run.toml")
        self.assertIn("run.toml: these keys are ether train's alone: task, out, method, ", told)
        self.assertNotIn("did you mean", told)
        self.assertIn("leave them out for ether eval, which takes a run by --adapter and its folder", told)
        file = self.write("own.toml", f"model = '{BERT}'\njson = true\n")
        data = self.write("data.csv", "text,label\na,0\n")
        self.assertEqual(json.loads(ether("eval", "--config", file, "--data", data))["examples"], 1)

    def test_quotes_in_a_value(self):
        targets = r""".*['"]?.*\.(query|key)"""
        run = self.train("run", "--targets", targets)
        again = self.train("again", "--config", run / "run.toml")
        self.assertEqual(*((folder / "adapter_model.safetensors").read_bytes() for folder in (run, again)))
        self.assertEqual(*([line for line in (folder / "run.toml").read_text().splitlines() if "targets" in line] for folder in (run, again)))


class Predict(ProgramTest):
    command = ["predict", "--model", BERT]
    texts = ["a b c", "b", "c c a b"]

    def test_lines_are_answered_as_they_come(self):
        with subprocess.Popen([program.ETHER, *self.command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            for text in self.texts:
                running.stdin.write(text + "\n")
                running.stdin.flush()
                self.assertIn("LABEL_", running.stdout.readline())  # hangs where it waits for more

    def test_every_format_says_the_same(self):
        plain = "".join(text + "\n" for text in self.texts)
        expected = ether(*self.command, text=plain)
        self.assertEqual(expected.count("\n"), 3)
        objects = [{"text": text, "label": label} for text, label in zip(self.texts, [1, "x", 0.5])]
        lines = "\n".join(map(json.dumps, objects))
        table = "text,n\n" + "".join(f'"{text}",1\n' for text in self.texts)
        for text in [plain[:-1], lines, json.dumps(objects), json.dumps(objects, indent=1)]:
            self.assertEqual(ether(*self.command, text=text), expected, text)
            self.assertEqual(ether(*self.command, text="\ufeff" + text), expected, text)  # a byte order mark
            self.assertEqual(ether(*self.command, "--batch", 1, text=text), expected, text)
        self.assertEqual(ether(*self.command, "--format", "jsonl", text=json.dumps(objects)), expected)
        self.assertEqual(ether(*self.command, "--format", "csv", text=table), expected)
        with subprocess.Popen([program.ETHER, *self.command], stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=None,
                              preexec_fn=lambda: os.close(1), text=True) as running:  # where the result belongs
            self.assertIn("standard output: cannot write the result", running.communicate("a\n")[1])
        for name, text in {"a.txt": plain, "a.jsonl": lines, "a.json": json.dumps(objects), "a.csv": table}.items():
            self.assertEqual(ether(*self.command, "--input", self.write(name, text)), expected, name)
        self.assertEqual(ether(*self.command, "--format", "csv", "--input", self.write("table", table)), expected)
        for text in ("[a\n", "{a} b\n"):
            self.assertEqual(ether(*self.command, "--format", "text", text=text), ether(*self.command, text=text))
        self.assertEqual(ether(*self.command), "")

    def test_lines_are_counted_over_all_pieces(self):
        lines = '{"text": "a"}\n' * 100 + "{}\n"
        self.assertIn("standard input:101: no column", refusal(*self.command, "--batch", 1, text=lines))
        self.assertIn("a.bin: cannot open", refusal(*self.command, "--input", self.folder / "a.bin"))


class Merge(ProgramTest):
    def merge(self, run, *words, model=BERT, out="merged"):
        return ["merge", "--model", model, "--adapter", run, "--out", self.folder / out, "--json", *words]

    def test_the_base_stays_as_it_is(self):
        model, run = self.folder / "model", self.train("run", "--model", BERT)
        shutil.copytree(BERT, model)
        (self.folder / "link").symlink_to(model)
        state = lambda: {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in [model, *model.iterdir()] if file.is_file()}
        before = state()
        ether(*self.merge(run, model=model))
        self.assertIn("the folder exists and is not empty", refusal(*self.merge(run, model=model, out="model")))
        self.assertIn("exists and is not a folder", refusal(*self.merge(run, model=model, out="link")))
        self.assertEqual(state(), before)
        self.assertEqual({path.name for path in self.folder.iterdir()}, {"link", "merged", "model", "run", "train.csv"})

    def test_what_a_dtype_retains_of_the_effect(self):
        """Weights of 1 and -1 cancel out, so that their change by 0.001 shows; bfloat16 has nothing between 0.998 and 1."""
        model, adapter = self.folder / "model", self.folder / "adapter"
        shutil.copytree(BERT, model)
        adapter.mkdir()
        floats = lambda *shape, values: ("F32", list(shape), struct.pack(f"<{math.prod(shape)}f", *values))
        norm = "bert.encoder.layer.1.output.LayerNorm"
        change_tensors(model / "model.safetensors", {
            f"{norm}.weight": floats(32, values=[0] * 32), f"{norm}.bias": floats(32, values=[1] * 32),
            "bert.pooler.dense.weight": floats(32, 32, values=[1, -1] * 512)})
        (adapter / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["pooler.dense"]}))
        (adapter / "adapter_model.safetensors").write_bytes(header_file("{}", b""))
        module = "base_model.model.bert.pooler.dense"
        change_tensors(adapter / "adapter_model.safetensors", {
            f"{module}.lora_A.weight": floats(1, 32, values=[1] * 32), f"{module}.lora_B.weight": floats(32, 1, values=[0.001] * 32)})
        report = json.loads(ether(*self.merge(adapter, "--dtype", "f32", model=model)))
        self.assertGreater(report["adapter_effect"], 0)
        self.assertAlmostEqual(report["retained"], 1, places=3)
        done = subprocess.run([program.ETHER, *map(str, self.merge(adapter, "--dtype", "bf16", model=model, out="lost"))], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("in bf16 the merged model retains 0% of what the adapter changes, and is 1 times as far from it as the base is; nothing was written; --dtype f32 retains all", done.stderr)
        self.assertFalse((self.folder / "lost").exists())
        change_tensors(adapter / "adapter_model.safetensors", {f"{module}.lora_B.weight": floats(32, 1, values=[0] * 32)})
        words = [word for word in self.merge(adapter, model=model, out="same") if word != "--json"]
        self.assertRegex(ether(*words), r"largest logit \S+, of which the adapter changes none\)")
        # 1.003 is nearest to 1, 0.997 to 0.99609.
        change_tensors(adapter / "adapter_model.safetensors", {f"{module}.lora_B.weight": floats(32, 1, values=[0.003] * 32)})
        words = [word for word in self.merge(adapter, "--dtype", "bf16", model=model, out="told") if word != "--json"]
        self.assertRegex(ether(*words), r"the adapter changes them by up to \S+, of which 6[0-9.]+% is retained; --dtype f32 retains all")

    def test_texts_are_cut_as_in_training(self):
        model = self.folder / "model"
        shutil.copytree(BERT, model)
        run = self.train("run", "--max-length", 4, model=model)
        for config in ({"model_max_length": 16, "x": 1}, None):
            (model / "tokenizer_config.json").unlink(missing_ok=True)
            if config:
                (model / "tokenizer_config.json").write_text(json.dumps(config))
            ether(*self.merge(run, model=model, out=f"merged-{bool(config)}"))
            written = json.loads((self.folder / f"merged-{bool(config)}" / "tokenizer_config.json").read_text())
            self.assertEqual(written, (config or {}) | {"model_max_length": 4})


class WithLogits(ProgramTest):
    def logits(self, adapter):
        out = self.folder / "logits.safetensors"
        ether("logits", "--model", BERT, "--adapter", adapter, "--tokens", MODELS / "bert" / "tokens.json", "--out", out)
        return {name: struct.unpack(f"<{len(data) // 4}f", data) for name, (_, _, data) in read_tensors(out).items()}

    def difference(self, one, other):
        pairs = [(a, b) for name, row in self.logits(one).items() for a, b in zip(row, self.logits(other)[name], strict=True)]
        return max(abs(a - b) for a, b in pairs)


class Export(WithLogits):
    def export(self, run, *words, out="lora"):
        return ["export", "--model", BERT, "--adapter", run, "--to", "lora", "--out", self.folder / out, *words]

    def test_a_lora_is_the_adapter(self):
        run = self.train("run", "--lr", 0.1, "--blocks", 8)
        done = subprocess.run([program.ETHER, *map(str, self.export(run))], capture_output=True, text=True, check=True)
        self.assertRegex(done.stdout, r"lora: a LoRA of rank 32 on 13 layers, 0.1 MB; probe logits differ from the adapter's by at "
                         r"most \S+ \(largest logit \S+, the adapter changes them by up to \S+, of which 100.0% is retained\)\n")
        self.assertIn("warning: vLLM's default is --max-lora-rank 16; serve this LoRA of rank 32 with --max-lora-rank 32\n", done.stderr)
        self.assertLess(self.difference(run, self.folder / "lora"), 1e-5)
        config, ether_json = (json.loads((self.folder / "lora" / name).read_text()) for name in ("adapter_config.json", "ether.json"))
        self.assertEqual((config["peft_type"], config["r"], config["lora_alpha"], config["modules_to_save"]), ("LORA", 32, 32, ["classifier"]))
        heads = [read_tensors(folder / "adapter_model.safetensors")["base_model.model.classifier.weight"] for folder in (run, self.folder / "lora")]
        self.assertEqual(*heads)
        self.assertEqual(ether_json, json.loads((run / "ether.json").read_text()))
        data = self.write("test.csv", "text,label\na b,1\n")
        scores = [ether("eval", "--model", BERT, "--adapter", adapter, "--data", data, "--json") for adapter in (run, self.folder / "lora")]
        self.assertAlmostEqual(*(json.loads(score)["loss"] for score in scores), places=5)
        again = json.loads(ether(*self.export(self.folder / "lora", "--json", out="again")))
        self.assertEqual(again["rank"], 32)
        self.assertLess(again["largest_difference"], 1e-6)

    def test_the_nearest_of_a_rank(self):
        run = self.train("run", "--lr", 0.1)
        report = json.loads(ether(*self.export(run, "--max-rank", 6, "--json")))
        self.assertEqual((report["rank"], report["exact_rank"], report["exact"], report["layers"]), (6, 16, False, 13))
        self.assertTrue(0 < report["error"] <= report["largest_error"] < 1)
        self.assertIn(report["largest_error_layer"], json.loads((self.folder / "lora" / "adapter_config.json").read_text())["target_modules"])
        self.assertAlmostEqual(report["largest_difference"], self.difference(run, self.folder / "lora"), delta=1)
        told = ether(*self.export(run, "--max-rank", 6, out="told"))
        self.assertRegex(told, r"rank 6 \(16 would be exact\) on 13 layers, 0.0 MB; it loses 0\.\d+ of the weights' change, at most "
                         r"0\.\d+ \(bert\.\S+\); probe logits differ")
        oft = self.train("oft", "--method", "oft", "--block-size", 4, "--lr", 0.1)
        self.assertEqual(json.loads(ether(*self.export(oft, "--svd", "--max-rank", 3, "--json", out="svd")))["exact_rank"], 32)

    def test_what_no_lora_holds_is_told(self):
        runs = {"oft": ["--method", "oft", "--block-size", 4], "red": ["--method", "red"], "bitfit": ["--method", "bitfit"],
                "biases": ["--method", "lora", "--bias", "all"], "ether": ["--method", "ether"]}
        runs = {name: self.train(name, *words) for name, words in runs.items()}
        before = sorted(self.folder.rglob("*"))
        for told, words in {
            "query: method oft with this adapter's options is no low-rank change of this layer": self.export(runs["oft"], "--max-rank", 4),
            "--svd: needs --max-rank": self.export(runs["oft"], "--svd"),
            "changes this layer's bias, which no LoRA holds; ether merge writes": self.export(runs["red"], "--svd", "--max-rank", 4),
            "method bitfit (the model's biases) is no change of chosen linear layers": self.export(runs["bitfit"]),
            "trained the base model's tensor \"bert.embeddings.LayerNorm.bias\" as well": self.export(runs["biases"]),
            "the folder exists and is not empty": self.export(runs["ether"], out="ether"),
            "--to": self.export(runs["ether"])[:5] + ["--to", "gguf", "--out", self.folder / "lora"],
            "--max-rank": self.export(runs["ether"], "--max-rank", -1),
            "adapter_config.json": self.export(BERT),
        }.items():
            self.assertIn(told, refusal(*words))
        self.assertEqual(sorted(self.folder.rglob("*")), before)


class Import(WithLogits):
    def imported(self, adapter, *words, model=BERT):
        return ["import", "--model", model, "--adapter", adapter, "--out", self.folder / "imported", *words]

    def pickled(self):
        folder = self.folder / "pickled"
        shutil.copytree(PEFT / "bert_lora", folder)
        (folder / "adapter_model.safetensors").unlink()
        shutil.copy("tests/fixtures/pickles/bert_lora.bin", folder / "adapter_model.bin")
        return folder

    def test_pickled_weights(self):
        pickled, out = self.pickled(), self.folder / "imported"
        told = refusal("logits", "--model", BERT, "--adapter", pickled, "--tokens", MODELS / "bert" / "tokens.json", "--out", out)
        self.assertIn(f"ether import --model DIR --adapter {pickled} --out NEW", told)
        report = json.loads(ether(*self.imported(pickled, "--json")))
        self.assertEqual((report["method"], report["task"], report["layers"]), ("lora", "classify", 4))
        self.assertEqual(self.difference(out, PEFT / "bert_lora"), 0)
        self.assertEqual(sorted(path.name for path in out.iterdir()), ["adapter_config.json", "adapter_model.safetensors", "ether.json"])

    def test_the_base_and_the_labels_are_known_from_then_on(self):
        out = self.folder / "imported"
        self.assertIn(f"{out}: lora for classify, 768 values on 4 layers; it changes probe logits by up to ", ether(*self.imported(PEFT / "bert_lora")))
        description = json.loads((out / "ether.json").read_text())
        self.assertEqual(len(description["labels"]), 3)
        other = self.folder / "other"
        shutil.copytree(BERT, other)
        name = "bert.embeddings.word_embeddings.weight"
        dtype, shape, data = read_tensors(other / "model.safetensors")[name]
        change_tensors(other / "model.safetensors", {name: (dtype, shape, bytes(len(data)))})
        self.assertIn("another base", refusal("eval", "--model", other, "--adapter", out, "--data", self.write("d.csv", "text,label\na,1\n")))

    def test_what_is_no_adapter_of_one_kind(self):
        pickled = self.pickled()
        (pickled / "adapter_model.bin").write_bytes(b"no archive")
        cases = {
            "adapter_model.bin: expected a file of torch.save": self.imported(pickled),
            "is more than one whole adapter": self.imported(f"{PEFT / 'bert_lora'},{PEFT / 'bert_ia3'}"),
            "\"tests/fixtures/peft/bert_lora@0.5\" is more than one whole adapter": self.imported(f"{PEFT / 'bert_lora'}@0.5"),
            "fits nothing in this model": self.imported(PEFT / "llama_tokens", model=MODELS / "llama3_rope"),
        }
        for told, words in cases.items():
            with self.subTest(told):
                self.assertIn(told, refusal(*words))
                self.assertFalse((self.folder / "imported").exists())


class HiddenStates(ProgramTest):
    """An encoder without a head and an adapter for its hidden states, as PEFT saves it (FEATURE_EXTRACTION)."""

    def setUp(self):
        super().setUp()
        self.base, self.adapter = self.folder / "base", self.folder / "adapter"
        shutil.copytree(BERT, self.base)
        # Names as BertModel has them, and a tensor that no classifier reads.
        tensors = read_tensors(self.base / "model.safetensors")
        change_tensors(self.base / "model.safetensors",
                       dict.fromkeys(tensors) | {name.removeprefix("bert."): value for name, value in tensors.items() if name.startswith("bert.")}
                       | {"other.weight": ("F32", [2], struct.pack("<2f", 1, 2))})
        self.change_json(self.base / "config.json", architectures=["BertModel"], id2label=None, label2id=None)
        shutil.copytree(PEFT / "bert_lora", self.adapter)
        tensors = read_tensors(self.adapter / "adapter_model.safetensors")
        change_tensors(self.adapter / "adapter_model.safetensors",
                       dict.fromkeys(tensors) | {name.replace(".bert.", "."): value for name, value in tensors.items() if "classifier" not in name})
        self.change_json(self.adapter / "adapter_config.json", task_type="FEATURE_EXTRACTION", modules_to_save=None)

    def change_json(self, file, **changes):
        file.write_text(json.dumps({key: value for key, value in (json.loads(file.read_text()) | changes).items() if value is not None}))

    def made(self, verb, adapter, out):
        ether(verb, "--model", self.base, "--adapter", adapter, "--out", self.folder / out)
        return self.folder / out

    def test_a_merge_is_such_an_encoder(self):
        merged = self.made("merge", self.adapter, "merged")
        ether("merge", "--model", BERT, "--adapter", PEFT / "bert_lora", "--out", self.folder / "whole")
        expected = {name.removeprefix("bert."): value for name, value in read_tensors(self.folder / "whole" / "model.safetensors").items()
                    if name.startswith("bert.")} | {"other.weight": read_tensors(self.base / "model.safetensors")["other.weight"]}
        self.assertEqual(read_tensors(merged / "model.safetensors"), expected)
        config = json.loads((merged / "config.json").read_text())
        self.assertEqual(config, json.loads((self.base / "config.json").read_text()) | {"dtype": "float32"})

    def test_other_adapters_of_it_are_alike(self):
        merged = read_tensors(self.made("merge", self.adapter, "merged") / "model.safetensors")
        for verb in ("import", "export"):
            made = self.made(verb, self.adapter, verb)
            names = read_tensors(made / "adapter_model.safetensors")
            self.assertTrue(all(name.startswith("base_model.model.encoder.") for name in names), names)
            config, description = (json.loads((made / name).read_text()) for name in ("adapter_config.json", "ether.json"))
            self.assertEqual((config["task_type"], description["task"]), ("FEATURE_EXTRACTION", "feature-extraction"))
            again = read_tensors(self.made("merge", made, f"{verb}-merged") / "model.safetensors")
            for name, (dtype, _, data) in again.items():
                values, expected = (struct.unpack(f"<{len(x) // 4}f", x) for x in (data, merged[name][2]))
                self.assertLess(max(abs(a - b) for a, b in zip(values, expected, strict=True)), 1e-6, name)

    def test_there_is_nothing_to_answer_with(self):
        told = "the model has neither a classification head nor a language model's"
        data = self.write("data.csv", "text,label\na b,1\n")
        for words in (["eval", "--data", data], ["predict"], ["logits", "--tokens", MODELS / "bert" / "tokens.json", "--out", self.folder / "x"]):
            self.assertIn(told, refusal(*words, "--model", self.base, "--adapter", self.adapter))
        run = self.train("run", "--adapter", self.adapter, model=self.base)
        ether("eval", "--model", self.base, "--adapter", run, "--data", data)


class Combine(ProgramTest):
    def logits(self, adapter):
        out = self.folder / "logits.safetensors"
        ether("logits", "--model", BERT, "--adapter", adapter, "--tokens", MODELS / "bert" / "tokens.json", "--out", out)
        return out.read_bytes()

    def test_methods_are_trained_together(self):
        run = self.train("run", "--lr", 0.1, "--targets", "attention", "--and",
                         "red --lr 0.2;\tlora --rank 2 --targets mlp --rslora; vera --no-save-projection")
        config = json.loads((run / "adapter_config.json").read_text())
        self.assertEqual([part["peft_type"] for part in config["parts"]], ["ETHER_PLUS", "RED", "LORA", "VERA"])
        self.assertEqual((config["peft_type"], config["parts"][2]["r"], config["parts"][2]["use_rslora"]), ("COMBINED", 2, True))
        toml = (run / "run.toml").read_text()
        self.assertIn("and = 'red --lr 0.2; lora --rank 2 --targets mlp --rslora --lr 0.001; vera --no-save-projection --lr 0.03'", toml)
        ether("train", "--config", run / "run.toml", "--out", self.folder / "again")
        self.assertEqual(self.logits(run), self.logits(self.folder / "again"))
        report = json.loads(ether("merge", "--model", BERT, "--adapter", run, "--out", self.folder / "merged", "--json"))
        self.assertLess(report["largest_difference"], 1e-5)

    def test_the_one_with_a_head_tells_the_task(self):
        """In whichever order they are given."""
        text, model = self.write("text.txt", "a b a b\n" * 8), MODELS / "llama_tied"
        language, run = self.folder / "language", ["--max-steps", 1, "--method", "lora", "--rank", 2]
        ether("train", "--model", model, "--task", "causal-lm", "--data", text, "--out", language, *run)
        classifier = self.train("classifier", *run, model=model)
        for adapters in (f"{language},{classifier}", f"{classifier},{language}"):
            found = json.loads(ether("eval", "--model", model, "--adapter", adapters, "--data", self.folder / "train.csv", "--json"))
            self.assertIn("accuracy", found)
        (classifier / "ether.json").unlink()  # as PEFT saves it
        found = json.loads(ether("eval", "--model", model, "--adapter", f"{language},{classifier}", "--data", self.folder / "train.csv", "--json"))
        self.assertIn("accuracy", found)
        told = refusal("train", "--model", model, "--data", text, "--out", self.folder / "x", "--adapter", f"{language}@0.5")
        self.assertIn("training goes on from one adapter as it is, not from", told)

    def test_adapters_are_loaded_together(self):
        """A weight is its adapter's; a folder's name may look like one."""
        run = self.train("run@2", "--method", "lora", "--lr", 0.1)
        (self.folder / "a,b").symlink_to(run)
        first = self.logits(run)
        self.assertEqual(self.logits(self.folder / "a,b"), first)
        headless = self.folder / "headless"
        shutil.copytree(run, headless)
        config = json.loads((headless / "adapter_config.json").read_text())
        (headless / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": None}))
        change_tensors(headless / "adapter_model.safetensors",
                       {f"base_model.model.classifier.{name}": None for name in ("weight", "bias")})
        self.assertEqual(self.logits(f"{run},{headless}@0"), first)
        self.assertNotEqual(self.logits(f"{run},{headless}@-0.5"), first)
        words = ["logits", "--model", BERT, "--tokens", MODELS / "bert" / "tokens.json", "--out", self.folder / "x", "--adapter"]
        self.assertIn('holds a trained "classifier", as another of the adapters does', refusal(*words, f"{run},{run}"))
        self.assertIn('--adapter: expected a number, got "half"', refusal(*words, f"{headless}@half"))
        self.assertIn("nothere: no such adapter", refusal(*words, f"{run},nothere"))
        self.assertIn("org@x/y: no such adapter", refusal(*words, "org@x/y"))
        self.assertIn('--adapter: "," names no folder', refusal(*words, ","))
        reflected = self.train("reflected", "--method", "ether")
        self.assertIn("only additions to a weight or bias can be taken in part", refusal(*words, f"{reflected}@0.5"))

    def test_one_adapts_what_another_trained_whole(self):
        run = self.train("run", "--method", "lora", "--targets", "query")
        adapts = self.train("adapts", "--method", "lora", "--rank", 2, "--targets", "dense", "--modules-to-save", "classifier")
        whole = self.train("whole", "--method", "lora", "--targets", "query", "--modules-to-save", "pooler")
        for folder in (adapts, whole):  # one head is enough
            change_tensors(folder / "adapter_model.safetensors", {f"base_model.model.classifier.{part}": None for part in ("weight", "bias")})
            config = json.loads((folder / "adapter_config.json").read_text())
            config["modules_to_save"] = [module for module in config["modules_to_save"] if module != "classifier"] or None
            (folder / "adapter_config.json").write_text(json.dumps(config))
        for pair in (f"{run},{adapts},{whole}", f"{whole},{run},{adapts}"):
            told = refusal("eval", "--model", BERT, "--adapter", pair, "--data", self.folder / "train.csv")
            self.assertIn('adapter tensor "base_model.model.bert.pooler.dense.lora_A.weight" adapts "pooler", which another of the adapters '
                          "trained whole", told)

    def test_what_is_wrong_with_one_of_them(self):
        data = self.write("train.csv", "text,label\na,0\nb,1\n")
        words = ["train", "--model", BERT, "--data", data, "--out", self.folder / "run", "--and"]
        self.assertIn('did you mean "red"', refusal(*words, "redd"))
        self.assertIn("--and red: --rank: method red has no such option", refusal(*words, "lora; red --rank 3"))
        self.assertIn("--and lora: --targets: no linear layer", refusal(*words, "lora --targets nothere"))
        self.assertIn('--and: found "5" in "red 5"', refusal(*words, "red 5"))
        self.assertIn("would be trained by two methods", refusal(*words, "bitfit; bitfit"))
        self.assertIn("--and lora: --lr: ", refusal(*words, "lora --lr 0"))
        self.assertIn("--and lora: --targets has no value", refusal(*words, "lora --targets"))
        self.assertIn('--and: " ;" names no method', refusal(*words, " ;"))
        self.assertIn("method hira works on the base model's own weights, so it cannot stand behind ether+", refusal(*words, "hira"))
        self.assertIn("full works on the base model's own weights", refusal(*words, "red; full"))
        self.assertFalse((self.folder / "run").exists())


class Evaluate(ProgramTest):
    def test_quotes_are_read_as_in_training(self):
        data = self.write("glue.tsv", "text\tlabel\n\"a b\t0\n\"b\" a\t1\nb\t2\n")
        self.assertIn("give --quoting none", refusal("train", "--model", BERT, "--data", data, "--out", self.folder / "no"))
        run = self.train("run", "--data", data, "--quoting", "none")
        scored = ["eval", "--model", BERT, "--adapter", run, "--data", data]
        self.assertEqual(json.loads(ether(*scored, "--json"))["examples"], 3)
        self.assertIn("give --quoting none", refusal(*scored, "--quoting", "minimal"))

    def test_features_that_only_peft_has(self):
        adapter = self.folder / "adapter"
        shutil.copytree(PEFT / "bert_lora", adapter)
        config = json.loads((adapter / "adapter_config.json").read_text())
        for key, value in {"layer_replication": [[0, 2]], "use_qalora": True}.items():
            (adapter / "adapter_config.json").write_text(json.dumps(config | {key: value}))
            told = refusal("eval", "--model", BERT, "--adapter", adapter, "--data", "x.csv")
            self.assertIn(f'key "{key}"', told)
            self.assertIn("a feature of PEFT that this version lacks; train without it, or merge", told)
            self.assertNotIn("did you mean", told)

    def test_heads_that_the_model_has_no_names_for(self):
        """An adapter's with other labels than the model's, and a model's with several labels a text."""
        adapter, model = self.folder / "adapter", self.folder / "model"
        shutil.copytree(PEFT / "bert_lora", adapter)
        shutil.copytree(BERT, model)
        prefix = "base_model.model.classifier."
        values = read_tensors(adapter / "adapter_model.safetensors")
        two = {f"{prefix}{name}": (dtype, [2, *shape[1:]], data[: len(data) // 3 * 2])
               for name in ("weight", "bias") for dtype, shape, data in [values[f"{prefix}{name}"]]}
        change_tensors(adapter / "adapter_model.safetensors", two)
        config = json.loads((model / "config.json").read_text())
        names = {"id2label": {"0": "neg", "1": "neu", "2": "pos"}, "label2id": {"neg": 0, "neu": 1, "pos": 2}}
        (model / "config.json").write_text(json.dumps(config | names))
        predict = ["predict", "--model", model, "--adapter"]
        self.assertIn(ether(*predict, adapter, text="a b\n").split("\t")[0], ("0", "1"))
        (model / "config.json").write_text(json.dumps(config | names | {"problem_type": "multi_label_classification"}))
        self.assertIn("several labels a text", refusal(*predict, PEFT / "bert_lora", text="a b\n"))
        self.assertIn("several labels a text", refusal("eval", "--model", model, "--data", "x.csv"))
        ether("merge", "--model", model, "--adapter", PEFT / "bert_lora", "--out", self.folder / "merged")
        merged = json.loads((self.folder / "merged" / "config.json").read_text())
        self.assertEqual((merged["problem_type"], merged["id2label"]), ("multi_label_classification", names["id2label"]))

    def test_a_real_number_among_integers_is_the_one_that_is_named(self):
        run, data = self.train("run"), self.write("mixed.csv", "text,label\na,1\nb,0.5\n")
        told = refusal("eval", "--model", BERT, "--adapter", run, "--data", data)
        self.assertIn("mixed.csv:3: expected a class (a string or an integer), found the number 0.5; real", told)


class Bench(ProgramTest):
    def test_steps_of_methods_that_act_between_passes(self):
        for method, dtype in [("ether", "f32"), ("ether", "bf16"), ("id3", "f32"), ("adalora", "f32")]:
            found = json.loads(ether("bench", "train-step", "--model", MODELS / "llama_tied", "--method", method, "--batch", 2,
                                     "--tokens", 8, "--steps", 2, "--dtype", dtype, "--json"))
            self.assertEqual(found["method"], method)
            for number in ["tokens_per_second", "trainable_parameters", "peak_rss_bytes", "gemm_limit_tokens_per_second"]:
                self.assertGreater(found[number], 0)
            # 4 in out of each layer and the head, and 7 heads head_dim (T + 1) of each layer's attention.
            config = json.loads((MODELS / "llama_tied" / "config.json").read_text())
            width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
            heads, kv_heads, head_dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
            weights = layers * (2 * width * heads * head_dim + 2 * width * kv_heads * head_dim + 3 * width * inner)
            flops = 4 * (weights + width * config["vocab_size"]) + 7 * layers * heads * head_dim * (8 + 1)
            self.assertAlmostEqual(found["gemm_limit_tokens_per_second"] * flops / found["gemm_flops_per_second"], 1, places=6)


if __name__ == "__main__":
    program.ETHER = sys.argv.pop(1)
    unittest.main()
