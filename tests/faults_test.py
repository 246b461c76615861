#!/usr/bin/env python3
"""What the world does to a run: full disks, lost folders, signals. Each must end in one line that says so, and leave what
a resumed run can go on from.
Usage, in the repository's root: python3 tests/faults_test.py build/release/bin/ether [unittest's options]"""
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest
from unittest import mock

import program_test
from program_test import BERT, ProgramTest, change_tensors, ether, preload, read_tensors, refusal


def tmpfs(folder, options):
    """A small disk of its own; True if this user may make one."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode == 0


class FaultsTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.model = self.folder / "model"
        shutil.copytree(BERT, self.model)
        self.data = self.write("data.csv", "text,label\n" + "".join(f"w{4 + i % 40} w{4 + i % 7},{i % 3}\n" for i in range(40)))
        self.run_folder = self.folder / "run"

    def words(self, out=None, steps=20):
        return ["train", "--model", self.model, "--data", self.data, "--out", out or self.run_folder, "--max-steps", steps,
                "--batch", 4, "--save-every", 5, "--threads", 1]

    @contextlib.contextmanager
    def long_run(self):
        """A run of far too many steps, which has begun."""
        command = [program_test.ETHER, *map(str, self.words(steps=10**6))]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                              preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)) as process:
            try:
                while not (self.run_folder / "checkpoints" / "step-000000010").exists():
                    self.assertIsNone(process.poll())
                    time.sleep(0.005)
                yield process
            finally:
                process.kill()

    def ends_with(self, process, words, code=1):
        told = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, code, told)
        self.assertIn(words, told.splitlines()[-1])

    def disk(self, options):
        disk = self.folder / "disk"
        if not tmpfs(disk, options):
            self.skipTest("only root can make a small disk")
        self.addCleanup(subprocess.run, ["umount", disk], check=True)
        return disk

    def assert_fails_late(self, words):
        """The run begins, and ends with a line that says so."""
        command = [program_test.ETHER, *map(str, self.words())]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            self.ends_with(process, words)

    def test_what_others_left_in_the_folder(self):
        """Nothing there is removed or written through that no run has made."""
        self.run_folder.mkdir()
        notes = self.run_folder / "notes.tmp-2024"
        notes.mkdir()
        (notes / "a").write_text("mine")
        strange = self.run_folder / "checkpoints" / "mymodel"
        strange.mkdir(parents=True)
        self.assertIn("mymodel: no run made this", refusal(*self.words()))
        self.assertEqual(sorted(entry.name for entry in self.run_folder.iterdir()), ["checkpoints", "notes.tmp-2024"])
        strange.rmdir()
        victim, metrics = self.write("victim", ""), self.run_folder / "metrics.jsonl"
        metrics.symlink_to(victim)
        self.assert_fails_late("metrics.jsonl: cannot open: it is a link, which is not followed")
        self.assertEqual(victim.read_text(), "")
        metrics.unlink()
        os.mkfifo(metrics)
        self.assert_fails_late("metrics.jsonl: cannot open")
        metrics.unlink()
        elsewhere = self.folder / "elsewhere"
        lock = self.run_folder / ".lock"
        lock.unlink(missing_ok=True)
        lock.symlink_to(elsewhere)
        self.assertIn(".lock: cannot open: it is a link, which is not followed", refusal(*self.words()))
        self.assertFalse(elsewhere.exists())
        lock.unlink()
        for name in ["learning_curve.svg", "learning_curve.html", "ether.json", "adapter_config.json"]:
            (self.run_folder / name).write_text("mine")
            self.assertIn(f"holds {name}, which a run would replace", refusal(*self.words()))
            self.assertEqual((self.run_folder / name).read_text(), "mine")
            (self.run_folder / name).unlink()
        self.assertIn("the folder holds a model; choose another --out", refusal(*self.words(self.model)))
        ether(*self.words())
        self.assertEqual((notes / "a").read_text(), "mine")

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
        self.assertEqual(told.count("metrics.jsonl was removed or replaced while the run went on"), 1, told)
        for line in log.read_text().splitlines():
            json.loads(line)
        # A checkpoint that counts on what was lost would be in the way of a second try.
        log.unlink()
        with subprocess.Popen([program_test.ETHER, "train", "--resume", self.run_folder], stderr=subprocess.DEVNULL) as process:
            while not log.exists() or log.stat().st_size == 0:
                self.assertIsNone(process.poll())
                time.sleep(0.005)
            process.kill()
        with subprocess.Popen([program_test.ETHER, "train", "--resume", self.run_folder], stderr=subprocess.DEVNULL) as process:
            while log.stat().st_size < 2000:
                self.assertIsNone(process.poll())
                time.sleep(0.005)
            process.kill()

    def test_log_removed_before_the_first_save(self):
        words = [10**6 if word == 5 else word for word in self.words(steps=10**6)]
        log = self.run_folder / "metrics.jsonl"
        with subprocess.Popen([program_test.ETHER, *map(str, words)], stderr=subprocess.PIPE, text=True) as process:
            while not log.exists() or log.stat().st_size == 0:
                self.assertIsNone(process.poll())
                time.sleep(0.005)
            log.unlink()
            process.terminate()
            self.assertIn("metrics.jsonl was removed or replaced while the run went on", process.communicate(timeout=60)[1])
        self.assertTrue(log.exists())

    def test_results_never_replace_what_they_are_made_from(self):
        ether(*self.words())
        tokens = self.write("tokens.json", "[[5, 6]]")
        for out in [self.model / "model.safetensors", self.model / "config.json", self.run_folder / "adapter_model.safetensors", tokens]:
            before = out.read_bytes()
            for adapter in [self.run_folder, f"{self.run_folder}@1", f"{self.run_folder}@0.5,{self.run_folder}"]:
                self.assertIn("is one of the inputs", refusal("logits", "--model", self.model, "--adapter", adapter, "--tokens", tokens, "--out", out))
            self.assertEqual(out.read_bytes(), before)
        blob = self.folder / "blob"
        shutil.move(self.model / "model.safetensors", blob)
        (self.model / "model.safetensors").symlink_to(blob)
        words = ["logits", "--model", self.model, "--tokens", tokens, "--out"]
        self.assertIn("is one of the inputs", refusal(*words, blob))
        self.assertIn('"": expected a file\'s name', refusal(*words, ""))
        for _ in range(2):
            ether(*words, self.model / "logits.safetensors")
        for verb in ["merge", "export"]:
            self.assertIn("NaN", self.refused_result(verb))

    def refused_result(self, verb):
        """What an adapter of NaN makes a verb say, which leaves no folder that it made."""
        spoiled = self.folder / "spoiled"
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(self.run_folder, spoiled)
        change_tensors(spoiled / "adapter_model.safetensors",
                       {name: (dtype, shape, b"\xff" * len(data)) for name, (dtype, shape, data) in
                        read_tensors(spoiled / "adapter_model.safetensors").items()})
        words = [verb, "--model", self.model, "--out"]
        told = refusal(*words, self.folder / "new" / "a" / "b", "--adapter", spoiled)
        self.assertIn("File name too long", refusal(*words, self.folder / "new" / ("x" * 300) / "b", "--adapter", self.run_folder))
        self.assertFalse((self.folder / "new").exists())
        return told

    def test_full_disk(self):
        """Of sizes that end at different writes; with room again, the run goes on to the same end."""
        disk = self.disk("size=40k")
        ether(*self.words())
        for size in range(40, 200, 12):
            subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
            done = subprocess.run([program_test.ETHER, *map(str, self.words(disk / "run"))], capture_output=True, text=True)
            if done.returncode:
                self.assertIn("No space left on device", done.stderr.splitlines()[-1])
            subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
            ether(*(["train", "--resume", disk / "run"] if (disk / "run" / "run.toml").exists() else self.words(disk / "run")))
            name = "adapter_model.safetensors"
            self.assertEqual((disk / "run" / name).read_bytes(), (self.run_folder / name).read_bytes())
            self.assertEqual([entry for entry in (disk / "run").rglob("*.tmp-*")], [])
            shutil.rmtree(disk / "run")
        self.assertEqual(done.returncode, 0, "the last size is meant to suffice")

    def test_disk_full_from_any_call_on(self):
        """From every third call of a run that needs room (each one with ETHER_EVERY_CALL): it ends in one line, and goes on to
        the same end."""
        words = [*self.words(steps=6), "--eval-data", self.data, "--eval-every", 3]
        ether(*words)
        name = "adapter_model.safetensors"
        wanted = (self.run_folder / name).read_bytes()
        full = os.environ | {"LD_PRELOAD": str(preload(program_test.ETHER, "full_disk"))}
        calls, step = 0, 1 if "ETHER_EVERY_CALL" in os.environ else 3
        while True:
            shutil.rmtree(self.run_folder)
            done = subprocess.run([program_test.ETHER, *map(str, words)], capture_output=True, text=True, env=full | {"ETHER_FULL_AFTER": str(calls)})
            if done.returncode == 0:
                break
            with self.subTest(calls=calls):
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn("No space left on device", done.stderr.splitlines()[-1])
                ether(*(["train", "--resume", self.run_folder] if (self.run_folder / "run.toml").exists() else words))
                self.assertEqual((self.run_folder / name).read_bytes(), wanted)
                self.assertEqual([entry for entry in self.run_folder.rglob("*.tmp-*")], [])
                log = (self.run_folder / "metrics.jsonl").read_text().splitlines()
                self.assertEqual([json.loads(line)["step"] for line in log], [1, 2, 3, 3, 4, 5, 6, 6])
            calls += step
        self.assertGreater(calls, 60)

    def test_read_only_folder(self):
        disk = self.disk("ro")
        self.assertIn("Read-only file system", refusal(*self.words(disk / "run")))
        self.assertIn("Read-only file system", refusal(*self.words(disk)))

    def test_a_file_over_its_limit(self):
        done = subprocess.run([program_test.ETHER, *map(str, self.words())], capture_output=True, text=True,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
        self.assertEqual(done.returncode, 1)
        self.assertIn("File too large", done.stderr.splitlines()[-1])

    def test_folder_removed_while_running(self):
        with self.long_run() as process:
            os.rename(self.run_folder, self.folder / "moved")
            self.ends_with(process, "the folder was removed or replaced while the run went on, so the run stops here")
        self.assertFalse(self.run_folder.exists())
        shutil.rmtree(self.folder / "moved")

    def test_base_shortened_under_its_map(self):
        with self.long_run() as process:
            os.truncate(self.model / "model.safetensors", 4096)
            self.ends_with(process, f"{self.model}/model.safetensors: cannot be read any more: the file was shortened")

    def test_results_spoiled_on_their_way_to_the_disk(self):
        ether(*self.words())
        before = sorted(self.folder.rglob("*"))
        out = self.folder / "out"
        for verb in ["merge", "export"]:
            words = [verb, "--model", self.model, "--adapter", self.run_folder, "--out", out]
            with mock.patch.dict(os.environ, LD_PRELOAD=str(preload(program_test.ETHER, "rotten_disk"))):
                told = refusal(*words)
            self.assertIn("reads back other values than were written; is the disk failing?", told)
            self.assertEqual(sorted(self.folder.rglob("*")), before)
            ether(*words)
            shutil.rmtree(out)

    def test_base_on_a_read_only_disk(self):
        disk = self.disk("size=1m")
        self.model = shutil.copytree(self.model, disk / "model")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        ether(*self.words())
        ether("merge", "--model", self.model, "--adapter", self.run_folder, "--out", self.folder / "merged")

    def test_two_runs_and_a_stale_lock(self):
        with self.long_run():
            self.assertIn("another process is training in this folder", refusal("train", "--resume", self.run_folder))
            self.assertIn("the folder holds a run already", refusal(*self.words()))
        self.assertTrue((self.run_folder / ".lock").exists())
        with subprocess.Popen([program_test.ETHER, "train", "--resume", self.run_folder], stderr=subprocess.PIPE, text=True) as process:
            self.assertIn("resumed at step", process.stderr.readline() + process.stderr.readline())
            process.kill()

    def test_old_checkpoints_that_a_kill_left(self):
        """Between the last save and the removal of what is old then."""
        ether(*self.words())
        checkpoints = self.run_folder / "checkpoints"
        kept = sorted(os.listdir(checkpoints))
        shutil.copytree(checkpoints / kept[0], checkpoints / "step-000000005")
        ether("train", "--resume", self.run_folder)
        self.assertEqual(sorted(os.listdir(checkpoints)), kept)

    def test_terminal_closed(self):
        with self.long_run() as process:
            process.stderr.close()
            process.send_signal(signal.SIGHUP)
            self.assertEqual(process.wait(60), 128 + signal.SIGHUP)
        steps = (self.run_folder / "metrics.jsonl").read_bytes().count(b"\n")
        self.assertTrue((self.run_folder / "checkpoints" / f"step-{steps:09}").exists(), "the last step is not saved")

    def test_terminal_closed_under_nohup(self):
        """SIGHUP was ignored when the program started, so it stops nothing."""
        command = [program_test.ETHER, *map(str, self.words(steps=10**6))]
        log = self.run_folder / "metrics.jsonl"
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
            try:
                while not log.exists() or log.stat().st_size == 0:
                    self.assertIsNone(process.poll())
                    time.sleep(0.005)
                process.send_signal(signal.SIGHUP)
                goal = log.stat().st_size + 10**4
                while log.stat().st_size < goal:
                    self.assertIsNone(process.poll())
                    time.sleep(0.005)
                process.terminate()
                self.assertEqual(process.wait(60), 128 + signal.SIGTERM)
            finally:
                process.kill()

    def test_interrupted_results(self):
        """A signal while a result is being written leaves all of it or nothing."""
        ether(*self.words())
        before, out = sorted(self.folder.rglob("*")), self.folder / "out"
        stopped = 0
        for number in range(40):
            verb, how = ["merge", "export"][number % 2], [signal.SIGINT, signal.SIGTERM][number // 2 % 2]
            command = [program_test.ETHER, verb, "--model", self.model, "--adapter", self.run_folder, "--out", out]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None and not list(self.folder.glob("out*")):
                    time.sleep(0.0002)
                time.sleep(0.0004 * number)
                process.send_signal(how)
            if process.returncode == 0 or out.exists():
                self.assertTrue((out / f"{'model' if verb == 'merge' else 'adapter_model'}.safetensors").exists())
                shutil.rmtree(out)
            else:
                self.assertEqual(process.returncode, -how)
                stopped += 1
            self.assertEqual(sorted(self.folder.rglob("*")), before)
        self.assertGreater(stopped, 5)

    def resumed(self, change, drop=(), words=()):
        """What a copy of the run says that was changed, without those checkpoints; its exit code, and the copy."""
        run = self.folder / "copy"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.run_folder, run)
        for step in drop:
            shutil.rmtree(run / "checkpoints" / f"step-{step:09}")
        change(run)
        done = subprocess.run([program_test.ETHER, "train", "--resume", run, *words], capture_output=True, text=True)
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
                             (self.edited(state, log_bytes={"metrics.jsonl": -1}), 'key "metrics.jsonl" is -1'),
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
                (damage, [20], "metrics.jsonl:3:1: not valid JSON")]:
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

    def test_a_finished_runs_best_adapter_is_lost(self):
        """The scores never change, so the first evaluation is the best, which nothing can make again."""
        ether(*self.words(), "--eval-data", self.data, "--eval-every", 4, "--lr", "1e-12", "--head-lr", "1e-12")
        code, words, run = self.resumed(lambda run: (run / "adapter_model.safetensors").unlink())
        self.assertEqual(code, 1, words)
        self.assertIn("the run is finished, but the adapter of step 4, its best, is not there any more", words.splitlines()[-1])

    def test_the_adapter_of_a_finished_run_comes_back(self):
        ether(*self.words())
        for lost in ["adapter_config.json", "adapter_model.safetensors", "ether.json"]:
            code, words, run = self.resumed(lambda run: (run / lost).unlink())
            self.assertEqual(code, 0, words)
            for name in ["adapter_config.json", "adapter_model.safetensors"]:
                self.assertEqual((run / name).read_bytes(), (self.run_folder / name).read_bytes())

    def test_nobody_reads(self):
        """A closed pipe behind the progress stops no run; one behind the results ends the program without a word."""
        with subprocess.Popen([program_test.ETHER, *map(str, self.words())], stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stderr.close()
            process.stdout.close()
            self.assertEqual(process.wait(60), 0)
        self.assertTrue((self.run_folder / "adapter_model.safetensors").exists())
        with subprocess.Popen([program_test.ETHER, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            self.assertEqual((process.stderr.read(), process.wait(60)), (b"", 0))

    def within(self, megabytes, *words):
        """A run of the program under a limit of memory."""
        limit = megabytes << 20
        return subprocess.run([program_test.ETHER, *map(str, words)], capture_output=True, text=True,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))

    def least_memory(self):
        """The limit in MB at which the program just starts."""
        for size in range(256, 4096, 16):
            if self.within(size, "--version").returncode == 0:
                return size
        self.skipTest("a program under AddressSanitizer reserves terabytes")

    def test_memory_limits(self):
        """From one at which the program just starts (below, the loader fails) to one that is enough. With --force the run
        ends wherever memory does; with more of it, it goes on."""
        data = self.write("long.csv", "text,label\n" + "".join(f"{'w5 ' * 14},{i % 3}\n" for i in range(5000)))
        words = ["train", "--model", self.model, "--data", data, "--out", self.run_folder, "--max-steps", 1, "--batch", 5000,
                 "--threads", 1, "--force"]

        within, least = self.within, self.least_memory()
        self.assertIn("(ulimit -v) leaves", within(least - 16, "--version").stderr)
        ended = set()
        # What a start takes moves by a page or two: one step up, and each is let in.
        for size in range(least + 16, least + 2000, 90):
            done = within(size, *(["train", "--resume", self.run_folder] if (self.run_folder / "run.toml").exists() else words))
            if done.returncode == 0:
                break
            last = done.stderr.splitlines()[-1]
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertRegex(last, "^ether: .*(out of memory|Cannot allocate memory)|Thread creation failed")
            ended.add(last)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(ended, "no limit was too low")
        shutil.rmtree(self.run_folder)
        done = within(least + 50, *words[:-1])  # enough to read all, and far from the 190 MB that are needed
        self.assertRegex(done.stderr.splitlines()[-1], "needs about .* MB are free")

    def test_memory_ends_while_texts_are_read(self):
        """In the library that reads them, too, whose own answer would be to abort."""
        data = self.write("many.csv", "text,label\n" + "".join(f"{'w5 w6 w7 w8 ' * 6},{i % 3}\n" for i in range(60000)))
        ended = 0
        least = self.least_memory()
        for megabytes in range(least + 16, least + 2000, 20):
            done = self.within(megabytes, "eval", "--model", self.model, "--data", data, "--threads", 1, "--batch", 1000)
            if done.returncode == 0:
                break
            self.assertEqual((done.returncode, len(done.stderr.splitlines())), (1, 1), done.stderr)
            ended += "out of memory" in done.stderr
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreater(ended, 3)

    def test_clock_going_backwards(self):
        ether(*self.words())
        behind = self.folder / "behind"
        with mock.patch.dict(os.environ, LD_PRELOAD=str(preload(program_test.ETHER, "backward_clock"))):
            ether(*self.words(behind))
        name = "adapter_model.safetensors"
        self.assertEqual((behind / name).read_bytes(), (self.run_folder / name).read_bytes())
        lines = [json.loads(line) for line in (behind / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual([line["step"] for line in lines], list(range(1, 21)))
        self.assertTrue(all(line["seconds"] > 0 for line in lines))

    def test_no_home(self):
        done = subprocess.run([program_test.ETHER, "eval", "--model", self.model, "--data", self.data], env={}, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        done = subprocess.run([program_test.ETHER, "inspect", "org/name"], env={}, capture_output=True, text=True)
        self.assertIn("no such model", done.stderr)


if __name__ == "__main__":
    program_test.ETHER = sys.argv.pop(1)
    unittest.main()
