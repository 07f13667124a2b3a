"""Build npgpt._kernels from csrc/, and libnpgpt for C programs from the folders of it that know no Python.

Files are compiled side by side: NPGPT_BUILD_JOBS at a time, or one for each CPU that this process may use.
npgpt._kernels links with libnpgpt.so, which lies in lib/ beside it: kernels, threads and tokenizers are there
once. A file is compiled again only where the compiler would see something else. The instruction set of
isa_NAME.cpp is set for that file alone. libnpgpt in one source, for programs that hold everything, is packed
into every wheel. With NPGPT_PURE=1 nothing is compiled: the wheel is py3-none-any, and runs on NumPy alone.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import polib
import pybind11
from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

VERSION = re.search(r'__version__ = "(.*)"', Path("npgpt/version.py").read_text()).group(1)
X86 = platform.machine().lower() in ("x86_64", "amd64")
SOURCES = sorted(str(p) for p in Path("csrc").glob("*/*.cpp"))  # sorted: builds are reproducible
SOURCES = [s for s in SOURCES if X86 or "isa_avx" not in s]
OTHERS = ("_posix.cpp", "_windows.cpp", "_none.cpp")  # for other systems
# csrc/training is in the one source alone
SOURCES = [s for s in SOURCES if not s.endswith(OTHERS) and "/training/" not in s]
# train.cpp and suffixes.cpp are the files there that inference has no use for
LIBRARY = [s for s in SOURCES if re.search(r"csrc/(kernels|threads|text|runtime)/(?!train|suffixes)", s)]
HEADERS = sorted(str(p) for pattern in ("*/*.h", "*/*.inl") for p in Path("csrc").glob(pattern))

# -ffp-contract=off: a*b+c is rounded as it is written; results do not depend on what a compiler fuses.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-Wall"]
# For libnpgpt but its tokenizers: -O2 follows -O3 and wins: as fast, a third smaller.
LIBRARY_FLAGS = ["-O2"]
# For kernels, where vectors are written by hand and nothing throws
KERNEL_FLAGS = ["-O2", "-fno-exceptions", "-fno-asynchronous-unwind-tables"]
# For them too: what of -O3 pays in training, and with AVX2
TRAINING_FLAGS = ["-fvect-cost-model=dynamic"]
AVX_TRAINING_FLAGS = ["-fipa-cp-clone", "-funswitch-loops", "-fsplit-loops"]
# What opens files, checks arguments and leads a session computes little: small, not fast. So is csrc/python.
SMALL = re.compile("csrc/(runtime/(api|gguf|model|session|stream|vocabulary)|python/)")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
ISA_FLAGS = {"avx2": AVX2, "avx512vnni": [*AVX2, "-mavx512vl", "-mavx512vnni"]}
LINK_FLAGS = ["-pthread", *(["-Wl,-s"] if sys.platform == "linux" else [])]
REQUIRED, PURE = (os.environ.get(f"NPGPT_{n}", "0") not in ("", "0") for n in ("REQUIRE_KERNELS", "PURE"))


PKG_CONFIG = """prefix=${{pcfiledir}}/../..
libdir=${{prefix}}/lib

Name: npgpt
Description: A trained GPT inside any program
Version: {version}
Cflags: -I${{prefix}}/include
Libs: -L${{libdir}} -lnpgpt -Wl,-rpath,${{libdir}}
"""


# What shared libraries show: the C ABI, and what csrc's headers say is visible. That is for npgpt._kernels
# of the same version of npgpt, and for no other program. Where the C++ library is inside, as in wheels, both
# give and free exceptions by one copy of it: without memory these lie in a place that only that copy knows.
EXPORTED = {
    "libnpgpt": """NPGPT_1 {{ global: npgpt_*; local: *; }};
NPGPT_INTERNAL_{version} {{
    global: _ZN5npgpt*; _ZNK5npgpt*; __cxa_allocate_*exception; __cxa_free_*exception;
}};
""",
    "_kernels": "{{ global: PyInit_*; local: *; }};\n",
}


def own_flags(source: str) -> list[str]:
    """Return the flags of one file, which follow those of all."""
    if isa := re.search(r"isa_(\w+)\.cpp$", source):
        more = AVX_TRAINING_FLAGS if "avx" in source else []
        return [*KERNEL_FLAGS, *ISA_FLAGS.get(isa[1], []), *TRAINING_FLAGS, *more]
    if SMALL.match(source):
        return ["-Os"]
    return [] if "/text/" in source else LIBRARY_FLAGS  # the tokenizers gain by -O3


def build_jobs() -> int:
    """Return how many files to compile at a time."""
    if given := os.environ.get("NPGPT_BUILD_JOBS"):
        if not given.isdecimal() or int(given) < 1:
            raise ValueError(f"NPGPT_BUILD_JOBS must be a number of at least 1, got {given}")
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def digest(path: str) -> str:
    """Return the hash of a file's content, which tells more than its time: an older file may come back."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def longest_first(source: str) -> tuple[bool, bool, int]:
    """Return a key to sort by: what includes pybind11, then the kernels, then the rest by size."""
    return "/python/" not in source, "/isa_" not in source, -Path(source).stat().st_size


def pack_source():
    """Write libnpgpt as one source into the package, which `python -m npgpt.embed --source` unpacks."""
    subprocess.run([sys.executable, "csrc/amalgamate.py", "npgpt/runtime/source.tar.gz"], check=True)


