"""The steps from public sources to one clean Portuguese text; models/pt/text.py runs them."""
