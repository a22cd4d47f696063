"""A data acquisition card as a device of ionto_rt: opens adapter.c by ctypes, and runs a treatment on it.

    python host.py loop [URI]       the compiled loop alone, with a controller
    python host.py session [URI]    a whole session, with record and receipt, into ./sessions

A URI is acq:Acq1 or acq:Acq1?pacing=host. `open_acq` is what an entry point of the group ionto_rt.devices names. While
the loop runs none of this is called: it goes from the compiled loop to adapter.c and back.
"""

import ctypes
import os
import sys
import threading
from pathlib import Path
from typing import Any

from ionto_rt import Controller, Session, Treatment
from ionto_rt.catalogue import Catalogue
from ionto_rt.codes import FrontEnd, Pacing
from ionto_rt.configuration import UNFIT, controller_config, device_limits
from ionto_rt.core.loop import Loop
from ionto_rt.device import DeviceCounters, Hello, Range, daq_capsule, new_token, split_uri
from ionto_rt.errors import RefusedError
from ionto_rt.host import prepare_thread
from ionto_rt.plan import compile_plan
from ionto_rt.safety import resolve_limits

HERE = Path(__file__).resolve().parent
COUNT_V = 10.0 / 32768.0
PACINGS = {"device": Pacing.DEVICE, "host": Pacing.HOST}


class Limits(ctypes.Structure):
    """adapter_limits."""

    _fields_ = (
        ("token", ctypes.c_uint32),
        ("session_ticks", ctypes.c_uint32),
        ("charge_cap_codes", ctypes.c_int64),
        ("current_cap_code", ctypes.c_int32),
        ("output_code_min", ctypes.c_int32),
        ("output_code_max", ctypes.c_int32),
        ("lease_max_ticks", ctypes.c_uint32),
    )


class Counters(ctypes.Structure):
    """adapter_counters."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("status", "token", "samples", "late", "lapsed", "refused")),
        ("net_codes", ctypes.c_int64),
        ("absolute_codes", ctypes.c_int64),
    )


def adapter_library() -> ctypes.CDLL:
    """libacq.so beside this file, with its functions declared. OSError if it was not built."""
    library = ctypes.CDLL(str(HERE / "libacq.so"))
    handle = ctypes.c_void_p
    library.adapter_open.restype = handle
    library.adapter_open.argtypes = [ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint64]
    library.adapter_daq.restype = handle
    library.adapter_daq.argtypes = library.adapter_close.argtypes = library.adapter_disarm.argtypes = [handle]
    library.adapter_push_limits.argtypes = [handle, ctypes.POINTER(Limits)]
    library.adapter_arm.argtypes = [handle, ctypes.c_uint32]
    library.adapter_count.argtypes = [handle, ctypes.POINTER(Counters)]
    library.adapter_patient.argtypes = [handle, *3 * [ctypes.c_void_p]]
    return library


class Acq:
    """The card, open: a `ionto_rt.device.SessionDevice`, and its own port."""

    low_latency = "in process"
    process = None
    cpu = None
    hardware = False
    """Of the simulated card. True with a real one: a session then asks for a host that is fit."""

    def __init__(self, uri: str, card: str, pacing: Pacing, rate_hz: float) -> None:
        self.uri = uri
        self._library = adapter_library()
        self._handle = self._library.adapter_open(card.encode(), pacing, round(1e9 / rate_hz))
        if not self._handle:
            raise RefusedError("there is no such card", key=uri, remedy="write acq:Acq1")
        self.port = self
        self.hello = Hello(
            version=1,
            channels=1,
            pacing=int(pacing),
            front_end=FrontEnd.CURRENT_SOURCE,
            lease_max_ticks=min(100, int(0.1 * rate_hz)),
            firmware_version=1,
            tick_s=1.0 / rate_hz,
            compliance_v=40.0,
            voltage_lsb_v=5.0 * COUNT_V,
            voltage_offset_q16=0,
            code_limit=32767,
            model="Acq",
            serial=card,
            last_token=0,
            last_net_codes=0,
            last_absolute_codes=0,
            last_samples=0,
            last_range=0,
            ranges=(
                Range(
                    full_scale_a=4e-3,
                    current_lsb_a=0.5e-3 * COUNT_V,
                    current_offset_q16=0,
                    redundant_lsb_a=0.5e-3 * COUNT_V,
                    redundant_offset_q16=0,
                    output_lsb=0.4e-3 * COUNT_V,
                    output_code_min=-32767,
                    output_code_max=32767,
                    ballast_ohm=0.0,
                ),
            ),
        )
        self._daq = daq_capsule(self._library.adapter_daq(self._handle), self)

    def loop_port(self) -> object:
        return self._daq

    def greet(self) -> Hello:
        return self.hello

    def push_limits(self, *, range_index: int, **limits: Any) -> None:
        one = {name: given if isinstance(given, int) else given[0] for name, given in limits.items()}
        self._check(self._library.adapter_push_limits(self._handle, Limits(**one)), "hold these limits")

    def arm(self, pacing: Pacing, token: int) -> None:
        if pacing != self.hello.pacing:
            raise RefusedError("was opened for another pacing", key=self.uri, remedy="write ?pacing=host or =device")
        self._check(self._library.adapter_arm(self._handle, token), "be armed")

    def _check(self, result: int, what: str) -> None:
        if result:
            raise RefusedError(f"cannot {what} ({os.strerror(-result)})", key=self.uri, remedy="see adapter.c")

    def count(self) -> DeviceCounters:
        """The adapter's counts, at any time."""
        found = Counters()
        self._library.adapter_count(self._handle, found)
        numbers = {name: getattr(found, name) for name, *_ in Counters._fields_}
        charges = ((found.net_codes, found.absolute_codes),)
        return DeviceCounters(bad_frames=0, channel_charges=charges, **numbers)

    def disarm(self, token: int) -> DeviceCounters | None:
        if not self._handle:
            return None
        self._library.adapter_disarm(self._handle)
        return self.count()

    def patient(self) -> tuple[float, float, int]:
        """Of the simulation: true charge since opening, C; current, A; how often the watchdog line opened the relay."""
        charge, current, openings = ctypes.c_double(), ctypes.c_double(), ctypes.c_uint32()
        self._library.adapter_patient(*(self._handle, *map(ctypes.byref, (charge, current, openings))))
        return charge.value, current.value, openings.value

    def close(self) -> None:
        if self._handle:
            self._library.adapter_close(self._handle)
            self._handle = None

    def __enter__(self) -> "Acq":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_acq(uri: str) -> Acq:
    """Entry point: the device of a URI like acq:Acq1?pacing=host&rate=1000. RefusedError if there is none."""
    _, card, options = split_uri(uri)
    pacing, rate = options.get("pacing", ["device"])[-1], options.get("rate", ["1000"])[-1]
    if pacing not in PACINGS or not rate.isdecimal() or not 500 <= int(rate) <= 10000:
        remedy = "write pacing=host or pacing=device, and rate=500 to 10000"
        raise RefusedError("not an option of the card", key="--device", value=uri, remedy=remedy)
    return Acq(uri, card, PACINGS[pacing], float(rate))


