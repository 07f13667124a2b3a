"""What a GPT makes of one text of 200 kB after 1, 10 and 60 minutes: losses, and a sample of each.

    python -m benchmarks.first_hour [--minutes 1 10 60] [--json]

The text is the beginning of Dom Casmurro, cut at the last line end within 200,000 bytes; NPGPT_DATA is where
it lies. It trains by the default plan through `python -m npgpt.train --minutes M`, each time from the
beginning. `python -m npgpt.evaluate` measures on the test part, the last tenth.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import npgpt
from benchmarks import record
from benchmarks.vocabulary import run_command

TITLE, FILE = "Dom Casmurro", "machado/romance_domCasmurro.txt"
N_BYTES = 200_000
PROMPT, TOKENS = "Capitu", 300


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10, 60], help="of each training")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    record.add_flags(parser)
    args = parser.parse_args()
    text, rows = beginning(Path(os.environ["NPGPT_DATA"]) / FILE), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(text)
        for minutes in args.minutes:
            run = Path(folder) / f"{minutes:g}-minutes"
            trained = run_command("train", str(path), "--minutes", f"{minutes:g}", "--out", str(run))
            measured = run_command("evaluate", str(run))
            rows.append(
                {
                    "minutes": minutes,
                    **{name: trained[name] for name in ("steps", "best_step", "best_val_loss", "seconds")},
                    **{name: measured[name] for name in ("bits_per_byte", "accuracy@1")},
                    "sample": npgpt.load(run).generate(PROMPT, TOKENS, temperature=0.8, seed=1),
                }
            )
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    record.save(args, "first_hour", rows, title=TITLE, n_bytes=len(text), prompt=PROMPT)
    if args.json:
        print(json.dumps(rows))


def beginning(path: Path) -> bytes:
    """The whole lines within the first N_BYTES."""
    return path.read_bytes()[:N_BYTES].rpartition(b"\n")[0] + b"\n"


if __name__ == "__main__":
    main()
