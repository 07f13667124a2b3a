"""What concerns a whole process, each case in one of its own: choice of kernels, threads, fork, memory."""

import os
import subprocess
import sys

import pytest

from npgpt.engine import kernels


def python(code, **environment):
    """Runs code in a new process with these variables set -> (exit code, stdout, stderr). A hang fails."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NPGPT_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


NAME = "from npgpt.engine import kernels; print(kernels.name()); print(kernels.describe())"
BEST = kernels.available()[-1]


@pytest.mark.parametrize("choice", [*kernels.available(), "auto", ""])
def test_kernels_are_chosen_by_the_environment(choice):
    code, out, err = python(NAME, NPGPT_KERNELS=choice)
    assert (code, err) == (0, "")
    name, described = out.splitlines()
    assert name == (BEST if choice in ("auto", "") else choice)
    assert ("NumPy" if name == "numpy" else f"{name} kernels") in described


@pytest.mark.parametrize("choice", ["nonsense", "AVX2", "avx512-from-the-future", "0"])
def test_unknown_or_unavailable_kernels_are_an_error(choice):
    code, out, err = python(NAME, NPGPT_KERNELS=choice)
    assert code != 0 and out == ""
    last = err.strip().splitlines()[-1]
    assert "NPGPT_KERNELS" in last and repr(choice) in last
    assert all(name in last for name in kernels.available())


def test_without_compiled_kernels_it_says_so_and_works():
    """As in a source tree that was not built: one warning line says how to build, and NumPy does the work."""
    hide = "import sys; sys.modules['npgpt._kernels'] = None\n"
    work = "import numpy as np; print(kernels.ops_for(np.float32).matmul(np.ones((1, 2)), np.ones((2, 1))))"
    code, out, err = python(f"{hide}{NAME}\n{work}")
    assert code == 0, err
    assert out.splitlines()[0] == "numpy" and out.splitlines()[-1] == "[[2.]]"
    assert "pip install -e ." in out.splitlines()[1], "describe() says how to build"
    assert len(err.splitlines()) == 1 and "WARNING" in err and "pip install -e ." in err
    code, _, err = python(hide + NAME, NPGPT_KERNELS="avx2")
    assert code != 0 and "not built" in err, "a forced choice never falls back"
    assert python(hide + NAME, NPGPT_KERNELS="numpy")[::2] == (0, ""), "who asks for NumPy is not warned"


def test_threads_are_the_cpus_of_this_process(isa):
    one_cpu = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from npgpt.engine import kernels; print(kernels.get_num_threads())"
    )
    code, out, err = python(one_cpu)
    assert (code, out) == (0, "1\n"), err
    code, out, err = python("from npgpt.engine import kernels; print(kernels.get_num_threads())")
    assert code == 0 and 1 <= int(out) <= len(os.sched_getaffinity(0)), err


FORK = """
import os, signal, warnings
import multiprocessing
import numpy as np
from npgpt.engine import kernels

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork of a process with threads
kernels.set_num_threads(3)
ops = kernels.ops_for(np.float32)
a = np.random.default_rng(0).standard_normal((200, 300), dtype=np.float32)

def product():
    return ops.matmul(a, a, trans_b=True)

expected = product()  # the parent's threads exist and have worked

def child(threads):
    signal.alarm(20)  # a child that waits for threads it has not got is killed
    assert kernels.get_num_threads() == threads
    for _ in range(20):
        assert (product() == expected).all()
    kernels.set_num_threads(2)
    assert (product() == expected).all()

for _ in range(3):
    pid = os.fork()
    if pid == 0:
        try:
            child(3)  # which leaves it with 2
            pid = os.fork()  # and a grandchild
            if pid == 0:
                child(2)
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0)
        except BaseException as error:
            print("child:", repr(error), flush=True)
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"the child ended with {status}"
    assert (product() == expected).all()  # and the parent goes on

with multiprocessing.get_context("fork").Pool(2) as pool:
    results = pool.starmap(np.array_equal, [(product(), expected)] * 4)
    assert all(results)
    remote = [pool.apply(product) for _ in range(4)]
assert all((r == expected).all() for r in remote)
print("done")
"""


def test_kernels_work_after_fork(isa):
    code, out, err = python(FORK, NPGPT_KERNELS=isa)
    assert (code, out) == (0, "done\n"), out + err


MANY_CALLERS = """
import threading
import numpy as np
from npgpt.engine import kernels

kernels.set_num_threads(2)
ops = kernels.ops_for(np.float32)
rng = np.random.default_rng(0)
inputs = [rng.standard_normal((130 + i, 170), dtype=np.float32) for i in range(6)]
expected = [ops.matmul(a, a, trans_b=True) for a in inputs]
wrong = []

def caller(a, result):
    for _ in range(100):
        if not (ops.matmul(a, a, trans_b=True) == result).all():
            wrong.append(a.shape)

threads = [threading.Thread(target=caller, args=pair) for pair in zip(inputs, expected)]
for t in threads:
    t.start()
while any(t.is_alive() for t in threads):  # and the pool changes its size under them
    for n in (1, 4, 2, 3):
        kernels.set_num_threads(n)
print("wrong:", wrong)
"""


def test_many_python_threads_may_call_at_once(isa):
    code, out, err = python(MANY_CALLERS, NPGPT_KERNELS=isa)
    assert (code, out) == (0, "wrong: []\n"), err


FEWER_THREADS = """
import re, resource
from pathlib import Path
import numpy as np
from npgpt.engine import kernels
ops, a = kernels.ops_for(np.float32), np.ones((300, 300), np.float32)
held = 1024 * int(re.search(r"VmSize:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (held + (64 << 20),) * 2)  # room for the stacks of a few
kernels.set_num_threads(64)
print(1 <= kernels.get_num_threads() < 64, (ops.matmul(a, a) == 300).all())
"""


def test_threads_that_the_system_does_not_give_are_done_without(isa):
    code, out, err = python(FEWER_THREADS, NPGPT_KERNELS=isa)
    assert (code, out) == (0, "True True\n"), err


MEMORY = """
import re
from pathlib import Path
import numpy as np
from npgpt.engine.config import GPTConfig, training_floats
from npgpt.engine.model import GPT
from npgpt.engine.optim import AdamW

def peak():  # of this process: getrusage's ru_maxrss starts from that of the process that started it
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

config = GPTConfig(n_layer={n_layer}, n_head=4, n_embd={n_embd}, block_size={time}, vocab_size={vocab_size})
ids = np.zeros(({batch}, {time}), np.int32)
before = peak()
model = GPT(config)
optimizer = AdamW(model)
for _ in range(3):
    model.forward(ids, ids)
    model.backward()
    optimizer.step(1.0)
print((peak() - before) / (4 * training_floats(config, *ids.shape)))
"""


@pytest.mark.parametrize(
    "n_layer, n_embd, time, vocab_size, batch",
    [(6, 256, 128, 257, 16), (2, 512, 256, 257, 4), (2, 128, 64, 8000, 32), (8, 384, 16, 300, 1)],
    ids=["activations", "wide", "vocabulary", "weights"],
)
def test_memory_is_what_was_announced(isa, n_layer, n_embd, time, vocab_size, batch):
    """The peak over three training steps is within 25 % of training_floats."""
    settings = dict(n_layer=n_layer, n_embd=n_embd, time=time, vocab_size=vocab_size, batch=batch)
    code, out, err = python(MEMORY.format(**settings), NPGPT_KERNELS=isa)
    assert code == 0, err
    assert 0.8 <= float(out) <= 1.25, f"the peak was {float(out):.2f} times the memory announced"
