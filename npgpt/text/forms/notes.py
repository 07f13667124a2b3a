"""What was noticed while files were read: how they were taken, and what was left out of them."""

from collections import Counter
from dataclasses import dataclass, field

EXAMPLES = 3


@dataclass
class Notes:
    """What was noticed in one file."""

    form: str = "text"  #: what it was read as
    encoding: str = "utf-8"  #: which it was in
    documents: int = 1  #: that it holds
    unit: str = "line"  #: what is counted to say where a text is in it: line, page, paragraph or record
    dropped: Counter[str] = field(default_factory=Counter)  #: why -> how often
    examples: dict[str, list[str]] = field(default_factory=dict)  #: why -> the beginnings of some
    names: dict[str, None] = field(default_factory=dict)  #: of who writes, or is called, in a chat

    def drop(self, why: str, what: str = "", n: int = 1) -> None:
        """Count what was left out, and keep the first ones as examples."""
        self.dropped[why] += n
        shown = self.examples.setdefault(why, [])
        if what and len(shown) < EXAMPLES:
            shown.append(what if len(what) <= 80 else what[:77] + "...")
