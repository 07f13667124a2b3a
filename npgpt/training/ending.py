"""How a training ended, as one word that programs can keep and compare."""

from enum import StrEnum


class Ending(StrEnum):
    """How a training ended; the values stand in trainer.json and in the JSON of the commands."""

    DONE = "done"  # all steps
    TARGET = "target reached"  # --target-loss
    MEMORISED = "memorised"  # a small text, which was to be memorised
    PATIENCE = "patience"  # --patience validations without a better one
    INTERRUPTED = "interrupted"  # by Ctrl-C or SIGTERM; such a run goes on

    @classmethod
    def read(cls, word: str | None) -> "Ending | None":
        """Return the ending that a trainer.json names, None for a run that has not ended.

        Runs of 0.1.0 that ended by their patience have a sentence there.
        """
        if word is None:
            return None
        return cls.PATIENCE if word.startswith("stopped, ") else cls(word)
