#!/usr/bin/env python3
"""What is wrong in data, options, adapters and paths. Each case ends in one line that says what
is wrong and where, an exit code that is not 0, and no file that was not there before.
Usage, in the repository's root: python3 tests/bad_input_test.py build/release/bin/ether [unittest's options]"""
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
from bad_input import QUERY, BadInput, change_json, floats, link_to_itself
from program import BERT, MODELS, PEFT, change_tensors, ether


class Data(BadInput):
    def test_tables(self):
        lines = "".join(json.dumps({"text": f"w{4 + i}", "label": "ab"[i % 2]}) + "\n" for i in range(16))
        table = "text,label\n" + "".join(f"w{4 + i},{'ab'[i % 2]}\n" for i in range(15))
        cases = []
        for name, told, content in [
            *[(name, ": holds no examples", "") for name in ("a.csv", "a.json")],
            ("a.csv", ": holds no examples", "text,label\n"),
            ("a.json", ": holds no examples", "[]"),
            ("a.jsonl", ":17:25: not valid JSON", lines + '{"text": "w5", "label": \n'),
            ("a.jsonl", ":17: expected a JSON object, found a list of 2", lines + '["w5", "a"]\n'),
            ("a.jsonl", ':17: column "text": expected a string, found 3', lines + '{"text": 3, "label": "a"}\n'),
            ("a.jsonl", ':17: column "label": expected a label, found none', lines + '{"text": "w5", "label": null}\n'),
            ("a.csv", ":17: found 3 fields where the first row has 2", table + "w5,a,b\n"),
            ("a.csv", ":17: a quoted field begins here and is never closed", table + '"w5,a\n'),
            ("a.jsonl", ":17: not UTF-8: byte 0xff", lines.encode() + b'{"text": "\xff", "label": "a"}\n'),
            ("a.jsonl", ":17:65: JSON is nested deeper than 64 levels", lines + "[" * 10**5 + "\n"),
            ("a.csv", ':1: no column "text"; the columns are "txt", "label"; did you mean "txt"?', table.replace("text", "txt")),
            ("a.jsonl", ':1: no column "label"; the columns are "lable", "text"; did', lines.replace("label", "lable")),
            ("a.csv", ':1: no column "text"; the columns are "c0", "c1", ', ",".join(f"c{i}" for i in range(1000)) + "\n"),
            ("a.csv", ":17: found a NUL byte; expected UTF-8 text", table + "w\0,a\n"),
            ("a.jsonl", ":17:12: not valid JSON: a NUL byte", lines + '{"text":"w5\0", "label": "a"}\n'),
            ("a.jsonl", ":17:1: not valid JSON", lines + "x" * 10**6 + "\n"),
            ("a.csv", ":17: found 1000001 fields where the first row has 2", table + "," * 10**6 + "\n"),
            ("a.csv", ': expected two or more different labels, found only "a"', "text,label\nw5,a\nw6,a\n"),
            ("a.csv", ':3: column "label": found an integer, but on line 2 a string', "text,label\nw5,a\nw6,1\n"),
        ]:
            file = self.file(name, content)
            cases.append((f"{file}{told}", self.train(data=file)))
        file = self.file("a.csv", "text,label\nw5,0.5\nw6,1e308\n")
        cases.append((f"{file}:3: the label 1e+308 is beyond 1e+15", self.train(data=file)))
        self.refused(*cases, (':1: no column "second"; the columns are "text", "label"', self.train("--pair-column", "second")))

    def test_labels_to_judge_by(self):
        data = self.file("train.csv", "text,label\nw5,a\nw6,b\n")
        unknown, empty = self.file("dev.csv", "text,label\nw5,a\nw6,B\n"), self.file("dev.csv", "")
        self.refused(
            (f'{unknown}:3: unknown label "B"; the 2 labels are a, b; did you mean "b"?', self.train("--eval-data", unknown, data=data)),
            (f"{empty}: holds no examples", self.train("--eval-data", empty, data=data)),
            (f'{unknown}:2: unknown label "a"; the 3 labels are LABEL_0, LABEL_1, LABEL_2', self.eval(data=unknown)))
        # A class without an example to judge by makes no score a NaN.
        judge = self.file("dev.csv", "text,label\nw5,a\nw6,a\n")
        ether(*self.train("--eval-data", judge, data=data))
        scores = json.loads(ether(*self.eval(adapter=self.folder / "out", data=judge), "--json"))
        self.assertTrue(all(map(math.isfinite, scores.values())), scores)

    def test_texts_that_are_strange_but_right(self):
        texts = ["w5\0 w6", "w5 " * 350000, "w" * 10**6, ""]
        file = self.file("a.jsonl", "".join(json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(texts)))
        ether(*self.train(data=file))
        self.assertEqual(ether("predict", "--model", BERT, "--input", file).count("\n"), len(texts))


