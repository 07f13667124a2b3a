"""Checkpoints that PyTorch and TensorFlow themselves wrote, and the Hub as huggingface_hub sees it."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

import npgpt
from npgpt.engine.config import GPTConfig, engine_config
from npgpt.interop.layout import tensor_specs
from npgpt.interop.pytorch import write_state_dict

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 67}


def our_model(rng, **fields):
    model = npgpt.GPT(GPTConfig(**SMALL | fields))
    with model.edit() as params:
        for name, w in params.items():
            w[...] = 0.2 * rng.standard_normal(w.shape) + (w.ndim == 1 and name.endswith("weight"))
    return model


def logits_of(theirs, ids):
    with torch.no_grad():
        return theirs.eval()(torch.tensor(ids)).logits.numpy()


# ---------------------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("family", [{}, {"post_norm": True}, {"window": 5}], ids=str)
def test_state_dicts_both_ways(rng, tmp_path, family):
    """Ours goes into their model whole; theirs, saved by safetensors, is read with the heads told."""
    model = our_model(rng, **family)
    model.save_pretrained(tmp_path / "folder")
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(tmp_path / "folder")
    )
    write_state_dict(tmp_path / "ours.safetensors", model)
    theirs.load_state_dict(safetensors_torch.load_file(tmp_path / "ours.safetensors"), strict=True)
    ids = rng.integers(0, 67, (2, 24))
    assert np.abs(logits_of(theirs, ids) - model.logits(ids)).max() <= 1e-4
    safetensors_torch.save_model(theirs, tmp_path / "theirs.safetensors")
    known = {"n_head": 4} | ({"window": 5} if "window" in family else {})
    again = npgpt.load(tmp_path / "theirs.safetensors", **known)
    assert np.abs(again.logits(ids) - model.logits(ids)).max() <= 1e-5


class NanoLayer(torch.nn.Module):
    """A layer as nanoGPT's: its names, its (out, in) weights, GELU as PyTorch's default computes it."""

    def __init__(self, C, H, bias, gelu):
        super().__init__()
        norm, linear = (lambda: torch.nn.LayerNorm(C, bias=bias)), torch.nn.Linear
        self.ln_1, self.attn, self.ln_2, self.mlp = norm(), torch.nn.Module(), norm(), torch.nn.Module()
        self.attn.c_attn, self.attn.c_proj = linear(C, 3 * C, bias), linear(C, C, bias)
        self.mlp.c_fc, self.mlp.c_proj = linear(C, 4 * C, bias), linear(4 * C, C, bias)
        self.H, self.gelu = H, gelu

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.H, C // self.H).transpose(1, 2)
            for part in self.attn.c_attn(self.ln_1(x)).split(C, dim=2)
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp.c_proj(
            torch.nn.functional.gelu(self.mlp.c_fc(self.ln_2(x)), approximate=self.gelu)
        )


class Nano(torch.nn.Module):
    def __init__(self, n_layer, n_head, n_embd, block_size, vocab_size, bias, gelu):
        super().__init__()
        nn, C = torch.nn, n_embd
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, C),
                "wpe": nn.Embedding(block_size, C),
                "h": nn.ModuleList([NanoLayer(C, n_head, bias, gelu) for _ in range(n_layer)]),
                "ln_f": nn.LayerNorm(C, bias=bias),
            }
        )
        self.lm_head = nn.Linear(C, vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, ids):
        t = self.transformer
        x = t.wte(ids) + t.wpe(torch.arange(ids.shape[1]))
        for layer in t.h:
            x = layer(x)
        return self.lm_head(t.ln_f(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu, told", [("none", {}), ("tanh", {"activation": "gelu_new"})])
def test_nanogpt_checkpoints(rng, measured, tmp_path, bias, gelu, told):
    """In the form that its train.py saves: with the exact GELU, or in old files its tanh form."""
    torch.manual_seed(0)
    args = SMALL | {"bias": bias}
    theirs = Nano(**args, gelu=gelu)
    with torch.no_grad():
        for w in theirs.parameters():
            w += 0.1 * torch.randn_like(w)
    optimizer = torch.optim.AdamW(theirs.parameters())
    checkpoint = {
        "model": {f"_orig_mod.{name}": w for name, w in theirs.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": args | {"dropout": 0.0},
        "iter_num": 10,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "lr": 1e-3},
    }
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    model = npgpt.load(tmp_path / "ckpt.pt", **told)
    assert model.config == GPTConfig(**args, activation=told.get("activation", "gelu"))
    ids = rng.integers(0, 67, (2, 24))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).numpy()
    kind = "with tanh's GELU" if gelu == "tanh" else "with its exact GELU"
    measured(f"logits of a nanoGPT checkpoint {kind}", np.abs(model.logits(ids) - expected).max(), 1e-4)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_hostile_and_broken_pickles_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Hostile(), "model_args": SMALL}, "hostile.pt")
    torch.save({"model": {"x": Hostile}, "model_args": SMALL}, "class.pt")
    whole = (tmp_path / "hostile.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "junk.pt").write_bytes(b"junk" * 9)
    for name in ("hostile.pt", "class.pt", "cut.pt", "junk.pt"):
        with pytest.raises(ValueError, match="must hold weights and plain values alone"):
            npgpt.load(name)
    assert not (tmp_path / "pwned").exists()
    torch.save([1, 2], "list.pt")
    torch.save({"model": {}, "model_args": {"n_layer": 2}}, "few.pt")
    for name in ("list.pt", "few.pt"):
        with pytest.raises(ValueError, match="must be nanoGPT's"):
            npgpt.load(name)
    state, sizes = (
        {"transformer.wte.weight": "text", "a": 1},
        SMALL | {"n_layer": 1},
    )  # at most 20 faults are told
    torch.save({"model": state, "model_args": sizes}, "text.pt")
    with pytest.raises(ValueError, match=r"wpe.weight is missing; .*wte.weight must be one of F16.*got str"):
        npgpt.load("text.pt")


def pickled(folder, shards=1, old=False):
    """Make pytorch_model.bin, or its shards and their index, of a folder's model.safetensors, in float16."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    state = list(theirs.state_dict().items())
    names = ["pytorch_model.bin"] if shards == 1 else [f"pytorch_model-{i}.bin" for i in range(shards)]
    for i, name in enumerate(names):
        part = dict(state[i::shards])
        torch.save(part, folder / name, _use_new_zipfile_serialization=not old)
    if shards > 1:
        index = {"weight_map": {name: names[i % shards] for i, (name, _) in enumerate(state)}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return theirs


@pytest.mark.parametrize("engine", ["gpt", "gpt-2", "gpt-3", "llama"])
@pytest.mark.parametrize("form", [{}, {"shards": 3}, {"old": True}], ids=str)
def test_pytorch_model_bin(rng, tmp_path, engine, form):
    """As many folders of before safetensors have it; the tied head is in it twice."""
    npgpt.GPT(engine_config(engine, **SMALL), seed=5).save_pretrained(tmp_path)
    theirs, ids = pickled(tmp_path, **form), rng.integers(0, 67, (2, 24))
    assert np.abs(npgpt.load(tmp_path).logits(ids) - logits_of(theirs.float(), ids)).max() <= 1e-4


def test_pytorch_model_bin_is_opened_as_weights_alone(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    npgpt.GPT(GPTConfig(**SMALL)).save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"never looked at beside safetensors")
    npgpt.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin must hold weights and plain values alone"):
        npgpt.load(folder)
    torch.save({"transformer.wte.weight": Hostile()}, folder / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin must hold weights and plain values alone"):
        npgpt.load(folder)
    assert not (tmp_path / "pwned").exists()
    torch.save([1], folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin must be a state_dict, got list"):
        npgpt.load(folder)
    (folder / "pytorch_model.bin").unlink()
    for name, what in (
        ("../x.bin", "must be a file of the folder"),
        ("config.json", r"must be a \.bin file"),
    ):
        index = {"weight_map": {"transformer.wte.weight": name}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=what):
            npgpt.load(folder)


# ---------------------------------------------------------------------------- TensorFlow


def test_a_release_that_tensorflow_wrote(rng, measured, tmp_path, data_dir):
    """In OpenAI's form: variables, hparams.json, and GPT-2's own vocabulary."""
    pytest.importorskip("tensorflow")
    model = our_model(rng, vocab_size=50257, block_size=16)
    model.save_pretrained(tmp_path / "ours")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    release = tmp_path / "release"
    release.mkdir()
    np.savez(tmp_path / "weights.npz", **dict(theirs.transformer.state_dict()))
    code = """
import sys
import numpy as np, tensorflow as tf
v1 = tf.compat.v1
v1.disable_eager_execution()
for name, w in np.load(sys.argv[1]).items():
    name = name.replace("h.", "h", 1) if name.startswith("h.") else name
    parts = name.split(".")
    if name in ("wte.weight", "wpe.weight"):
        parts = parts[:1]
    else:
        parts[-1] = "b" if parts[-1] == "bias" else "g" if "ln_" in name else "w"
        w = w[None] if parts[-1] == "w" else w  # a convolution of width 1
    v1.get_variable("model/" + "/".join(parts), initializer=w)
with v1.Session() as session:
    session.run(v1.global_variables_initializer())
    v1.train.Saver().save(session, sys.argv[2])
"""
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "weights.npz", release / "model.ckpt"],
        check=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    hparams = {"n_vocab": 50257, "n_ctx": 16, "n_embd": 32, "n_head": 4, "n_layer": 2}
    (release / "hparams.json").write_text(json.dumps(hparams))
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(data_dir / "gpt2-vocab" / name, release)
    assert {p.name for p in release.iterdir()} >= {"checkpoint", "model.ckpt.index", "model.ckpt.meta"}
    again = npgpt.load(release)
    assert again.config == model.config and again.tokenizer.vocab_size == 50257
    ids = again.tokenizer.encode("Hello, world")[None].astype(int)
    assert ids.tolist() == [[15496, 11, 995]]
    measured(
        "logits of TensorFlow's release form", np.abs(again.logits(ids) - logits_of(theirs, ids)).max(), 1e-4
    )

    (release / "hparams.json").write_text(json.dumps(hparams | {"n_layer": 3, "n_ctx": 99}))
    with pytest.raises(
        ValueError, match=r"model/h2/attn/c_attn/w is missing.*model/wpe must have shape \(99, 32\)"
    ):
        npgpt.load(release)
    (release / "hparams.json").write_text(json.dumps(hparams))
    index = release / "model.ckpt.index"
    for broken in (b"", index.read_bytes()[:50], b"\xff" * 300):
        index.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.ckpt must be a TensorFlow checkpoint"):
            npgpt.load(release)


def test_every_tensor_of_the_release_is_named():
    """By the names in OpenAI's own files."""
    names = tensor_specs("tensorflow", GPTConfig(**SMALL | {"n_layer": 1}))
    linear = "attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"
    layer = [f"model/h0/{name}/{kind}" for name in linear for kind in "wb"]
    layer += [f"model/h0/{name}/{kind}" for name in ("ln_1", "ln_2") for kind in "gb"]
    assert set(names) == {"model/wte", "model/wpe", "model/ln_f/g", "model/ln_f/b", *layer}


# ---------------------------------------------------------------------------- the Hub


@pytest.fixture
def fake_hub(tmp_path, rng):
    """A server that answers as the Hub does for one model, acme/small -> (its address, the model)."""
    model = npgpt.GPT(GPTConfig(**SMALL | {"vocab_size": 257}), seed=4)
    model.save_pretrained(tmp_path / "served")
    (tmp_path / "served" / "pytorch_model.bin").write_bytes(b"a pickle")
    commit = "0" * 39 + "1"

    def files():
        return {p.name: p.read_bytes() for p in (tmp_path / "served").iterdir()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            if path.startswith("/api/models/acme/small"):
                told = {"id": "acme/small", "sha": commit, "siblings": [{"rfilename": n} for n in files()]}
                if "/tree/" in path:
                    told = [{"type": "file", "path": n, "size": len(b), "oid": n} for n, b in files().items()]
                body, tag = json.dumps(told).encode(), "info"
            elif path.startswith("/acme/small/resolve/") and path.split("/")[-1] in files():
                body, tag = files()[path.split("/")[-1]], path.split("/")[-1]
            else:
                self.send_error(404)
                return
            self.send_response(200)
            for key, value in {
                "Content-Length": len(body),
                "ETag": f'"{tag}"',
                "X-Repo-Commit": commit,
            }.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", model
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_pickle_is_fetched_where_there_is_nothing_else(tmp_path, fake_hub):
    address, model = fake_hub
    pickled(tmp_path / "served")
    expected = float(torch.tensor(model.flat_params).half().float().numpy().sum())
    assert load_elsewhere("acme/small", tmp_path, HF_ENDPOINT=address) == str(expected)


def load_elsewhere(name, folder, **environment):
    """npgpt.load(name) in a process of its own, in an empty folder -> what it prints."""
    code = "import sys, npgpt\ntry: print(float(npgpt.load(sys.argv[1]).flat_params.sum()))\n"
    code += "except OSError as error: print(error)"
    environment = {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"} | environment
    (folder / "empty").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        env=os.environ | environment,
        cwd=folder / "empty",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.strip()


def test_a_name_is_fetched_from_the_hub_once(tmp_path, fake_hub):
    address, model = fake_hub
    expected = str(float(model.flat_params.sum()))
    assert load_elsewhere("acme/small", tmp_path, HF_ENDPOINT=address) == expected
    assert load_elsewhere("acme/small", tmp_path, HF_HUB_OFFLINE="1") == expected, "it is kept"
    assert not list((tmp_path / "home").rglob("*.bin")), "a pickle is not even fetched beside safetensors"
    for name, environment in (("acme/other", {"HF_ENDPOINT": address}), ("gpt2", {"HF_HUB_OFFLINE": "1"})):
        told = load_elsewhere(name, tmp_path, **environment)
        assert f"the tokenizer's files into ./{name}" in told and "\n" not in told
