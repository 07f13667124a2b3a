"""The server about itself: the page, its health, its description, its figures."""

import asyncio
import contextlib
import csv
import math
import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from npgpt.server import openapi
from npgpt.server.completions import BUCKETS, Completions
from npgpt.server.guard import Settings, Status
from npgpt.server.models import Models
from npgpt.server.responses import Json
from npgpt.server.schema import ApiError
from npgpt.text import examples

PAGE = Path(__file__).with_name("index.html")
INLINE = "'unsafe-inline'"  # the page is one file
POLICY = f"default-src 'none'; style-src {INLINE}; script-src {INLINE}; connect-src 'self'; img-src data:"
CURVE = 300  # points of the loss curve


class About:
    """The handlers of the routes that report on the server."""

    def __init__(
        self, models: Models, completions: Completions, status: Status, settings: Settings, version: str
    ) -> None:
        self.models, self.completions, self.status = models, completions, status
        self.settings, self.version = settings, version

    async def page(self, request: Request) -> Response:
        """Answer GET / with the page to try the model."""
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return FileResponse(PAGE, media_type="text/html; charset=utf-8", headers=headers)

    async def health(self, request: Request) -> Response:
        """Answer GET /health; raise ApiError 503 once the server is shutting down."""
        if self.status.closing:
            raise ApiError(503, "the server is shutting down", None, "unavailable")
        return Json({"status": "ok"})

    async def openapi(self, request: Request) -> Response:
        """Answer GET /openapi.json."""
        return Json(openapi.describe(self.version, list(self.models.all)))

    async def run(self, request: Request) -> Response:
        """Answer GET /run with what the page shows of the model."""
        scheduler = self.models.main.scheduler
        tokenizer, special = scheduler.tokenizer, scheduler.tokenizer.vocabulary.special
        fault = await asyncio.to_thread(examples.why_no_chat, tokenizer)
        return Json(
            {
                "model": self.models.main.id,
                "context": scheduler.model.block_size,
                "vocabulary": scheduler.model.vocab_size,
                "max_tokens": self.settings.max_tokens,
                "roles": not fault,
                "special": list(special),  # these have a name and no text
                # spelt out in what npgpt's roles were taught by, they are learnt as letters
                "ends": [] if examples.template_of(tokenizer) else tokenizer.end_names,
                "loss": loss_curve(self.models.main.path / "metrics.csv"),
            }
        )

    async def metrics(self, request: Request) -> Response:
        """Answer GET /metrics in Prometheus's text format."""
        schedulers = self.models.schedulers
        rows = [
            ("npgpt_sessions", "gauge", sum(scheduler.running for scheduler in schedulers)),
            ("npgpt_waiting", "gauge", sum(scheduler.waiting for scheduler in schedulers)),
            ("npgpt_requests_in_flight", "gauge", self.status.in_flight),
            ("npgpt_tokens_total", "counter", sum(scheduler.tokens for scheduler in schedulers)),
            ("npgpt_prompt_tokens_total", "counter", sum(s.prompt_tokens for s in schedulers)),
            ("npgpt_cached_prompt_tokens_total", "counter", sum(s.cached_tokens for s in schedulers)),
            ("npgpt_steps_total", "counter", sum(scheduler.steps for scheduler in schedulers)),
        ]
        if Path("/proc/self/statm").exists():  # Linux
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            rows += [
                ("process_resident_memory_bytes", "gauge", pages * os.sysconf("SC_PAGE_SIZE")),
                ("process_open_fds", "gauge", len(os.listdir("/proc/self/fd"))),
            ]
        lines = [f"# TYPE {name} {kind}\n{name} {value}" for name, kind, value in rows]
        lines.append("# TYPE npgpt_answers_total counter")
        answers = sorted(self.status.answers.items())
        lines += [f'npgpt_answers_total{{status="{code}"}} {n}' for code, n in answers]
        lines.append("# TYPE npgpt_first_token_seconds histogram")
        total = 0
        for bound, n in zip((*BUCKETS, "+Inf"), self.completions.first_token_counts, strict=True):
            total += n
            lines.append(f'npgpt_first_token_seconds_bucket{{le="{bound}"}} {total}')
        lines.append(f"npgpt_first_token_seconds_sum {self.completions.first_token_seconds}")
        lines.append(f"npgpt_first_token_seconds_count {total}")
        return PlainTextResponse("\n".join(lines) + "\n")


def loss_curve(path: Path) -> list[list[float | None]]:
    """Return about CURVE points of a run's metrics.csv: step, training loss, validation loss or None each.

    The list is empty if there is no such file, and ends where the file is broken.
    """
    rows = []
    missing = (OSError, KeyError, ValueError, TypeError)  # TypeError: half a line
    with contextlib.suppress(*missing), open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows.append([int(row["step"]), float(row["train_loss"]), float(row["val_loss"] or "nan")])
    stride = max(1, len(rows) // CURVE)
    kept = [row for i, row in enumerate(rows) if i % stride == 0 or i == len(rows) - 1 or row[2] == row[2]]
    return [[value if math.isfinite(value) else None for value in row] for row in kept]
