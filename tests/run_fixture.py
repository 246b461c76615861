"""What tests of runs start from: a tiny model, its data, and runs on them."""
import contextlib
import shutil
import signal
import subprocess
import time

import program
from program import BERT, ProgramTest


def tmpfs(folder, options):
    """A small disk of its own; True if this user may make one."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode == 0


class RunTest(ProgramTest):
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
        command = [program.ETHER, *map(str, self.words(steps=10**6))]
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

    def assert_fails_late(self, words):
        """The run begins, and ends with a line that says so."""
        command = [program.ETHER, *map(str, self.words())]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            self.ends_with(process, words)

    def disk(self, options):
        disk = self.folder / "disk"
        if not tmpfs(disk, options):
            self.skipTest("only root can make a small disk")
        self.addCleanup(subprocess.run, ["umount", disk], check=True)
        return disk