class BuildKernels(build_ext):
    def finalize_options(self):
        super().finalize_options()
        if (
            self.editable_mode
        ):  # setuptools gives a folder that is gone afterwards: an extra would compile all again
            self.build_temp = os.path.join("build", f"temp.{self.plat_name}-{sys.implementation.cache_tag}")

    def build_extensions(self):
        if self.compiler.compiler_type != "unix":
            super().build_extensions()
            return
        pack_source()  # for `build_ext --inplace` too
        module, temporary = Path(self.get_ext_fullpath("npgpt._kernels")), Path(self.build_temp)
        module.unlink(missing_ok=True)  # after a failure nothing of an older build is left
        shutil.rmtree(module.parent / "lib", ignore_errors=True)
        objects = {source: str((temporary / source).with_suffix(".o")) for source in SOURCES}
        self.compile_stale(
            temporary, {object: (source, own_flags(source)) for source, object in objects.items()}
        )
        self.write_headers(module.parent)
        shared = [objects[source] for source in LIBRARY]
        own = [object for source, object in objects.items() if source not in LIBRARY]
        library = module.parent / "lib" / "libnpgpt.so"
        self.link_shared(shared, library, "libnpgpt", ["-Wl,-soname,libnpgpt.so", "-Wl,-Bsymbolic"])
        # an RPATH, not a RUNPATH: LD_LIBRARY_PATH may name the libnpgpt.so of another version
        beside = [str(library), "-Wl,--disable-new-dtags,-rpath,$ORIGIN/lib"]
        self.link_shared(own, module, "_kernels", beside)

    def link_shared(self, objects: list[str], to: Path, name: str, flags: list[str]):
        """Link a library that shows what EXPORTED says of `name`."""
        script = Path(self.build_temp, f"{name}.exported")
        script.write_text(EXPORTED[name].format(version=VERSION))
        flags = [*flags, f"-Wl,--version-script={script}", "-Wl,--gc-sections", *LINK_FLAGS]
        self.compiler.link_shared_object(objects, str(to), extra_postargs=flags, target_lang="c++")

    def object_keys(self, compiler: list[str], jobs: dict[str, tuple[str, list[str]]]) -> dict[str, str]:
        """Return {object: hash of all that it is made of}, which is kept beside it."""
        # pip puts pybind11 into another folder each time: its version stands for it, as Python's own does
        version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
        common = [*compiler, version, VERSION, pybind11.__version__, sys.version, *map(digest, HEADERS)]
        return {
            object: hashlib.sha256("\0".join([*common, digest(source), *flags]).encode()).hexdigest()
            for object, (source, flags) in jobs.items()
        }

    def compile_stale(self, temporary: Path, jobs: dict[str, tuple[str, list[str]]]):
        """Compile {object: (source, flags)} where that would make another object than the one there."""
        (extension,) = self.extensions
        compiler = [*self.compiler.compiler_so_cxx, *extension.extra_compile_args]
        includes = [f"-I{path}" for path in [*extension.include_dirs, *self.compiler.include_dirs]]
        includes += [f"-D{name}={value}" for name, value in extension.define_macros]
        keys = self.object_keys(compiler, jobs)

        def is_stale(object: str) -> bool:
            key = Path(f"{object}.key")
            return self.force or not (
                os.path.exists(object) and key.exists() and key.read_text() == keys[object]
            )

        stale = sorted(filter(is_stale, jobs), key=lambda object: longest_first(jobs[object][0]))
        lock, begun, failed = Lock(), [], []

        def compile_one(object: str):
            source, flags = jobs[object]
            with lock:
                if failed:
                    return
                begun.append(object)
                print(f"compiling {len(begun)}/{len(stale)} {source}", flush=True)
            os.makedirs(os.path.dirname(object), exist_ok=True)
            python = includes if "/python/" in source else []
            command = [*compiler, "-c", *python, *flags, source, "-o", f"{object}.tmp"]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            with lock:
                if done.returncode:
                    failed.append(f"{command[0]} failed with exit code {done.returncode} on {source}")
                else:
                    Path(f"{object}.key").unlink(missing_ok=True)
                    os.replace(f"{object}.tmp", object)  # a compiler that was killed leaves no object
                    Path(f"{object}.key").write_text(keys[object])
                if done.stdout:
                    print(done.stdout, flush=True)

        with ThreadPoolExecutor(build_jobs()) as pool:
            list(pool.map(compile_one, stale))
        if failed:
            raise CompileError(failed[0])

    def copy_extensions_to_source(self):  # pip install -e .
        super().copy_extensions_to_source()
        for folder in ("lib", "include"):
            built = Path(self.build_lib, "npgpt", folder)
            if built.exists():
                shutil.copytree(built, Path("npgpt", folder), dirs_exist_ok=True)

    def write_headers(self, package: Path):
        """Write package/include/npgpt.h and package/lib/pkgconfig/npgpt.pc."""
        pkgconfig, include = package / "lib" / "pkgconfig", package / "include"
        pkgconfig.mkdir(parents=True, exist_ok=True)
        include.mkdir(exist_ok=True)
        shutil.copyfile("csrc/runtime/npgpt.h", include / "npgpt.h")
        (pkgconfig / "npgpt.pc").write_text(PKG_CONFIG.format(version=VERSION))

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


class MakeData(build_py):
    def run(self):  # of an editable install too
        pack_source()
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
            extra_link_args=LINK_FLAGS,
            define_macros=[("NPGPT_VERSION", f'"{VERSION}"')],
            optional=not REQUIRED,
        )
    ],
    cmdclass={"build_ext": BuildKernels, "build_py": MakeData},
)
