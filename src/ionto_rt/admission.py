"""Whether a session may begin, by what its sites have had before: the caps of a day, the rest, the locks (H47)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ionto_rt.alarm_system import AlarmSystem
from ionto_rt.channel_run import ChannelRun
from ionto_rt.journal import Journal, Reservation
from ionto_rt.names import name_key
from ionto_rt.record import SessionFolder
from ionto_rt.recorder import reserved_first_c
from ionto_rt.repeats import locked_causes, recent_stops, refuse_locked
from ionto_rt.safety import format_limit


class Admission:
    """The sites of one session's channels, for `subject` (empty: no name), on hardware or simulated.

    Caps and locks hold on hardware, and for a subject with a name; nobody is behind a simulated patient without one.
    """

    def __init__(self, channels: Sequence[ChannelRun], subject: str, *, hardware: bool) -> None:
        self.channels = channels
        self.subject = subject
        self.simulated = not hardware
        self.capped = hardware or bool(subject)

    def recall_stops(self, out_dir: Path, alarms: AlarmSystem, *, reset_lock: bool) -> dict[int, list[str]]:
        """Stops of recent sessions at these sites count in this one; RefusedError if they lock a site.

        `reset_lock`: the operator resets the locks by this start. Given are the channels of which that is true, with
        the causes.
        """
        unlocked: dict[int, list[str]] = {}
        if not self.capped:
            return unlocked
        for channel in self.channels:
            stops = recent_stops(out_dir, self.subject, channel.treatment.site or "", simulated=self.simulated)
            if reset_lock:
                causes = locked_causes(stops)
                stops = [stop for stop in stops if stop.cause not in causes]
                if causes:
                    unlocked[channel.number] = causes
            refuse_locked(self.subject, channel.treatment.site or "", stops)
            for stop in stops:
                alarms.recall(channel.name, stop.cause, -stop.ago_s)
        return unlocked

    def keep_within_day(self, journal: Journal) -> None:
        """Guard and device are to stop at what today leaves of each site's cap; too little `begin` refuses."""
        if not self.capped:
            return
        for channel in self.channels:
            site = channel.treatment.site or ""
            received_c = journal.received_today(self.subject, site, simulated=self.simulated)
            sharing = [other for other in self.channels if name_key(other.treatment.site or "") == name_key(site)]
            left_c = channel.limits.day_cap_c - received_c - sum(other.plan.prescribed_c for other in sharing)
            channel.received_c = received_c
            if left_c >= 0.0:
                # What nobody prescribes is shared: all guards of a site together hold its cap.
                channel.limits = channel.limits.within_day(channel.plan.prescribed_c + left_c / len(sharing))

    def begin(self, journal: Journal, folder: SessionFolder) -> None:
        """Enter the session and reserve its first charge. JournalError if a cap or a rest does not allow it."""
        reservations = [self._reservation(channel) for channel in self.channels]
        journal.begin(folder.session_id, folder.path, self.subject, reservations, simulated=self.simulated)

    def _reservation(self, channel: ChannelRun) -> Reservation:
        known = Reservation(channel.treatment.site or "", channel.plan.prescribed_c, reserved_first_c(channel))
        if not self.capped:
            return known
        day = channel.limits.row("day dose")
        return replace(
            known,
            cap_c=channel.limits.day_cap_c,
            cap_text=f"a day's {format_limit(day.value, day.kind)} ({day.origin})",
            received_c=channel.received_c,
            rest_s=channel.limits.drug.site_rest_min_s or 0.0,
        )
