"""What tests of bad input start from: a model and an adapter that can be changed, and what is said then."""
import concurrent.futures
import json
import math
import os
import shutil
import struct

from program import BERT, ProgramTest, refusal

QUERY = "bert.encoder.layer.0.attention.self.query"


def change_json(file, changes):
    """Replaces keys; ... removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def link_to_itself(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)
    return path


def floats(*shape, first=0.0):
    return ("F32", list(shape), struct.pack("<f", first) + bytes(4 * math.prod(shape) - 4))


class BadInput(ProgramTest):
    def setUp(self):
        super().setUp()
        self.made = 0
        self.data = self.write("data.csv", "text,label\n" + "".join(f"w{4 + i},{i % 3}\n" for i in range(12)))

    def copy(self, source, change):
        """A folder like `source`, changed."""
        self.made += 1
        folder = self.folder / f"copy{self.made}"
        shutil.copytree(source, folder)
        change(folder)
        return folder

    def file(self, name, content):
        self.made += 1
        path = self.folder / f"{self.made}-{name}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def refused(self, *cases):
        """Runs each case's words, and looks for what is told: a part of the message, or several."""
        before = sorted(self.folder.rglob("*"))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            runs = [pool.submit(refusal, *words) for told, words in cases]
        for (told, words), run in zip(cases, runs):
            with self.subTest(told, words=words):
                message = run.result()
                for part in [told] if isinstance(told, str) else told:
                    self.assertIn(part, message)
                self.assertLess(len(message), 1000)
        self.assertEqual(sorted(self.folder.rglob("*")), before)

    def train(self, *words, model=BERT, data=None):
        return ["train", "--model", model, "--data", data or self.data, "--out", self.folder / "out", "--max-steps", 1, *words]

    def eval(self, model=BERT, adapter=None, data=None):
        return ["eval", "--model", model, "--data", data or self.data, *(["--adapter", adapter] if adapter else [])]

    def merge(self, model, adapter):
        return ["merge", "--model", model, "--adapter", adapter, "--out", self.folder / "out"]
