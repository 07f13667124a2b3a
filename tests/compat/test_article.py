"""The pseudo-API of the article that the project began with: its text runs, with one line changed."""

import pytest

import npgpt

ARTICLE = """
import npgpt as openai

openai.api_key = "sk-..."
dataset = openai.Dataset.from_text("text.txt")
model_engine = openai.ModelEngine.gpt3
model = openai.Train(engine="gpt-3", dataset=dataset, model_engine=model_engine, batch_size=32, epochs=100)
text = model.generate(prompt="um dois")
"""


@pytest.fixture(autouse=True)
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("um dois três quatro cinco seis sete oito nove dez. " * 4)


def test_the_article_runs(capsys):
    names = {}
    exec(ARTICLE, names)
    assert "loss " in capsys.readouterr().out, "the progress is shown"
    assert isinstance(names["text"], str) and names["text"]
    text = names["model"].generate(prompt="um dois", temperature=0)
    assert text.startswith(" três quatro cinco"), "a hundred epochs are enough for this one"
    assert names["model"].config.window and not names["model"].config.qkv_bias
    again = npgpt.load("runs/train")
    assert again.generate("um dois", seed=1) == names["model"].generate("um dois", seed=1)


@pytest.mark.parametrize("engine", ["gpt", "gpt-2", "gpt-3"])
def test_engines_and_settings(engine):
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16}
    model = npgpt.Train(engine, "text.txt", epochs=2, out="run", seed=3, **sizes)
    assert model.config == npgpt.engine.config.engine_config(
        engine, vocab_size=257, **sizes, **({"window": 8} if engine == "gpt-3" else {})
    )
    with pytest.raises(FileExistsError):
        npgpt.Train(engine, "text.txt", out="run")


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"engine": "gpt-5"}, ValueError, "engine must be one of gpt, gpt-2, gpt-3, llama, got 'gpt-5'"),
        (
            {"engine": "gpt-2", "model_engine": "gpt-3"},
            ValueError,
            "model_engine must be the engine, 'gpt-2'",
        ),
        ({"engine": "gpt-2", "window": 4}, ValueError, "window is for engine gpt-3, got gpt-2"),
        ({"depth": 3}, TypeError, "Train: there is no depth; did you mean n_layer?"),
        ({"dataset": "none.txt"}, FileNotFoundError, "none.txt"),
        ({"dataset": None}, ValueError, "Train: dataset must be a Dataset or the path of a text, got None"),
    ],
)
def test_what_is_refused(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        npgpt.Train(**{"dataset": "text.txt"} | settings)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "setting", [{"batch_size": 0}, {"steps": -1}, {"lr": float("nan")}, {"epochs": 0}, {"n_embd": 130}]
)
def test_settings_that_cannot_be(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be"):
        npgpt.Train(dataset="text.txt", **setting)
    with pytest.raises(TypeError, match=r"batch_size must be a whole number, got 1\.5"):
        npgpt.Train(dataset="text.txt", batch_size=1.5)
