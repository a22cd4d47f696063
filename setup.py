"""Extensions and their build switches; everything else is in pyproject.toml.

IONTO_RT_STRICT=1                                C compiler warnings are errors; translated C in build/strict
IONTO_RT_SANITIZE=address,undefined or =thread   sanitizer build
IONTO_RT_COVERAGE=1                              line tracing of the .pyx files (hundreds of times slower)
IONTO_RT_TEST_STOPS=1                            each of the four stops can be taken away, for tests/test_stops.py
IONTO_RT_OPTIMIZE=-O0                            another optimisation level (default -O2)
IONTO_RT_EXTENSIONS=0                            none: install the Python part and its requirements alone
"""

import hashlib
import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

COVERAGE = os.environ.get("IONTO_RT_COVERAGE") == "1"
EXTENSIONS = os.environ.get("IONTO_RT_EXTENSIONS") != "0"
SANITIZE = os.environ.get("IONTO_RT_SANITIZE", "")
STRICT = os.environ.get("IONTO_RT_STRICT") == "1"

# -ffp-contract=off keeps the tick's bits the same on every processor; fast-math would delete its NaN guards.
compile_args = [
    os.environ.get("IONTO_RT_OPTIMIZE", "-O2"),
    "-std=c11",
    "-D_GNU_SOURCE",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
build_dir: str | None = "build/cython"
if STRICT:
    compile_args += ["-Werror"]
    build_dir = "build/strict/cython"
if SANITIZE:
    compile_args += ["-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
    if "undefined" in SANITIZE:
        compile_args += ["-fno-sanitize-recover=undefined"]
    link_args += [f"-fsanitize={SANITIZE}"]
if os.environ.get("IONTO_RT_TEST_STOPS") == "1":
    macros += [("IONTO_RT_TEST_STOPS", None)]
if COVERAGE:
    macros += [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
    build_dir = None  # the coverage plugin finds a .pyx only beside its .c

# What decides the bits of a tick: a record names it, and replay asks whether it is the same.
TICK = ["types", "elementary", "wire", "ledger", "impedance", "contact_area", "recursive", "prbs", "programme", "probe",
        "predictive", "constant_current", "regulator", "guard", "guard_estimates", "controller"]  # fmt: skip
TICK_SOURCES = [path for name in TICK for path in (f"ext/{name}.pyx", f"src/ionto_rt/core/{name}.pxd")]
TICK_SOURCES = [path for path in TICK_SOURCES if Path(path).is_file()]
DIGEST = hashlib.sha256(b"".join(Path(path).read_bytes() for path in TICK_SOURCES)).hexdigest()[:16]

extensions = [
    Extension(
        f"ionto_rt.core.{source.stem}",
        [str(source)],
        depends=["setup.py", *(TICK_SOURCES if source.stem == "controller" else ())],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=[*macros, ("IONTO_RT_TICK", f'"{DIGEST}"')] if source.stem == "controller" else macros,
    )
    for source in sorted(Path("ext").glob("*.pyx"))
    if EXTENSIONS
]

DIRECTIVES = {
    "language_level": "3",
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
    "linetrace": COVERAGE,
}

# The guard: on some platforms the translators' worker processes import this file again.
if __name__ == "__main__":
    workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    setup(
        ext_modules=cythonize(
            extensions,
            nthreads=workers if workers > 1 else 0,
            include_path=["src"],
            build_dir=build_dir,
            compiler_directives=DIRECTIVES,
        ),
        options={"build_ext": {"parallel": workers}},
    )
