"""What is refused of OpenAI's release form before TensorFlow is asked; what it writes is in tests/parity."""

import json

import pytest

import npgpt

HPARAMS = {"n_vocab": 31, "n_ctx": 6, "n_embd": 8, "n_head": 2, "n_layer": 2}


@pytest.mark.parametrize(
    "hparams, checkpoint, message",
    [
        ("[", None, "must be JSON"),
        ({"n_vocab": 31}, None, "hparams.json must tell n_layer, n_head, n_embd, n_ctx too"),
        (HPARAMS | {"n_head": 3}, None, "n_embd must be a multiple of n_head"),
        (HPARAMS, 'model_checkpoint_path: "../model.ckpt"', "must name a file of the folder"),
        (HPARAMS, 'model_checkpoint_path: "/etc/passwd"', "must name a file of the folder"),
        (HPARAMS, "nothing", "must name a file of the folder, got None"),
        (HPARAMS, 'model_checkpoint_path: "other.ckpt"', "must hold other.ckpt.index"),
        (HPARAMS, None, "must hold model.ckpt.index"),
    ],
)
def test_bad_folders_are_refused(tmp_path, hparams, checkpoint, message):
    text = hparams if isinstance(hparams, str) else json.dumps(hparams)
    (tmp_path / "hparams.json").write_text(text)
    if checkpoint:
        (tmp_path / "checkpoint").write_text(checkpoint)
    with pytest.raises(ValueError, match=message):
        npgpt.load(tmp_path)


def test_it_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    (tmp_path / "hparams.json").write_text(json.dumps(HPARAMS))
    (tmp_path / "model.ckpt.index").write_bytes(b"")
    with pytest.raises(ValueError, match="can only be read through TensorFlow: pip install tensorflow-cpu"):
        npgpt.load(tmp_path)