class Options(BadInput):
    def test_numbers(self):
        self.refused(
            *[(f"--lr: {told} is out of range, expected 1e-12 to 1000", self.train("--lr", value))
              for value, told in {"0": "0", "-1": "-1", "1e30": "1e+30", "nan": "nan", "inf": "inf"}.items()],
            ("own.toml:2: --lr: 0 is out of range", self.train("--config", self.file("own.toml", "batch = 4\nlr = 0\n"))),
            ("rank.toml:2: --rank: 0 is out of range",
             self.train("--config", self.file("rank.toml", 'method = "lora"\nrank = 0\n'))),
            ('none.toml:1: "lr" takes one value, found an empty list', self.train("--config", self.file("none.toml", "lr = []\n"))),
            ('--lr: expected a number, got "fast"', self.train("--lr", "fast")),
            ("--head-lr: nan is out of range", self.train("--head-lr", "nan")),
            ("--batch: 0 is out of range, expected 1 to ", self.train("--batch", 0)),
            ("--batch: expected an integer, got \"2.5\"", self.train("--batch", "2.5")),
            ("--batch: 0 is out of range, expected 1 to ", [*self.eval(), "--batch", 0]),
            ("--max-length: 17 is more than the model's 16 positions", self.train("--max-length", 17)),
            ("--max-length: -1 is out of range", self.train("--max-length", -1)),
            ('--device: "gpu" is not known, expected auto, cpu, cuda or cuda:1', self.train("--device", "gpu")),
            ('--device: "cuda:" is not known', self.train("--device", "cuda:")),
            ("--device cuda:99: ", [*self.eval(), "--device", "cuda:99"]),
            ("row 0 holds id 18446744073709551615, but the model's vocabulary ends at 47",
             ["logits", "--model", BERT, "--tokens", self.file("tokens.json", "[[18446744073709551615]]"), "--out", self.folder / "out"]),
            (f"--blocks: 5 does not divide the input width 32 of {QUERY}; choose a divisor", self.train("--blocks", 5)))

    def test_options_that_count_for_nothing(self):
        llama = dict(model=MODELS / "llama_bare")
        for told, words in [
            ("--eps: counts with --exp alone; add that, or leave it out", ["--method", "id3", "--eps", 5]),
            ("--mini-rank: counts with --mini alone", ["--method", "miss", "--mini-rank", 2]),
            ("--eva-rho, --eva-whiten: counts with --init-lora-weights eva alone", ["--method", "lora", "--eva-rho", 3]),
            ("--cayley-neumann-terms: counts with --cayley-neumann alone", ["--method", "oft", "--no-cayley-neumann", "--cayley-neumann-terms", 7]),
            ("--rank-dropout-scale: counts with --rank-dropout alone", ["--method", "lokr", "--rank-dropout-scale"]),
            ("--block-size and --blocks: both say how", ["--method", "oft", "--blocks", 4, "--block-size", 8]),
            ("--rank, --dropout: counts with lora among --modules alone", ["--method", "unipelt", "--modules", "prefix", "--rank", 5]),
            ("--prefix-length, --projection: counts with prefix among --modules", ["--method", "unipelt", "--modules", "lora", "--prefix-length", 3]),
            ("--bottleneck-size, --placement: counts with adapter among", ["--method", "unipelt", "--modules", "lora", "--placement", "houlsby"]),
            ("--budget: 10.5 is no whole number of weights", ["--method", "id3", "--budget", 10.5]),
            ("--dropout: counts with a linear layer among --targets", ["--method", "lora", "--targets", "word_embeddings", "--dropout", 0.5]),
            ('--targets: "bert.embeddings.word_embeddings" lies in no block, so --layers leaves it out',
             ["--method", "lora", "--targets", "query,word_embeddings", "--layers", 0]),
            ("--alpha: 0 is out of range", ["--method", "lora", "--alpha", 0]),
            ("--d-initial: at 0, with b at 0 as well, nothing would ever change", ["--method", "vera", "--d-initial", 0]),
            ("--lambda: 0 is out of range", ["--method", "delora", "--lambda", 0]),
        ]:
            self.refused((told, self.train(*words)))
        self.refused(("--bias all: this model has no biases; leave it out", self.train("--method", "lora", "--bias", "all", **llama)),
                     ("--bias adapted: the adapted layers have no biases", self.train("--method", "oft", "--block-size", 4, "--bias", "adapted", **llama)))

    def test_weights_that_are_no_numbers(self):
        adapter = PEFT / "bert_lora"
        for weight in ("nan", "x", "1e400", "--5"):
            self.refused(("--adapter: ", self.eval(BERT, f"{adapter}@{weight}")))

    def test_patterns_that_match_nothing(self):
        known = "classifier, dense, key, query, value"
        self.refused(*[(told, self.train(*words)) for told, words in [
            (f'--targets: no linear layer is named "valeu"; names here: {known}', ["--targets", "query,valeu"]),
            ('--targets: no linear layer is named "word_embeddings", which is the table of embeddings: lora alone adapts that; names here: ',
             ["--method", "hra", "--targets", "word_embeddings"]),
            (f'--targets: ".*qury" matches no linear layer of this bert model; layers here end in {known}', ["--targets", ".*qury"]),
            ('--exclude: ".*qury" matches no linear layer of this bert model', ["--exclude", ".*qury"]),
            (f'--targets: "all-linear" leaves no linear layer after --exclude; layers here end in {known}', ["--exclude", ".*"]),
            ("--layers: 7 is not within 0-1, the model's blocks", ["--layers", "7"]),
            ('--modules-to-save: the model has no module "poler"; did you mean "pooler"?', ["--modules-to-save", "poler"]),
            ('--targets: "(query" is not a regular expression', ["--targets", "(query"]),
        ]])


