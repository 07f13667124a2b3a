"""What the server says of itself: the page, its health, its description, its figures."""

import contextlib
import csv
import math
import os
from pathlib import Path

from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from npgpt.server import openapi
from npgpt.server.completions import BUCKETS, Texts
from npgpt.server.guard import Settings, Traffic
from npgpt.server.models import Models
from npgpt.server.responses import Json
from npgpt.server.schema import ApiError
from npgpt.text import examples

PAGE = Path(__file__).with_name("index.html")
INLINE = "'unsafe-inline'"  # the page is one file
POLICY = f"default-src 'none'; style-src {INLINE}; script-src {INLINE}; connect-src 'self'; img-src data:"
CURVE = 300  # points of the loss curve


class About:
    """A handler for each route."""

    def __init__(
        self, models: Models, texts: Texts, traffic: Traffic, settings: Settings, state: State, version: str
    ) -> None:
        self.models, self.texts, self.traffic, self.settings = models, texts, traffic, settings
        self.state, self.version = state, version

    async def page(self, request: Request) -> Response:
        """GET /: the page to try the model."""
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return FileResponse(PAGE, media_type="text/html; charset=utf-8", headers=headers)

    async def health(self, request: Request) -> Response:
        """GET /health: 503 once the server is shutting down."""
        if self.state.closing:
            raise ApiError(503, "the server is shutting down", None, "unavailable")
        return Json({"status": "ok"})

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return Json(openapi.describe(self.version, list(self.models.all)))

    async def run(self, request: Request) -> Response:
        """GET /run: what the page shows of the model."""
        engine = self.models.main.engine
        tokenizer = engine.vocabulary.tokenizer
        return Json(
            {
                "model": self.models.main.id,
                "context": engine.model.block_size,
                "vocabulary": engine.model.vocab_size,
                "max_tokens": self.settings.max_tokens,
                "roles": examples.has_roles(tokenizer),
                "loss": loss_curve(self.models.main.path / "metrics.csv"),
            }
        )

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, in Prometheus's text format."""
        engines = self.models.engines
        rows = [
            ("npgpt_sessions", "gauge", sum(engine.running for engine in engines)),
            ("npgpt_waiting", "gauge", sum(engine.waiting for engine in engines)),
            ("npgpt_requests_in_flight", "gauge", self.traffic.in_flight),
            ("npgpt_tokens_total", "counter", sum(engine.tokens for engine in engines)),
            ("npgpt_prompt_tokens_total", "counter", sum(engine.prompt_tokens for engine in engines)),
            ("npgpt_steps_total", "counter", sum(engine.steps for engine in engines)),
        ]
        if Path("/proc/self/statm").exists():  # Linux
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            rows += [
                ("process_resident_memory_bytes", "gauge", pages * os.sysconf("SC_PAGE_SIZE")),
                ("process_open_fds", "gauge", len(os.listdir("/proc/self/fd"))),
            ]
        lines = [f"# TYPE {name} {kind}\n{name} {value}" for name, kind, value in rows]
        lines.append("# TYPE npgpt_answers_total counter")
        lines += [f'npgpt_answers_total{{status="{s}"}} {n}' for s, n in sorted(self.traffic.answers.items())]
        lines.append("# TYPE npgpt_first_token_seconds histogram")
        total = 0
        for bound, n in zip((*BUCKETS, "+Inf"), self.texts.first_tokens, strict=True):
            total += n
            lines.append(f'npgpt_first_token_seconds_bucket{{le="{bound}"}} {total}')
        lines.append(f"npgpt_first_token_seconds_sum {self.texts.first_seconds}")
        lines.append(f"npgpt_first_token_seconds_count {total}")
        return PlainTextResponse("\n".join(lines) + "\n")


def loss_curve(path: Path) -> list[list[float | None]]:
    """[step, training loss, validation loss or null] of a run, at most about CURVE of them."""
    rows = []
    missing = (OSError, KeyError, ValueError, TypeError)  # TypeError: half a line
    with contextlib.suppress(*missing), open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows.append([int(row["step"]), float(row["train_loss"]), float(row["val_loss"] or "nan")])
    stride = max(1, len(rows) // CURVE)
    kept = [row for i, row in enumerate(rows) if i % stride == 0 or i == len(rows) - 1 or row[2] == row[2]]
    return [[value if math.isfinite(value) else None for value in row] for row in kept]