def make_loop(device: Acq, treatment: Treatment) -> tuple[Loop, dict[str, Any]]:
    """A loop for the treatment on the armed device, and the controller's configuration. No session, no record."""
    hello, token = device.hello, new_token()
    limits = resolve_limits(treatment, Catalogue.load(), hello.capabilities)
    plan = compile_plan(treatment, limits, hello.tick_s)
    pacing = Pacing(hello.pacing)
    config = controller_config(hello, limits, plan, UNFIT, token, pacing=pacing)
    loop = Loop(Controller(config, plan.segments), device.loop_port(), virtual_clock=False, pacing=pacing)
    device.push_limits(**device_limits(hello, limits, token))
    device.arm(pacing, token)
    return loop, config


def run_loop(loop: Loop, ticks: int = 1 << 32) -> None:
    """Runs the loop to its end, or for `ticks`, in a thread of its own, and keeps its heartbeat meanwhile."""

    def work() -> None:
        prepare_thread()
        loop.run(ticks)

    thread = threading.Thread(target=work, name="loop")
    thread.start()
    while thread.is_alive():
        loop.beat()
        thread.join(0.1)


def main(what: str = "loop", uri: str = "acq:Acq1") -> None:
    treatment = Treatment.load(HERE / "treatment.toml")
    with open_acq(uri) as device:
        if what == "session":
            receipt = Session(treatment, device, out_dir=Path("sessions")).run()
            print(f"{receipt['outcome']}: {receipt['dose_delivered_mamin']:.4f} mA*min; {receipt['reason']}")
            return
        loop, config = make_loop(device, treatment)
        run_loop(loop)
        counted = device.disarm(config["token"])
        row = loop.drain(1 << 20)[-1]
        latency = loop.latency_us
        print(f"{loop.status} after {loop.counters['ticks']} ticks, {row['delivered_c'] * 1e3:.4f} mC by the ledger")
        print(f"the card counts {counted.net_codes} 1/65536 codes, the ledger {row['net_codes']}")
        print(f"from sample to answer: p50 {latency['p50']:.1f} us, p99 {latency['p99']:.1f} us")


if __name__ == "__main__":
    main(*sys.argv[1:])
