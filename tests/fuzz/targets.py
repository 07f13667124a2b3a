"""The parsers of other people's files, each a function of the bytes of one: it reads them or says ValueError.

Each target gets a folder in which the other files are as they should be. Nothing else may come of any bytes:
no other exception, no long run, no large allocation.
"""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

from safetensors.numpy import load_file

from npgpt.engine.model import GPT, GPTConfig
from npgpt.interop import huggingface, pytorch, tensorflow
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer, load_tokenizer

SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 2, "block_size": 2, "vocab_size": 3}
FAMILY = {"gpt": {"post_norm": True}, "gpt2": {}, "gpt_neo": {"window": 1}}


def _config(folder, data):
    (folder / "config.json").write_bytes(data)
    huggingface.read_pretrained(folder)


def _weights(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    huggingface.read_pretrained(folder)


def _index(folder, data):
    (folder / "model.safetensors.index.json").write_bytes(data)
    huggingface.read_pretrained(folder)


def _state_dict(folder, data):
    (folder / "state.safetensors").write_bytes(data)
    pytorch.read_state_dict(folder / "state.safetensors", n_head=1)


def _hparams(folder, data):
    (folder / "hparams.json").write_bytes(data)
    tensorflow.read_release(folder)


def _checkpoint(folder, data):
    (folder / "checkpoint").write_bytes(data)
    tensorflow.read_release(folder)


def _tokenizer(folder, data):
    (folder / "tokenizer.json").write_bytes(data)
    load_tokenizer(folder)


def _vocabulary(folder, data):
    (folder / "vocab.json").write_bytes(data)
    load_tokenizer(folder)


def _merges(folder, data):
    (folder / "merges.txt").write_bytes(data)
    load_tokenizer(folder)


TARGETS = {
    "config": _config,
    "weights": _weights,
    "index": _index,
    "state_dict": _state_dict,
    "hparams": _hparams,
    "checkpoint": _checkpoint,
    "tokenizer": _tokenizer,
    "vocabulary": _vocabulary,
    "merges": _merges,
}


class Folders:
    """For each target a folder of valid files, below `root`; and the valid bytes that fuzzing starts from."""

    def __init__(self, root):
        self.root, self.seeds = Path(root), {name: [] for name in TARGETS}
        for name in TARGETS:
            (self.root / name).mkdir(parents=True)
        for family, fields in FAMILY.items():
            model = GPT(GPTConfig(**SIZES, **fields), seed=1)
            folder = self.root / f"seed-{family}"
            huggingface.write_pretrained(folder, model)
            pytorch.write_state_dict(folder / "state.safetensors", model)
            self._seed("config", folder / "config.json")
            self._seed("weights", folder / "model.safetensors")
            self._seed("state_dict", folder / "state.safetensors")
        for name in ("config", "weights"):
            shutil.copy(folder / "model.safetensors", self.root / name)
            shutil.copy(folder / "config.json", self.root / name)
        shutil.copy(folder / "config.json", self.root / "index")
        shutil.copy(folder / "model.safetensors", self.root / "index" / "a.safetensors")
        places = load_file(folder / "model.safetensors")
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(places, "a.safetensors")}
        self.seeds["index"].append(json.dumps(index).encode())
        hparams = {"n_vocab": 257, "n_ctx": 2, "n_embd": 2, "n_head": 1, "n_layer": 1}
        (self.root / "checkpoint" / "hparams.json").write_text(json.dumps(hparams))
        self.seeds["hparams"].append(json.dumps(hparams).encode())
        self.seeds["checkpoint"].append(b'model_checkpoint_path: "model.ckpt"\n')
        for tokenizer in (ByteTokenizer(), BPETokenizer.train([b"abc abd abe " * 9], 260)):
            folder = self.root / f"seed-{tokenizer.vocab_size}"
            folder.mkdir()
            tokenizer.save(folder, 2)
            self._seed("tokenizer", folder / "tokenizer.json")
            self._seed("vocabulary", folder / "vocab.json")
            self._seed("merges", folder / "merges.txt")
            for name, other in (("vocabulary", "merges.txt"), ("merges", "vocab.json")):
                shutil.copy(folder / other, self.root / name)

    def _seed(self, name, path):
        self.seeds[name].append(path.read_bytes())

    def run(self, name: str, data: bytes) -> str:
        """ "read" or "refused"."""
        try:
            TARGETS[name](self.root / name, data)
        except ValueError:
            return "refused"
        return "read"


@contextmanager
def little_memory(extra=256 << 20):
    """Within the block this process cannot take more than `extra` bytes."""
    import resource

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
