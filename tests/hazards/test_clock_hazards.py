"""The wall clock of the host, which nothing that drives a current may read."""

import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from injection import session
from ionto_rt.record import Record
from ionto_rt.session import Session
from responses import Response


@pytest.mark.parametrize("jump", [timedelta(days=-3), timedelta(hours=-1), timedelta(days=400)], ids=str)
@pytest.mark.virtual_clock
def test_h27_wall_clock_jumps(
    tmp_path: Path, response: Response, monkeypatch: pytest.MonkeyPatch, jump: timedelta
) -> None:
    """In mid-treatment: every row has the bits of a session in which it did not jump, and the record is whole."""

    class Set(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + jump

    def set_clock(running: Session) -> None:
        clock = time.time
        monkeypatch.setattr(time, "time", lambda: clock() + jump.total_seconds())
        for name, module in list(sys.modules.items()):
            if name.startswith("ionto_rt.") and getattr(module, "datetime", None) is datetime:
                monkeypatch.setattr(module, "datetime", Set)

    left = session(tmp_path, uri="sim:")
    jumped = session(tmp_path, uri="sim:", acts={4.5: set_clock})
    times = [event.time_utc for event in Record.open(jumped.record_path).events().events]
    assert abs((datetime.fromisoformat(times[-1]) - datetime.fromisoformat(times[0])) - jump) < timedelta(minutes=1)
    # Challenge and answer rest on the session's token, which is another each time.
    for name in set(left.rows.names) - {"challenge", "heartbeat"}:
        assert left.rows[name].tobytes() == jumped.rows[name].tobytes(), name
    assert jumped.receipt["outcome"] == "complete"
    response.no_effect("H27", through="API")

