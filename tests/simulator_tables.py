"""The tables of docs/simulator.md. `python tests/simulator_tables.py` computes them and writes them into the page."""

import cmath
import math
import re
from collections.abc import Callable
from pathlib import Path

from anchors import anchors_table, regression_table
from ionto_rt.core.skin import Skin
from simulator_circuits import CIRCUITS, deviation, in_ngspice, in_simulator

PAGE = Path(__file__).resolve().parent.parent / "docs/simulator.md"
ADMITTANCE = 60e-9
SUBSTEPS = (8, 16, 32, 64, 128, 256)
EXACT_SUBSTEPS = 4096
FINE_SUBSTEPS = 100
SIGNALS = ("source_a", "voltage_v", "active_v", "return_v")


def ladder_errors(exponent: float, hertz: float) -> tuple[float, float]:
    """(percent of the magnitude, degrees) by which the ladder's admittance misses the constant phase element's."""
    s = 2j * math.pi * hertz
    rest_f, branches = Skin(cpe_exponent=exponent, cpe_admittance_s_cm2=ADMITTANCE).ladder
    ratio = (s * rest_f + sum(s * c / (1.0 + s * r * c) for r, c in branches)) / (ADMITTANCE * s**exponent)
    return 100.0 * (abs(ratio) - 1.0), math.degrees(cmath.phase(ratio))


def ladder_table() -> list[str]:
    lines = ["| frequency in Hz | magnitude in % | angle in degrees |", "|---|---|---|"]
    for hertz in (1, 3, 10, 30, 100, 300, 1000, 3000, 5000):
        magnitude, degrees = ladder_errors(0.85, hertz)
        lines.append(f"| {hertz} | {magnitude:+.2f} | {degrees:+.2f} |")
    return lines


def exponents_table() -> list[str]:
    lines = ["| exponent | largest error of the magnitude in % | of the angle in degrees |", "|---|---|---|"]
    for exponent in (0.75, 0.8, 0.85, 0.9, 0.95, 0.98):
        found = [ladder_errors(exponent, 5000.0 ** (k / 400)) for k in range(401)]
        lines.append(
            f"| {exponent} | {max(abs(m) for m, _ in found):.2f} | {max(abs(d) for _, d in found):.2f} |"
        )  # fmt: skip
    return lines


def after_a_step(forced: str, exponent: float, substeps: int) -> list[float]:
    """Voltage over the active site at each ms for 20 ms after a step from rest of 3 mA, or of 12 V behind 1.5 kohm."""
    skin = Skin(cpe_exponent=exponent)
    skin.polarisation_v = 0.0
    found = []
    for _ in range(20):
        if forced == "current":
            skin.force_current(3e-3, 1e-3, 1, substeps)
        else:
            skin.force_voltage(12.0, 1500.0, 1e-3, 1, substeps)
        found.append(skin.active_v)
    return found


def sub_steps_table() -> list[str]:
    lines = [
        "| sub-steps in 1 ms | " + " | ".join(map(str, SUBSTEPS)) + " |",
        "|---|" + "---|" * len(SUBSTEPS),
    ]
    for forced in ("current", "voltage"):
        for exponent in (0.0, 0.85):
            exact = after_a_step(forced, exponent, EXACT_SUBSTEPS)
            errors = [
                max(abs(a - b) for a, b in zip(after_a_step(forced, exponent, n), exact, strict=True)) / max(exact)
                for n in SUBSTEPS
            ]
            name = f"step of the {forced}, {'with' if exponent else 'no'} ladder"
            lines.append(f"| {name} | " + " | ".join(f"{100 * error:.4f} %" for error in errors) + " |")
    return lines


def ngspice_table() -> list[str]:
    """OSError without libngspice."""
    lines = [
        "| circuit | current | pads | active site | return site | worst at the device's sub-steps |",
        "|---|---|---|---|---|---|",
    ]
    for circuit in CIRCUITS:
        reference = in_ngspice(circuit)
        fine = deviation(in_simulator(circuit, FINE_SUBSTEPS), reference)
        at_1_khz = {name: values[9::10] for name, values in reference.items()}
        coarse = max(deviation(in_simulator(circuit, 0, every=10), at_1_khz).values())
        cells = [f"{100 * fine[name]:.3f} %" if name in fine else "" for name in SIGNALS]
        lines.append(f"| {circuit.name} | {' | '.join(cells)} | {100 * coarse:.1f} % |")
    return lines


TABLES: dict[str, Callable[[], list[str]]] = {
    "ladder": ladder_table,
    "exponents": exponents_table,
    "sub-steps": sub_steps_table,
    "ngspice": ngspice_table,
    "anchors": anchors_table,
    "fit": regression_table,
}


def block(name: str) -> re.Pattern[str]:
    """A table of the page, between its two marks."""
    return re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.S)


def on_the_page(name: str) -> list[str]:
    """Lines of a table as the page has them."""
    found = block(name).search(PAGE.read_text())
    assert found, f"{PAGE.name} has no table {name}"
    return found[0].splitlines()[1:-1]


def main() -> None:
    text = PAGE.read_text()
    for name, table in TABLES.items():
        lines = table()
        print(f"{name}:", *lines, "", sep="\n")
        text = block(name).sub(lambda found, lines=lines: found[1] + "\n".join(lines) + "\n" + found[2], text)  # type: ignore[misc]
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
