"""What of a verification is a change of the record, and what only says that its session has not ended."""

from ionto_rt.verify import Verification

_NOT_ENDED = "no receipt: "


def changes(found: Verification) -> list[str]:
    """Its problems without the receipt that a session gets at its end: that one nobody has taken away."""
    return [problem for problem in found.problems if not problem.startswith(_NOT_ENDED)]


def not_ended(found: Verification) -> str | None:
    """What it says of a session that has no receipt yet; None of one that has ended."""
    return next((problem for problem in found.problems if problem.startswith(_NOT_ENDED)), None)
