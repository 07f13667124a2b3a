"""Fine-tuning over HTTP: the handlers of /v1/files and /v1/fine_tuning/jobs."""

import asyncio
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from npgpt.engine.types import Fields
from npgpt.server import bodies, schema
from npgpt.server.files import MAX_FILES, Files
from npgpt.server.guard import Settings, owner_of
from npgpt.server.job import DATA
from npgpt.server.jobs import Jobs, StartFinetune, remove_model
from npgpt.server.models import Models
from npgpt.server.responses import Json, list_page
from npgpt.server.schema import ApiError
from npgpt.text import examples


class Tuning:
    """The handlers, with the files and the jobs that they work on."""

    def __init__(self, models: Models, settings: Settings, start_finetune: StartFinetune) -> None:
        self.models, self.settings, self.files = models, settings, Files()
        self.jobs = Jobs(self.files, start_finetune, models.add, models.main.scheduler.model.n_embd)
        models.is_base, models.remove = self.jobs.is_base, remove_model
        self.jobs.restore(models.main.path.resolve(), models.main.id)

    async def all_files(self, request: Request) -> Response:
        """Answer GET and POST /v1/files."""
        if request.method != "POST":
            query, files = request.state.query, self.files.all(owner_of(request))
            wanted = [file for file in files if query.get("purpose") in (None, file["purpose"])]
            return Json(list_page(wanted[:: -1 if query.get("order") == "asc" else 1], query, MAX_FILES))
        self.files.require_room()
        owner = owner_of(request)
        request = bodies.bounded(request, self.settings.max_upload)
        try:
            async with asyncio.timeout(self.settings.body_seconds * 4):
                async with request.form(max_files=1, max_fields=16, max_part_size=1 << 16) as form:
                    upload, fields = form.get("file"), schema.nested(form.multi_items())
                    if isinstance(upload, UploadFile):
                        fields["file"] = upload.filename or ""
                    elif "file" in fields:
                        raise ApiError(400, "file must be a file", "file", "invalid_value")
                    schema.check_record(schema.UPLOAD, fields)
                    assert isinstance(upload, UploadFile)
                    name = upload.filename or ""
                    return Json(await asyncio.to_thread(self.files.add, name, upload.file, owner))
        except TimeoutError:
            raise ApiError(408, "the body did not come in time", None, "timeout") from None
        except (HTTPException, UnicodeError, AssertionError):
            raise ApiError(400, "the body must be multipart/form-data", None, "invalid_body") from None

    async def one_file(self, request: Request) -> Response:
        """Answer GET and DELETE /v1/files/{id}."""
        id, owner = request.path_params["id"], owner_of(request)
        done = self.files.delete if request.method == "DELETE" else self.files.get
        return Json(done(id, owner))

    async def file_content(self, request: Request) -> Response:
        """Answer GET /v1/files/{id}/content."""
        id = self.files.get(request.path_params["id"], owner_of(request))["id"]
        return FileResponse(self.files.path(id), media_type="application/octet-stream")

    async def all_jobs(self, request: Request) -> Response:
        """Answer GET and POST /v1/fine_tuning/jobs."""
        if request.method != "POST":
            wanted = request.state.query.get("metadata")
            jobs = [job for job in self.jobs.all(owner_of(request)) if _has(job, wanted)]
            return Json(list_page(jobs, request.state.query))
        fields = await bodies.checked(request, self.settings)
        base = self.models.get(fields["model"]).path
        if not base.is_dir():
            message = "only a run or a Hugging Face folder can be fine-tuned, and this model is a file"
            raise ApiError(400, message, "model", "invalid_value")
        owner, files = owner_of(request), self.files
        data = {name: files.path(files.get(fields[name], owner)["id"]) for name in DATA if name in fields}
        await asyncio.to_thread(check_examples, data)
        return Json(self.jobs.create(fields, base.resolve(), owner))

    async def one_job(self, request: Request) -> Response:
        """Answer GET /v1/fine_tuning/jobs/{id}."""
        return Json(self.jobs.get(request.path_params["id"], owner_of(request)))

    async def job_events(self, request: Request) -> Response:
        """Answer GET /v1/fine_tuning/jobs/{id}/events."""
        return Json(
            list_page(self.jobs.events(request.path_params["id"], owner_of(request)), request.state.query)
        )

    async def job_checkpoints(self, request: Request) -> Response:
        """Answer GET /v1/fine_tuning/jobs/{id}/checkpoints."""
        found = await asyncio.to_thread(self.jobs.checkpoints, request.path_params["id"], owner_of(request))
        return Json(list_page(found, request.state.query, 10))

    async def cancel_job(self, request: Request) -> Response:
        """Answer POST /v1/fine_tuning/jobs/{id}/cancel."""
        return Json(await self.jobs.cancel(request.path_params["id"], owner_of(request)))


def check_examples(data: dict[str, Path]) -> None:
    """Raise ApiError 400 for a file, by the name of its field, that holds no examples or a bad line."""
    form = None
    for name, path in data.items():
        try:
            found, _ = examples.read_examples(path, form=form)
        except ValueError as error:
            message = str(error).replace(str(path), name)[:500]
            raise ApiError(400, message, name, f"invalid_{name}") from None
        form = found[0].form


def _has(job: Fields, wanted: Fields | None) -> bool:
    """Return True if a job has all that is wanted of its metadata; {}: if it has none."""
    if wanted is None:
        return True
    found = job["metadata"] or {}
    return all(found.get(name) == value for name, value in wanted.items()) if wanted else not found
