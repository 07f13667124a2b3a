"""Generation in Hugging Face's terms: rows of ids are continued by sampling or by beam search.

A row's continuation does not depend on the other rows: padding is masked, and each row has its own random
numbers. With libnpgpt the rows are its sessions. Beams, which branch and end, are computed on NumPy.
B rows of n ids each, V = vocabulary.
"""

from dataclasses import dataclass, replace

import numpy as np

from npgpt.engine.model import GPT
from npgpt.engine.types import Floats, Integers
from npgpt.runtime import libnpgpt
from npgpt.runtime.sampling import Context, Draws, Sampling, draw, log_softmax, penalised, probabilities

IMPOSSIBLE = -1e9  # Hugging Face's score of a beam that does not exist yet


@dataclass(frozen=True)
class GenerationConfig:
    """The settings of a continuation, by Transformers' names."""

    max_length: int  # ids of a row, its padding included
    do_sample: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0  # a beam's score is its log-probability / length ** this
    early_stopping: bool | str = False  # True: when num_beams are complete; "never": when none can improve
    eos_token_id: tuple[int, ...] = ()  # each of them ends a row
    pad_token_id: int = 0  # fills a row after its end

    def __post_init__(self) -> None:
        for name in ("max_length", "num_beams", "num_return_sequences"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"generate: {name} must be a whole number, at least 1, got {value!r}")
        if any(isinstance(end, bool) or not isinstance(end, (int, np.integer)) for end in self.eos_token_id):
            raise ValueError(f"generate: eos_token_id must be an id or a list, got {self.eos_token_id!r}")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(
                f"generate: early_stopping must be a bool or 'never', got {self.early_stopping!r}"
            )
        if self.num_return_sequences > self.num_beams and (self.num_beams > 1 or not self.do_sample):
            raise ValueError(
                "generate: num_return_sequences must be at most num_beams, unless each is drawn on its own "
                f"(do_sample, one beam), got {self.num_return_sequences}"
            )


def generate_rows(
    model: GPT,
    ids: Integers,
    mask: Integers,
    config: GenerationConfig,
    sampling: Sampling,
    seed: int | None = None,
) -> Integers:
    """Return the rows of `ids` with their continuations: (B * num_return_sequences, at most max_length).

    ids, mask (B,n); mask is 0 for padding, which must be on the left. A row holds its end of text
    and padding after it. ValueError for a mask of another shape or order.
    """
    starts = _padding(ids, mask)
    rows = np.repeat(np.arange(len(ids)), config.num_return_sequences)
    max_new = config.max_length - ids.shape[1]
    if max_new <= 0:
        new: list[list[int]] = [[] for _ in rows]
    elif config.num_beams > 1:
        new = []
        for b, (row, begin) in enumerate(zip(ids, starts, strict=True)):
            generator = np.random.default_rng(None if seed is None else [seed, b])
            new += _beams(model, row[begin:], max_new, config, sampling, generator)
    else:
        seeds = np.random.SeedSequence(seed).generate_state(len(rows), np.uint64).tolist()
        independent = _sessions if libnpgpt.is_compiled_for(model) else _independent
        new = independent(model, ids, starts, rows, config, sampling, seeds)
    longest = max(map(len, new))
    filled = [tokens + [config.pad_token_id] * (longest - len(tokens)) for tokens in new]
    return np.concatenate([ids[rows], np.array(filled, np.int64).reshape(len(rows), longest)], axis=1)


def _sessions(
    model: GPT,
    ids: Integers,
    starts: Integers,
    rows: Integers,
    config: GenerationConfig,
    how: Sampling,
    seeds: list[int],
) -> list[list[int]]:
    """Return the new ids of each row by libnpgpt, greedy or drawn with the row's seed."""
    runtime = libnpgpt.Model.of(model)
    new: list[list[int]] = [[] for _ in rows]
    going = []  # (session, its sampling, its new ids) of the rows that have not ended
    for row, seed, tokens in zip(rows, seeds, new, strict=True):
        going.append((libnpgpt.Session(runtime), libnpgpt.sampling_struct(how, seed=seed), tokens))
        going[-1][0].feed(ids[row, starts[row] :])
    for length in range(ids.shape[1], config.max_length):
        for session, drawing, tokens in going:
            tokens.append(session.sample(drawing))
        going = [row for row in going if row[2][-1] not in config.eos_token_id]
        if not going or length + 1 == config.max_length:
            break
        libnpgpt.feed_many([session for session, _, _ in going], [tokens[-1] for _, _, tokens in going])
    return new


