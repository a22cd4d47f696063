"""`run` and `check`."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import click

from ionto_rt.cli import DONE, PROGRAM, SHORT, complain, say
from ionto_rt.errors import IontoError, RefusedError

if TYPE_CHECKING:
    from ionto_rt.session import Session

_SPEEDS = click.Choice(["real", "max"])


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options by which the operator tightens the limits of one run."""
    texts = {
        "--current-limit": ("current_a", '"3 mA"'),
        "--density-limit": ("density_a_per_m2", '"0.4 mA/cm^2"'),
        "--dose-limit": ("dose_c", '"40 mA*min"'),
        "--day-dose-limit": ("day_dose_c", '"80 mA*min"'),
        "--voltage-limit": ("voltage_v", '"30 V"'),
        "--time-limit": ("time_s", '"15 min"'),
    }
    for option, (name, example) in reversed(texts.items()):
        text = f"Tighten the limit for this run, as {example}."
        command = click.option(option, name, metavar="QUANTITY", help=text)(command)
    return command


@click.command("run", short_help="Run a treatment.")
@click.argument("treatment", metavar="TREATMENT")
@click.option(
    "--device",
    "uri",
    default="virtual:",
    metavar="URI",
    show_default=True,
    help="virtual: or sim: with options as virtual:?skin=dry, serial:/dev/ttyACM0.",
)
@click.option("--out", "out_dir", default="sessions", metavar="DIR", show_default=True, help="Folder of sessions.")
@click.option(
    "--speed",
    type=_SPEEDS,
    default="real",
    show_default=True,
    help="max: as fast as it goes, on the virtual clock of a device that offers one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as one JSON object, and nothing else.")
@click.option("--cpu", type=int, metavar="N", help="Keep the loop on this processor; `doctor` says which, if any.")
@click.option(
    "--accept-unfit",
    is_flag=True,
    help="Run on hardware though `doctor` calls this host unfit, with the slower deadlines; goes on record.",
)
@click.option("--bell/--no-bell", default=True, help="Let alarms ring the terminal's bell. [default: bell]")
@click.option(
    "--reset-lock",
    is_flag=True,
    help="Treat a site again that three stops by one cause have locked; says that you have looked at it.",
)
@limit_options
def run_command(
    treatment: str,
    uri: str,
    out_dir: str,
    speed: Literal["real", "max"],
    as_json: bool,
    cpu: int | None,
    accept_unfit: bool,
    bell: bool,
    reset_lock: bool,
    **limits: str | None,
) -> int:
    """Run the treatment in the file TREATMENT: self-test, contact check, the steps, and the receipt.

    On a terminal there is a live view, and keys act: p pauses, r resumes, + and - trim the current within the limits,
    s ramps down, q switches off; a acknowledges alarms, m pauses their sound, x resets them. After a trip the view
    stays, output off, until x has reset it or q leaves. Ctrl-C ramps down, a second one switches off at once; so does
    SIGTERM the first.
    Otherwise phases and alarms go to stderr, and the receipt to stdout.

    In real time on hardware, a host that `ionto-rt doctor` calls unfit is refused.
    """
    from ionto_rt.catalogue import Catalogue
    from ionto_rt.cli.arguments import device_defaults, operator_limits
    from ionto_rt.cli.receipt import host_of, receipt_text
    from ionto_rt.device import open_device
    from ionto_rt.live import make_view
    from ionto_rt.safety import resolve_channels
    from ionto_rt.session import Session
    from ionto_rt.treatment import Treatment

    if not out_dir:
        raise RefusedError("is empty", key="--out", value=out_dir, remedy="give a folder")
    if cpu is not None and cpu not in os.sched_getaffinity(0):
        here = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise RefusedError("no such processor", key="--cpu", value=cpu, remedy=f"give one of {here}")
    operator = operator_limits(limits)
    loaded = Treatment.load(treatment)
    catalogue = Catalogue.load()
    resolve_channels(loaded, catalogue, None, operator)
    place = Path(out_dir)
    defaults = device_defaults(loaded, uri, speed, place)
    stop = _Stop()

    def watch(running: Session) -> None:
        stop.renew()
        view(running)

    try:
        with (
            stop.handling(),
            _folder(place, stop),
            open_device(uri, defaults=defaults) as device,
            make_view(quiet=as_json, bell=bell) as view,
        ):
            session = Session(
                loaded,
                device,
                out_dir=place,
                speed=speed,
                catalogue=catalogue,
                operator=operator,
                watcher=watch,
                attended=view.attended,
                accept_unfit=accept_unfit,
                cpu=cpu,
                await_reset=view.attended,
                reset_lock=reset_lock,
            )
            if speed == "real" and session.fitness.verdict == "unfit":
                complain(f"this host is unfit ({session.fitness.worst_first[0].line}): slower deadlines; see `doctor`")
            stop.session = session
            view.begin(session)
            receipt = session.run()
    except KeyboardInterrupt:
        raise RefusedError("interrupted; no current has flowed") from None
    except (IontoError, OSError) as error:
        if not stop.armed:
            raise
        complain(f"{error}; the output is off, restore what was written with `{PROGRAM} recover {session.record_path}`")
        return SHORT
    kept = f"the record is whole: {receipt['record']}"
    with suppress(KeyboardInterrupt):
        if as_json:
            say(json.dumps(receipt), kept)
            if receipt["outcome"] != "complete":
                complain(f"{receipt['outcome']}: {receipt['reason']}")
        else:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            say(receipt_text(receipt, width, host_of(receipt)), kept)
    return DONE if receipt["outcome"] == "complete" else SHORT


