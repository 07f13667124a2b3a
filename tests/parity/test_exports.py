"""What is exported opens in every reader that the pages name, with the same ids and the same logits.

By family, tokenizer, format and type: Transformers, tokenizers, llama.cpp, libnpgpt. PEFT is in test_peft.py.
"""

import numpy as np
import pytest

import npgpt
from npgpt.interop.gguf import TYPES, architecture_of, write_gguf
from npgpt.runtime import libnpgpt
from npgpt.text.examples import add_roles
from npgpt.text.load import load_tokenizer
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer
from tests.models import LLAMA, random_model
from tests.parity.test_llama_cpp import Llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
torch.set_num_threads(1)

FAMILY = {"gpt": {"post_norm": True}, "gpt-2": {}, "gpt-3": {"window": 5}}
TEXTS = ["O mar, não há <|endoftext|>mar!", "", "  \n\ta'll 12 日本 🙂", "<|user|>oi<|end|>", "[PAD1] <unk>"]


@pytest.fixture(scope="module", params=["bytes", "bpe", "bytes with roles", "bpe with roles", "gpt1"])
def tokenizer(request, data_dir):
    if request.param == "gpt1":
        return load_tokenizer(data_dir / "gpt1-vocab")
    bpe = BPETokenizer.train([b"o mar, o mar, o mar; que mar!" * 3], 264)
    plain = ByteTokenizer() if request.param.startswith("bytes") else bpe
    return add_roles(plain) if request.param.endswith("roles") else plain


def made(tokenizer, padding=0, **fields):
    model = random_model(n_layer=2, vocab_size=tokenizer.vocab_size + padding, **fields)
    model.tokenizer = tokenizer
    return model


def ids_for(model):
    return np.random.default_rng(2).integers(0, model.tokenizer.vocab_size, (1, 40))


def compare(model, theirs, measured):
    with torch.no_grad():
        got = theirs.eval()(torch.tensor(ids_for(model))).logits.numpy()
    expected = model.logits(ids_for(model))
    error = np.abs(got - expected).max() / np.abs(expected).max()
    measured("logits of an exported model in Transformers, relative", error, 1e-5)


def same_ids(tokenizer, encode, decode=None):
    """Special tokens that a text spells out are read, as all these programs do."""
    for text in TEXTS:
        ids = tokenizer.encode(text, special_tokens=True).tolist()
        assert list(encode(text)) == ids
        assert decode is None or decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("family", FAMILY)
def test_a_folder(family, tokenizer, tmp_path, measured):
    """Read by Transformers and tokenizers; where vocab.json and merges.txt are alone, too."""
    model = made(tokenizer, padding=3, **FAMILY[family])
    model.save_pretrained(tmp_path)
    compare(model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path), measured)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    same_ids(tokenizer, auto.encode, auto.decode)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    same_ids(tokenizer, lambda text: plain.encode(text).ids)
    (tmp_path / "tokenizer.json").unlink()
    same_ids(tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path).encode)


@pytest.mark.parametrize("type", TYPES)
def test_a_gguf_file(type, tokenizer, tmp_path, measured):
    """In Transformers, llama.cpp and libnpgpt. 96 and 32 channels: blocks of 32 and rows that have none."""
    path, padding = tmp_path / "m.gguf", 0 if type == "f32" else 5
    model = made(tokenizer, padding, n_embd=96, n_head=3, bias=type != "f16")
    if tokenizer.vocabulary.words:
        with pytest.raises(
            ValueError, match="tokenizer must be of bytes, byte-level BPE or SentencePiece's, got GPT-1's"
        ):
            write_gguf(path, model, tokenizer, type)
        assert not path.exists()
        return
    write_gguf(path, model, tokenizer, type)
    again = npgpt.load(path)
    assert again.tokenizer == tokenizer
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", n_positions=48)
    compare(again, theirs, measured)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    same_ids(tokenizer, auto.encode, auto.decode)
    assert (auto.eos_token_id, auto.pad_token) == (tokenizer.end_of_text, "<|endoftext|>")
    runtime = libnpgpt.Model.open(path)
    for text in TEXTS:
        assert runtime.encode(text.encode()) == tokenizer.encode(text).tolist()
    if type == "f32":
        same_ids(tokenizer, Llama(path).tokenize)


