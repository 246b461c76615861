#!/usr/bin/env python3
"""What the world does to a run: full disks, lost folders, signals. Each must end in one line that says so, and leave what
a resumed run can go on from.
Usage, in the repository's root: python3 tests/faults_test.py build/release/bin/ether [unittest's options]"""
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest
from unittest import mock

import program
from program import change_tensors, ether, preload, read_tensors, refusal
from run_fixture import RunTest


class FaultsTest(RunTest):
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
        self.assert_fails_late("metrics.jsonl: is no regular file")
        metrics.unlink()
        elsewhere = self.folder / "elsewhere"
        lock = self.run_folder / ".lock"
        lock.unlink(missing_ok=True)
        lock.symlink_to(elsewhere)
        self.assertIn(".lock: cannot open: it is a link, which is not followed", refusal(*self.words()))
        self.assertFalse(elsewhere.exists())
        lock.unlink()
        for name in ["learning_curve.svg", "learning_curve.html", "ether.json", "adapter_config.json", "events.out.tfevents.0.ether"]:
            (self.run_folder / name).write_text("mine" * 20)
            self.assertIn(f"holds {name}, which a run would replace", refusal(*self.words()))
            self.assertEqual((self.run_folder / name).read_text(), "mine" * 20)
            (self.run_folder / name).unlink()
        self.assertIn("the folder holds a model; choose another --out", refusal(*self.words(self.model)))
        self.assertIn("expected a run's folder, found a file", refusal(*self.words(self.data)))
        nowhere = self.folder / "nowhere"
        nowhere.symlink_to(self.folder / "gone")
        self.assertIn("expected a run's folder, found a link that leads nowhere", refusal(*self.words(nowhere)))
        ether(*self.words())
        self.assertEqual((notes / "a").read_text(), "mine")

    def test_results_never_replace_what_they_are_made_from(self):
        ether(*self.words())
        tokens = self.write("tokens.json", "[[5, 6]]")
        shutil.copy(self.model / "model.safetensors", self.model / "weights-1.safetensors")
        (self.model / "vocab.txt").write_text("w5")
        state = next(self.run_folder.glob("checkpoints/*/state.safetensors"))
        for out in [*self.model.iterdir(), self.run_folder / "adapter_model.safetensors", self.run_folder / "run.toml", state, tokens]:
            before = out.read_bytes()
            self.assertIn("is there already and holds no logits", refusal(
                "logits", "--model", self.model, "--adapter", self.run_folder, "--tokens", tokens, "--out", out))
            self.assertEqual(out.read_bytes(), before)
        blob = self.folder / "blob"
        shutil.move(self.model / "model.safetensors", blob)
        (self.model / "model.safetensors").symlink_to(blob)
        words = ["logits", "--model", self.model, "--tokens", tokens, "--out"]
        self.assertIn("is there already and holds no logits", refusal(*words, blob))
        self.assertIn('"": expected a file\'s name', refusal(*words, ""))
        (self.model / "logits.safetensors").write_text("")
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
            done = subprocess.run([program.ETHER, *map(str, self.words(disk / "run"))], capture_output=True, text=True)
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
        full = os.environ | {"LD_PRELOAD": str(preload(program.ETHER, "full_disk"))}
        calls, step = 0, 1 if "ETHER_EVERY_CALL" in os.environ else 3
        while True:
            shutil.rmtree(self.run_folder)
            done = subprocess.run([program.ETHER, *map(str, words)], capture_output=True, text=True, env=full | {"ETHER_FULL_AFTER": str(calls)})
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

    def test_a_run_that_goes_on_in_a_read_only_folder(self):
        with self.long_run() as process:
            self.assert_saves_its_last_step(process, signal.SIGTERM)
        # The super-user may write anywhere, unless that is given up.
        bound = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []
        for folder in [self.run_folder, self.run_folder / "checkpoints"]:
            folder.chmod(0o555)
            done = subprocess.run([*bound, program.ETHER, "train", "--resume", self.run_folder], capture_output=True, text=True)
            folder.chmod(0o755)
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"{folder}: cannot write there: Permission denied", done.stderr)

    def test_a_file_over_its_limit(self):
        """With room again the run ends as if nothing had been."""
        undisturbed = self.folder / "undisturbed"
        ether(*self.words(undisturbed))
        sizes = {file: file.stat().st_size for file in undisturbed.rglob("*") if file.is_file()}
        for limit in [4096, sizes[undisturbed / "metrics.jsonl"] - 1, max(sizes.values()) - 1]:
            done = subprocess.run([program.ETHER, *map(str, self.words())], capture_output=True, text=True,
                                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
            self.assertEqual(done.returncode, 1)
            self.assertIn("File too large", done.stderr.splitlines()[-1])
            self.assertEqual([*self.run_folder.rglob("*.tmp-*")], [])
            ether(*(["train", "--resume", self.run_folder] if (self.run_folder / "run.toml").exists() else self.words()))
            name = "adapter_model.safetensors"
            self.assertEqual((self.run_folder / name).read_bytes(), (undisturbed / name).read_bytes())
            shutil.rmtree(self.run_folder)

    def test_folder_removed_while_running(self):
        with self.long_run() as process:
            os.rename(self.run_folder, self.folder / "moved")
            self.ends_with(process, "the folder, or .lock in it, was removed or replaced while the run went on, so the run stops here")
        self.assertFalse(self.run_folder.exists())
        shutil.rmtree(self.folder / "moved")
        with self.long_run() as process:
            os.rename(self.run_folder, self.folder / "moved")
            self.run_folder.mkdir()  # in its place
            self.ends_with(process, "the run stops here")
        # A save that had looked for its folder may end in the one that took its place: a checkpoint then, not the run's adapter.
        self.assertLessEqual(set(os.listdir(self.run_folder)), {"checkpoints", "events.out.tfevents.0.ether"})

    def test_base_shortened_under_its_map(self):
        with self.long_run() as process:
            os.truncate(self.model / "model.safetensors", 4096)
            self.ends_with(process, f"{self.model}/model.safetensors: cannot be read any more: the file was shortened")

    def test_base_written_to_under_its_map(self):
        """A save that finds other weights stops the run; with the file as it was, the run goes on."""
        weights = self.model / "model.safetensors"
        content = weights.read_bytes()
        with self.long_run() as process:
            with open(weights, "r+b") as file:
                file.seek(-20000, os.SEEK_END)
                file.write(bytes(128))
            self.ends_with(process, f"{self.model}: the model's weights were written to while they were in use")
        self.assertIn("the base model is not what the run began with", refusal("train", "--resume", self.run_folder))
        with open(weights, "r+b") as file:
            file.write(content)
        with subprocess.Popen([program.ETHER, "train", "--resume", self.run_folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            newest = lambda: max(os.listdir(self.run_folder / "checkpoints"))
            def wait_for_a_save():
                before = newest()
                while newest() == before or ".tmp" in newest():
                    self.assertIsNone(process.poll())
                    time.sleep(0.005)
            wait_for_a_save()
            os.utime(weights, (1, 1))  # another time is not another model
            weights.rename(self.folder / "aside")  # nor is its own file in another place, or another file in its own
            weights.write_bytes(bytes(1000))
            wait_for_a_save()
            with open(self.folder / "aside", "r+b") as file:  # but the one that is in use is watched wherever it is
                file.seek(-20000, os.SEEK_END)
                file.write(bytes(128))
            self.ends_with(process, f"{self.model}: the model's weights were written to while they were in use")

    def test_base_written_to_before_it_was_all_read(self):
        """A run that waits for its data has opened the model, and has not hashed it."""
        pipe = self.folder / "pipe.csv"
        os.mkfifo(pipe)
        words = [pipe if word == self.data else word for word in self.words()]
        with subprocess.Popen([program.ETHER, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            with open(pipe, "w") as data:  # the run has opened it, after the model
                with open(self.model / "model.safetensors", "r+b") as file:
                    file.seek(-20000, os.SEEK_END)
                    file.write(bytes(128))
                data.write(self.data.read_text())
            self.ends_with(process, f"{self.model}: the model's weights were written to while they were in use")
        self.assertFalse(self.run_folder.exists())

    def test_results_on_a_full_disk(self):
        """From any call on: one line, and nothing that was not there before."""
        ether(*self.words())
        tokens = self.write("tokens.json", "[[1, 2, 3]]")
        before = sorted(self.folder.rglob("*"))
        model, new, file = ["--model", self.model, "--adapter", self.run_folder], self.folder / "new", self.folder / "logits"
        full = os.environ | {"LD_PRELOAD": str(preload(program.ETHER, "full_disk"))}
        for words in [["merge", *model, "--out", new / "out"], ["export", *model, "--out", new / "out"],
                      ["logits", *model, "--tokens", tokens, "--out", file]]:
            for calls in range(50):
                done = subprocess.run([program.ETHER, *map(str, words)], capture_output=True, text=True, env=full | {"ETHER_FULL_AFTER": str(calls)})
                if done.returncode == 0:
                    break
                with self.subTest(verb=words[0], calls=calls):
                    self.assertEqual((done.returncode, done.stdout), (1, ""))
                    self.assertIn("No space left on device", done.stderr.splitlines()[-1])
                    self.assertEqual(sorted(self.folder.rglob("*")), before)
            self.assertEqual(done.returncode, 0, f"{words[0]}: {done.stderr}")
            self.assertGreater(calls, 3, words)
            shutil.rmtree(new, ignore_errors=True)
            file.unlink(missing_ok=True)

    def test_results_spoiled_on_their_way_to_the_disk(self):
        ether(*self.words())
        before = sorted(self.folder.rglob("*"))
        out = self.folder / "out"
        for verb in ["merge", "export"]:
            words = [verb, "--model", self.model, "--adapter", self.run_folder, "--out", out]
            with mock.patch.dict(os.environ, LD_PRELOAD=str(preload(program.ETHER, "rotten_disk"))):
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
        with subprocess.Popen([program.ETHER, "train", "--resume", self.run_folder], stderr=subprocess.PIPE, text=True) as process:
            self.assertIn("resumed at step", process.stderr.readline() + process.stderr.readline())
            process.kill()

    def test_terminal_closed(self):
        with self.long_run() as process:
            process.stderr.close()
            self.assert_saves_its_last_step(process, signal.SIGHUP)

    def test_terminal_that_is_gone(self):
        """Not only its signal: what is written there fails."""
        process, terminal = pty.fork()
        if process == 0:
            os.execv(program.ETHER, [program.ETHER, *map(str, self.words(steps=10**6))])
        log = self.run_folder / "metrics.jsonl"
        while not log.exists() or log.read_bytes().count(b"\n") < 3:
            os.read(terminal, 1 << 16)
        os.close(terminal)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), 128 + signal.SIGHUP)
        steps = log.read_bytes().count(b"\n")
        self.assertTrue((self.run_folder / "checkpoints" / f"step-{steps:09}").exists(), "the last step is not saved")

    def test_a_result_that_nobody_gets(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([program.ETHER, *map(str, self.words()), "--json"], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("standard output: cannot write the result: No space left on device", done.stderr)

    def test_interrupted(self):
        for how in [signal.SIGINT, signal.SIGTERM]:
            with self.long_run() as process:
                self.assert_saves_its_last_step(process, how)
            shutil.rmtree(self.run_folder)

    def assert_saves_its_last_step(self, process, how):
        process.send_signal(how)
        self.assertEqual(process.wait(60), 128 + how)
        steps = (self.run_folder / "metrics.jsonl").read_bytes().count(b"\n")
        self.assertTrue((self.run_folder / "checkpoints" / f"step-{steps:09}").exists(), "the last step is not saved")

    def test_interrupted_evaluation(self):
        """A signal ends an evaluation; the resumed run begins with it and ends with the same bits."""
        texts = self.write("eval.csv", "text,label\n" + "".join(f"w{4 + i % 40} w{4 + i % 9},{i % 3}\n" for i in range(50_000)))
        whole, out = self.folder / "whole", self.folder / "its own"
        words = [*self.words(out, steps=2), "--eval-data", texts, "--eval-every", 2, "--json"]
        ether(*self.words(whole, steps=2), "--eval-data", texts, "--eval-every", 2)
        with subprocess.Popen([program.ETHER, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            log = out / "metrics.jsonl"
            while not log.exists() or log.read_bytes().count(b"\n") < 2:
                self.assertIsNone(process.poll())
                time.sleep(0.002)
            process.send_signal(signal.SIGTERM)
            told = json.loads(process.communicate(timeout=60)[0])
        self.assertEqual((process.returncode, told["interrupted"], told["steps"]), (128 + signal.SIGTERM, True, 2))
        self.assertTrue(json.loads((out / "checkpoints/step-000000002/state.json").read_text())["evaluation_due"])
        self.assertFalse((out / "adapter_config.json").exists())
        self.assertEqual(told["resume"], f"ether train --resume '{out}'")
        ether("train", "--resume", out)
        self.assertEqual((out / "adapter_model.safetensors").read_bytes(), (whole / "adapter_model.safetensors").read_bytes())
        self.assertEqual(sum("accuracy" in line for line in log.read_text().splitlines()), 1)

    def test_terminal_closed_under_nohup(self):
        """SIGHUP was ignored when the program started, so it stops nothing."""
        command = [program.ETHER, *map(str, self.words(steps=10**6))]
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
            command = [program.ETHER, verb, "--model", self.model, "--adapter", self.run_folder, "--out", out]
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

    def test_nobody_reads(self):
        """A closed pipe behind the progress stops no run; one behind the results ends the program without a word."""
        with subprocess.Popen([program.ETHER, *map(str, self.words())], stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stderr.close()
            process.stdout.close()
            self.assertEqual(process.wait(60), 0)
        self.assertTrue((self.run_folder / "adapter_model.safetensors").exists())
        # Closed from the start: what is meant for them reaches no file of the run.
        logs = []
        for closed in [[1, 2], [0, 1, 2], []]:
            shutil.rmtree(self.run_folder)
            done = subprocess.run([program.ETHER, *map(str, self.words())], capture_output=True,
                                  preexec_fn=lambda: [os.close(stream) for stream in closed])
            self.assertEqual(done.returncode, 0)
            logs.append([re.sub(rb'"(seconds|tokens_per_second)":[^,}]*', b"", line)
                         for line in (self.run_folder / "metrics.jsonl").read_bytes().splitlines()])
        self.assertEqual(logs[0], logs[2])
        self.assertEqual(logs[1], logs[2])
        with subprocess.Popen([program.ETHER, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            self.assertEqual((process.stderr.read(), process.wait(60)), (b"", 0))

    def within(self, megabytes, *words):
        """A run of the program under a limit of memory."""
        limit = megabytes << 20
        return subprocess.run([program.ETHER, *map(str, words)], capture_output=True, text=True,
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
                 "--threads", 1, "--memory", "fast", "--force"]

        within, least = self.within, self.least_memory()
        self.assertIn("(ulimit -v) leaves", within(least - 48, "--version").stderr)
        ended = set()
        # What a start takes moves by a page or two: one step up, and each is let in.
        for size in range(least + 16, least + 2000, 90):
            done = within(size, *(["train", "--resume", self.run_folder] if (self.run_folder / "run.toml").exists() else words))
            if done.returncode == 0:
                break
            last = done.stderr.splitlines()[-1]
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertRegex(last, "^ether: .*(out of memory|Cannot allocate memory)")
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
        with mock.patch.dict(os.environ, LD_PRELOAD=str(preload(program.ETHER, "backward_clock"))):
            ether(*self.words(behind))
        name = "adapter_model.safetensors"
        self.assertEqual((behind / name).read_bytes(), (self.run_folder / name).read_bytes())
        lines = [json.loads(line) for line in (behind / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual([line["step"] for line in lines], list(range(1, 21)))
        self.assertTrue(all(line["seconds"] > 0 for line in lines))

    def test_no_home(self):
        done = subprocess.run([program.ETHER, "eval", "--model", self.model, "--data", self.data], env={}, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        done = subprocess.run([program.ETHER, "inspect", "org/name"], env={}, capture_output=True, text=True)
        self.assertIn("no such model", done.stderr)


if __name__ == "__main__":
    program.ETHER = sys.argv.pop(1)
    unittest.main()
