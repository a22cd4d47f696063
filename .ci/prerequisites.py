"""Names what this machine lacks to build, as Debian packages; exit 0 when nothing is missing.

Runs on the bare interpreter, before any environment exists. --packages prints the package names alone; --optional those
without which a part of the tests is skipped.
"""

import ctypes.util
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig

OLDEST = (3, 11)


def missing():
    """(package, reason) of everything that is not there."""
    found = []
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        found.append(("python3-venv", "the venv and ensurepip modules"))
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    headers = sysconfig.get_path("include")
    if shutil.which(compiler[0]) is None:
        found += [("gcc", f"the C compiler {compiler[0]}"), ("libc6-dev", "the C library's headers")]
    else:
        check = subprocess.run(
            [*compiler, "-fsyntax-only", "-x", "c", "-"], input="#include <stdio.h>\n", text=True, capture_output=True
        )
        if check.returncode != 0:
            found.append(("libc6-dev", "the C library's headers"))
    if not os.path.exists(os.path.join(headers, "Python.h")):  # noqa: PTH110, PTH118
        found.append(("python3-dev", f"Python.h in {headers}"))
    return found


def skipped():
    """(package, what is skipped) of everything optional that is not there."""
    found = []
    if ctypes.util.find_library("ngspice") is None:
        found.append(("libngspice0", "the tests of the simulator against ngspice"))
    if shutil.which("valgrind") is None:
        found.append(("valgrind", "the tests that count instructions"))
    return found


def main():
    if sys.version_info < OLDEST:
        needed = ".".join(map(str, OLDEST))
        print(f"Python {sys.version.split()[0]}: {needed} or newer is needed; try make PYTHON=python{needed}")
        return 1
    found = missing()
    if sys.argv[1:] == ["--packages"]:
        print(" ".join(package for package, _ in found))
    elif sys.argv[1:] == ["--optional"]:
        print(" ".join(package for package, _ in skipped()))
        return 0
    elif found:
        packages = " ".join(package for package, _ in found)
        for package, reason in found:
            print(f"missing: {reason} ({package})")
        print(f"install with: sudo apt-get install {packages}")
    else:
        for package, tests in skipped():
            print(f"optional: {package}; without it {tests} are skipped")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
