"""The commands finetune and chat: what they refuse and learn, resume to the same bits, adapters apart."""

import contextlib
import json
import shlex

import numpy as np
import pytest
from safetensors.numpy import load_file

import npgpt
from npgpt import chat, finetune
from npgpt.console import job
from npgpt.engine.config import training_floats
from npgpt.engine.lora import lora_floats
from npgpt.interop import hub
from npgpt.interop.huggingface import write_pretrained
from npgpt.text import examples
from npgpt.text.examples import pack
from npgpt.text.tokenizer import ByteTokenizer
from npgpt.training.cost import PROGRAM
from npgpt.training.finetuning import Examples, make_task_plan, memory_needed, with_vocabulary
from npgpt.training.run import read_config
from tests.chat_templates import KINDS, tokenizer_of

WORDS = ("bom", "mau", "sol", "mar", "céu", "rio")
LABELLED = [
    {"text": f"{w} {v}", "label": "sim" if w < v else "não"} for w in WORDS[:4] for v in WORDS[:4] if w != v
]
TALKS = [
    {"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": w[::-1]}]} for w in WORDS
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    config = npgpt.GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=48, vocab_size=257)
    npgpt.GPT(config, seed=3).save_pretrained(folder)
    return folder


def written(folder, records, name="data.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n", encoding="utf-8")
    return path


def run(base, data, out, *flags):
    return finetune.main([str(base), str(data), "-o", str(out), *map(str, flags)])


def refused(capsys, *args):
    with pytest.raises(SystemExit) as end:
        run(*args)
    captured = capsys.readouterr()
    assert end.value.code == 2 and len(captured.err.strip().splitlines()) == 1
    return captured.err


BY_HEART = "--lr 0.004 --dropout 0 --val-fraction 0 --eval-every 999".split()


