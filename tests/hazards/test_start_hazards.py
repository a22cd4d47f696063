"""What must not begin: refused in one line, with exit code 2, before any current."""

import math
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from cli_support import Truth, ended, ionto, started, treatment
from injection import NOTHING_A, session
from ionto_rt.catalogue import Catalogue
from ionto_rt.errors import IontoError
from ionto_rt.journal import JOURNAL
from responses import Response
from support import LSB_A, Rig, changed, endless, planned


def refused(folder: Path, path: Path, *words: str) -> tuple[str, float]:
    """The line that refuses to run the treatment, and the largest current (A) that has truly flowed."""
    truth = folder / "truth.csv"
    done = ionto("run", path, "--device", f"virtual:?truth={truth}", "--speed", "max", *words, cwd=folder)
    flowed = Truth(truth)["current_peak_a"] if truth.exists() else np.zeros(0)
    assert not list(folder.glob("sessions/*/session.json"))
    return done.refusal, float(np.abs(flowed).max(initial=0.0))


def edited(folder: Path, old: str, new: str) -> Path:
    path = treatment(folder, current="2 mA", hold="20 s", ramp="10 s")
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return path


def test_h17_polarity_of_another_drug(tmp_path: Path, response: Response) -> None:
    line, flowed_a = refused(tmp_path, edited(tmp_path, 'polarity = "cathode"', 'polarity = "anode"'))
    assert "goes in under the cathode" in line and "connect the leads so" in line
    response.nothing_flowed("H17", flowed_a)


@pytest.mark.parametrize(
    ("drug", "said"),
    [("dexametasone-phosphate", "dexamethasone-phosphate"), ("morphine", "not in the catalogue"), ("", "drug")],
)
def test_h18_wrong_drug(tmp_path: Path, response: Response, drug: str, said: str) -> None:
    line, flowed_a = refused(tmp_path, edited(tmp_path, '"dexamethasone-phosphate"', f'"{drug}"'))
    assert said in line
    response.nothing_flowed("H18", flowed_a)


def test_h18_limits_of_the_drug_are_never_loosened(tmp_path: Path, response: Response) -> None:
    path = edited(tmp_path, "[[steps]]", '[limits]\ncurrent = "20 mA"\n[[steps]]')
    line, flowed_a = refused(tmp_path, path)
    assert "looser than the catalogue's" in line
    response.nothing_flowed("H18", flowed_a)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"2 mA"', '"2 mA*min"', "mA"),
        ('"2 mA"', '"2 mg"', "mg"),
        ('"2 mA"', '"2"', "unit"),
        ('"2 mA"', '"2 A"', "2 A"),
        ('time = "20 s"', 'dose = "20 mg"', "mg"),
        ('time = "20 s"', 'dose = "20 mA"', "mA"),
    ],
)
def test_h19_unit_confused(tmp_path: Path, response: Response, old: str, new: str, said: str) -> None:
    line, flowed_a = refused(tmp_path, edited(tmp_path, old, new))
    assert said in line and "short.toml:" in line
    response.nothing_flowed("H19", flowed_a)


@pytest.mark.parametrize("current", ["-2 mA", "nan mA", "inf mA", "1e9 mA", "40 mA", "0 mA"])
def test_h36_nonsense_setpoint(tmp_path: Path, response: Response, current: str) -> None:
    line, flowed_a = refused(tmp_path, edited(tmp_path, '"2 mA"', f'"{current}"'))
    assert current in line
    response.nothing_flowed("H36", flowed_a)


@pytest.mark.parametrize("trim_a", [math.nan, math.inf, -math.inf, 1e300, -1e300])
def test_h36_nonsense_trim(tmp_path: Path, response: Response, trim_a: float) -> None:
    """A running session that is asked for nonsense keeps within its limits, or ends; what is no number changes none."""
    done = session(tmp_path, hold="8 s", acts={4.5: lambda running: running.trim(trim_a)}, attended=True, uri="sim:")
    level_a = np.abs(done.rows["level_a"])
    assert np.isfinite(level_a).all() and level_a.max() <= 4e-3
    assert done.receipt["trips"] == []
    if not math.isfinite(trim_a):
        assert level_a.max() == pytest.approx(2e-3)
        response.no_effect("H36", through="API")


@pytest.mark.parametrize("current_a", [-8191 * LSB_A, 32000 * LSB_A, math.nan, math.inf])
def test_h36_nonsense_segment(response: Response, current_a: float) -> None:
    """An embedder who hands over segments of his own: the guard takes no setpoint beyond the prescription limit, and
    what is not a number is off in its tick."""
    config, _ = planned()
    made = Rig(changed(config, programme={"polarity": 1.0}), endless(current_a))
    rows = made.run(3000)
    assert max(abs(row["output_code"]) for row in rows) * LSB_A <= 1.1 * config["guard"]["current_limit_a"]


def test_h37_corrupt_catalogue(tmp_path: Path, response: Response) -> None:
    """A laboratory's catalogue that was cut short."""
    place = tmp_path / "catalogue"
    place.mkdir()
    for name in ("drugs.toml", "electrodes.toml"):
        text = (resources.files("ionto_rt.catalogue") / name).read_text()
        (place / name).write_text(text[: len(text) // 2])
    with pytest.raises(IontoError) as error:
        Catalogue.load(place)
    assert "drugs.toml" in str(error.value) and "\n" not in str(error.value)
    response.no_effect("H37", through="file")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_h37_corrupt_file(tmp_path: Path, response: Response, damage: str) -> None:
    """The journal, on which the caps of site and day rest."""
    path = treatment(tmp_path)
    assert ionto("run", path, "--device", "virtual:", "--speed", "max", cwd=tmp_path).code == 0
    journal = tmp_path / "sessions" / JOURNAL
    data = journal.read_bytes()
    journal.write_bytes({"cut": data[: len(data) // 2], "flipped": bytes(100) + data[100:]}[damage])
    for rest in tmp_path.glob(f"sessions/{JOURNAL}-*"):
        rest.unlink()
    truth = tmp_path / "truth.csv"
    done = ionto("run", path, "--device", f"virtual:?truth={truth}", "--speed", "max", cwd=tmp_path)
    assert "journal" in done.refusal
    flowed = Truth(truth)["current_peak_a"] if truth.exists() else np.zeros(0)
    response.nothing_flowed("H37", float(np.abs(flowed).max(initial=0.0)))


def test_h51_two_controllers(tmp_path: Path, response: Response) -> None:
    """A second program on the same port is refused, and the session on it goes on."""
    path = treatment(tmp_path, current="1 mA", hold="600 s", ramp="1.25 s")
    other = tmp_path / "other"
    other.mkdir()
    port, truth = tmp_path / "port", tmp_path / "truth.csv"
    with started("virtual-device", "--link", port, "--truth", truth, cwd=tmp_path) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with started("run", path, "--device", f"serial:{port}", "--speed", "max", "--json", cwd=tmp_path) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "ramp up" in line:
                    break
            second = ionto("run", path, "--device", f"serial:{port}", cwd=other)
            assert "in use by another program" in second.refusal
            process.send_signal(2)
            done = ended(process)
        assert server.wait(10) == 0
    assert (done.code, done.receipt["reason"], done.receipt["trips"]) == (1, "stopped by the operator", [])
    assert np.abs(Truth(truth)["current_peak_a"]).max() <= 1.05e-3 + NOTHING_A
    response.no_effect("H51", through="command line")
