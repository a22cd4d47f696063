"""How a session ended: outcome and reason of each channel, and of several together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ionto_rt.alarms import Alarm, SoftAlarm, alarm_for_soft
from ionto_rt.channel_run import CONTACT_REASONS, ChannelRun, Delivered
from ionto_rt.codes import EndReason, OnTrip

DOSE_LEAST_RATIO = 0.995
"""Of the prescribed dose: a programme that came to its end with less ended short."""

Outcome = Literal["complete", "aborted", "faulted"]
OUTCOMES: tuple[Outcome, ...] = ("complete", "aborted", "faulted")
"""From the best to the worst."""


@dataclass
class Causes:
    """What ends a session as a whole, filled in while it runs.

    failure        the host's own, or the watcher's; the session ramped down
    raised         what is meant to end the program, raised again when the record is written
    gone           the device went, or fell silent: in words
    not_begun      the alarm for which nothing was started
    unrecorded     the disk no longer took the record
    leaving        the program ended in mid-session
    asked_to_stop  by the operator
    hung_up        and that because the terminal was closed
    """

    failure: Exception | None = None
    raised: BaseException | None = None
    gone: str | None = None
    not_begun: Alarm | None = None
    unrecorded: bool = False
    leaving: bool = False
    asked_to_stop: bool = False
    hung_up: bool = False


def outcome_of(
    channel: ChannelRun, charge: Delivered, causes: Causes, channels: Sequence[ChannelRun], on_trip: OnTrip
) -> tuple[Outcome, str]:
    """How this channel of `channels` ended, and why. `on_trip`: what a trip of one does to the others."""
    reason, cause = channel.end_reason, channel.cause
    if causes.failure is not None:
        return "faulted", f"the host failed ({type(causes.failure).__name__}: {causes.failure}); ramped down"
    if causes.gone is not None:
        return "faulted", causes.gone
    if reason == EndReason.COMPLETE:
        if charge.net_c < channel.plan.prescribed_c * DOSE_LEAST_RATIO:
            return "aborted", "the programme ended short of the prescribed dose"
        return "complete", "the prescribed dose was delivered"
    if reason in (EndReason.TRIP, EndReason.SELF_TEST):
        return "faulted", cause.line if cause is not None else "a trip latched"
    if reason in CONTACT_REASONS and cause is not None:
        return "aborted", cause.line
    if causes.not_begun is not None:
        return "aborted", f"{causes.not_begun.line}; nobody watches the screen, so nothing was started"
    if causes.unrecorded:
        return "faulted", alarm_for_soft(SoftAlarm.RECORD_STOPPED).line
    if causes.raised is not None:
        return "aborted", f"the program was ended ({type(causes.raised).__name__}: {causes.raised}); ramped down"
    if causes.leaving:
        return "aborted", "the program ended while the session ran; ramped down"
    if channel.left is not None:
        return "aborted", f"{channel.left.line}; nobody was there to resume"
    if on_trip != OnTrip.CONTINUE and not (causes.asked_to_stop or channel.asked_to_end):
        fallen = _fallen_other(channel, channels)
        if fallen is not None:
            return "aborted", f"ended with {fallen.name}"
    return "aborted", "the terminal was closed" if causes.hung_up else "stopped by the operator"


def _fallen_other(channel: ChannelRun, channels: Sequence[ChannelRun]) -> ChannelRun | None:
    """The channel that ended short, or was left paused, and took this one with it."""
    others = [other for other in channels if other is not channel]
    fallen = [other for other in others if other.fell is not None]
    if fallen:
        return min(fallen, key=lambda other: other.fell or 0)
    return next((other for other in others if other.left is not None), None)


def together(parts: Sequence[dict[str, Any]], channels: Sequence[ChannelRun]) -> dict[str, Any]:
    """The receipt's part of the whole session, from its channels': charges add up, of peaks the highest counts, and the
    worst end is the session's.
    """
    if len(parts) == 1:
        return parts[0]
    worst = max(range(len(parts)), key=lambda number: _badness(parts[number], channels[number]))
    reason = parts[worst]["reason"]
    if parts[worst]["outcome"] == "complete":
        reason = "the prescribed doses were delivered"
    elif any(part["reason"] != reason for part in parts):
        reason = f"{channels[worst].name}: {reason}"
    sums = [key for key in parts[0] if key.startswith(("dose_", "delivered_"))]
    whole: dict[str, Any] = {"outcome": parts[worst]["outcome"], "reason": reason}
    for key in sums:
        values = [part[key] for part in parts]
        whole[key] = None if None in values else sum(values)
    return whole | {key: max(part[key] for part in parts) for key in ("peak_current_ma", "peak_voltage_v")}


def _badness(part: dict[str, Any], channel: ChannelRun) -> tuple[int, bool, int, bool]:
    """The worst outcome first, and of alike ones the channel that fell first and took others with it."""
    fell = channel.fell
    return OUTCOMES.index(part["outcome"]), fell is not None, -(fell or 0), channel.left is not None