def test_labels_are_learnt_from_files_to_classify(base, tmp_path, capsys):
    data = written(tmp_path, LABELLED)
    flags = "--epochs", 60, "--batch-size", 4, *BY_HEART
    assert run(base, data, tmp_path / "new", *flags, "--balance", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["train_loss"] < 0.05 and result["val_loss"] is None
    model = npgpt.load(tmp_path / "new")
    found = model.classify([r["text"] for r in LABELLED], ["sim", "não"])
    right = [next(iter(f)) == r["label"] for f, r in zip(found, LABELLED, strict=True)]
    assert np.mean(right) > 0.95 and sum(found[0].values()) == pytest.approx(1)
    question = examples.encode_chat(model.tokenizer, [{"role": "user", "content": LABELLED[0]["text"]}])
    assert model.generate(question, temperature=0) == LABELLED[0]["label"]  # and ends there by itself
    assert (tmp_path / "new/report.html").exists()


def test_random_labels_are_not_known_where_texts_occur_several_times(base, tmp_path, capsys):
    rng = np.random.default_rng(5)
    texts = [{"text": f"n{n}", "label": str(rng.choice(["sim", "não"]))} for n in range(24)]
    data = written(tmp_path, texts * 3)
    flags = "--epochs", 40, "--batch-size", 8, "--lr", 0.004, "--dropout", 0, "--val-fraction", 0.3
    assert run(base, data, tmp_path / "new", *flags, "--patience", 99, "--json") == 0
    out = capsys.readouterr().out
    assert "48 examples repeat the input of another, and are on its side of the split" in out
    result = json.loads(out.splitlines()[-1])
    assert result["train_loss"] < 0.1 and result["val_accuracy"] < 0.8  # each was learnt by heart


def test_validation_has_examples_of_its_own(base, tmp_path, capsys):
    data, val = written(tmp_path, LABELLED), written(tmp_path, LABELLED[2:4] + LABELLED[:1] * 2, "val.jsonl")
    new = {"text": "nova", "label": "sim"}
    val.write_text(val.read_text() + json.dumps(new) + "\n")
    assert run(base, data, tmp_path / "new", "--val", val, "--epochs", 2, "--json") == 0
    captured = capsys.readouterr()
    assert "12 examples for training, 5 for validation" in captured.out
    assert (
        captured.err
        == f"warning: {val}: 4 of 5 examples are in the training data too; validation is too easy\n"
    )
    assert json.loads(captured.out.splitlines()[-1])["val_loss"] > 0
    config = read_config(tmp_path / "new")
    assert (
        config["val"] == str(val)
        and "val_fraction" not in config
        and len(config["about"]["val_sha256"]) == 64
    )
    assert "val.jsonl" in (tmp_path / "new/report.html").read_text()
    assert str(val) not in (tmp_path / "new/report.html").read_text()
    assert run(base, data, tmp_path / "new", "--resume") == 0  # it is remembered
    moved = written(tmp_path, [], "moved.jsonl")
    moved.write_bytes(val.read_bytes())
    assert run(base, data, tmp_path / "new", "--resume", "--val", moved) == 0
    assert "val_sha256 is" in refused(capsys, base, data, tmp_path / "new", "--resume", "--val", data)
    val.write_text(json.dumps(new))
    assert "val_sha256 is" in refused(capsys, base, data, tmp_path / "new", "--resume")


def test_a_validation_file_that_does_not_fit_is_refused(base, tmp_path, capsys):
    data, out = written(tmp_path, LABELLED), tmp_path / "new"
    for records, what in (
        (TALKS, "val.jsonl: line 1: must be of one form with the examples for training"),
        ([{"text": "a", "label": "talvez"}], f"label must be one of {data}, got 'talvez'"),
        ([{"text": "a" * 60, "label": "sim"}], "line 1: must be at most the context"),
    ):
        val = written(tmp_path, records, "val.jsonl")
        assert what in refused(capsys, base, data, out, "--val", val)
    assert "cannot both be given" in refused(capsys, base, data, out, "--val", data, "--val-fraction", 0.2)
    assert "must not be empty" in refused(capsys, base, data, out, "--val", "")
    assert "No such file" in refused(capsys, base, data, out, "--val", tmp_path / "none")
    assert not out.exists()


def test_a_run_that_split_equal_examples_goes_on_with_its_split(base, tmp_path, monkeypatch, capsys):
    """Runs of npgpt 0.1.0 did, and their config.toml does not have `grouped`."""
    data, flags = written(tmp_path, LABELLED * 2), ("--epochs", 2, "--batch-size", 4)
    stops = iter([False] * 3)
    with monkeypatch.context() as m:
        m.setattr(job, "interruptible", lambda: contextlib.nullcontext(lambda: next(stops, True)))
        assert run(base, data, tmp_path / "new", *flags) == 130
    config = tmp_path / "new" / "config.toml"
    config.write_text(config.read_text().replace("grouped = true\n", ""))
    given, split = [], examples.split_examples
    monkeypatch.setattr(examples, "split_examples", lambda *args: given.append(args[3]) or split(*args))
    capsys.readouterr()
    assert run(base, data, tmp_path / "new", "--resume") == 0 and given == [None]
    assert "repeat the input" not in capsys.readouterr().out


@pytest.mark.parametrize("lora", [(), ("--lora", 4)])
def test_resumed_is_never_stopped(base, tmp_path, lora, monkeypatch, capsys):
    data, flags = written(tmp_path, TALKS * 3), ("--epochs", 4, "--batch-size", 4, "--keep", 9, *lora)
    assert run(base, data, tmp_path / "whole", *flags) == 0
    stops = iter([False] * 7)
    with monkeypatch.context() as m:
        m.setattr(job, "interruptible", lambda: contextlib.nullcontext(lambda: next(stops, True)))
        assert run(base, data, tmp_path / "cut", *flags) == 130
    assert "another process" not in refused(capsys, base, data, tmp_path / "cut", "--resume", "--epochs", 5)
    assert run(base, data, tmp_path / "cut", "--resume") == 0
    for name in ("BEST", "LATEST"):
        one, two = (tmp_path / run / (tmp_path / run / name).read_text().strip() for run in ("whole", "cut"))
        assert one.name == two.name
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (one / file).read_bytes() == (two / file).read_bytes()
    assert run(base, data, tmp_path / "cut", "--resume") == 0  # finished


@pytest.mark.parametrize("lora", [(), ("--lora", 4)])
def test_a_finished_run_goes_on_for_more_epochs(base, tmp_path, lora, monkeypatch, capsys):
    data = written(tmp_path, TALKS * 3)
    flags = ("--epochs", 2, "--batch-size", 4, "--keep", 9, "--patience", 99, *lora)
    for name in ("whole", "cut"):
        assert run(base, data, tmp_path / name, *flags) == 0
    capsys.readouterr()
    assert run(base, data, tmp_path / "whole", "--resume", "--epochs", 4) == 0
    assert "the learning rate is now that of a run of 16 steps" in capsys.readouterr().out
    stops = iter([False] * 3)
    with monkeypatch.context() as m:
        m.setattr(job, "interruptible", lambda: contextlib.nullcontext(lambda: next(stops, True)))
        assert run(base, data, tmp_path / "cut", "--resume", "--epochs", 4) == 130
    assert run(base, data, tmp_path / "cut", "--resume") == 0
    assert read_config(tmp_path / "cut")["epochs"] == 4
    one, two = (tmp_path / run / (tmp_path / run / "LATEST").read_text().strip() for run in ("whole", "cut"))
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    assert "steps must be above the 16" in refused(
        capsys, base, data, tmp_path / "cut", "--resume", "--epochs", 1
    )


def test_the_end_of_a_run_that_still_got_better_gives_the_command(base, tmp_path, capsys):
    data = written(tmp_path, [*LABELLED * 3, {"text": "a"}], "my data.jsonl")
    flags = "--epochs", 6, "--batch-size", 4, "--eval-every", 5, "--skip-bad", "--balance", "--lr", 0.0005
    assert run(base, data, tmp_path / "new", *flags) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("for longer: ")]
    assert line.endswith("--skip-bad --balance --resume --epochs 12")
    words = shlex.split(line.removeprefix("for longer: python -m npgpt.finetune "))
    assert finetune.main(words) == 0
    assert read_config(tmp_path / "new")["epochs"] == 12


