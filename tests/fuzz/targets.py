"""The parsers of other people's files: whatever bytes are in one, it is read or refused with a ValueError.

Each target gets a folder in which the other files are as they should be. Nothing else may come of any bytes:
no other exception, no long run, no large allocation.
"""

import gzip
import json
import shutil
import tarfile
import zipfile
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from safetensors.numpy import load_file

from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig, Rope
from npgpt.engine.lora import LoRA
from npgpt.engine.model import GPT
from npgpt.interop import gguf, gguf_quantised, huggingface, peft, pytorch, tensorflow
from npgpt.interop.layout import Pretrained
from npgpt.runtime import libnpgpt
from npgpt.text.added_tokens import Flags
from npgpt.text.anonymise import Anonymiser
from npgpt.text.corpus import Corpus
from npgpt.text.forms import conversations
from npgpt.text.load import load_tokenizer, tokenizer_of
from npgpt.text.spm import BLANK, Pieces
from npgpt.text.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer
from npgpt.text.tokenizer_json import Vocabulary

SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 2, "block_size": 2, "vocab_size": 3}
LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "rope": Rope(500.0, "llama3", 4.0, 1.0, 4.0, 16)}
LLAMA |= {"n_head": 2, "n_kv_head": 1, "head_size": 4, "n_inner": 3, "tied": False}
FAMILY = {"llama": LLAMA, "gpt": {"post_norm": True}, "gpt2": {}, "gpt_neo": {"window": 1}}


def _read_pretrained(folder):
    return huggingface.read_pretrained(folder)


def _read_release(folder):
    return tensorflow.read_release(folder)


def _read_state_dict(folder):
    return pytorch.read_state_dict(folder / "state.safetensors", n_head=1)


def _read_gguf(folder):
    if kernels.library():
        with suppress(ValueError):
            libnpgpt.Model.open(folder / "model.gguf")
    with suppress(ValueError):
        gguf_quantised.open_in_blocks(folder / "model.gguf")
    gguf.read_gguf(folder / "model.gguf")


def _apply_adapter(folder):
    model = GPT(GPTConfig(**SIZES), seed=1)
    peft.apply_adapter(Pretrained(model.config, model.flat_params.copy(), None), folder)


def _text_in(file):
    def read(folder):
        for _number, _chunk in Corpus(folder / file).chunks():
            pass

    return file, read


