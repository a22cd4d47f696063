"""Extensions and their build switches; everything else is in pyproject.toml.

IONTO_RT_SANITIZE=address,undefined or =thread   sanitizer build
IONTO_RT_COVERAGE=1                              line tracing of the .pyx files (hundreds of times slower)
IONTO_RT_OPTIMIZE=-O0                            another optimisation level (default -O2)
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

COVERAGE = os.environ.get("IONTO_RT_COVERAGE") == "1"
SANITIZE = os.environ.get("IONTO_RT_SANITIZE", "")

# -ffp-contract=off keeps the tick's bits the same on every processor; -ffast-math would delete its NaN guards.
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
if SANITIZE:
    compile_args += ["-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
    if "undefined" in SANITIZE:
        compile_args += ["-fno-sanitize-recover=undefined"]
    link_args += [f"-fsanitize={SANITIZE}"]
if COVERAGE:
    macros += [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]

extensions = [
    Extension(
        f"ionto_rt.core.{source.stem}",
        [str(source)],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
    )
    for source in sorted(Path("ext").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["src"],
        build_dir=None if COVERAGE else "build/cython",
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
            "linetrace": COVERAGE,
        },
    )
)