def test_an_end_that_examples_spell_is_told(base, tmp_path, capsys):
    data = written(
        tmp_path,
        [*TALKS, {"messages": [*TALKS[0]["messages"][:1], {"role": "assistant", "content": "a<|end|>"}]}],
    )
    assert run(base, data, tmp_path / "new", "--epochs", 1) == 0
    assert f"warning: {data}: 1 examples spell <|end|> or <|endoftext|>" in capsys.readouterr().err


def test_adapters_are_apart_and_merged(base, tmp_path, capsys):
    assert run(base, written(tmp_path, TALKS), tmp_path / "new", "--lora", 2, "--epochs", 4) == 0
    assert "as adapters of rank 2" in capsys.readouterr().out
    before, after = npgpt.load(base), npgpt.load(tmp_path / "new")
    stored = load_file(tmp_path / "new/adapter/adapter_model.safetensors")
    config = json.loads((tmp_path / "new/adapter/adapter_config.json").read_text())
    for name in ("h.0.attn.c_attn", "h.1.mlp.c_proj"):
        a, b = (stored[f"base_model.model.transformer.{name}.lora_{m}.weight"] for m in "AB")
        merged = before.params[f"{name}.weight"] + config["lora_alpha"] / config["r"] * (b @ a).T
        np.testing.assert_allclose(after.params[f"{name}.weight"], merged, atol=1e-6)
    assert (after.params["wte.weight"][:257] == before.params["wte.weight"]).all()
    rows = stored["base_model.model.transformer.wte.token_adapter.trainable_tokens_delta"]
    assert (after.params["wte.weight"][257:] == rows).all()
    for again in npgpt.load(tmp_path / "new/adapter"), npgpt.load(base, adapter=tmp_path / "new"):
        np.testing.assert_allclose(again.flat_params, after.flat_params, atol=1e-6)
        assert again.tokenizer.fingerprint == after.tokenizer.fingerprint
        assert again.tokenizer.ends == after.tokenizer.ends


