"""The pseudo-API of the article that npgpt started from: its text runs, with one line changed."""

import pytest

import npgpt

SNIPPET = """
import npgpt as openai

openai.api_key = "YOUR_API_KEY"

dataset = openai.Dataset.from_text("data/textosdetreinamento.txt")
model_engine = openai.ModelEngine.gpt3
model = openai.Train(
    engine="gpt-3",
    dataset=dataset,
    model_engine=model_engine,
    batch_size=32,
    epochs=100,
)
generated_text = model.generate(prompt="O sol brilhava")
print(generated_text)
"""


def test_the_first_snippet(monkeypatch, capsys):
    monkeypatch.chdir(npgpt.__path__[0] + "/..")
    before = {}
    try:
        exec(SNIPPET, before)
    finally:
        vars(npgpt).pop("api_key", None)
    model = before["model"]
    assert isinstance(model, npgpt.GPT) and model.config.window == 256 and not model.config.qkv_bias
    assert len(before["generated_text"]) > 50
    assert "step 100/100" in capsys.readouterr().out
    dataset = before["dataset"]
    untrained = npgpt.GPT(model.config)
    ids = dataset.validation[None, :-1], dataset.validation[None, 1:]
    assert model.loss(*ids) < 2.9 < 5 < untrained.loss(*ids)


def test_train_refuses_what_cannot_be(tmp_path):
    (tmp_path / "t.txt").write_text("abc " * 100)
    dataset = npgpt.Dataset.from_text(tmp_path / "t.txt")
    with pytest.raises(ValueError, match="engine must be model_engine, got 'gpt' and 'gpt-3'"):
        npgpt.Train(dataset, engine="gpt", model_engine=npgpt.ModelEngine.gpt3)
    with pytest.raises(ValueError, match="engine must be gpt, gpt-2 or gpt-3, got 'gpt-9'"):
        npgpt.Train(dataset, engine="gpt-9")
    with pytest.raises(TypeError, match=r"settings must be of epochs, .*, got batchsize"):
        npgpt.Train(dataset, batchsize=3)
    for bad in ({"batch_size": 0}, {"steps": -1}, {"lr": float("nan")}, {"epochs": 0}, {"n_embd": 130}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            npgpt.Train(dataset, **bad)
    with pytest.raises(TypeError, match=r"batch_size must be a whole number, got 1\.5"):
        npgpt.Train(dataset, batch_size=1.5)


def test_train_into_a_folder(tmp_path):
    (tmp_path / "t.txt").write_text("abc " * 100)
    dataset = npgpt.Dataset.from_text(tmp_path / "t.txt")
    model = npgpt.Train(dataset, out=tmp_path / "run", n_layer=1, n_embd=16, n_head=2, steps=3)
    assert (npgpt.load(tmp_path / "run").flat_params == model.flat_params).all()
