"""What tests of the program itself start from: runs that succeed or are refused, files to change, a folder of a test's own."""
import json
import pathlib
import shutil
import struct
import subprocess
import tempfile
import unittest

MODELS = pathlib.Path("tests/fixtures/models")
PEFT = pathlib.Path("tests/fixtures/peft")
BERT = str(MODELS / "bert")  # three classes, stored in f32


def ether(*words, text=""):
    """Standard output of a run that succeeds."""
    done = subprocess.run([ETHER, *map(str, words)], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(*words, text=""):
    """What a run says that fails, within a minute: one line beside notes."""
    done = subprocess.run([ETHER, *map(str, words)], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2), f"{words}: exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert sum(not line.startswith("note: ") for line in done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def preload(program, name):
    """A library of tests/preload, from the program's build folder; a sanitizer's build has none."""
    library = pathlib.Path(program).resolve().parent.parent / "preload" / f"lib{name}.so"
    if not library.parent.exists():
        raise unittest.SkipTest("no libraries to preload")
    assert library.exists(), f"{library} is not built"
    return library


def header_file(header, data=b"x", length=None):
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


class ProgramTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ether-test-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def write(self, name, text):
        (self.folder / name).write_text(text)
        return self.folder / name

    def train(self, out, *words, model=BERT, label=""):
        """A run of one step; returns its folder."""
        data = self.write("train.csv", "text,label\n" + "".join(f"a b,{label}{i % 3}\n" for i in range(6)))
        ether("train", "--model", model, "--data", data, "--max-steps", 1, "--out", self.folder / out, *words)
        return self.folder / out
