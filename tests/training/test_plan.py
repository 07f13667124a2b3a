"""The default plan is a function of the text's size and the flags."""

import errno
import os
import re
import signal
import sys
import threading
import tomllib
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from npgpt.console import restarts
from npgpt.text.dataset import batches_per_epoch
from npgpt.training import memory
from npgpt.training.plan import FLAGS, TOO_SMALL, default_tokenizer, make_plan
from npgpt.training.run import find_folder, locked, to_toml


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


@pytest.mark.parametrize("name", ["optimizer", "schedule"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'other'"):
        make_plan(1000, **{name: "other"})


def test_a_plan_that_does_not_fit_is_told_what_would(monkeypatch):
    plan = make_plan(10**6, batch_size=16, gradient_accumulation_steps=2)
    monkeypatch.setattr(memory, "available_bytes", lambda: (5e6, "a limit"))

    def needed(config, plan):
        return 1_000_000 * plan.batch_size

    advice = "needs 16 MB, 5 MB are free (a limit); --batch-size 4"
    for tuning, more in ((True, " would fit"), (False, " --gradient-accumulation-steps 8 would fit")):
        with pytest.raises(ValueError, match=re.escape(advice + more)):
            memory.check_memory(plan.model_config(257), plan, needed, tuning)
    memory.check_memory(plan.model_config(257), replace(plan, batch_size=5), needed)


def test_the_folder_of_a_run_is_called_after_its_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_folder(None, "texts/v1.2.txt", resume=False, suffix="-tune") == Path("runs/v1.2-tune")
    Path("runs/v1.2").mkdir(parents=True)
    assert find_folder(None, "v1.2.txt", resume=False) == Path("runs/v1.2-2")
    assert find_folder(None, "-", resume=False) == Path("runs/stdin")


def test_a_job_that_was_told_to_stop_is_not_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(restarts, "PAUSE", 0.5)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    count = f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); raise SystemExit(1)"
    try:
        sent = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        monkeypatch.setattr(restarts.time, "sleep", lambda seconds: (sent.start(), sent.join()))
        assert restarts.supervise([sys.executable, "-c", count], tmp_path, 3) == 1
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert (tmp_path / "starts").read_text() == "x"


def test_a_folder_is_one_process_s_alone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lock").touch()  # of a process that ended before it wrote its settings
    assert find_folder(str(folder), "", resume=True) == folder
    (folder / "config.toml").touch()  # another process began meanwhile
    with pytest.raises(FileExistsError), locked(folder, new=True):
        pass
    with locked(folder):
        pass


def test_the_lock_is_held_for_reading_but_for_writing_on_nfs(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    lock, held = fcntl.flock, []

    def flock(descriptor, how, nfs=False):
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        held.append(mode)
        if nfs and mode == os.O_RDONLY:  # as Linux's NFS
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(descriptor, how)

    for nfs, modes in ((False, [os.O_RDONLY]), (True, [os.O_RDONLY, os.O_RDWR])):
        monkeypatch.setattr(fcntl, "flock", partial(flock, nfs=nfs))
        held.clear()
        with locked(tmp_path):
            assert held == modes
            with pytest.raises(BlockingIOError), locked(tmp_path):
                pass
        with locked(tmp_path):
            pass


def test_any_name_is_toml():
    assert tomllib.loads(to_toml({"text": ["a\x7fb", "\x01"]})) == {"text": ["a\x7fb", "\x01"]}
