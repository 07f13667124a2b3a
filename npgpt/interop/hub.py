"""Checkpoints from the Hugging Face Hub, through huggingface_hub where it is installed."""

import re
from pathlib import Path

FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
         "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
         "special_tokens_map.json", "added_tokens.json",
         "adapter_config.json", "adapter_model.safetensors")  # fmt: skip

PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # fetched where there is nothing else

FORMATS = (".gguf", ".safetensors", ".pt", ".pth", ".txt")


def is_name(path: Path) -> bool:
    """Return True where a missing path may be a name on the Hub: "gpt2", "openai-community/gpt2".

    "runs/x" beside a folder runs is none, nor is "x.gguf": those are typing errors, which are not sent there.

    >>> is_name(Path("openai-community/gpt2")), is_name(Path("x.gguf"))
    (True, False)
    """
    if path.suffix in FORMATS:
        return False
    name = re.fullmatch(r"([\w-][\w.-]*)(/[\w-][\w.-]*)?", path.as_posix())
    return name is not None and not (name[2] and Path(name[1]).is_dir())


def fetch(name: str) -> Path:
    """Return the folder of a model's files in huggingface_hub's cache; download them if need be.

    FileNotFoundError, with the way out, without huggingface_hub or where the Hub does not give the model.
    """
    put = f"or put its config.json, model.safetensors and the tokenizer's files into ./{name}"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        how = f"pip install 'npgpt[hub]' to fetch it from the Hugging Face Hub, {put}"
        raise FileNotFoundError(2, f"No such folder; {how}", name) from None
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(FILES)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*FILES, *PICKLED]))
        return folder
    except Exception as error:  # of many kinds: no network, no such name, no access
        reason = str(error).split("\n")[0] or type(error).__name__
        how = f"and the Hugging Face Hub does not give it ({reason}); be online, {put}"
        raise FileNotFoundError(2, f"No such folder, {how}", name) from None
