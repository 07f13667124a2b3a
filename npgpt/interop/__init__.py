"""Readers and writers of other programs' files: Hugging Face, GGUF, PyTorch, TensorFlow."""
