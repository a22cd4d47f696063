"""Asking a device for what it has counted, after its host died."""

import time
import urllib.parse
from pathlib import Path

from ionto_rt.cli.arguments import state_file
from ionto_rt.device import open_device, split_uri
from ionto_rt.errors import RefusedError
from ionto_rt.record import Record
from ionto_rt.recover import DeviceCount
from ionto_rt.vouched import session_problem

RUN_DOWN_S = 5.0
"""How long a virtual device may take to run its lease out and save its state after its host has died."""
POLL_S = 0.02


def ask_device(record: Record, uri: str | None) -> tuple[DeviceCount | None, list[str]]:
    """What the device counted in its last session, and notes on why it could not be asked.

    `uri` is the operator's word; without it the session's own device is asked. RefusedError if `uri` cannot be opened.
    """
    wrong = session_problem(record)
    if wrong is not None:
        return None, [f"{wrong}: the device was not asked, what its count is worth is not known"]
    known = record.session.get("device")
    recorded = known if isinstance(known, dict) else {}
    asked = uri
    if asked is None:
        found = _again(record, recorded)
        if isinstance(found, RefusedError):
            return None, [str(found)]
        asked = found
    try:
        with open_device(asked) as device:
            hello = device.hello
    except RefusedError as error:
        if uri is not None:
            raise
        return None, [f"the device could not be asked: {error}"]
    if recorded.get("name", hello.name) != hello.name:
        return None, [f"{hello.name} is not the session's device, {recorded['name']}: its count was not used"]
    if not hello.last_token:
        return None, [f"{hello.name} remembers no session"]
    return DeviceCount(hello.last_token, hello.last_channel_charges), []


def _again(record: Record, recorded: dict[str, object]) -> str | RefusedError:
    """The URI under which the session's device can be asked, or why there is none."""
    uri = recorded.get("uri")
    if not isinstance(uri, str):
        return RefusedError("the session does not say which device it ran on", remedy="name it with --device")
    scheme = split_uri(uri)[0]
    if scheme == "sim":
        return RefusedError("sim: died with its host: nobody counted what the record does not show")
    if scheme != "virtual":
        return uri
    state = state_file(record.path.parent, uri)
    if state is None or not state.exists():
        return RefusedError("the virtual device has left no state", key=str(state), remedy="name another with --device")
    _wait_for_end(recorded.get("pid"))
    return "virtual:?" + urllib.parse.urlencode({"state": str(state)})


def _wait_for_end(pid: object) -> None:
    """Wait until the virtual device with this process id has ended: only then is its count final."""
    until = time.monotonic() + RUN_DOWN_S
    while isinstance(pid, int) and _is_virtual_device(pid) and time.monotonic() < until:
        time.sleep(POLL_S)


def _is_virtual_device(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"ionto_rt.virtual_device" in words
