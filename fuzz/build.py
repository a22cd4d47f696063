"""Builds the targets in Cython.

    python fuzz/build.py            with clang, for libFuzzer: the core instrumented, and one program for each target

in a copy of the tree, `build/fuzz`, where `make fuzz` has put it. `build_targets` is what the tests use.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
TARGETS = ("wire_target", "device_target")
DIRECTIVES = {"language_level": "3", "boundscheck": False, "wraparound": False, "cdivision": True}
SANITIZERS = "address,undefined"


def build_targets(folder: Path, names: tuple[str, ...] = TARGETS, flags: tuple[str, ...] = ()) -> None:
    """Compile the targets into `folder` against the package that this interpreter finds."""
    import ionto_rt

    package = Path(ionto_rt.__file__).parent
    extensions = cythonize(
        [
            Extension(
                name,
                [str(HERE / f"{name}.pyx")],
                extra_compile_args=["-O2", "-std=c11", "-D_GNU_SOURCE", "-Wno-unused-function", *flags],
                extra_link_args=list(flags),
            )
            for name in names
        ],
        include_path=[str(package.parent)],
        build_dir=str(folder / "cython"),
        compiler_directives=DIRECTIVES,
        quiet=True,
    )
    command = build_ext(Distribution({"ext_modules": extensions}))
    command.build_lib, command.build_temp = str(folder), str(folder / "temporary")
    command.ensure_finalized()
    command.run()


def build_programs(root: Path) -> None:
    """The core with coverage and sanitizers, the targets, and a program for each, in `root`."""
    clang = os.environ.get("CLANG", "clang")
    instrument = f"fuzzer-no-link,{SANITIZERS}"
    environment = {
        **os.environ,
        "CC": clang,
        "LDSHARED": f"{clang} -shared",
        "IONTO_RT_SANITIZE": instrument,
        "PYTHONPATH": str(root / "src"),
    }
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=root, env=environment, check=True)
    os.environ.update(CC=clang, LDSHARED=f"{clang} -shared")
    sys.path.insert(0, str(root / "src"))
    build_targets(root, flags=("-g", f"-fsanitize={instrument}", "-fno-sanitize-recover=undefined"))
    library = sysconfig.get_config_var("LIBDIR")
    for name in TARGETS:
        subprocess.run(
            [
                clang, "-g", "-O1", f"-fsanitize=fuzzer,{SANITIZERS}", f'-DTARGET="{name}"',
                f"-I{sysconfig.get_path('include')}", str(HERE / "main.c"),
                "-o", str(root / name.removesuffix("_target")),
                f"-L{library}", f"-Wl,-rpath,{library}", f"-lpython{sysconfig.get_config_var('LDVERSION')}",
                "-rdynamic",
            ],
            check=True,
        )  # fmt: skip


if __name__ == "__main__":
    # Importing the package would need the sanitizers' runtime, which only the programs bring: its place is enough.
    build_programs(Path.cwd())
