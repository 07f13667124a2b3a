"""Other people's names for the same models: the article's pseudo-API, Transformers' classes."""