class _Stop:
    """Signals as the operator's stop: the first ramps down, a second Ctrl-C switches off at once.

    Before the device is armed a signal ends the command instead, and no current has flowed.
    """

    def __init__(self) -> None:
        self.session: Session | None = None
        self.level = 0

    @contextmanager
    def handling(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in numbers}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, self._take)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def armed(self) -> bool:
        return self.session is not None and self.session.record_path is not None

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self.armed:
            raise KeyboardInterrupt
        self.level = min(2, self.level + 1) if number == signal.SIGINT else max(self.level, 1)
        if number == signal.SIGHUP and self.session is not None:
            self.session.hang_up()
        self.renew()

    def renew(self) -> None:
        """Say it to the loop; saying it twice does no harm."""
        if self.session is not None and self.level:
            (self.session.stop if self.level == 1 else self.session.stop_now)()


@contextmanager
def _folder(place: Path, stop: _Stop) -> Iterator[None]:
    """The folder of sessions, made before the virtual device wants to keep its state there.

    What a refused run has put there goes again.
    """
    remedy = "give a folder that can be made and written to"
    try:
        made = [folder for folder in (place, *place.parents) if not folder.exists()]
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(f"cannot be made ({error.strerror})", key="--out", value=str(place), remedy=remedy) from None
    try:
        yield
    except BaseException:
        if made and not stop.armed:
            _remove_unused(made)
        raise


def _remove_unused(made: list[Path]) -> None:
    """Remove folders that this run has made, if they hold no session."""
    from ionto_rt.journal import JOURNAL
    from ionto_rt.record import session_folders

    place = made[0]
    if session_folders(place):
        return
    for left in [*place.glob("virtual-device-state*.json*"), *place.glob(f"{JOURNAL}*")]:
        left.unlink(missing_ok=True)
    for folder in made:
        try:
            folder.rmdir()
        except OSError:
            return


@click.command("check", short_help="Validate a treatment and print its plan.")
@click.argument("treatment", metavar="TREATMENT")
@click.option("--device", "uri", metavar="URI", help="Check against the limits and sample rate of this device too.")
@click.option("--out", "out_dir", default="sessions", metavar="DIR", show_default=True, help="Folder of sessions.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON object.")
@limit_options
def check_command(treatment: str, uri: str | None, out_dir: str, as_json: bool, **limits: str | None) -> int:
    """Validate the treatment in the file TREATMENT and print its plan: steps, times, charge, expected drug, limits.

    Of several channels the plan of each is printed. No current flows. Without --device the rows of the device are left
    out, and a sample period is 1 ms. With it, the calibration that a run with this folder of sessions would go by is
    named.
    """
    from ionto_rt.calibration_file import calibration_in_force
    from ionto_rt.catalogue import Catalogue
    from ionto_rt.cli.arguments import device_defaults, operator_limits
    from ionto_rt.device import open_device
    from ionto_rt.plan import compile_plan, format_plans
    from ionto_rt.safety import resolve_channels
    from ionto_rt.treatment import Treatment

    operator = operator_limits(limits)
    loaded = Treatment.load(treatment)
    catalogue = Catalogue.load()
    found = resolve_channels(loaded, catalogue, None, operator)
    tick_s = 1e-3
    known = None
    if uri is not None:
        defaults = device_defaults(loaded, uri, "real", Path())
        defaults.pop("state", None)
        with open_device(uri, defaults=defaults) as device:
            found = resolve_channels(loaded, catalogue, device.hello.capabilities, operator)
            tick_s = device.hello.tick_s
            if found[0].current_range is not None:
                known = calibration_in_force(Path(out_dir), device.hello, found[0].current_range.index)
    plans = [compile_plan(channel, limits, tick_s) for channel, limits in zip(loaded.channels, found, strict=True)]
    if as_json:
        calibration = {"calibration": None if known is None else known.as_record()}
        facts = [_plan_facts(plan) | calibration for plan in plans]
        if len(plans) == 1:
            said = facts[0]
        else:
            said = {
                "title": loaded.title,
                "on_channel_trip": loaded.on_channel_trip.name.lower(),
                "channels": [{"name": plan.channel} | each for plan, each in zip(plans, facts, strict=True)],
            }
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        click.echo(format_plans(plans, loaded.on_channel_trip))
        if uri is not None:
            click.echo(f"\ncalibration: {'none; see `ionto-rt calibrate`' if known is None else known.text}")
    return DONE


def _plan_facts(plan: Any) -> dict[str, Any]:
    """The plan as an object of plain values; currents in mA, doses in mA*min, times in s."""
    mamin = 0.06
    mass = plan.drug_mass_kg
    return {
        "title": plan.title,
        "drug": plan.limits.drug_key,
        "polarity": "anode" if plan.polarity > 0 else "cathode",
        "dose_mamin": plan.prescribed_c / mamin,
        "duration_s": plan.nominal_duration_s,
        "max_current_ma": plan.max_level_a * 1e3,
        "tick_s": plan.tick_s,
        "drug_mass_mg_interval": None if mass is None else [value * 1e6 for value in mass],
        "steps": [
            {
                "step": step.step,
                "name": step.name,
                "kind": step.kind,
                "start_s": step.start_s,
                "duration_s": step.duration_s,
                "level_ma": step.level_a * 1e3,
                "ramp_in_s": step.ramp_in_s,
                "ramp_out_s": step.ramp_out_s,
                "ends_by": step.ends_by,
                "dose_mamin": step.charge_c / mamin,
                "dose_total_mamin": step.charge_total_c / mamin,
            }
            for step in plan.steps
        ],
        "limits": plan.limits.as_rows(),
        "notes": plan.notes,
    }
