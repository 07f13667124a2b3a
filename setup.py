"""Builds npgpt._kernels from csrc/, and libnpgpt for C programs from the rooms of it that know no Python.

The instruction set of isa_NAME.cpp is set for that file alone. With NPGPT_PURE=1 nothing is built:
the wheel is py3-none-any, and runs on NumPy alone.
"""

import os
import platform
import re
import shutil
import sys
from pathlib import Path

import polib
from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup
from setuptools.command.build_py import build_py

VERSION = re.search(r'__version__ = "(.*)"', Path("npgpt/version.py").read_text()).group(1)
X86 = platform.machine().lower() in ("x86_64", "amd64")
SOURCES = sorted(str(p) for p in Path("csrc").glob("*/*.cpp"))  # sorted: builds are reproducible
SOURCES = [s for s in SOURCES if X86 or "isa_avx" not in s]
# train.cpp is the one file there that inference has no use for
LIBRARY = [s for s in SOURCES if re.search(r"csrc/(kernels|threads|text|runtime)/(?!train)", s)]
HEADERS = sorted(str(p) for pattern in ("*/*.h", "*/*.inl") for p in Path("csrc").glob(pattern))

# -ffp-contract=off: a*b+c is rounded as it is written; results do not depend on what a compiler fuses.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-Wall"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
ISA_FLAGS = {"avx2": AVX2, "avx512vnni": [*AVX2, "-mavx512vl", "-mavx512vnni"]}
STRIP = ["-Wl,-s"] if sys.platform == "linux" else []
REQUIRED, PURE = (os.environ.get(f"NPGPT_{n}", "0") not in ("", "0") for n in ("REQUIRE_KERNELS", "PURE"))


PKG_CONFIG = """prefix=${{pcfiledir}}/../..
libdir=${{prefix}}/lib

Name: npgpt
Description: A trained GPT inside any program
Version: {version}
Cflags: -I${{prefix}}/include
Libs: -L${{libdir}} -lnpgpt -Wl,-rpath,${{libdir}}
Libs.private: -lstdc++ -pthread -lm
"""


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
        extension = Path(self.get_ext_fullpath("npgpt._kernels"))
        if self.compiler.compiler_type == "unix" and extension.exists():
            self.build_library(extension.parent)

    def copy_extensions_to_source(self):  # pip install -e .
        super().copy_extensions_to_source()
        for folder in ("lib", "include"):
            built = Path(self.build_lib, "npgpt", folder)
            if built.exists():
                shutil.copytree(built, Path("npgpt", folder), dirs_exist_ok=True)

    def build_library(self, package: Path):
        """package/lib/libnpgpt.so and .a, package/include/npgpt.h, package/lib/pkgconfig/npgpt.pc."""
        library, include = package / "lib", package / "include"
        (library / "pkgconfig").mkdir(parents=True, exist_ok=True)
        include.mkdir(exist_ok=True)
        shutil.copyfile("csrc/runtime/npgpt.h", include / "npgpt.h")
        # -O2, the last to be said, is as fast and a third smaller; sections: a program keeps what it uses
        flags = [*FLAGS, "-O2", "-std=c++17", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections"]
        flags += ["-DNPGPT_INFERENCE", "-Wno-unused-function"]
        objects = self.compiler.compile(
            LIBRARY,
            output_dir=os.path.join(self.build_temp, "libnpgpt"),
            extra_postargs=flags,
            depends=HEADERS,
        )
        archive = library / "libnpgpt.a"
        archive.unlink(missing_ok=True)
        self.compiler.create_static_lib(objects, "npgpt", output_dir=str(library))
        self.compiler.link_shared_object(
            objects,
            str(library / "libnpgpt.so"),
            extra_postargs=["-pthread", "-Wl,-soname,libnpgpt.so", "-Wl,--gc-sections", "-Wl,-s"],
            target_lang="c++",
        )
        (library / "pkgconfig" / "npgpt.pc").write_text(PKG_CONFIG.format(version=VERSION))

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


class CompileCatalogues(build_py):
    def run(self):  # of an editable install too
        for catalogue in Path("npgpt/console/locale").glob("*/LC_MESSAGES/npgpt.po"):
            polib.pofile(str(catalogue)).save_as_mofile(str(catalogue.with_suffix(".mo")))
        super().run()


setup(
    ext_modules=[]
    if PURE
    else [
        Pybind11Extension(
            "npgpt._kernels",
            SOURCES,
            depends=HEADERS,
            cxx_std=17,
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread", *STRIP],
            define_macros=[("NPGPT_VERSION", f'"{VERSION}"')],
            optional=not REQUIRED,
        )
    ],
    cmdclass={"build_ext": BuildKernels, "build_py": CompileCatalogues},
)
