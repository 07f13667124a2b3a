"""Side by side with PyTorch and Transformers: the same weights give the same logits, gradients, training and
text, and each side reads the other's files. PyTorch computes in float32 too: both are off by rounding.
"""

import numpy as np
import pytest

import npgpt
from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Two pools of threads that both spin for work on few cores are a hundred times slower than either alone.
torch.set_num_threads(1)

# name -> n_layer, n_head, n_embd, block_size, vocab_size, bias, B, T
CONFIGS = {
    "multiples of every tile": (2, 4, 96, 96, 288, True, 2, 96),
    "no multiple of any tile": (2, 3, 51, 61, 97, True, 3, 53),
    "longer than a block of keys": (1, 2, 34, 230, 50, True, 1, 229),
    "no bias": (2, 4, 64, 40, 257, False, 2, 33),
    "one head, one token": (3, 1, 20, 5, 11, True, 4, 1),
}


def our_model(rng, fields):
    """Weights far from their initial values, so that every one of them matters."""
    n_layer, n_head, n_embd, block_size, vocab_size, bias = fields
    model = npgpt.GPT(GPTConfig(n_layer, n_head, n_embd, block_size, vocab_size, bias=bias))
    with model.edit() as params:
        for w in params.values():
            w[...] += 0.1 * rng.standard_normal(w.shape)
    return model


def their_model(model):
    """transformers' GPT-2 with our weights; biases that ours has not are 0."""
    c = model.config
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
            n_head=c.n_head, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        )
    )  # fmt: skip
    ours = dict(model.params)
    with torch.no_grad():
        for name, w in theirs.transformer.named_parameters():
            w[...] = torch.tensor(ours.pop(name)) if name in ours else 0.0
    assert not ours, f"parameters that GPT-2 does not have: {ours.keys()}"
    return theirs.train()


def their_loss(theirs, ids, targets):
    logits = theirs(torch.tensor(ids)).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(targets).flatten(), ignore_index=-1
    )


def logits_of(theirs, ids):
    with torch.no_grad():
        return theirs.eval()(torch.tensor(ids)).logits.numpy()


