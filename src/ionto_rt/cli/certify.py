"""`certify`: where the regulation is stable, tried and proven, as a table, as JSON and as a picture."""

import json
from typing import TYPE_CHECKING

import click

from ionto_rt.cli import DONE, SHORT, say
from ionto_rt.errors import RefusedError

if TYPE_CHECKING:
    from ionto_rt.certificate.margins import Margins
    from ionto_rt.certificate.verdict import CaseResult, Certificate

_HEAD = f"{'':37}{'delay':>6}{'loops':>10}{'unstable':>9}{'least gain':>11}{'proven':>8}{'cells':>10}{'':4}worst at"


@click.command("certify", short_help="State where the regulation is stable, try it and prove it.")
@click.option(
    "--delay",
    "delays",
    type=click.IntRange(1, 4),
    multiple=True,
    metavar="TICKS",
    help="Only this delay of the loop; may be given again. All of 1 to 4 if not given; a session's is 2.",
)
@click.option(
    "--tracking-pole",
    "tracking_pole",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    metavar="POLE",
    help="Try another pole of the disturbance response than the regulator's own.",
)
@click.option("--plot", metavar="FILE.png", help="Draw the stable region.")
@click.option("--json", "as_json", is_flag=True, help="Print the certificate as one JSON object.")
def certify_command(delays: tuple[int, ...], tracking_pole: float | None, plot: str | None, as_json: bool) -> int:
    """State the envelope of loads, rates, delays and wrong models over which the regulation is stable, try it on a
    grid, and prove what lies between the points.

    Takes up to a minute. Exit code 0 if all of it is certified, 1 if not.
    """
    from ionto_rt.certificate.envelope import DELAYS_TICKS
    from ionto_rt.certificate.loop import Tuning, running
    from ionto_rt.certificate.verdict import certify

    if plot is not None and not plot.endswith(".png"):
        raise RefusedError("not a name of a picture", key="--plot", value=plot, remedy="end it in .png")
    chosen = tuple(sorted(set(delays))) or DELAYS_TICKS

    def tuning(delay_ticks: int) -> Tuning:
        made = running(delay_ticks)
        return made if tracking_pole is None else made._replace(tracking_pole=tracking_pole)

    if plot is not None:
        from ionto_rt.certificate.picture import draw

        draw(plot, chosen, tuning)
    if not as_json:
        _say_what_is_tried()
        say(_HEAD)
    certificate = certify(chosen, tuning=tuning, tell=(lambda result: None) if as_json else _say_case)
    if as_json:
        say(json.dumps(certificate.as_dict(), ensure_ascii=False, allow_nan=False))
    else:
        _say_margins(certificate)
        if plot is not None:
            say(f"picture   {plot}")
    return DONE if certificate.certified else SHORT


def _say_what_is_tried() -> None:
    from ionto_rt.certificate import envelope
    from ionto_rt.core.constant_current import PARALLEL_RATIO_MOST

    low, high = envelope.SAMPLE_RATES_HZ
    say(f"rates     {low:g} to {high:g} Hz")
    say(
        f"loads     voltage source: Rp up to {PARALLEL_RATIO_MOST:g} Rs' (ballast included), "
        f"time constant up to {1.0 / envelope.TICK_RATIO_MIN:g} ticks"
    )
    say(
        f"          current source: time constant up to {1.0 / envelope.BANDWIDTH_RATIO_MIN:.2g} ticks "
        f"({envelope.BANDWIDTH_MIN_HZ:g} Hz at {high:g} Hz)"
    )


def _say_case(result: "CaseResult") -> None:
    from ionto_rt.certificate.verdict import mismatch_names
    from ionto_rt.codes import FrontEnd

    letter = "V" if result.case.front_end == FrontEnd.VOLTAGE_SOURCE else "I"
    for pair in result.pairs:
        name = f"{letter}  {result.case.name}" if pair is result.pairs[0] else ""
        delay = f"{pair.delay_ticks}"
        if pair.model_delay_ticks != pair.delay_ticks:
            delay = f"{pair.model_delay_ticks}≠{pair.delay_ticks}"
        elif pair.told_delay_ticks != pair.model_delay_ticks:
            delay = f"{pair.told_delay_ticks}→{pair.delay_ticks}"
        worst = pair.grid.worst
        proven = "-" if pair.proven is None else "all" if pair.proven == 1.0 else f"{100.0 * pair.proven:.2f}%"
        place = [f"Ts/τ {worst.tick_ratio:.3g}"]
        if letter == "V":
            place.append(f"Rp/Rs' {worst.parallel_ratio:.3g}")
        place += [
            f"{what} x{factor:.3g}" for what, factor in zip(mismatch_names(result.case), worst.mismatch, strict=True)
        ]
        say(
            f"{name:37}{delay:>6}{pair.grid.tests:>10,}{pair.grid.unstable:>9,}{worst.gain:>11.2f}{proven:>8}"
            f"{pair.cells:>10,}{'':4}{' '.join(place)}"
        )


def _say_margins(certificate: "Certificate") -> None:
    from ionto_rt.certificate.cells import UNMODELLED

    say("")
    say(f"{'exact model':24}{'gain':>7}{'phase':>8}{'delay':>8}{'Ms':>7}{'rho_max':>9}{'|G/Gm-1|':>10}")
    for result in certificate.delays:
        tuning = result.tuning
        say(
            f"delay {result.delay_ticks}, poles to {tuning.integral_pole_most:<6g}{_margins(result.fast)}"
            f"{result.gain_limit:>9.3f}{1.0:>10.2f}   tracking pole {tuning.tracking_pole:g}"
        )
        say(f"{'':9}slower, least   {_margins(result.slow)}{'':9}{result.small_gain:>10.2f}")
    tests = sum(pair.grid.tests for case in certificate.cases for pair in case.pairs)
    unstable = sum(pair.grid.unstable for case in certificate.cases for pair in case.pairs)
    cells = sum(pair.cells for case in certificate.cases for pair in case.pairs)
    say("")
    say("gain, phase, delay (ticks): what may be added; |G/Gm-1|: the least difference that could make it unstable.")
    say("delay: 2≠3 is a model's beside the true one, 2→3 the one told (the tuning is for it) beside the one found.")
    say("least gain: the factor by which the gain may still rise at the worst point; mismatches are model over load.")
    say(f"proven: every loop between the points too, with {100.0 * UNMODELLED:g} % left for what is not modelled.")
    verdict = "certified" if certificate.certified else "NOT certified"
    say(f"{verdict}: {tests:,} loops tried, {unstable:,} unstable; {cells:,} cells; {certificate.seconds:.0f} s")


def _margins(margins: "Margins") -> str:
    return f"{margins.gain:>7.2f}{margins.phase_deg:>7.1f}°{margins.delay_ticks:>8.2f}{margins.sensitivity:>7.2f}"
