#!/usr/bin/env python3
"""What a run that is resumed may find: damaged checkpoints, lost files, another base, other data. It goes on to the same bits,
or says in one line why not.
Usage, in the repository's root: python3 tests/resume_test.py build/release/bin/ether [unittest's options]"""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest

import program
from program import ether
from run_fixture import RunTest


class ResumeTest(RunTest):
    def resumed(self, change, drop=(), words=()):
        """What a copy of the run says that was changed, without those checkpoints; its exit code, and the copy."""
        run = self.folder / "copy"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.run_folder, run)
        for step in drop:
            shutil.rmtree(run / "checkpoints" / f"step-{step:09}")
        change(run)
        done = subprocess.run([program.ETHER, "train", "--resume", run, *words], capture_output=True, text=True)
        return done.returncode, done.stderr, run

    def edited(self, file, **changes):
        return lambda run: (run / file).write_text(json.dumps(json.loads((run / file).read_text()) | changes))

    def test_damaged_checkpoints(self):
        """The newest that is whole is taken, which the run says; the end is the same."""
        ether(*self.words(), "--keep", 9, "--eval-data", self.data, "--eval-every", 4)
        newest = "checkpoints/step-000000010"

        def rotten(run):
            file = run / newest / "state.safetensors"
            content = bytearray(file.read_bytes())
            content[-5] ^= 1
            file.write_bytes(content)

        state = f"{newest}/state.json"
        for change, told in [(rotten, "state.safetensors, or state.json beside it: holds other values than were written"),
                             (self.edited(state, step=11), "holds step 11, not the one it is named after"),
                             (self.edited(state, step=-1), 'key "step" is -1, expected at least 0'),
                             (self.edited(state, best_step=99), 'key "best_step" is 99, expected at most the 10 of "step"'),
                             (self.edited(state, logs={"metrics.jsonl": {"bytes": -1, "hash": ""}}), 'key "bytes" is -1'),
                             (self.edited(state, settings=3), 'key "settings": expected an object'),
                             (self.edited(state, best_score=0.99), "or state.json beside it: holds other values than were written"),
                             (lambda run: (run / state).unlink(), "state.json: cannot open")]:
            with self.subTest(told):
                code, words, run = self.resumed(change, drop=[15, 20])
                self.assertEqual(code, 0, words)
                self.assertRegex(words, "warning: a newer checkpoint cannot be read, so the run goes on from step 5: .*" + re.escape(told))
                name = "adapter_model.safetensors"
                self.assertEqual((run / name).read_bytes(), (self.run_folder / name).read_bytes())
        code, words, run = self.resumed(rotten, drop=[0, 5, 15, 20])
        self.assertEqual(code, 1)
        self.assertIn("checkpoints: no checkpoint to resume from; ", words)

    def test_what_is_not_as_the_run_left_it(self):
        ether(*self.words(), "--keep", 9, "--eval-data", self.data, "--eval-every", 4, "--lr", "1e-3", "--method", "lora", "--rank", 2)
        def setting(*changes):
            def change(run):
                text = (run / "run.toml").read_text()
                for old, new in changes:
                    self.assertIn(f"\n{old}\n", text)
                    text = text.replace(f"\n{old}\n", f"\n{new}\n")
                (run / "run.toml").write_text(text)
            return change

        fewer = self.write("fewer.csv", "text,label\n" + "".join(f"w{4 + i},{i % 2}\n" for i in range(40)))

        def damage(run):
            lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
            lines[2] = b"x" * (len(lines[2]) - 1) + b"\n"
            (run / "metrics.jsonl").write_bytes(b"".join(lines))

        def lose_adapter(run):
            (run / "adapter_model.safetensors").unlink()

        def empty(run):
            (run / "metrics.jsonl").write_text("")

        def other_activation(model):
            config = model / "config.json"
            config.write_text(config.read_text().replace('"gelu"', '"relu"'))

        def other_tokenizer(model):
            tokenizer = json.loads((model / "tokenizer.json").read_text())
            (model / "tokenizer.json").write_text(json.dumps(tokenizer | {"padding": None}, indent=7))

        def hole_in_weights(model):
            with open(model / "model.safetensors", "r+b") as file:
                file.seek(-20000, os.SEEK_END)
                file.write(bytes(128))

        shuffled = self.write("shuffled.csv", "text,label\n" + "".join(reversed(self.data.read_text().splitlines(keepends=True)[1:])))
        other_names = self.write("names.csv", self.data.read_text().replace(",0\n", ",10\n").replace(",1\n", ",11\n").replace(",2\n", ",12\n"))

        for change, drop, told in [
                (setting(("lr = 0.001", "lr = 0.002")), [20], 'run.toml: lr is "0.002", but the run began with "0.001"; put that back'),
                (setting(("rank = 2", "rank = 4")), [20], 'run.toml: rank is "4", but the run began with "2"; put that back'),
                (setting(*[(f"{key} = '{self.data}'", f"{key} = '{fewer}'") for key in ("data", "eval-data")]), [20], "the evaluation data is not what the run began with"),
                (setting((f"eval-data = '{self.data}'", f"eval-data = '{shuffled}'")), [20], "the evaluation data is not what the run began with"),
                (setting(*[(f"{key} = '{self.data}'", f"{key} = '{other_names}'") for key in ("data", "eval-data")]), [20], "the labels' names is not what the run began with"),
                (lambda run: (run / "run.toml").write_text(""), [20], "run.toml: names no model or no data, so the run cannot go on"),
                (damage, [20], "bytes that were there when the checkpoint was made, found others; put the file back")]:
            with self.subTest(told):
                code, words, run = self.resumed(change, drop)
                self.assertEqual(code, 1, words)
                self.assertIn(told, words.splitlines()[-1])
        kept = self.folder / "kept"
        for change, told in [(other_activation, "the base model's config.json is not what the run began with"),
                             (other_tokenizer, "the base model's tokenizer.json is not what the run began with"),
                             (hole_in_weights, "the base model is not what the run began with")]:
            with self.subTest(told):
                shutil.copytree(self.model, kept)
                change(self.model)
                code, words, run = self.resumed(lambda run: None, [20])
                shutil.rmtree(self.model)
                kept.rename(self.model)
                self.assertEqual(code, 1, words)
                self.assertIn(told, words.splitlines()[-1])
        code, words, run = self.resumed(empty, [20])
        self.assertEqual(code, 0, words)
        self.assertIn("metrics.jsonl is gone or empty; it begins anew after step 15", words)
        self.assertEqual(words.count("warning"), 1, words)
        code, words, run = self.resumed(lambda run: None, [20], ["--threads", "2"])
        self.assertEqual(code, 0, words)
        self.assertIn("the run began on cpu, 1 threads and goes on on cpu, 2 threads", words)
        code, words, run = self.resumed(lambda run: None, [], ["--threads", "2"])  # nothing is left to do
        self.assertEqual((code, "warning" in words), (0, False), words)
        code, words, run = self.resumed(lose_adapter, [20])
        self.assertEqual(code, 0, words)
        self.assertRegex(words, "warning: the adapter of step [0-9]+, the best so far, is not in the folder any more")
        self.assertTrue((run / "adapter_model.safetensors").exists())
        # The same step in smaller pieces, and what says nothing about the result.
        code, words, run = self.resumed(setting(("batch = 4", "batch = 2"), ("accumulate = 1", "accumulate = 2"), ("keep = 9", "keep = 3")), [20])
        self.assertEqual(code, 0, words)

    def test_pieces_stay_as_the_run_began(self):
        """A step's pieces change the last bits: a run that began with them keeps them where there is more memory, and says when it cannot."""
        self.data = self.write("long.csv", "text,label\n" + "".join(f"{' '.join(f'w{4 + (i * k) % 40}' for k in range(12))},{i % 3}\n" for i in range(40)))
        words = [40 if word == 4 else word for word in self.words()]  # the batch: 560 tokens
        ether(*words, "--memory", "low")
        adapter = "adapter_model.safetensors"
        code, told, run = self.resumed(lambda run: None, [20], ["--memory", "auto"])
        self.assertEqual((code, "warning" in told), (0, False), told)
        self.assertEqual((run / adapter).read_bytes(), (self.run_folder / adapter).read_bytes())
        code, told, run = self.resumed(lambda run: None, [20], ["--memory", "fast"])
        self.assertEqual(code, 0, told)
        self.assertIn("the run began on cpu, 1 threads, in pieces of 256 tokens and goes on on cpu, 1 threads: sums", told)
        code, told, run = self.resumed(lambda run: None, [20], ["--batch", "4"])
        self.assertEqual(code, 2, told)

    def test_a_finished_runs_best_adapter_is_lost(self):
        """The scores never change, so the first evaluation is the best, which nothing can make again."""
        ether(*self.words(), "--eval-data", self.data, "--eval-every", 4, "--lr", "1e-12", "--head-lr", "1e-12")
        code, words, run = self.resumed(lambda run: (run / "adapter_model.safetensors").unlink())
        self.assertEqual(code, 1, words)
        self.assertIn("the run is finished, but the adapter of step 4, its best, is not there any more", words.splitlines()[-1])

    def test_the_adapter_of_a_finished_run_comes_back(self):
        ether(*self.words())
        for lost in ["adapter_config.json", "adapter_model.safetensors", "ether.json"]:
            for change in [pathlib.Path.unlink, lambda file: file.write_text("junk")]:
                code, words, run = self.resumed(lambda run: change(run / lost))
                self.assertEqual(code, 0, words)
                for name in ["adapter_config.json", "adapter_model.safetensors"]:
                    self.assertEqual((run / name).read_bytes(), (self.run_folder / name).read_bytes())

    def test_an_adapter_that_a_kill_left_without_its_names(self):
        """Another adapter's configuration is gone before the new one's files get their names, which the resumed run does."""
        ether(*self.words(), "--eval-data", self.data, "--eval-every", 4, "--lr", "1e-12", "--head-lr", "1e-12")
        names = ["adapter_config.json", "ether.json", "adapter_model.safetensors"]
        for count in [1, 2, 3]:
            with self.subTest(count=count):
                def unname(run):
                    for name in names[:count]:
                        (run / name).rename(run / f"{name}.tmp-1-{count}")
                code, words, run = self.resumed(unname, [20])
                self.assertEqual((code, "warning" in words), (0, False), words)
                for name in names:
                    self.assertEqual((run / name).read_bytes(), (self.run_folder / name).read_bytes())
                self.assertEqual([*run.rglob("*.tmp-*")], [])
        def half_written(run):
            (run / "adapter_config.json").unlink()
            (run / "adapter_config.json.tmp-1-1").write_text('{"peft_type": "ETHER')
        code, words, run = self.resumed(half_written, [20])
        self.assertEqual(code, 0, words)
        self.assertIn("is not in the folder any more, or damaged; the next evaluation counts as the best", words)

    def test_killed_twice_before_the_first_save(self):
        """At first before there was a record: the events' file begins anew then, with another time of day."""
        words = [10**6 if word == 5 else word for word in self.words(steps=10**6)]
        log = self.run_folder / "metrics.jsonl"
        for number in range(3):
            with subprocess.Popen([program.ETHER, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
                while not log.exists() or log.stat().st_size < 500:
                    self.assertIsNone(process.poll())
                    time.sleep(0.005)
                process.kill()
            words = ["train", "--resume", self.run_folder]
            os.truncate(log, 0)
            if number == 0:
                events = next(self.run_folder.glob("events*"))
                events.write_bytes(self.header_of(events.read_bytes()))

    @staticmethod
    def header_of(events):
        """The first record: length, checksum, data, checksum."""
        return events[: 12 + int.from_bytes(events[:8], "little") + 4]

    def test_a_log_that_a_kill_left_without_a_record(self):
        """Begun anew, and then no checkpoint counted on it."""
        ether(*self.words())
        events = next(self.run_folder.glob("events*")).name
        content = (self.run_folder / events).read_bytes()
        code, words, run = self.resumed(lambda run: (run / events).write_bytes(self.header_of(content)), [20])
        self.assertEqual(code, 0, words)
        self.assertIn("is gone or empty; it begins anew after step 15", words)

    def test_old_checkpoints_that_a_kill_left(self):
        """Between the last save and the removal of what is old then."""
        ether(*self.words())
        checkpoints = self.run_folder / "checkpoints"
        kept = sorted(os.listdir(checkpoints))
        shutil.copytree(checkpoints / kept[0], checkpoints / "step-000000005")
        ether("train", "--resume", self.run_folder)
        self.assertEqual(sorted(os.listdir(checkpoints)), kept)

    def test_log_removed_while_running(self):
        """The run goes on, says so, and keeps what comes after."""
        with self.long_run() as process:
            log = self.run_folder / "metrics.jsonl"
            log.unlink()
            while not log.exists() or log.stat().st_size == 0:
                self.assertIsNone(process.poll())
                time.sleep(0.005)
            process.terminate()
            told = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 128 + signal.SIGTERM)
        self.assertEqual(told.count("metrics.jsonl was removed, replaced or written to by others while the run went on"), 1, told)
        for line in log.read_text().splitlines():
            json.loads(line)
        # A checkpoint that counts on what was lost would be in the way of a second try.
        log.unlink()
        with subprocess.Popen([program.ETHER, "train", "--resume", self.run_folder], stderr=subprocess.DEVNULL) as process:
            while not log.exists() or log.stat().st_size == 0:
                self.assertIsNone(process.poll())
                time.sleep(0.005)
            process.kill()
        with subprocess.Popen([program.ETHER, "train", "--resume", self.run_folder], stderr=subprocess.DEVNULL) as process:
            while log.stat().st_size < 2000:
                self.assertIsNone(process.poll())
                time.sleep(0.005)
            process.kill()

    def test_log_removed_before_the_first_save(self):
        words = [10**6 if word == 5 else word for word in self.words(steps=10**6)]
        log = self.run_folder / "metrics.jsonl"
        with subprocess.Popen([program.ETHER, *map(str, words)], stderr=subprocess.PIPE, text=True) as process:
            while not log.exists() or log.stat().st_size == 0:
                self.assertIsNone(process.poll())
                time.sleep(0.005)
            log.unlink()
            process.terminate()
            self.assertIn("metrics.jsonl was removed, replaced or written to by others while the run went on", process.communicate(timeout=60)[1])
        self.assertTrue(log.exists())


if __name__ == "__main__":
    program.ETHER = sys.argv.pop(1)
    unittest.main()
