"""How fast npgpt is on a machine, beside its limits and what else is installed: what `npgpt.bench` does."""
