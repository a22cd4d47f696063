"""One reader under atheris: python fuzz/atheris_target.py TARGET [libFuzzer's options] CORPUS..."""

import sys
import time

import atheris

with atheris.instrument_imports(include=["ionto_rt", "tomllib"]):
    from readers import READERS

LONGEST_S = 1.0
"""Of one input, in time of the processor."""


def main() -> None:
    reader = READERS[sys.argv.pop(1)]

    def one_input(data: bytes) -> None:
        begun_s = time.process_time()
        reader(data)
        took_s = time.process_time() - begun_s
        assert took_s < LONGEST_S, f"{took_s:.1f} s"

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