def test_an_adapter_names_a_base_of_the_hub_as_it_was_given(base, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda name: base)
    assert run("some/model", written(tmp_path, TALKS), tmp_path / "new", "--lora", 2, "--epochs", 1) == 0
    config = json.loads((tmp_path / "new/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/model"


@pytest.mark.parametrize("lora", [None, 4])
def test_memory_told_is_of_the_longest_batch_packed(base, lora):
    """Not of as many whole contexts as there are examples in a batch."""
    model = npgpt.load(base)
    short = [(np.arange(6, dtype=np.int32), np.ones(6, bool))] * 40
    long = [(np.arange(49, dtype=np.int32), np.ones(49, bool))]
    needed = []
    for training in short, short + long, short + 16 * long:
        examples = Examples(training, [], model.tokenizer)
        plan = make_task_plan(model.config, examples, lora, 3)
        needed.append(memory_needed(model.config, plan, examples, lora, 0))
        packed = examples.batches(plan, 0)
        rows = max(packed.batch(step)[0].size for step in range(3 * packed.per_epoch))
        assert rows <= pack(sorted(training, key=lambda e: -len(e[0]))[:16], 48)[0].size
    floats = training_floats(model.config, 16, 48)
    floats = lora_floats(model.config, 16, 48, lora, 0) if lora else floats
    assert needed[0] < needed[1] < needed[2] == 4 * floats + 16 * len(examples) + PROGRAM


def test_bad_input_writes_nothing(base, tmp_path, capsys):
    out = tmp_path / "new"
    long = {"text": "a" * 60, "label": "sim"}
    for records, what in (
        ([*LABELLED, {"text": "a"}], r"line 13: must have the fields"),
        ([*LABELLED, TALKS[0]], "line 13: must be of one form"),
        ([*LABELLED, long], "line 13: must be at most the context, 48 tokens, got 66"),
        (LABELLED[:1], "two labels"),
    ):
        assert what in refused(capsys, base, written(tmp_path, records), out)
    assert "--balance" in refused(capsys, base, written(tmp_path, TALKS), out, "--balance")
    assert "No such file" in refused(capsys, base, tmp_path / "none", out)
    assert not out.exists()
    written(tmp_path, [*LABELLED, {"text": "a"}, long])
    shares = (
        "2 of 14 lines are at fault, more than the 10% of them that may be left out; line 13: must have the"
    )
    assert shares in (err := refused(capsys, base, tmp_path / "data.jsonl", out, "--skip-bad"))
    assert (
        err.strip().endswith("; line 14: must be at most the context, 48 tokens, got 66") and not out.exists()
    )
    data = written(tmp_path, [*LABELLED * 2, {"text": "a"}, long])
    assert run(base, data, out, "--skip-bad", "--epochs", 1, "--json") == 0
    captured = capsys.readouterr().out
    assert "2 lines were at fault and are left out; the first: line 25: must have the fields" in captured
    assert json.loads(captured.splitlines()[-1])["skipped_lines"] == 2
    assert "exists already" in refused(capsys, base, data, out)


def test_prompts_need_no_new_tokens(base, tmp_path):
    data = written(tmp_path, [{"prompt": f"{w}=", "completion": w[::-1]} for w in WORDS])
    flags = "--epochs", 40, "--batch-size", 2, *BY_HEART
    assert run(base, data, tmp_path / "new", *flags) == 0
    model = npgpt.load(tmp_path / "new")
    assert model.tokenizer == ByteTokenizer() and model.config.vocab_size == 257
    assert model.generate("mar=", temperature=0) == "ram"
    likely, unlikely = model.score("mar=", ["ram", "xxx"])
    assert likely > unlikely + 3 and unlikely == pytest.approx(model.score("mar=", "xxx"), abs=1e-4)


def test_new_rows_are_the_mean(base):
    model = npgpt.load(base)
    roles = examples.add_roles(model.tokenizer)
    grown, added = with_vocabulary(model, model.tokenizer, roles)
    assert added == 4 and grown.config.vocab_size == 261
    mean = model.params["wte.weight"].mean(axis=0)
    np.testing.assert_allclose(grown.params["wte.weight"][257:], np.tile(mean, (4, 1)), atol=1e-7)
    x = np.arange(10)[None]
    np.testing.assert_allclose(grown.logits(x)[..., :257], model.logits(x), atol=1e-5)
    assert with_vocabulary(grown, roles, roles) == (grown, 0)


def test_embeddings_and_scores_of_many_are_those_of_each(base):
    model = npgpt.load(base)
    texts = ["um", "dois e três", "x" * 100]
    together = model.embed(texts)
    assert together.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for one, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(one, model.embed(text), atol=1e-6)
    scores = model.score("olá ", texts)
    assert scores == pytest.approx([model.score("olá ", text) for text in texts], abs=1e-4)
    with pytest.raises(TypeError, match="labels must be a list of texts"):
        model.classify("a", "b")
    beyond = model.config.block_size + 9  # a label longer than the context
    assert len(model.classify("a", ["b" * beyond, "c"])) == 2


def test_a_conversation_slides_by_whole_turns(base, tmp_path, monkeypatch, capsys):
    model = npgpt.load(base)
    with pytest.raises(SystemExit) as end:
        chat.main([str(base)])
    assert end.value.code == 2 and "has neither roles nor a chat template" in capsys.readouterr().err
    roles = examples.add_roles(model.tokenizer)
    write_pretrained(tmp_path / "talks", with_vocabulary(model, model.tokenizer, roles)[0], roles)
    lines = iter(
        [
            "olá",
            "tudo bem?",
            "e mais",
            f"/save {tmp_path / 'talk.jsonl'}",
            "x" * 60,
            "/reset",
            "/what",
            "/quit",
        ]
    )
    seen = []
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    usual = chat.Conversation.prompt
    monkeypatch.setattr(chat.Conversation, "prompt", lambda self: seen.append(usual(self)) or seen[-1])
    flags = ["--system", "s", "--max-new-tokens", "8", "--seed", "1"]
    assert chat.main([str(tmp_path / "talks"), *flags]) == 0
    messages = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 3]
    assert seen[0] == examples.encode_chat(roles, messages[:2])
    shown = [examples.encode_chat(roles, messages[:1] + messages[begin:6]) for begin in (1, 3, 5)]
    assert len(shown[0]) > 40 and seen[2] == next(ids for ids in shown if len(ids) <= 40)
    assert "this message must fit 40 tokens" in capsys.readouterr().err


def test_json_ends_with_the_error_where_it_fails(base, tmp_path, capsys):
    data = written(tmp_path, [{"prompt": 5}])
    for flags in ("--json",), ():
        with pytest.raises(SystemExit) as end:
            run(base, data, tmp_path / "new", *flags)
        out, err = capsys.readouterr()
        assert end.value.code == 2 and err.startswith(f"npgpt finetune: {data}: line 1: must")
        error = {"error": err.strip().removeprefix("npgpt finetune: "), "exit_code": 2}
        assert out == (json.dumps(error) + "\n" if flags else "")


def test_a_model_with_a_chat_template_keeps_it(tmp_path, capsys):
    pytest.importorskip("jinja2")
    tokenizer = tokenizer_of(KINDS["inst"])
    config = npgpt.GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=96, vocab_size=tokenizer.vocab_size)
    npgpt.GPT(config, tokenizer=tokenizer).save_pretrained(tmp_path / "base")
    twice = {"messages": [*TALKS[0]["messages"][:1], *TALKS[1]["messages"]]}  # two questions in a row
    data = written(tmp_path, [*TALKS, twice])
    why = f"{data}: line 7: chat template: Conversation roles must alternate"
    assert why in refused(capsys, tmp_path / "base", data, tmp_path / "new")
    data = written(tmp_path, [*TALKS, *TALKS, twice])
    flags = "--epochs", 60, "--batch-size", 4, *BY_HEART, "--skip-bad", "--lr", 0.01
    assert run(tmp_path / "base", data, tmp_path / "new", *flags) == 0
    model = npgpt.load(tmp_path / "new")
    assert model.tokenizer.vocabulary.chat_template == tokenizer.vocabulary.chat_template
    assert model.config.vocab_size == tokenizer.vocab_size and not examples.has_roles(model.tokenizer)
    for talk in TALKS:
        prompt = examples.encode_chat(model.tokenizer, talk["messages"][:1])
        answer = model.generate(prompt, 20, temperature=0, return_ids=True)
        assert model.tokenizer.decode(answer, False) == f" {talk['messages'][1]['content']} "
        found = model.classify(talk["messages"][0]["content"], [t["messages"][1]["content"] for t in TALKS])
        assert next(iter(found)) == talk["messages"][1]["content"]
    with pytest.raises(ValueError, match=r"^chat template: writes the answer"):
        model.tokenizer = tokenizer_of(KINDS["chatml"]._replace(source="{{ messages|length }}"))
        model.classify("a", ["b", "c"])


def test_rows_for_padding_become_those_of_added_tokens():
    config = npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=270)
    model, plain = npgpt.GPT(config), ByteTokenizer()
    before = model.params["wte.weight"].copy()
    grown, rows = with_vocabulary(model, plain, examples.add_roles(plain))
    assert rows == 270 - 257 and grown.config == model.config
    np.testing.assert_array_equal(model.params["wte.weight"], before)
    np.testing.assert_array_equal(grown.params["wte.weight"][:257], before[:257])
    mean = np.tile(before[:257].mean(0), (13, 1))
    np.testing.assert_allclose(grown.params["wte.weight"][257:], mean, 1e-5, 1e-7)
