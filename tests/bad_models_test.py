#!/usr/bin/env python3
"""What is wrong in model folders. Each case ends in one line that says what
is wrong and where, an exit code that is not 0, and no file that was not there before.
Usage, in the repository's root: python3 tests/bad_models_test.py build/release/bin/ether [unittest's options]"""
import json
import math
import os
import shutil
import sys
import unittest

import program
from bad_input import QUERY, BadInput, change_json, floats
from program import BERT, MODELS, PEFT, change_tensors, ether, header_file, read_tensors


class Models(BadInput):
    def test_headers(self):
        whole = (MODELS / "bert" / "model.safetensors").read_bytes()
        shape, entry = '{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}}', '"%s":{"dtype":"U8","shape":[1],"data_offsets":[%s]}'
        two = lambda *values: header_file("{%s,%s}" % (entry, entry) % values, b"abc")
        cases = []
        for told, content in [
            ("it has 0 bytes, fewer than the 8 of a header's length", b""),
            ("cut short: its header has ", whole[:400]),
            ("bytes of data; it is damaged or was cut short", whole[:40000]),
            ("the tensors end at byte ", whole + b"\0"),
            ("length would be 9223372036854775808 bytes", header_file("{}", length=1 << 63)),
            ("length would be 18446744073709551615 bytes", header_file("{}", length=(1 << 64) - 1)),
            ("found -1 (integer)", header_file(shape % -1)),
            ("found 9223372036854775808 (integer)", header_file(shape % (1 << 63))),
            ("[9223372036854775807] has more elements than 64 bits can count", header_file(shape % ((1 << 63) - 1))),
            ("[4294967296, 4294967296] has more elements", header_file(shape % "4294967296,4294967296")),
            ('tensor "b": its data start at 0, overlapping the end', two("a", "0,1", "b", "0,1")),
            ('tensor "b": its data start at 2, leaving a hole', two("a", "0,1", "b", "2,3")),
            ('key "a" stands twice', two("a", "0,1", "a", "0,1")),
            ("nested deeper than 64 levels", header_file("[" * 10**6)),
            ("(header):1:3: not UTF-8: byte 0xff", header_file(b'{"\xff":1}')),
        ]:
            model = self.copy(BERT, lambda folder: (folder / "model.safetensors").write_bytes(content))
            cases.append(([told, f"{model}/model.safetensors"], self.train(model=model)))
        adapter = self.copy(PEFT / "bert_lora", lambda folder: os.truncate(folder / "adapter_model.safetensors", 3000))
        self.refused(*cases, (f"{adapter}/adapter_model.safetensors: ", self.merge(BERT, adapter)))

    def test_shards(self):
        def sharded(changes):
            def change(folder):
                (folder / "model.safetensors").rename(folder / "one.safetensors")
                index = {name: "one.safetensors" for name in read_tensors(folder / "one.safetensors")}
                (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index | changes}))
            return self.copy(BERT, change)

        ether("inspect", sharded({}))
        missing = sharded({"classifier.bias": "two.safetensors"})
        shutil.copy(MODELS / "bert" / "model.safetensors", self.folder)
        self.refused(
            (f"{missing}/two.safetensors: the shard is missing", self.train(model=missing)),
            ('tensor "ghost" should be in one.safetensors but is not', self.train(model=sharded({"ghost": "one.safetensors"}))),
            ('key "weight_map.a": expected a string, found 3', self.train(model=sharded({"a": 3}))),
            *[('tensor "a": expected the name of a file in this folder, found ', self.train(model=sharded({"a": outside})))
              for outside in ["../model.safetensors", str(self.folder / "model.safetensors"), "..", "", "a\0b"]])

    def test_weights(self):
        cases = []
        for told, changes in [
            (f'"{QUERY}.weight" (32, 32) is missing', {f"{QUERY}.weight": None}),
            (f'"{QUERY}.weight" has shape (16, 64), but config.json asks for (32, 32)', {f"{QUERY}.weight": floats(16, 64)}),
            (f'"{QUERY}.weight": its dtype is I8, expected F32,', {f"{QUERY}.weight": ("I8", [32, 32], bytes(1024))}),
            (f'"{QUERY}.weight": its dtype is F8_E4M3, expected F32,', {f"{QUERY}.weight": ("F8_E4M3", [32, 32], bytes(1024))}),
            (f'"{QUERY}.weight" holds NaN or infinity', {f"{QUERY}.weight": floats(32, 32, first=math.nan)}),
            (f'"{QUERY}.bias" holds NaN or infinity', {f"{QUERY}.bias": floats(32, first=-math.inf)}),
            ('"classifier.weight" has shape (), expected (classes, width)', {"classifier.weight": floats()}),
            ('"classifier.weight" has shape (0, 32), expected (classes, width)', {"classifier.weight": ("F32", [0, 32], b"")}),
        ]:
            model = self.copy(BERT, lambda folder: change_tensors(folder / "model.safetensors", changes))
            cases += [([told, str(model)], words) for words in [self.train(model=model), self.eval(model)]]
        self.refused(*cases)

    def test_config(self):
        models = [(told, self.copy(BERT, lambda folder: change_json(folder / "config.json", changes))) for told, changes in [
            (': key "hidden_size" is missing, expected an integer', {"hidden_size": ...}),
            (': key "model_type" is missing, expected a string', {"model_type": ...}),
            (': key "hidden_size": expected an integer, found "32" (string)', {"hidden_size": "32"}),
            (': key "hidden_size": expected an integer, found null', {"hidden_size": None}),
            (': key "hidden_size" is -1, expected 1 to ', {"hidden_size": -1}),
            (': key "num_hidden_layers" is 2147483648, expected 1 to 65536', {"num_hidden_layers": 2**31}),
            (': key "layer_norm_eps" is -1, expected 1e-30 to 1', {"layer_norm_eps": -1}),
            (': key "layer_norm_eps" is 1e+39, expected 1e-30 to 1', {"layer_norm_eps": 1e39}),
            (': key "initializer_range" is -1e+300, expected 0 to 10', {"initializer_range": -1e300}),
            (': key "id2label.0": expected a string, found 3', {"id2label": {"0": 3}}),
            (': model_type "gpt9" is not supported; known architectures: bert, llama, ',
             {"model_type": "gpt9"}),
        ]] + [(told, self.copy(BERT, lambda folder: (folder / "config.json").write_bytes(content))) for told, content in [
            (":1:24: not valid JSON", b'{"model_type": "bert", '), (":1:8: not UTF-8: byte 0xff", b'{"a": "\xff"}'),
            (":1:65: JSON is nested deeper than 64 levels", b"[" * 10**5), (": expected a JSON object, found a list", b"[]"),
        ]]
        self.refused(*[(f"{model}/config.json{told}", self.train(model=model)) for told, model in models])

    def test_weights_of_another_config(self):
        """What config.json does not speak of is not left out in silence."""
        fewer = self.copy(BERT, lambda folder: change_json(folder / "config.json", {"num_hidden_layers": 1}))
        other = self.copy(MODELS / "qwen3", lambda folder: change_json(folder / "config.json", {"model_type": "llama"}))
        # Outside of blocks there may be what is not asked for.
        ether("inspect", self.copy(BERT, lambda folder: change_tensors(folder / "model.safetensors", {
            "classifier.0.weight": floats(2, 2), "cls.layers.99999999999999999999999999.weight": floats(2, 2)})))
        causal = self.copy(BERT, lambda folder: change_json(folder / "config.json", {"is_decoder": True}))
        self.refused(
            (f'{fewer}: tensor "bert.encoder.layer.1.attention.output.LayerNorm.bias" and 15 more has no place in the bert of 1 layers',
             self.train(model=fewer)),
            (f'{other}: tensor "model.layers.0.self_attn.k_norm.weight" and 3 more has no place in the llama of 2 layers',
             ["logits", "--model", other, "--tokens", self.file("tokens.json", "[[5]]"), "--out", self.folder / "logits"]),
            ('config.json: key "is_decoder" is true, but only encoders are supported here', self.eval(causal)))

    def test_config_of_other_models(self):
        scaling = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                   "original_max_position_embeddings": 8}
        models = []
        for source, told, changes in [
            ("roberta", 'key "pad_token_id" is 9223372036854775807, expected a token\'s number, below ', {"pad_token_id": 2**63 - 1}),
            ("llama_tied", 'key "rope_theta" is 1e-300, expected 1 to 1e+12', {"rope_theta": 1e-300}),
            ("llama_tied", 'key "factor" is 1e-310, expected 0.001 to 1e+06', {"rope_scaling": scaling | {"factor": 1e-310}}),
            ("llama_tied", "low_freq_factor (4) must be below high_freq_factor (4)", {"rope_scaling": scaling | {"low_freq_factor": 4}}),
            ("llama_tied", 'key "original_max_position_embeddings" is 0, expected 1 to ',
             {"rope_scaling": scaling | {"original_max_position_embeddings": 0}}),
            ("qwen2", 'key "layer_types" holds "looking_away", expected sliding_attention or full_attention',
             {"layer_types": ["full_attention", "looking_away"]}),
            ("qwen2", 'key "sliding_window" is -3, expected at least 0', {"sliding_window": -3}),
            ("qwen2", 'key "layer_types" has 1 entries, expected one for each of 2 layers', {"layer_types": ["full_attention"]}),
        ]:
            changes |= {"rope_parameters": ...}
            models.append((told, self.copy(MODELS / source, lambda folder: change_json(folder / "config.json", changes))))
        self.refused(*[(told, ["inspect", model]) for told, model in models])

    def test_tokenizers(self):
        def template(special_id, text_type):
            return {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": text_type}}],
                    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [special_id], "tokens": ["[CLS]"]}}}

        def changed(words, processor):
            tokenizer = json.loads((MODELS / "bert" / "tokenizer.json").read_text())
            tokenizer["model"]["vocab"] |= words
            tokenizer["post_processor"] = processor
            return self.copy(BERT, lambda folder: (folder / "tokenizer.json").write_text(json.dumps(tokenizer)))

        cases = []
        for told, model in [
            ("has 49 tokens, but the model's embedding only 48", changed({"w48": 48}, None)),
            ("gives the token id 100000, but the model's embedding has only 48", changed({"w5": 100000}, None)),
            ("gives the token id 999, but", changed({}, template(999, 0))),
            ("gives the token type 9, but the model's embedding has only 2", changed({}, template(1, 9))),
            ("not a tokenizer that can be read", changed({"w5": -1}, None)),
        ]:
            cases += [(f"{model}/tokenizer.json: {told}", words) for words in [self.train(model=model), self.eval(model)]]
        model = self.copy(BERT, lambda folder: (folder / "tokenizer.json").unlink())
        told = f"{model}: holds no tokenizer.json; where it has a tokenizer's other files: python -c"
        def with_part(key, *parts):
            return self.copy(BERT, lambda folder: change_json(folder / "tokenizer.json", {key: {"type": "Sequence", key + "s": parts}}))

        def replace(kind, pattern, content):
            return {"type": "Replace", "pattern": {kind: pattern}, "content": content}

        bytes_as_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        growing = with_part("normalizer", *36 * [replace("String", "w", "ww")])
        twice = self.copy(BERT, lambda folder: (folder / "tokenizer.json").write_text(
            '{"normalizer": null, ' + (growing / "tokenizer.json").read_text()[1:]))
        untyped = self.copy(BERT, lambda folder: change_json(folder / "tokenizer.json", {
            "normalizer": {"normalizers": 36 * [{"pattern": {"String": "w"}, "content": "ww"}]}}))
        others = [with_part("normalizer", *36 * [{"type": "ByteLevel"}]), with_part("normalizer", *36 * [replace("Regex", "", "x")]),
                  with_part("normalizer", *18 * [replace("String", "w", "WW"), {"type": "Lowercase"}])]
        others.append(self.copy(BERT, lambda folder: change_json(folder / "tokenizer.json", {
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": 36 * [bytes_as_letters]}})))
        repeated = [{"Sequence": {"id": "A", "type_id": 0}}]
        repeating = self.copy(BERT, lambda folder: change_json(folder / "tokenizer.json", {"post_processor": {
            "type": "TemplateProcessing", "single": 200 * repeated, "pair": repeated, "special_tokens": {}}}))
        # What no look at the file tells: a table of replacements that is said to be of four gigabytes.
        hostile = self.copy(BERT, lambda folder: change_json(folder / "tokenizer.json", {
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAAAA"}}))
        ending = self.copy(MODELS / "llama_tied", lambda folder: (folder / "tokenizer_config.json").write_text('{"eos_token": "nope"}'))
        wide = [{"type": "Replace", "pattern": {"String": mark}, "content": chr(ord(mark) + 0xfee0)} for mark in "!?,.:;()[]"]
        ether(*self.eval(self.copy(BERT, lambda folder: change_json(
            folder / "tokenizer.json", {"normalizer": {"type": "Sequence", "normalizers": wide}}))))
        ether(*self.eval(self.copy(BERT, lambda folder: (folder / "tokenizer_config.json").write_text('{"eos_token": "nope"}'))))
        latin = self.folder / os.fsdecode(b"caf\xe9")
        shutil.copytree(BERT, latin)
        ether(*self.eval(latin))
        self.refused(*[(f"--{option}: a value that has control characters, or is not UTF-8, cannot be kept in run.toml", words)
                       for option, words in [("model", self.train(model=latin)), ("data", self.train(data=latin / "data.csv")),
                                             ("text-column", self.train("--text-column", "te\x7fxt"))]])
        sided = self.copy(BERT, lambda folder: (folder / "tokenizer_config.json").write_text('{"truncation_side": "middle"}'))
        self.refused(*cases, (told, self.train(model=model)),
                     (f"{growing}/tokenizer.json: not a tokenizer that can be read: it may make a text 7e10 times as long",
                      self.train(model=growing)),
                     *[("times as long", self.train(model=model)) for model in [twice, untyped, *others]],
                     (f"{repeating}/tokenizer.json: its post_processor repeats the text", self.train(model=repeating)),
                     (f"{hostile}/tokenizer.json: takes far more memory than any that is sound", self.train(model=hostile)),
                     (f'{ending}/tokenizer.json: has no token "nope", which the model\'s other files call the end of a text',
                      self.train("--task", "causal-lm", model=ending)),
                     ('key "truncation_side" is "middle", expected "right" or "left"', self.train(model=sided)))


if __name__ == "__main__":
    program.ETHER = sys.argv.pop(1)
    unittest.main()
