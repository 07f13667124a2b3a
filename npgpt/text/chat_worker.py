"""The process that renders chat templates: a request a line on stdin, an answer a line on stdout, both JSON.

chat_template.py starts this file as a script, and ends it where a template takes too long. It imports jinja2
and the standard library alone, so that it is there at once.
"""

import contextlib
import functools
import json
import sys
import traceback
from datetime import datetime
from typing import Any

MAX_MEMORY = 1 << 30  # bytes of address space, where the system can limit them


def main() -> None:
    """Say jinja2's version; then answer each request with {"text"} or {"error"}, until stdin ends."""
    from importlib.metadata import version

    limit_memory()
    environment = make_environment()
    compiled = functools.lru_cache(maxsize=8)(functools.partial(compile_template, environment))
    say({"version": version("jinja2")})
    for line in sys.stdin.buffer:
        request = json.loads(line.decode("utf-8", "surrogatepass"))
        try:
            parts, left = [], request["max_text"]
            for part in compiled(request["template"]).generate(**request["variables"]):
                parts.append(part)
                left -= len(part)
                if left < 0:
                    raise ValueError(f"writes more than {request['max_text']} characters")
            say({"text": "".join(parts)})
        except Exception as error:  # whatever a template can raise
            say({"error": described(error)})


def say(answer: dict[str, str]) -> None:
    """Write an answer; lone surrogates stand for bytes that are no text, and go through as they are."""
    line = json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n"
    sys.stdout.buffer.write(line.encode("utf-8", "surrogatepass"))
    sys.stdout.buffer.flush()


def limit_memory() -> None:
    """Make more than MAX_MEMORY a MemoryError, where the system knows such a limit."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def make_environment() -> Any:
    """Return jinja2's sandbox as Transformers sets it up, without a loader of files.

    An attribute of Python's own is an error as soon as a template reaches for it, there once it is used.
    """
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Sandbox(ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise SecurityError(f"reaches for {attribute!r} of a {type(obj).__name__}")

    class SafeNamespace(Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:  # as Namespace, so that any name is a keyword
            self, *rest = args
            for name in dict(*rest, **kwargs):
                check_name(name)
            Namespace.__init__(self, *rest, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            super().__setitem__(name, value)

    def check_name(name: str) -> None:
        if name.startswith("_"):
            raise SecurityError(f"namespace: a name must not begin with _, got {name!r}")

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # jinja2's own escapes HTML
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
            allow_nan=False,
        )

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, generation_block()])
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "dict": lambda *args, **fields: dict(*args, **fields),  # the class has attributes
        "namespace": SafeNamespace,
    }
    return environment


def generation_block() -> Any:
    """Return the extension of {% generation %}, which marks answers; its body is rendered as it stands."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  of jinja2

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    return Generation


def compile_template(environment: Any, source: str) -> Any:
    """Return a template; TemplateSyntaxError where it is none, or would open another."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateSyntaxError

    tree = environment.parse(source)
    for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        raise TemplateSyntaxError(f"must be one template, got {type(node).__name__.lower()}", node.lineno)
    return environment.from_string(tree)


def described(error: Exception) -> str:
    """Return an error in one line, with the template's line but for what the template says itself."""
    from jinja2.exceptions import TemplateError

    trace = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in trace if frame.filename == "<template>"]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    where = f"line {line}: " if line and type(error) is not TemplateError else ""
    message = str(getattr(error, "message", None) or error)  # str() of a syntax error has the line again
    return where + (" ".join(message.split())[:300] or type(error).__name__)


if __name__ == "__main__":
    main()
