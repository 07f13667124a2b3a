"""The default plan is a function of the text's size and the flags."""

from itertools import pairwise

import pytest

from npgpt.text.data import batches_per_epoch
from npgpt.training.plan import FLAGS, TOO_SMALL, default_tokenizer, make_plan


def test_a_small_text_is_memorised_whole():
    plan = make_plan(683)
    assert plan.memorise and plan.split == (1, 0, 0) and plan.dropout == 0
    assert plan.target_loss is not None
    assert not make_plan(683, split="0.8,0.1,0.1").memorise
    assert not make_plan(TOO_SMALL).memorise


def test_a_megabyte_gets_a_small_gpt():
    plan = make_plan(1_115_395)
    assert (plan.n_layer, plan.n_head, plan.n_embd) == (4, 4, 128)
    assert plan.split == (0.8, 0.1, 0.1) and plan.target_loss is None
    assert 1000 <= plan.steps <= 4000


def test_it_grows_smoothly_and_then_stays():
    sizes = [TOO_SMALL, 30_000, 100_000, 300_000, 1_000_000, 10**9]
    plans = [make_plan(n) for n in sizes]
    steps = [plan.steps for plan in plans]
    assert steps == sorted(steps) and all(b <= 2 * a for a, b in pairwise(steps))
    assert [plan.dropout for plan in plans] == sorted((plan.dropout for plan in plans), reverse=True)
    assert plans[-1] == plans[-2]


@pytest.mark.parametrize("n", [3, 10, 100])
def test_the_window_is_never_longer_than_the_text(n):
    assert make_plan(n).block_size <= n


def test_flags_have_the_last_word():
    flags = {"steps": 7, "block_size": 33, "lr": 0.5, "dropout": 0.3, "eval_every": 2, "split": "0.9,0.1"}
    plan = make_plan(10**6, **flags, n_layer=None)
    assert {name: getattr(plan, name) for name in flags} == flags | {"split": (0.9, 0.1, 0)}
    assert plan.n_layer == 4 and plan.save_every == 2


def test_each_optimizer_has_a_rate_of_its_own():
    muon, adamw = make_plan(10**6), make_plan(10**6, optimizer="adamw")
    assert (muon.optimizer, muon.lr, muon.min_lr) == ("muon", 0.02, 0.0004)
    assert (adamw.optimizer, adamw.lr, adamw.min_lr) == ("adamw", 0.004, 0.00008)
    assert make_plan(10**6, lr=0.5).min_lr == 0.01


def test_epochs_become_steps():
    plan = make_plan(10**6, epochs=3)
    assert plan.steps == 3 * batches_per_epoch(800_000, plan.block_size, plan.batch_size)
    assert "epochs" in FLAGS and "memorise" not in FLAGS


def test_the_tokenizer_depends_on_the_size_alone():
    assert default_tokenizer(1) == default_tokenizer(999_999) == "bytes"
    assert default_tokenizer(1_000_000) == default_tokenizer(3_999_999) == "bpe:1024"
    assert default_tokenizer(4_000_000) == default_tokenizer(10**12) == "bpe:8192"
