"""Bytes to token ids and back (tokenizer), files to training batches (dataset)."""

from npgpt.text import dataset, tokenizer

__all__ = ["dataset", "tokenizer"]
