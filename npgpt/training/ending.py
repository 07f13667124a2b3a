"""How a training ended, as one word that programs can keep and compare."""

from enum import StrEnum


class Ending(StrEnum):
    """The ways in which a training ends; the values are written to trainer.json and to the commands' JSON."""

    DONE = "done"  # all steps
    TARGET = "target reached"  # --target-loss
    MEMORISED = "memorised"  # a small text, of a plan that memorises
    PATIENCE = "patience"  # --patience validations without a better one
    INTERRUPTED = "interrupted"  # by Ctrl-C or SIGTERM; such a run goes on

    @classmethod
    def read(cls, word: str | None) -> "Ending | None":
        """Return the ending that a trainer.json names, None for a run that has not ended.

        Runs of npgpt 0.1.0 that ended by their patience hold a sentence instead of a word.
        """
        if word is None:
            return None
        return cls.PATIENCE if word.startswith("stopped, ") else cls(word)
