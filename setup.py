"""Builds npgpt._kernels from csrc/; the instruction set of isa_NAME.cpp is set for that file alone."""

import os
import re
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

VERSION = re.search(r'__version__ = "(.*)"', Path("npgpt/__init__.py").read_text()).group(1)
SOURCES = sorted(str(p) for p in Path("csrc").glob("*/*.cpp"))  # sorted: builds are reproducible
HEADERS = sorted(str(p) for pattern in ("*/*.h", "*/*.inl") for p in Path("csrc").glob(pattern))

# -ffp-contract=off: a*b+c is rounded as it is written; results do not depend on what a compiler fuses.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-Wall"]
ISA_FLAGS = {"avx2": ["-mavx2", "-mfma"]}
REQUIRED = os.environ.get("NPGPT_REQUIRE_KERNELS", "0") not in ("", "0")


class BuildKernels(build_ext):
    def build_extensions(self):
        compile_one = self.compiler._compile

        def compile_with_isa(obj, src, ext, cc_args, extra_postargs, pp_opts):
            isa = re.search(r"isa_(\w+)\.cpp$", src)
            flags = ISA_FLAGS.get(isa.group(1), []) if isa else []
            compile_one(obj, src, ext, cc_args, [*extra_postargs, *flags], pp_opts)

        if self.compiler.compiler_type == "unix":
            self.compiler._compile = compile_with_isa
        super().build_extensions()

    def run(self):
        try:
            super().run()
        except Exception as error:  # no compiler, no headers, an unknown CPU: npgpt runs on NumPy alone
            if REQUIRED:
                raise
            print(
                f"WARNING: npgpt's kernels were not built ({error}); it will run, slowly, on NumPy alone",
                file=sys.stderr,
            )


setup(
    ext_modules=[
        Pybind11Extension(
            "npgpt._kernels",
            SOURCES,
            depends=HEADERS,
            cxx_std=17,
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            define_macros=[("NPGPT_VERSION", f'"{VERSION}"')],
            optional=not REQUIRED,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
