"""What goes in: bytes to token ids and back (tokenizer), files to training batches (data)."""

from npgpt.text import data, tokenizer

__all__ = ["data", "tokenizer"]