# ---------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_autograd(impl, rng, measured, name):
    *fields, B, T = CONFIGS[name]
    model = our_model(rng, fields)
    theirs = their_model(model)
    ids, targets = rng.integers(0, model.config.vocab_size, (2, B, T))
    targets[0, : T // 3] = -1
    loss = model.forward(ids, targets)
    model.backward()
    their = their_loss(theirs, ids, targets)
    their.backward()
    assert loss == pytest.approx(their.item(), rel=1e-5)
    their_grads = dict(theirs.transformer.named_parameters())
    for parameter, g in model.grads.items():
        expected = their_grads[parameter].grad.numpy()
        error = np.abs(g - expected).max() / np.abs(expected).max()
        measured("gradient of a named parameter, relative to autograd's", error, 1e-4)


def test_twenty_steps_of_training(impl, rng, measured):
    """AdamW with clipping and decay of the matrices alone: each loss, and the weights at the end."""
    model = our_model(rng, (3, 4, 96, 64, 257, True))
    theirs = their_model(model)
    parameters = list(theirs.parameters())
    decayed, plain = ([p for p in parameters if (p.ndim == 2) == is_2d] for is_2d in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    their_optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    optimizer = npgpt.AdamW(model, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    # text that can be learnt: what follows depends on what came before
    text = np.cumsum(rng.integers(0, 3, 4000)) % 257
    losses = []
    for _ in range(20):
        starts = rng.integers(0, len(text) - 65, 6)
        ids, targets = (np.stack([text[s + shift : s + shift + 64] for s in starts]) for shift in (0, 1))
        loss, their = model.forward(ids, targets), their_loss(theirs, ids, targets)
        losses.append(loss)
        measured("loss in 20 steps of training beside PyTorch", abs(loss - their.item()), 1e-3)
        model.backward()
        their_optimizer.zero_grad()
        their.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
        assert optimizer.step(max_grad_norm=1.0) == pytest.approx(norm, rel=1e-2)
        their_optimizer.step()
    assert losses[-1] < losses[0] - 0.5, "twenty steps learn something, else this compares standing still"
    for parameter, w in theirs.transformer.named_parameters():
        # Adam divides by the root of v: where a gradient is next to nothing, rounding decides its sign, and
        # an element may differ by up to 2 lr in each step. Their mean may not.
        error = np.abs(model.params[parameter] - w.detach().numpy()).mean()
        assert error < 0.05 * 20 * 1e-3, f"{parameter} is off by {error:.1e} on average"


# ---------------------------------------------------------------------------- files


def test_transformers_reads_what_we_write(impl, rng, measured, tmp_path):
    model = our_model(rng, (3, 3, 48, 40, 257, True))
    model.save_pretrained(tmp_path)
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = rng.integers(0, 257, (2, 40))
    error = np.abs(logits_of(theirs, ids) - model.logits(ids)).max()
    measured("logits of our checkpoint in Transformers", error, 1e-4)


def test_transformers_reads_a_model_without_biases(impl, rng, tmp_path):
    model = our_model(rng, (2, 2, 32, 16, 257, False))
    model.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    ids = rng.integers(0, 257, (2, 16))
    assert np.abs(logits_of(theirs, ids) - model.logits(ids)).max() <= 1e-4


def test_we_read_gpt2_of_full_size(rng, measured, tmp_path):
    """124M parameters, randomly initialised by transformers; biases and norms, left at 0 and 1, by us."""
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    with torch.no_grad():
        for w in theirs.parameters():
            if w.ndim == 1:
                w += 0.02 * torch.randn_like(w)
    theirs.save_pretrained(tmp_path)
    model = npgpt.load(tmp_path)
    assert model.num_params == 124_439_808 == sum(w.numel() for w in theirs.parameters())
    assert model.config == GPTConfig(dropout=0.1), "what GPT-2's own config says"
    ids = rng.integers(0, 50257, (2, 65))
    expected = logits_of(theirs, ids)
    assert np.abs(expected).max() > 1, "logits of nothing prove nothing"
    for name in kernels.available():
        with kernels.use(name):
            error = np.abs(model.logits(ids) - expected).max()
            measured("logits of Transformers' GPT-2 124M in npgpt", error, 1e-4)


def test_there_and_back(rng, tmp_path):
    """What transformers writes of what it read of ours is what we had, bit for bit."""
    model = our_model(rng, (2, 2, 32, 16, 257, True))
    model.save_pretrained(tmp_path / "ours")
    transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = npgpt.load(tmp_path / "theirs")
    assert again.config == model.config
    np.testing.assert_array_equal(again.flat_params, model.flat_params)


# ---------------------------------------------------------------------------- text

TRICKY = [
    "",
    " ",
    "O sol nasce sobre o mar; a maré sobe às três.",
    "ação, ímã, pinguim, ñandú, naïve, Ελλάδα, Привет, 日本語, עברית",
    "👩‍👩‍👧‍👦 🇧🇷 e\u0301 \u200b\ufeff\u00a0",
    "  two  spaces\tand\ttabs\n\n\nlines\r\nwindows\rmac ",
    "don't I'll we've 'tis 1234567 3.14 x=y+z; <tag> {}[]()",
    "\x00\x01\x7f control",
    "<|endoftext", "|endoftext|>", "<|end of text|>",
    "a" * 1000,
]  # fmt: skip


def test_autotokenizer_gives_our_ids(rng, tmp_path):
    model = our_model(rng, (1, 1, 8, 16, 257, True))
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == 257 and theirs.eos_token_id == model.tokenizer.end_of_text == 256
    everything = "".join(map(chr, [*range(0x20, 0x250), *range(0x2000, 0x2070), *range(0x1F600, 0x1F640)]))
    for text in [*TRICKY, everything]:
        ids = model.tokenizer.encode(text).tolist()
        assert theirs.encode(text, add_special_tokens=False) == ids, repr(text)
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text == model.tokenizer.decode(ids)


@pytest.mark.parametrize("vocab_size", [97, 257])
def test_greedy_generation_is_that_of_transformers(impl, rng, tmp_path, vocab_size):
    """Both decode with a cache; 97 ids have no tokenizer, 257 are bytes."""
    model = our_model(rng, (3, 4, 64, 64, vocab_size, True))
    with model.edit() as params:
        params["wpe.weight"][...] *= 10  # else the text soon repeats itself, whatever the context
    model.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    theirs.generation_config.eos_token_id = None  # both go on for all of the 30 tokens
    for length in (1, 9, 30):
        prompt = rng.integers(0, min(vocab_size, 256), length)
        ours = model.generate(
            prompt=prompt, max_new_tokens=30, temperature=0, ignore_eos=True, return_ids=True
        )
        generated = theirs.generate(
            torch.tensor(prompt)[None],
            attention_mask=torch.ones(1, length, dtype=torch.long),
            do_sample=False,
            max_new_tokens=30,
            pad_token_id=0,
            suppress_tokens=[256] if vocab_size == 257 else None,
        )
        assert list(ours) == generated[0, length:].tolist()
        assert len(set(ours)) > 3, "a constant says little about the cache"
