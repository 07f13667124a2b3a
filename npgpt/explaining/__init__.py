"""Why a model writes what it writes: attribution, attention, the lens of layers, the parts of a model."""
