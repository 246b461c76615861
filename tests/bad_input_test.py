#!/usr/bin/env python3
"""What is wrong in files and options. Each case ends in one line that says what is wrong and where, an exit code that is
not 0, and no file that was not there before.
Usage, in the repository's root: python3 tests/bad_input_test.py build/release/bin/ether [unittest's options]"""
import json
import math
import os
import pathlib
import shutil
import struct
import sys
import unittest
from unittest import mock

import program_test
from program_test import BERT, MODELS, PEFT, ProgramTest, ether, refusal

QUERY = "bert.encoder.layer.0.attention.self.query"


def header_file(header, data=b"", length=None):
    """A safetensors file with this header, whose length may be a lie."""
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def read_tensors(file):
    """{name: (dtype, shape, bytes)}"""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in header.items()}


def change_tensors(file, changes):
    """Replaces tensors; None removes one."""
    tensors = {name: tensor for name, tensor in (read_tensors(file) | changes).items() if tensor}
    header, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + len(data)]}
    file.write_bytes(header_file(json.dumps(header), b"".join(data for _, _, data in tensors.values())))


def change_json(file, changes):
    """Replaces keys; ... removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def link_to_itself(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)
    return path


def zeros(*shape):
    return ("F32", list(shape), bytes(4 * math.prod(shape)))


class BadInput(ProgramTest):
    def setUp(self):
        super().setUp()
        self.copies = 0
        self.data = self.write("data.csv", "text,label\n" + "".join(f"w{4 + i},{i % 3}\n" for i in range(12)))

    def copy(self, source, change=lambda folder: None):
        """A folder like `source`, changed."""
        self.copies += 1
        folder = self.folder / f"copy{self.copies}"
        shutil.copytree(source, folder)
        change(folder)
        return folder

    def file(self, name, content):
        self.copies += 1
        path = self.folder / f"{self.copies}-{name}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def refused(self, told, *words):
        before = sorted(self.folder.rglob("*"))
        message = refusal(*words)
        self.assertIn(told, message)
        self.assertLess(len(message), 1000)
        self.assertEqual(sorted(self.folder.rglob("*")), before, message)
        return message

    def train(self, *words, model=BERT, data=None):
        return ["train", "--model", model, "--data", data or self.data, "--out", self.folder / "out", "--max-steps", 1, *words]

    def eval(self, model=BERT, adapter=None, data=None):
        return ["eval", "--model", model, "--data", data or self.data, *(["--adapter", adapter] if adapter else [])]

    def merge(self, model, adapter):
        return ["merge", "--model", model, "--adapter", adapter, "--out", self.folder / "out"]


class Models(BadInput):
    def test_headers(self):
        one, whole = '"dtype":"U8","shape":[1],"data_offsets":[0,1]', (pathlib.Path(BERT) / "model.safetensors").read_bytes()
        shape = '{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}}'
        for told, content in [
            ("it has 0 bytes, fewer than the 8 of a header's length", b""),
            ("cut short: its header has ", whole[:400]),
            ("bytes of data; it is damaged or was cut short", whole[:40000]),
            ("the tensors end at byte ", whole + b"\0"),
            ("length would be 9223372036854775808 bytes", header_file("{}", length=1 << 63)),
            ("length would be 18446744073709551615 bytes", header_file("{}", length=(1 << 64) - 1)),
            ("found -1 (integer)", header_file(shape % -1, b"x")),
            ("found 9223372036854775808 (integer)", header_file(shape % (1 << 63), b"x")),
            ("[9223372036854775807] has more elements than 64 bits can count", header_file(shape % ((1 << 63) - 1), b"x")),
            ("[4294967296, 4294967296] has more elements", header_file(shape % "4294967296,4294967296", b"x")),
            ('tensor "b": its data start at 0, overlapping the end', header_file('{"a":{%s},"b":{%s}}' % (one, one), b"x")),
            ('tensor "b": its data start at 2, leaving a hole',
             header_file('{"a":{%s},"b":{%s}}' % (one, one.replace("[0,1]", "[2,3]")), b"xyz")),
            ('key "a" stands twice', header_file('{"a":{%s},"a":{%s}}' % (one, one), b"x")),
            ("nested deeper than 64 levels", header_file("[" * 10**6)),
            ("(header):1:3: not UTF-8: byte 0xff", header_file(b'{"\xff":1}')),
        ]:
            with self.subTest(told):
                model = self.copy(BERT, lambda folder: (folder / "model.safetensors").write_bytes(content))
                self.assertIn(f"{model}/model.safetensors", self.refused(told, *self.train(model=model)))

    def sharded(self, changes):
        """A copy whose tensors are in one.safetensors, with an index of these changes."""
        def change(folder):
            (folder / "model.safetensors").rename(folder / "one.safetensors")
            index = {name: "one.safetensors" for name in read_tensors(folder / "one.safetensors")}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index | changes}))
        return self.copy(BERT, change)

    def test_shards(self):
        ether("inspect", self.sharded({}))
        missing = self.sharded({"classifier.bias": "two.safetensors"})
        self.refused(f"{missing}/two.safetensors: the shard is missing", *self.train(model=missing))
        self.refused('tensor "ghost" should be in one.safetensors but is not', *self.train(model=self.sharded({"ghost": "one.safetensors"})))
        self.refused('key "weight_map.a": expected a string, found 3', *self.train(model=self.sharded({"a": 3})))
        shutil.copy(MODELS / "bert" / "model.safetensors", self.folder)
        for outside in ["../model.safetensors", str(self.folder / "model.safetensors"), "..", "a\0b"]:
            self.refused(": expected the name of a file in this folder, found ", *self.train(model=self.sharded({"a": outside})))

    def test_weights(self):
        nan = struct.pack("<f", math.nan) + bytes(32 * 32 * 4 - 4)
        for told, changes in [
            (f'"{QUERY}.weight" (32, 32) is missing', {f"{QUERY}.weight": None}),
            (f'"{QUERY}.weight" has shape (16, 64), but config.json asks for (32, 32)', {f"{QUERY}.weight": zeros(16, 64)}),
            (f'"{QUERY}.bias" has shape (), but config.json asks for (32)', {f"{QUERY}.bias": zeros()}),
            (f'"{QUERY}.weight": its dtype is I8, expected F32,', {f"{QUERY}.weight": ("I8", [32, 32], bytes(1024))}),
            (f'"{QUERY}.weight": its dtype is F8_E4M3, expected F32,', {f"{QUERY}.weight": ("F8_E4M3", [32, 32], bytes(1024))}),
            (f'"{QUERY}.weight" holds NaN or infinity', {f"{QUERY}.weight": ("F32", [32, 32], nan)}),
            ('"classifier.weight" has shape (), expected (classes, width)', {"classifier.weight": zeros()}),
            ('"classifier.weight" has shape (0, 32), expected (classes, width)', {"classifier.weight": zeros(0, 32)}),
        ]:
            model = self.copy(BERT, lambda folder: change_tensors(folder / "model.safetensors", changes))
            with self.subTest(told):
                for words in [self.train(model=model), self.eval(model)]:
                    self.assertIn(str(model), self.refused(told, *words))

    def test_config(self):
        for told, changes in [
            ('key "hidden_size" is missing, expected an integer', {"hidden_size": ...}),
            ('key "model_type" is missing, expected a string', {"model_type": ...}),
            ('key "hidden_size": expected an integer, found "32" (string)', {"hidden_size": "32"}),
            ('key "hidden_size": expected an integer, found null', {"hidden_size": None}),
            ('key "hidden_size" is -1, expected 1 to ', {"hidden_size": -1}),
            ('key "num_hidden_layers" is 2147483648, expected 1 to 65536', {"num_hidden_layers": 2**31}),
            ('key "layer_norm_eps" is -1, expected a number above 0', {"layer_norm_eps": -1}),
            ('key "id2label.0": expected a string, found 3', {"id2label": {"0": 3}}),
            ('model_type "gpt9" is not supported; known architectures: bert, llama, mistral, qwen2, qwen3, roberta', {"model_type": "gpt9"}),
        ]:
            model = self.copy(BERT, lambda folder: change_json(folder / "config.json", changes))
            with self.subTest(told):
                self.refused(f"{model}/config.json: {told}", *self.train(model=model))
        for told, content in [("1:24: not valid JSON", '{"model_type": "bert", '), (":1:8: not UTF-8", b'{"a": "\xff"}'),
                              ("nested deeper than 64 levels", "[" * 10**5), ("expected a JSON object, found a list", "[]")]:
            model = self.copy(BERT, lambda folder: (folder / "config.json").write_bytes(self.file("", content).read_bytes()))
            self.refused(told, *self.train(model=model))

    def test_tokenizers(self):
        def changed(change):
            def write(folder):
                tokenizer = json.loads((folder / "tokenizer.json").read_text())
                change(tokenizer, tokenizer["model"]["vocab"])
                (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
            return self.copy(BERT, write)

        def template(special_id, text_type):
            return {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": text_type}}],
                    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [special_id], "tokens": ["[CLS]"]}}}

        for told, change in [
            ("has 49 tokens, but the model's embedding only 48", lambda t, vocab: vocab.update(w48=48)),
            ("gives the token id 100000, but the model's embedding has only 48", lambda t, vocab: vocab.update(w5=100000)),
            ("gives the token id 999, but", lambda t, vocab: t.update(post_processor=template(999, 0))),
            ("gives the token type 9, but the model's embedding has only 2", lambda t, vocab: t.update(post_processor=template(1, 9))),
            ("not a tokenizer that can be read", lambda t, vocab: t.pop("model")),
        ]:
            model = changed(change)
            for words in [self.train(model=model), self.eval(model)]:
                with self.subTest(told, verb=words[0]):
                    self.refused(f"{model}/tokenizer.json: {told}", *words)
        model = self.copy(BERT, lambda folder: (folder / "tokenizer.json").unlink())
        self.refused(f"{model}: holds no tokenizer.json; where it has a tokenizer's other files: python -c", *self.train(model=model))


class Data(BadInput):
    def test_tables(self):
        lines = "".join(json.dumps({"text": f"w{4 + i}", "label": "ab"[i % 2]}) + "\n" for i in range(16))
        table = "text,label\n" + "".join(f"w{4 + i},{'ab'[i % 2]}\n" for i in range(15))
        for name, told, content in [
            *[(name, ": holds no examples", "") for name in ("a.csv", "a.tsv", "a.json", "a.jsonl")],
            ("a.csv", ": holds no examples", "text,label\n"), ("a.json", ": holds no examples", "[]"),
            ("a.jsonl", ":17:25: not valid JSON", lines + '{"text": "w5", "label": \n'),
            ("a.jsonl", ":17: expected a JSON object, found a list of 2", lines + '["w5", "a"]\n'),
            ("a.jsonl", ':17: column "text": expected a string, found 3', lines + '{"text": 3, "label": "a"}\n'),
            ("a.jsonl", ':17: column "label": expected a label, found none', lines + '{"text": "w5", "label": null}\n'),
            ("a.csv", ":17: found 3 fields where the first row has 2", table + "w5,a,b\n"),
            ("a.csv", ":17: a quoted field begins here and is never closed", table + '"w5,a\n'),
            ("a.jsonl", ":17: not UTF-8: byte 0xff", lines.encode() + b'{"text": "\xff", "label": "a"}\n'),
            ("a.jsonl", ":17: JSON is nested deeper than 64 levels", lines + "[" * 10**5 + "\n"),
            ("a.csv", ':1: no column "text"; the columns are "txt", "label"; did you mean "txt"?', table.replace("text", "txt")),
            ("a.jsonl", ':1: no column "label"; the columns are "lable", "text"; did you mean "lable"?', lines.replace("label", "lable")),
            ("a.csv", ':17: found a NUL byte; expected UTF-8 text', table + "w\0,a\n"),
            ("a.jsonl", ":17:12: not valid JSON: a NUL byte", lines + '{"text":"w5\0", "label": "a"}\n'),
            ("a.jsonl", ":17:1: not valid JSON", lines + "x" * 10**6 + "\n"),
            ("a.csv", ":17: found 1000001 fields where the first row has 2", table + "," * 10**6 + "\n"),
            ("a.csv", ":1: no column \"text\"; the columns are ", ",".join(f"c{i}" for i in range(1000)) + "\n"),
            ("a.csv", ': expected two or more different labels, found only "a"', "text,label\nw5,a\nw6,a\n"),
            ("a.csv", ':3: column "label": found an integer, but on line 2 a string', "text,label\nw5,a\nw6,1\n"),
        ]:
            with self.subTest(told):
                file = self.file(name, content)
                self.refused(f"{file}{told}", *self.train(data=file))
        self.refused(': no column "second"; the columns are "text", "label"', *self.train("--pair-column", "second"))

    def test_labels_to_judge_by(self):
        data = self.file("data.csv", "text,label\nw5,a\nw6,b\n")
        for told, content in [(':3: unknown label "B"; the 2 labels are a, b; did you mean "b"?', "text,label\nw5,a\nw6,B\n"),
                              (': holds no examples', "")]:
            judge = self.file("dev.csv", content)
            self.refused(f"{judge}{told}", *self.train("--eval-data", judge, data=data))
        judge = self.file("dev.csv", "text,label\nw5,LABEL_3\n")
        self.refused(f'{judge}:2: unknown label "LABEL_3"; the 3 labels are', *self.eval(data=judge))
        # A class without examples is no error where scores do not need them.
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
        for option, value, told in [
            *[("--lr", value, f"--lr: {told} is out of range, expected 1e-12 to 1000")
              for value, told in {"0": "0", "-1": "-1", "1e30": "1e+30", "nan": "nan", "inf": "inf"}.items()],
            ("--lr", "fast", '--lr: expected a number, got "fast"'),
            ("--head-lr", "nan", "--head-lr: nan is out of range"),
            ("--batch", 0, "--batch: 0 is out of range, expected 1 to "), ("--batch", "2.5", "--batch: expected an integer"),
            ("--accumulate", 0, "--accumulate: 0 is out of range"), ("--eval-batch", 0, "--eval-batch: 0 is out of range"),
            ("--max-length", 17, "--max-length: 17 is more than the model's 16 positions"),
            ("--max-length", -1, "--max-length: -1 is out of range"),
            ("--blocks", 5, f"--blocks: 5 does not divide the input width 32 of {QUERY}; choose a divisor"),
        ]:
            with self.subTest(option, value=value):
                self.refused(told, *self.train(option, value))
        config = self.file("own.toml", "lr = 0\n")
        self.refused("--lr: 0 is out of range", *self.train("--config", config))

    def test_patterns_that_match_nothing(self):
        known = "classifier, dense, key, query, value"
        for words, told in [
            (["--targets", "query,valeu"], f'--targets: no linear layer is named "valeu"; names here: {known}'),
            (["--targets", ".*qury"], f'--targets: ".*qury" matches no linear layer of this bert model; layers here end in {known}'),
            (["--exclude", ".*qury"], '--exclude: ".*qury" matches no linear layer of this bert model'),
            (["--exclude", ".*"], f'--targets: "all-linear" leaves no linear layer without --exclude; layers here end in {known}'),
            (["--layers", "7"], "--layers: 7 is not within 0-1, the model's blocks"),
            (["--modules-to-save", "poler"], '--modules-to-save: the model has no module "poler"; did you mean "pooler"?'),
            (["--targets", "(query"], '--targets: "(query" is not a regular expression'),
        ]:
            with self.subTest(told):
                self.refused(told, *self.train(*words))


class Adapters(BadInput):
    def setUp(self):
        super().setUp()
        ether(*self.train("--method", "lora", "--targets", "query"))
        self.adapter = (self.folder / "out").rename(self.folder / "adapter")

    def test_for_another_model(self):
        other = MODELS / "bert_bare"
        for words in [self.eval(other, self.adapter), self.merge(other, self.adapter)]:
            self.refused(f"{self.adapter}: the adapter was trained on another base model than {other}", *words)
        # Nothing but its names and shapes tells what model PEFT's belongs to.
        words = ["eval", "--force", *self.eval(MODELS / "llama_classifier", self.adapter)[1:]]
        self.refused(f"{self.adapter}: adapter_config.json: target_modules: no linear layer is named", *words)

    def test_configurations(self):
        for told, changes in [
            ('adapter_config.json: key "peft_type": expected a string, found 3', {"peft_type": 3}),
            ('adapter_config.json: key "peft_type" is missing', {"peft_type": ...}),
            ('peft_type "A\\x0aB" is not known; known: ETHER_PLUS, ETHER, LORA, IA3, FULL, HEAD', {"peft_type": "A\nB"}),
            ('adapter_config.json: key "a\\x0ab" = 3 is not supported for LORA', {"a\nb": 3}),
            ('adapter_config.json: key "r" has the value 0', {"r": 0}),
            (f'adapter tensor "base_model.model.{QUERY}.lora_A.weight" has shape (8, 32), but this model and configuration need (16, 32)', {"r": 16}),
            ('adapter_config.json: target_modules: no linear layer is named "qury"; names here: ', {"target_modules": ["qury"]}),
            ("adapter_config.json: layers_to_transform: 9 is not within 0-1", {"layers_to_transform": 9}),
            ('adapter_config.json: modules_to_save: the model has no module "poler"; did you mean', {"modules_to_save": ["poler"]}),
            # Expressions that would end in a full stack, or in years.
            ("adapter_config.json: target_modules: the regular expression has 200001 characters, more than 1000", {"target_modules": "(" * 10**5 + "q" + ")" * 10**5}),
            ('adapter_config.json: target_modules: "([a-z._0-9]+)*!" matches no linear layer', {"target_modules": "([a-z._0-9]+)*!"}),
        ]:
            adapter = self.copy(self.adapter, lambda folder: change_json(folder / "adapter_config.json", changes))
            with self.subTest(told):
                self.refused(f"{adapter}: {told}", *self.eval(adapter=adapter))
        for told, changes in [
            ('key "labels": expected a list of strings, found a list of 3', {"labels": [1, 2, 3]}),
            ('two classes are called "a"', {"labels": ["a", "a", "b"]}),
            ('task "dance" is not known; expected classify, regression or causal-lm', {"task": "dance"}),
            ("max_length 99 does not fit the model's 16 positions", {"max_length": 99}),
        ]:
            adapter = self.copy(self.adapter, lambda folder: change_json(folder / "ether.json", changes))
            self.refused(f"{adapter}/ether.json: {told}", *self.eval(adapter=adapter))

    def test_tensors(self):
        name = f"base_model.model.{QUERY}.lora_A.weight"
        nan = struct.pack("<f", math.nan) * 256
        for told, changes in [
            (f': the adapter lacks the tensor "{name}" (8, 32)', {name: None}),
            (f': adapter tensor "{name}" has shape (32, 8)', {name: zeros(32, 8)}),
            (f': adapter tensor "{name}" holds NaN or infinity', {name: ("F32", [8, 32], nan)}),
            (f'/adapter_model.safetensors: tensor "{name}": its dtype is I8, expected', {name: ("I8", [8, 32], bytes(256))}),
            (': adapter tensor "ghost\\x0a" (1) fits nothing in this model', {"ghost\n": zeros(1)}),
            (': adapter tensor "base_model.model.classifier.weight" has shape ()', {"base_model.model.classifier.weight": zeros()}),
        ]:
            adapter = self.copy(self.adapter, lambda folder: change_tensors(folder / "adapter_model.safetensors", changes))
            with self.subTest(told):
                self.refused(f"{adapter}{told}", *self.merge(BERT, adapter))


class Paths(BadInput):
    def test_loops_of_links(self):
        told, loop = ": Too many levels of symbolic links", link_to_itself(self.folder / "loop.csv")
        for words in [self.train(model=loop), self.train(data=loop), self.train("--eval-data", loop), self.train("--out", loop),
                      self.train("--out", loop / "a"), ["train", "--resume", loop], ["train", "--config", loop],
                      ["inspect", loop], ["eval", "--model", BERT, "--adapter", loop, "--data", self.data],
                      ["predict", "--model", BERT, "--input", loop]]:
            with self.subTest(words):
                self.assertIn(str(loop), self.refused(told, *words))
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
            model = self.copy(BERT, lambda folder: link_to_itself(folder / name))
            with self.subTest(name):
                self.refused(f"{model}/{name}: cannot open{told}", *self.train(model=model))
        for name in ["adapter_config.json", "adapter_model.safetensors"]:
            adapter = self.copy(PEFT / "bert_lora", lambda folder: link_to_itself(folder / name))
            self.refused(f"{adapter}/{name}: cannot open{told}", "inspect", adapter)

    def test_names_that_lead_out_of_the_cache(self):
        cached = self.folder / "hub" / "models--org--name"
        (cached / "refs").mkdir(parents=True)
        shutil.copytree(BERT, self.folder / "hub" / "secret")
        with mock.patch.dict(os.environ, HF_HUB_CACHE=str(self.folder / "hub")):
            for commit in ["../../secret", str(self.folder / "hub" / "secret"), "..", "a\nb"]:
                (cached / "refs" / "main").write_text(commit)
                self.refused(f"{cached}/refs/main: expected a commit hash, found ", "inspect", "org/name")
            for name in ["org/../secret", "org/name@../../secret", "../hub/secret"]:
                self.refused("no such folder, and not a hub name", "inspect", name)


if __name__ == "__main__":
    program_test.ETHER = sys.argv.pop(1)
    unittest.main()