@pytest.mark.parametrize("shape", ["tied", "untied", "rows of 32"])
@pytest.mark.parametrize("type", TYPES)
def test_a_gguf_file_of_llamas_shape(type, shape, tmp_path, measured):
    """Its keys, and rows as its pairs turn, in Transformers; with 256 channels all matrices are in blocks."""
    path, fields = tmp_path / "m.gguf", LLAMA | {"n_embd": 256, "n_head": 4, "n_kv_head": 2, "n_inner": 512}
    fields |= {"tied": False, "head_size": 32} if shape == "untied" else {}
    fields |= {"n_embd": 96, "n_inner": 160} if shape == "rows of 32" else {}
    model = made(ByteTokenizer(), **fields)
    write_gguf(path, model, model.tokenizer, type)
    again = npgpt.load(path)
    assert again.config == model.config
    assert type != "f32" or np.array_equal(again.flat_params, model.flat_params)
    compare(again, transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf"), measured)


@pytest.mark.parametrize("family", ["gpt", "gpt-3"])
def test_a_gguf_file_for_libnpgpt_alone(family, tmp_path):
    """No other program computes it: each refuses the architecture, and none reads it as a GPT-2."""
    model = made(ByteTokenizer(), **FAMILY[family])
    assert architecture_of(model.config) == "npgpt"
    write_gguf(tmp_path / "m.gguf", model, model.tokenizer)
    np.testing.assert_array_equal(npgpt.load(tmp_path / "m.gguf").flat_params, model.flat_params)
    with pytest.raises(ValueError, match="npgpt"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    with pytest.raises(RuntimeError, match="Failed to init server"):
        Llama(tmp_path / "m.gguf")


# ---------------------------------------------------------------------------- padding


def test_padding_is_never_what_a_turn_ends_with(tokenizer, tmp_path):
    """Their collator leaves padding out of the loss: of a conversation the ends are learnt all the same."""
    tokenizer.save(tmp_path, 48)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert auto.padding_side == "right" and auto.pad_token_id < tokenizer.vocab_size == len(auto)
    collate = transformers.DataCollatorForLanguageModeling(auto, mlm=False)
    rows = [{"input_ids": [5, 6, tokenizer.end_of_text]}, {"input_ids": [7]}]
    batch = collate(rows)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    same = auto.pad_token_id == tokenizer.end_of_text  # as in GPT-2's own vocabulary, whose one token is both
    assert batch["labels"].tolist() == [[5, 6, -100 if same else tokenizer.end_of_text], [7, -100, -100]]
    assert same == ("<|endoftext|>" in tokenizer.vocabulary.end_of_text)


@pytest.mark.parametrize("family", FAMILY)
def test_a_batched_pipeline(family, tokenizer, tmp_path):
    """The texts of a batch are those that each prompt has alone, and those of npgpt."""
    model = made(tokenizer, **FAMILY[family])
    model.save_pretrained(tmp_path)
    pipeline = transformers.pipeline("text-generation", str(tmp_path), batch_size=3)
    prompts = ["o mar", "não", "que mar, o mar"]
    how = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
    together = [found[0]["generated_text"] for found in pipeline(prompts, **how)]
    if family == "gpt":  # Transformers' GPT takes no mask when it generates: padding changes its texts
        assert len(together) == 3
        return
    assert together == [pipeline(prompt, **how)[0]["generated_text"] for prompt in prompts]
    ours = npgpt.GPT2LMHeadModel.from_pretrained(tmp_path)
    for prompt, text in zip(prompts, together, strict=True):
        ids = tokenizer.encode(prompt)[None]
        new = ours.generate(ids, max_new_tokens=8)[0, ids.shape[1] :]
        assert text == pipeline.tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILY)
def test_two_steps_of_their_trainer(family, tokenizer, tmp_path):
    """On rows of unequal length, as they come out of the tokenizer; and npgpt reads what it saves."""
    model = made(tokenizer, **FAMILY[family])
    model.save_pretrained(tmp_path / "ours")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    rows = [auto(text) for text in ("o mar, o mar", "não", "que mar", "o")]
    arguments = transformers.TrainingArguments(
        tmp_path / "out", max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        disable_tqdm=True, learning_rate=1e-3, dataloader_pin_memory=False, save_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours"),
        args=arguments,
        train_dataset=rows,
        processing_class=auto,
        data_collator=transformers.DataCollatorForLanguageModeling(auto, mlm=False),
    )
    result = trainer.train()
    assert result.global_step == 2 and 0 < result.training_loss < 100
    trainer.save_model(tmp_path / "theirs")
    again = npgpt.load(tmp_path / "theirs")
    assert again.tokenizer == tokenizer
    assert 0 < np.abs(again.flat_params - model.flat_params).max() < 0.01


def test_a_folder_of_old_that_names_no_padding(tmp_path):
    model = made(ByteTokenizer())
    model.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    text = file.read_text().replace(' "pad_token": "<|endoftext|>",\n', "")
    assert "pad_token" not in text
    file.write_text(text)
    assert npgpt.load(tmp_path).tokenizer == model.tokenizer
    assert npgpt.GPT2Tokenizer.from_pretrained(tmp_path).pad_token_id == 256
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).pad_token is None