class Adapters(BadInput):
    def setUp(self):
        super().setUp()
        ether(*self.train("--method", "lora", "--targets", "query"))
        self.adapter = (self.folder / "out").rename(self.folder / "adapter")

    def test_for_another_model(self):
        other = MODELS / "bert_bare"
        told = f"{self.adapter}: the adapter was trained on another base model than {other}"
        self.refused((told, self.eval(other, self.adapter)), (told, self.merge(other, self.adapter)),
                     (f"{self.adapter}: adapter_config.json: target_modules: \"query\" leaves no linear layer",
                      [*self.eval(MODELS / "llama_classifier", self.adapter), "--force"]))

    def test_configurations(self):
        cases = []
        for told, changes in [
            ('key "peft_type": expected a string, found 3', {"peft_type": 3}),
            ('key "peft_type" is missing', {"peft_type": ...}),
            ('peft_type "A\\x0aB" is no method of this version, which has ETHER_PLUS, ETHER, ', {"peft_type": "A\nB"}),
            ('key "a\\x0ab" = 3 is not supported for LORA', {"a\nb": 3}),
            ('key "r" has the value 0, which does not fit: ', {"r": 0}),
            ("(1 to 65536)", {"r": 0}),
            ("the adapter's file holds 1123 values, but its configuration asks for ", {"r": 65536}),
            (f'tensor "base_model.model.{QUERY}.lora_A.weight" has shape (8, 32), but this model and configuration need (16, 32)', {"r": 16}),
            ('target_modules: "qury" leaves no linear layer; layers here end in ', {"target_modules": ["qury"]}),
            ("leaves no linear layer in adapter_config.json: layers_to_transform 9", {"layers_to_transform": 9}),
            ('modules_to_save: the model has no module "poler"; did you mean', {"modules_to_save": ["poler"]}),
            # Expressions that would end in a full stack, or in years.
            ("target_modules: the regular expression has 200001 characters, more than 1000",
             {"target_modules": "(" * 10**5 + "q" + ")" * 10**5}),
            ('target_modules: "([a-z._0-9]+)*!" matches no linear layer', {"target_modules": "([a-z._0-9]+)*!"}),
        ]:
            adapter = self.copy(self.adapter, lambda folder: change_json(folder / "adapter_config.json", changes))
            cases.append(([f"{adapter}: ", told], self.eval(adapter=adapter)))
        for told, changes in [
            ('key "labels": expected a list of strings, found a list of 3', {"labels": [1, 2, 3]}),
            ('two classes are called "a"', {"labels": ["a", "a", "b"]}),
            ('task "dance" is not known; expected classify, regression or causal-lm', {"task": "dance"}),
            ("max_length 99 does not fit the model's 16 positions", {"max_length": 99}),
        ]:
            adapter = self.copy(self.adapter, lambda folder: change_json(folder / "ether.json", changes))
            cases.append((f"{adapter}/ether.json: {told}", self.eval(adapter=adapter)))
        self.refused(*cases)

    def test_configurations_of_a_prefix(self):
        ether(*self.train("--method", "prefix"))
        own = (self.folder / "out").rename(self.folder / "prefix")
        cases = []
        for told, changes in [
            ('key "num_layers" is 99, but this model has 2', {"num_layers": 99}),
            ('key "num_attention_heads" is -3, but this model has 4', {"num_attention_heads": -3}),
            ('key "num_layers" is 0, but this model has 2', {"num_layers": 0}),
            ('key "prefix_projection" = "x" is not supported', {"prefix_projection": "x"}),
            ('key "token_dim": expected an integer, found "a" (string)', {"token_dim": "a"}),
            ('key "num_transformer_submodules" = 2 is not supported', {"num_transformer_submodules": 2}),
        ]:
            adapter = self.copy(own, lambda folder: change_json(folder / "adapter_config.json", changes))
            cases.append(([f"{adapter}: ", told], self.eval(adapter=adapter)))
        self.refused(*cases)

    def test_what_overflows(self):
        """An adapter whose numbers are finite, and the model's with it are not."""
        name = f"base_model.model.{QUERY}.lora_%s.weight"
        huge = struct.pack("<f", 3e38) * 256
        adapter = self.copy(self.adapter, lambda folder: change_tensors(
            folder / "adapter_model.safetensors", {name % "A": ("F32", [8, 32], huge), name % "B": ("F32", [32, 8], huge)}))
        out = ["--out", self.folder / "out"]
        self.refused(
            (f"the loss on {self.data} is ", self.eval(adapter=adapter)),
            ("the model's logits are NaN or infinite", self.merge(BERT, adapter)),
            ("not finite", ["export", "--model", BERT, "--adapter", adapter, *out]),
            ("not finite", ["export", "--model", BERT, "--adapter", adapter, "--max-rank", 2, *out]),
            ("1: the model's logits for this text are NaN or infinite",
             ["predict", "--model", BERT, "--adapter", adapter, "--input", self.file("a.txt", "w5\n")]),
            ("t.json: the model's logits for row 0 are NaN or infinite",
             ["logits", "--model", BERT, "--adapter", adapter, "--tokens", self.file("t.json", "[[5, 6]]"), "--out", self.folder / "l"]))

    def test_names_that_would_move_a_terminals_cursor(self):
        def change(folder):
            change_json(folder / "ether.json", {"task": "x\x1b[31m\ny", "base_fingerprint": None})
            change_tensors(folder / "adapter_model.safetensors", {"evil\x1b[2J\nname": ("F32", [1], bytes(4))})
        adapter = self.copy(self.adapter, change)
        told = ether("inspect", adapter)
        self.assertNotIn("\x1b", told)
        self.assertIn("trained for: x\\x1b[31m\\x0ay\n", told)
        self.assertIn("evil\\x1b[2J\\x0aname", told)

    def test_long_values_are_cut(self):
        """What is wrong stands before the value and what to do behind it; a value of 100 kB hides neither."""
        long, cases = "x" * 10**5, []
        for told, key in [("is not supported; known architectures: bert", "model_type"), ("is not supported; known: gelu", "hidden_act"),
                          ('is not supported, only "absolute"', "position_embedding_type")]:
            cases.append((told, self.eval(self.copy(BERT, lambda folder: change_json(folder / "config.json", {key: long})))))
        for told, name, key in [("is no method of this version, which has ", "adapter_config.json", "peft_type"),
                                ("is not known; expected classify", "ether.json", "task")]:
            cases.append((told, self.eval(BERT, self.copy(self.adapter, lambda folder: change_json(folder / name, {key: long})))))
        for told, text in [("is not known, expected one of ether+", f"method = '{long}'"), ("r.toml:1: --dtype: ", f"dtype = '{long}'"),
                           ("r.toml:1: --lr: expected a number, got", f"lr = '{long}'")]:
            (self.folder / f"{len(cases)}r.toml").write_text(text + "\n")
            cases.append((told, ["train", "--config", self.folder / f"{len(cases)}r.toml", "--model", BERT, "--data", self.data, "--out", self.folder / "out"]))
        cases += [("is not a verb of ether; ether --help lists them", [long]), ("; ether eval --help lists all", [*self.eval(), "--" + long])]
        self.refused(*cases)

    def test_adapter_that_names_no_base(self):
        adapter = self.copy(self.adapter, lambda folder: change_json(folder / "ether.json", {"base_fingerprint": "md5:00"}))
        done = subprocess.run([program.ETHER, *map(str, self.eval(adapter=adapter))], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0)
        self.assertIn("has no fingerprint of its base model that this program knows", done.stderr)

    def test_another_config_or_tokenizer_than_in_training(self):
        for name, change in [("config.json", {"layer_norm_eps": 0.001}), ("tokenizer.json", {"truncation": {"max_length": 512, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}})]:
            model = self.copy(BERT, lambda folder: change_json(folder / name, change))
            done = subprocess.run([program.ETHER, *map(str, self.eval(model, self.adapter))], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(f"note: {model}/{name} is not the one that {self.adapter} was trained with, so its results may differ\n", done.stderr)
        model = self.copy(BERT, lambda folder: change_json(folder / "config.json", {"transformers_version": "9", "use_cache": False}))
        done = subprocess.run([program.ETHER, *map(str, self.eval(model, self.adapter))], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_values_of_a_wrong_type_that_nothing_needs(self):
        adapter = self.copy(self.adapter, lambda folder: change_json(folder / "ether.json", {"task": 3}))
        self.assertIn("trained for: 3\n", ether("inspect", adapter))
        model = self.copy(BERT, lambda folder: change_json(folder / "config.json", {"tie_word_embeddings": "yes"}))
        self.refused(('key "tie_word_embeddings": expected true or false, found "yes"', self.merge(model, self.adapter)))

    def test_labels_without_a_head(self):
        """Five labels, of which neither the adapter nor the model has a head."""
        def change(folder):
            change_json(folder / "adapter_config.json", {"modules_to_save": None})
            change_json(folder / "ether.json", {"labels": list("abcde")})
            change_tensors(folder / "adapter_model.safetensors", {f"base_model.model.classifier.{part}": None for part in ("weight", "bias")})
        adapter = self.copy(self.adapter, change)
        told = "holds no classifier, and "
        self.refused((told, self.eval(adapter=adapter)), (told, self.merge(BERT, adapter)))

    def test_tensors(self):
        name, cases = f"base_model.model.{QUERY}.lora_A.weight", []
        for told, changes in [
            (f': the adapter lacks the tensor "{name}" (8, 32)', {name: None}),
            (f': adapter tensor "{name}" has shape (32, 8)', {name: floats(32, 8)}),
            (f': adapter tensor "{name}" holds NaN or infinity', {name: floats(8, 32, first=math.nan)}),
            (f'/adapter_model.safetensors: tensor "{name}": its dtype is I8, expected', {name: ("I8", [8, 32], bytes(256))}),
            (': adapter tensor "ghost\\x0a" (1) fits nothing in this model', {"ghost\n": floats(1)}),
            (': adapter tensor "base_model.model.classifier.weight" has shape ()', {"base_model.model.classifier.weight": floats()}),
        ]:
            adapter = self.copy(self.adapter, lambda folder: change_tensors(folder / "adapter_model.safetensors", changes))
            cases.append((f"{adapter}{told}", self.merge(BERT, adapter)))
        self.refused(*cases)


class Paths(BadInput):
    def test_loops_of_links(self):
        loop, told = link_to_itself(self.folder / "loop.csv"), ": Too many levels of symbolic links"
        cases = [([str(loop), told], words) for words in [
            self.train(model=loop), self.train(data=loop), self.train("--eval-data", loop), self.train("--out", loop),
            self.train("--out", loop / "a"), ["train", "--resume", loop], ["train", "--config", loop], ["inspect", loop],
            self.eval(adapter=loop), ["predict", "--model", BERT, "--input", loop]]]
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
            model = self.copy(BERT, lambda folder: link_to_itself(folder / name))
            cases.append((f"{model}/{name}: cannot open{told}", self.train(model=model)))
        for name in ["adapter_config.json", "adapter_model.safetensors"]:
            adapter = self.copy(PEFT / "bert_lora", lambda folder: link_to_itself(folder / name))
            cases.append((f"{adapter}/{name}: cannot open{told}", ["inspect", adapter]))
        self.refused(*cases)

    def test_pipes_and_devices(self):
        """Nobody waits for a pipe's other end, or reads a device for ever."""
        def in_place_of(name, make):
            def change(folder):
                (folder / name).unlink(missing_ok=True)
                make(folder / name)
            return change

        cases = []
        for make in [os.mkfifo, lambda path: path.symlink_to("/dev/zero")]:
            for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]:
                model = self.copy(BERT, in_place_of(name, make))
                cases.append((f"{model}/{name}: expected a regular file", self.train(model=model)))
            for name in ["adapter_config.json", "adapter_model.safetensors"]:
                adapter = self.copy(PEFT / "bert_lora", in_place_of(name, make))
                cases.append((f"{adapter}/{name}: expected a regular file", self.eval(adapter=adapter)))
        run = self.folder / "run"
        run.mkdir()
        os.mkfifo(run / "run.toml")
        self.refused(*cases, (f"{run}/run.toml: expected a regular file", ["train", "--resume", run]))

    def test_names_that_lead_out_of_the_cache(self):
        hub = self.folder / "hub"
        references = hub / "models--org--name" / "refs"
        references.mkdir(parents=True)
        shutil.copytree(BERT, hub / "secret")
        commits = {"a": "../../secret", "b": str(hub / "secret"), "c": "..", "d": "a\nb"}
        for name, commit in commits.items():
            (references / name).write_text(commit)
        with mock.patch.dict(os.environ, HF_HUB_CACHE=str(hub)):
            self.refused(*[(f"{references}/{name}: expected a commit hash, found ", ["inspect", f"org/name@{name}"]) for name in commits],
                         *[("no such folder, and not a hub name", ["inspect", name])
                           for name in ["org/../secret", "org/name@../../secret", "../hub/secret"]])


if __name__ == "__main__":
    program.ETHER = sys.argv.pop(1)
    unittest.main()
