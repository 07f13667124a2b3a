"""Names that people know from elsewhere, and ours: the hint of an error for an argument or flag that is none.

The names of others are those of OpenAI's API, Transformers, llama.cpp, PyTorch and nanoGPT.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])
PATH_LENGTH = 255  # characters of a name in a folder, at most

ELSEWHERE = {  # ours -> theirs
    "max_new_tokens": "max_tokens max_length max_completion_tokens n_predict num_predict n_tokens length",
    "temperature": "temp",
    "repetition_penalty": "repeat_penalty penalty",
    "stop": "stop_sequences stop_strings stop_words stops eos",
    "seed": "random_seed manual_seed random_state",
    "stream": "streamer streaming",
    "prompt": "prompts text input inputs input_ids ids message messages",
    "text": "texts input inputs sentence sentences prompt",
    "labels": "label classes candidate_labels categories",
    "completions": "completion continuation continuations answer answers",
    "paths": "path file files filename filenames folder text texts data",
    "path": "model model_path model_name model_name_or_path name file folder run",
    "folder": "path directory save_directory out",
    "dataset": "data text texts file path train_dataset",
    "lr": "learning_rate",
    "steps": "max_steps max_iters n_steps num_steps iterations",
    "epochs": "num_train_epochs n_epochs num_epochs epoch",
    "batch_size": "per_device_train_batch_size batch micro_batch_size",
    "eval_every": "eval_interval eval_steps val_every",
    "save_every": "save_steps save_interval",
    "warmup": "warmup_steps warmup_iters",
    "clip": "max_grad_norm grad_clip",
    "out": "output output_dir out_dir run save_dir",
    "n_layer": "n_layers num_layers num_hidden_layers layers depth",
    "n_head": "n_heads num_heads num_attention_heads heads",
    "n_embd": "n_embed hidden_size d_model embedding_dim embd_dim dim width n_channels channels",
    "block_size": "n_positions n_ctx context_length context_size max_position_embeddings context seq_len",
    "vocab_size": "n_vocab vocab vocabulary_size",
    "threads": "n_threads num_threads",
    "host": "hostname address",
    "model": "base base_model",
}  # fmt: skip
INSTEAD = {  # theirs that have no name here -> what to do
    "n": "call it once for each text, with another seed",
    "num_return_sequences": "call it once for each text, with another seed",
    "do_sample": "temperature=0 takes the most probable token, any other draws",
    "num_beams": "npgpt.GPT2LMHeadModel.generate has beams",
    "device": "npgpt runs on the CPU; npgpt.set_num_threads sets the threads",
}


def meant(name: str, known: Iterable[str]) -> str:
    """Return the name of `known` that is meant by another one, "" where none is.

    >>> meant("learning_rate", ["lr", "steps"]), meant("stpes", ["lr", "steps"])
    ('lr', 'steps')
    """
    known = list(known)
    ours = [one for one in known if name in ELSEWHERE.get(one, "").split()]
    return next(iter(ours or difflib.get_close_matches(name, known, n=1)), "")


def hint(name: str, known: Iterable[str]) -> str:
    """Return the end of an error: "; did you mean ...?", or what to do instead, or "".

    >>> hint("max_tokens", ["prompt", "max_new_tokens"])
    '; did you mean max_new_tokens?'
    """
    found = meant(name, known)
    return f"; {INSTEAD[name]}" if name in INSTEAD else f"; did you mean {found}?" if found else ""


def missing(path: object) -> FileNotFoundError:
    """Return the error for a path that does not exist; where it is rather a text, it says so."""
    name = str(path)
    is_text = len(name) > PATH_LENGTH or "\n" in name or len(name.split()) > 2
    why = "No such file or directory" + "; this must be a path, not a text" * is_text
    return FileNotFoundError(2, why, f"{name[:60]}..." if is_text and len(name) > 60 else name)


def names_checked(function: T) -> T:
    """Decorate a function or class: another keyword than its own is a TypeError that names the one meant."""
    if isinstance(function, type):
        function.__init__ = names_checked(function.__init__)  # type: ignore[misc]
        return function
    parameters = list(inspect.signature(function).parameters)
    known = frozenset(parameters)

    @functools.wraps(function)
    def checked(*args: Any, **keywords: Any) -> Any:
        if not known.issuperset(keywords):
            unknown = next(name for name in keywords if name not in known)
            where = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
            names = [name for name in parameters if name not in ("self", "cls")]
            end = hint(unknown, names) or f"; its arguments are {', '.join(names)}"
            raise TypeError(f"{where}: there is no {unknown}{end}")
        return function(*args, **keywords)

    return checked  # type: ignore[return-value]
