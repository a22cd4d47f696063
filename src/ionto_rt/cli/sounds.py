"""`sounds`."""

from pathlib import Path

import click

from ionto_rt.cli import DONE, say
from ionto_rt.errors import RefusedError


@click.command("sounds", short_help="Write the alarm signals as WAV files and describe them.")
@click.option("--out", "out_dir", default="sounds", metavar="DIR", show_default=True, help="Folder of the files.")
def sounds_command(out_dir: str) -> int:
    """Write the three auditory alarm signals to high.wav, medium.wav and low.wav, and print their patterns.

    Each file is one burst and the silence after it: played in a loop it is the signal.
    """
    from ionto_rt.sound import SIGNALS, write_wav

    place = Path(out_dir)
    written = []
    try:
        place.mkdir(parents=True, exist_ok=True)
        for signal in SIGNALS.values():
            written.append(place / f"{signal.priority.name.lower()}.wav")
            write_wav(written[-1], signal)
    except OSError as error:
        remedy = "give a folder that can be made and written to"
        raise RefusedError(f"cannot be written ({error.strerror})", key="--out", value=out_dir, remedy=remedy) from None
    say("\n".join([*(signal.text for signal in SIGNALS.values()), *(f"wrote {path}" for path in written)]))
    return DONE