def _independent(
    model: GPT,
    ids: Integers,
    starts: Integers,
    rows: Integers,
    config: GenerationConfig,
    how: Sampling,
    seeds: list[int],
) -> list[list[int]]:
    """Return the new ids of each row by NumPy, greedy or drawn with the row's seed."""
    generators = [Draws(seed) for seed in seeds]
    context = Context(model, ids, config.max_length, starts)
    logits = context.logits()[rows]  # (B,V): a prompt is read once, however many continuations it gets
    context.reorder(rows)
    seen = np.zeros(logits.shape, bool)
    for b, (row, begin) in enumerate(zip(context.ids, context.starts, strict=True)):
        seen[b, row[begin:]] = True
    new: list[list[int]] = [[] for _ in rows]
    going = np.arange(len(rows))  # the rows that have not ended
    while True:
        tokens = []
        for b, z in zip(going.tolist(), logits, strict=True):
            tokens.append(draw(probabilities(z, how, seen[b]), generators[b]))
            new[b].append(tokens[-1])
            seen[b, tokens[-1]] = True
        stay = np.flatnonzero(~np.isin(tokens, config.eos_token_id))
        if not len(stay) or context.ids.shape[1] + 1 >= config.max_length:
            return new
        context.extend(tokens)
        context.reorder(stay)
        going, logits = going[stay], context.logits()


def _beams(
    model: GPT,
    prompt: Integers,
    max_new: int,
    config: GenerationConfig,
    how: Sampling,
    generator: np.random.Generator,
) -> list[list[int]]:
    """Return the num_return_sequences best continuations by at most `max_new` ids, best first."""
    n, V = config.num_beams, model.config.vocab_size
    candidates = max(2, 1 + len(config.eos_token_id)) * n  # of which n go on, whichever of them end
    context = Context(model, prompt[None], len(prompt) + max_new)
    logits = np.repeat(context.logits(), n, axis=0)  # (n,V)
    context.reorder(np.zeros(n, int))
    scores = np.array([0.0] + [IMPOSSIBLE] * (n - 1))  # sums of log-probabilities
    finished = []  # (score, ids), best first
    for generated in range(1, max_new + 1):
        log_p = _log_probabilities(logits, context.ids, config.do_sample, how)
        total = (log_p + scores[:, None]).reshape(-1)  # (n V)
        # the best candidates, or as many drawn without replacement: the largest with Gumbel noise
        drawn = total + generator.gumbel(size=total.shape) if config.do_sample else total
        best = np.argsort(-drawn, kind="stable")[:candidates]
        best = best[np.argsort(-total[best], kind="stable")]
        beams, tokens = np.divmod(best, V)
        ends = np.isin(tokens, config.eos_token_id) | (generated == max_new)
        for i in np.flatnonzero(ends[:n]):
            ids = [*context.ids[beams[i], len(prompt) :].tolist(), int(tokens[i])]
            finished.append((total[best[i]] / generated**config.length_penalty, ids))
        finished = sorted(finished, key=lambda pair: -pair[0])[:n]
        going = np.flatnonzero(~ends)[:n]
        if not len(going):
            break
        scores = total[best[going]]
        if len(finished) == n:
            # the length at which the best unfinished beam could still improve
            longest = max_new if config.early_stopping == "never" and config.length_penalty > 0 else generated
            if config.early_stopping is True or scores[0] / longest**config.length_penalty <= finished[-1][0]:
                break
        context.reorder(beams[going])
        context.extend(tokens[going])
        logits = context.logits()
    return [ids for _, ids in finished[: config.num_return_sequences]]


def _log_probabilities(logits: Floats, ids: Integers, do_sample: bool, sampling: Sampling) -> Floats:
    """Return the log-probabilities that beams add up, float64 (n,V), with penalty and filters applied.

    logits (n,V), ids (n,t).
    """
    log_p = log_softmax(logits)
    for row, past in zip(log_p, ids, strict=True):
        seen = np.zeros(len(row), bool)
        seen[past] = True
        row[...] = penalised(row, sampling.repetition_penalty, seen)
        if do_sample:
            possible = probabilities(row, replace(sampling, repetition_penalty=1.0), min_tokens_to_keep=2) > 0
            row[...] = np.where(possible, row / sampling.temperature, -np.inf)
    return log_p


def _padding(ids: Integers, mask: Integers) -> Integers:
    """Return the number of ids of padding at the beginning of each row (B,)."""
    if mask.shape != ids.shape or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"generate: attention_mask must be of 0 and 1, of shape {ids.shape}, got {mask.shape}"
        )
    starts: Integers = ids.shape[1] - mask.sum(axis=1)
    if (np.diff(mask.astype(np.int8), axis=1) < 0).any() or (starts == ids.shape[1]).any():
        raise ValueError(
            "generate: attention_mask must be zeros, then ones: padding stands on the left, as "
            "the tokenizer puts it with padding_side = 'left'"
        )
    return starts.astype(np.int32)
