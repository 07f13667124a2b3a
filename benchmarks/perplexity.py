"""`python -m benchmarks.perplexity RUN TEXT`: what each type of weights costs, as libnpgpt computes.

The perplexity of the text's first tokens under the run's model, exported as each type, in windows of the
context that do not overlap; beside that of F32.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import npgpt
from benchmarks import record
from npgpt.interop.gguf import TYPES, write_gguf
from npgpt.runtime import libnpgpt


def perplexity(path, ids, T):
    session, losses = libnpgpt.Session(libnpgpt.Model.open(path)), []
    for first in range(0, len(ids) - T, T):
        window = ids[first : first + T + 1]
        session.reset()
        z = session.feed(window[:-1], every=True).astype(np.float64)
        z -= z.max(1, keepdims=True)
        losses.append(np.log(np.exp(z).sum(1)) - z[np.arange(T), window[1:]])
    return np.exp(np.mean(losses))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=100_000, help="of the text (default 100000)")
    record.add_flags(parser)
    args = parser.parse_args()
    model = npgpt.load(args.run)
    ids = model.tokenizer.encode(args.text.read_bytes())[: args.tokens]
    print(f"{args.run}: {len(ids):,} tokens of {args.text.name}, windows of {model.config.block_size}")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        for type in TYPES:
            write_gguf(path, model, model.tokenizer, type)
            found[type] = perplexity(path, ids, model.config.block_size)
            more = found[type] / found["f32"] - 1
            print(f"{type:5} perplexity {found[type]:9.4f}  {more:+.4%}", flush=True)
    model = f"{model.config.n_layer} layers x {model.config.n_embd}"
    record.save(args, "perplexity", found, model=model, tokens=len(ids), text=args.text.name)


if __name__ == "__main__":
    main()