def _conversations_in(file):
    def read(folder):
        corpus = Corpus(folder / file, "none", as_chat=True, me="Ana")
        own = Anonymiser(name for document in corpus.documents for name in document.notes.names)
        for _number, chunk in corpus.chunks():
            turns = [(role, own.text(text)) for role, text in json.loads(chunk)]
            for part in conversations.parts(turns, 20, Counter()):
                assert [role for role, _ in part] == ["user", "assistant"] * (len(part) // 2)

    return file, read


TARGETS = {  # name: the file that is fuzzed, and who reads its folder
    "config": ("config.json", _read_pretrained),
    "weights": ("model.safetensors", _read_pretrained),
    "index": ("model.safetensors.index.json", _read_pretrained),
    "state_dict": ("state.safetensors", _read_state_dict),
    "hparams": ("hparams.json", _read_release),
    "checkpoint": ("checkpoint", _read_release),
    "tokenizer": ("tokenizer.json", load_tokenizer),
    "tokenizer_config": ("tokenizer_config.json", load_tokenizer),
    "special_tokens": ("special_tokens_map.json", load_tokenizer),
    "added_tokens": ("added_tokens.json", load_tokenizer),
    "generation": ("generation_config.json", _read_pretrained),
    "vocabulary": ("vocab.json", load_tokenizer),
    "merges": ("merges.txt", load_tokenizer),
    "adapter_config": ("adapter_config.json", _apply_adapter),
    "adapter": ("adapter_model.safetensors", _apply_adapter),
    "records": _text_in("a.jsonl"),
    "json": _text_in("a.json"),
    "table": _text_in("a.csv"),
    "page": _text_in("a.html"),
    "subtitles": _text_in("a.vtt"),
    "chat": _text_in("a.txt"),
    "conversations": _conversations_in("a.txt"),
    "scenes": _conversations_in("a.srt"),
    "word": _text_in("a.docx"),
    "gzip": _text_in("a.txt.gz"),
    "zip": _text_in("a.zip"),
    "tar": _text_in("a.tar.xz"),
    "gguf": ("model.gguf", _read_gguf),  # libnpgpt's reader has a fuzzer of its own: gguf.cpp
}


def llama_tokenizers():
    """Small tokenizers of Llama's kinds: by merges, by scores, on bytes of which some are missing."""
    tokens = ["<s>", END_OF_TEXT, "<unk>", BLANK, "a", "b", f"{BLANK}a", "ab", "<x>"]
    v = Vocabulary(
        where="llama",
        tokens={token: i for i, token in enumerate(tokens)},
        merges=[(BLANK, "a"), ("a", "b")],
        special={"<s>": 0, END_OF_TEXT: 1, "<unk>": 2},
        end_of_text=END_OF_TEXT,
        words=False,
        begin="<s>",
        unknown="<unk>",
        flags={"<x>": Flags(special=False)},
        pieces=Pieces("first"),
    )
    scored = replace(v, merges=[], pieces=Pieces(scores=tuple(-float(i) for i in range(len(tokens)))))
    names = [token for token in tokens if BLANK not in token]
    on_bytes = replace(
        v,
        tokens={token: i for i, token in enumerate(names)},
        merges=[("a", "b")],
        special={token: i for i, token in enumerate(names[:3])},
        unknown="",
        split="llama-bpe",
        whole_pieces=True,
        pieces=None,
    )
    return [*map(tokenizer_of, (v, scored, on_bytes))]


class Folders:
    """For each target a folder of valid files, below `root`; and the valid bytes that fuzzing starts from."""

    def __init__(self, root):
        self.root, self.seeds = Path(root), {name: [] for name in TARGETS}
        for name in TARGETS:
            (self.root / name).mkdir(parents=True)
        for family, fields in FAMILY.items():
            model = GPT(GPTConfig(**SIZES | fields), seed=1)
            folder = self.root / f"seed-{family}"
            huggingface.write_pretrained(folder, model)
            pytorch.write_state_dict(folder / "state.safetensors", model)
            self._seed("config", folder / "config.json")
            self._seed("weights", folder / "model.safetensors")
            self._seed("state_dict", folder / "state.safetensors")
            gguf.write_gguf(folder / "model.gguf", model)
            self._seed("gguf", folder / "model.gguf")
        written = self.root / "seed-adapter"
        peft.write_adapter(written, LoRA(GPT(GPTConfig(**SIZES)), 1, rows=1), "base", ByteTokenizer())
        more = {"rank_pattern": {"c_fc": 1}, "use_rslora": True, "layers_to_transform": [0]}
        settings = json.loads((written / "adapter_config.json").read_text())
        self.seeds["adapter_config"] += [json.dumps(settings | m).encode() for m in ({}, more)]
        self._seed("adapter", written / "adapter_model.safetensors")
        shutil.copy(written / "adapter_config.json", self.root / "adapter")
        shutil.copy(written / "adapter_model.safetensors", self.root / "adapter_config")
        self._seed("generation", folder / "generation_config.json")
        for name in ("config", "weights", "generation"):
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
        for n, tokenizer in enumerate(llama_tokenizers()):
            folder = self.root / f"seed-llama-{n}"
            folder.mkdir()
            tokenizer.save(folder, 2)
            self._seed("tokenizer", folder / "tokenizer.json")
            model = GPT(GPTConfig(**SIZES | {"vocab_size": tokenizer.vocab_size}), seed=1)
            gguf.write_gguf(folder / "model.gguf", model, tokenizer)
            self._seed("gguf", folder / "model.gguf")

        self._seed_settings(folder)
        self._seed_texts()

    def _seed_settings(self, folder):
        """What stands beside a tokenizer.json, or beside GPT-2's own files, which settings are added to."""
        for name in ("tokenizer_config", "special_tokens", "added_tokens"):
            shutil.copy(folder / "tokenizer.json", self.root / name)
        self._seed("tokenizer_config", folder / "tokenizer_config.json")
        token = {"content": "<x>", "lstrip": True, "special": True}
        more = {
            "pad_token": token,
            "add_bos_token": True,
            "bos_token": "<s>",
            "extra_special_tokens": ["<y>"],
        }
        decoder = {"added_tokens_decoder": {"6": token}, "npgpt": {"scores": [0, -1.5]}}
        self.seeds["tokenizer_config"] += [json.dumps(one).encode() for one in (more, decoder)]
        self.seeds["special_tokens"] += [json.dumps(one).encode() for one in (more, {"unk_token": "<unk>"})]
        self.seeds["added_tokens"].append(json.dumps({"<x>": 6, "<y>": 7}).encode())

    def _seed_texts(self):
        """Small texts of other forms than plain text, which are packed, too."""
        record = {"text": "Não é, “sim”.\n", "n": 1}
        chat = "[3/12/23, 2:05:40 PM] Ana: Oi\nsim\n"
        chat += "12/03/2023 14:07 - João: <Mídia oculta>\n1/3/2023 14:08 - X\n"
        page = "<head><title>x</title></head><p>a &amp; <b>b</b><pre> c\n</pre><script>d</script><td>e<br/>"
        cues = "WEBVTT\n\nNOTE x\n\n1\n00:01.0 --> 00:02.0\n"
        cues += "<i>Olá</i> {\\an8}&amp;\n\n2\n0:00:03,0 --> 00:04\nFim\n"
        self.seeds["records"].append(2 * (json.dumps(record) + "\n").encode())
        self.seeds["json"].append(json.dumps([record, "a"]).encode("utf-16"))
        self.seeds["table"].append('n;text\n1;"a;""b""\n c"\n2;ação\n'.encode())
        self.seeds["page"].append(page.encode())
        self.seeds["subtitles"].append(cues.encode())
        self.seeds["scenes"].append(cues.replace("WEBVTT", "- a\n- b").encode())
        talk = "3/12/23, 2:05 p.m. - Ana: 11 91234-5678\n"
        talk += "12/03/2023 14:07 - João: @\u2068Caio\u2069 a@b.com, R$ 3\n"
        self.seeds["conversations"] += [chat.encode(), (talk * 3).encode()]
        self.seeds["chat"] += [chat.encode(), (chat * 6).encode("windows-1252")]
        self.seeds["gzip"].append(gzip.compress(chat.encode()))
        space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
        xml = f"<w:document {space}><w:p><w:r><w:t>a</w:t><w:tab/></w:r></w:p></w:document>"
        for name, member, content in (("word", "word/document.xml", xml), ("zip", "a/b.txt", chat)):
            with zipfile.ZipFile(self.root / name / TARGETS[name][0], "w") as archive:
                archive.writestr(member, content)
            self._seed(name, self.root / name / TARGETS[name][0])
        (self.root / "b.csv").write_bytes(self.seeds["table"][0])
        with tarfile.open(self.root / "tar" / "a.tar.xz", "w:xz") as archive:
            archive.add(self.root / "b.csv", "b.csv")
        self._seed("tar", self.root / "tar" / "a.tar.xz")

    def _seed(self, name, path):
        self.seeds[name].append(path.read_bytes())

    def run(self, name: str, data: bytes) -> str:
        """ "read" or "refused"."""
        file, read = TARGETS[name]
        (self.root / name / file).write_bytes(data)
        try:
            read(self.root / name)
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
