"""`devices` and `virtual-device`."""

from collections.abc import Callable
from typing import Any

import click

from ionto_rt.cli import DONE
from ionto_rt.device import VIRTUAL_OPTIONS, whole_range
from ionto_rt.errors import RefusedError

SKINS = ("typical", "dry", "hairy", "sweating", "wounded")

VIRTUAL_HELP = {
    "skin": "Which skin is attached.",
    "load": "A dummy load instead of skin: a resistor, 1k, or series resistor, parallel resistor and capacitor, "
    "600,2k,240n.",
    "seed": "Of the subject, of noise and of the converters' errors; 0 is the nominal subject.",
    "front-end": "Output stage.",
    "rate": "Samples per second, 500 to 10000.",
    "active-area": "Area of the active pad in cm².",
    "return-area": "Area of the return pad in cm².",
    "compliance": "Highest voltage of the output stage in V, 5 to 140.",
    "onset-scale": "Factor on the time in which the skin opens, 0.01 to 100.",
    "cpe": "Exponent of a constant phase element in the place of the skin's capacitance, 0.75 to 0.98; 0: none.",
    "hydration": "Factor that the dry skin's conductance gains under the wet pads, 1 to 20; 0: none.",
    "electroporation": "1: more than 20 V over a site opens its skin further; 0: it does not.",
    "sweat": "Noise of the sweat ducts, as a share of the dry skin's conductance; 0: none.",
    "motion": "Movements a minute that lift a part of the active pad; 0: none.",
    "electrode-charge": "Charge in mC/cm² after which the electrodes electrolyse water; 0: never.",
    "emf": "Standing difference of the electrodes' potentials in V.",
    "bandwidth": "Of the output stage in Hz.",
    "hum": "Peak of mains hum on the voltage reading in V.",
    "hum-hz": "Frequency of the hum, 40 to 70.",
    "jitter-us": "Jitter of the sample times, ± so many µs; at most half a sub-step (62.5 at 1000 samples per second).",
    "noise": "Standard deviation of a reading in codes.",
    "substeps": "Steps of the plant in one sample period, to 1000; 0: of at most 125 µs.",
    "skew-us": "How much later than the currents the voltage is read, in microseconds.",
    "sentinel": "1: a sentinel electrode beside the active pad is wired, and read too.",
    "dac-gain-error": "Gain error of the output converter, which nothing calibrates.",
    "clock-error-ppm": "How much longer its sample period is than it says, in parts per million.",
    "serial": "Serial number, at most 15 characters.",
    "channels": "How many, 1 to 32; channel 1 has the skin and the converters' errors of the next seed, and so on.",
    "pacing": "What it offers: real, its own clock; host, a sample for each command; lock-step, a virtual clock; both, "
    "the first and the third; all.",
    "truth": "CSV file for the current and charge that truly flowed, one row for each sample.",
    "state": "File in which it remembers its last session.",
    "link": "Symbolic link to the pseudo-terminal, removed at the end.",
    "cpu": "Processor to stay on.",
    "round-trip": "JSON file for the times from a sample's write to the read of the command that answers it.",
    "fault": "What goes wrong, and when in seconds of armed time: open@60, close@61, short@60, area=0.5@60, "
    "return-area=0.5@60, unplug@60, stall@60+0.02, stuck@60, peel=120@60 (the pad comes off over 120 s), dry=8@60 "
    "(its series resistance grows by 8 % a minute), loose=5@60 (the lead opens 5 times a minute for up to 0.1 s), "
    "leak=100000@60 (ohm between the leads), redox=60@60 (the electrode's potential goes 1.2 V against the current "
    "within 60 s), breakdown=20@60 (the skin conducts 20 times as well), rising=3@60 (its resistance grows by 3 % a "
    "second), crosstalk=50000@60 (ohm to the next channel), hum=500@60 (mV of mains), gain=1.05@60, polarity@60 and "
    "delay=2@60 (output: factor, sign, sample periods late), dac=100@60 (it goes to 100 % and stays; its echo does "
    "not tell, with dac-told=100@60 it does, as with stuck-told@60), adc-gain=1.05@60, adc-gain-redundant=1.05@60 and"
    " adc-flat=1@60 (current readings; flat: 1 the first, 2 the second, 3 both), hot@60, stop-button=0.5@60 (held for"
    " 0.5 s), leakage@60, supply-warning@60, supply-low@60, speaker@60, post-fail@0, clock=1.02@60 (its periods are "
    "so many times as long as it says), lie-limits@0, identity@60, absurd=15@0 (a field of the hello that cannot be, "
    "1 to 21), flood=100@60 (frames a period), deaf=0.3@60 (commands are not heard for 0.3 s), lease-stuck@60 (no "
    "lease runs out), repeat@60 and replayed@60 (samples again, or old ones). 2:open@60 is on channel 2. hot=off@70 "
    "ends what can be ended. May be given several times.",
}
_CHOICES = {
    "skin": SKINS,
    "front-end": ("current", "voltage"),
    "pacing": ("real", "host", "lock-step", "both", "all"),
}
_FILES = ("truth", "state", "link", "round-trip")


def _virtual_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, (argument, kind) in reversed(VIRTUAL_OPTIONS.items()):
        several = kind is list
        value: Any = str if several else kind
        if name in _CHOICES:
            value = click.Choice(_CHOICES[name])
        elif kind is int:
            value = click.IntRange(*whole_range(name))
        metavar = "FILE" if name in _FILES else None
        wanted = click.option(
            f"--{name}", argument, type=value, multiple=several, metavar=metavar, help=VIRTUAL_HELP[name]
        )
        command = wanted(command)
    return command


@click.command("virtual-device", short_help="Serve a DAQ with skin attached.")
@_virtual_options
@click.option("--keep", is_flag=True, help="Serve the next host after this one, instead of ending.")
def virtual_device_command(**arguments: Any) -> int:
    """Serve a DAQ with skin attached on a new pseudo-terminal, as a process of its own.

    Prints one line of JSON with the path of its port when it is ready; then connect with `--device serial:PATH`. It
    ends when its host closes the port. The same options, without the dashes, go into a URI:
    virtual:?skin=dry&fault=open@60
    """
    from ionto_rt.virtual_device import serve

    given = {name: value for name, value in arguments.items() if value not in (None, ())}
    try:
        serve(**given)
    except ValueError as error:
        raise RefusedError(str(error), remedy="see `ionto-rt virtual-device --help`") from None
    return DONE


@click.command("devices", short_help="List what can be connected to.")
def devices_command() -> int:
    """List serial ports, and the devices that need none. Nothing is opened."""
    from importlib.metadata import entry_points

    from serial.tools import list_ports

    ports = sorted(list_ports.comports())
    for port in ports:
        facts = [port.description, port.manufacturer, port.serial_number and f"serial number {port.serial_number}"]
        click.echo("  ".join([f"serial:{port.device}", ", ".join(fact for fact in facts if fact and fact != "n/a")]))
    if not ports:
        click.echo("no serial port found; a USB device shows up when it is plugged in")
    click.echo("virtual:  a virtual device with skin attached, in a process of its own")
    click.echo("sim:      the same inside this process, on a virtual clock only")
    for entry in entry_points(group="ionto_rt.devices"):
        click.echo(f"{entry.name}:  from {entry.value}")
    return DONE
