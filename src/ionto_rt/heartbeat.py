"""The orchestrator's answer to the guard's challenge (H31): the twin of `heartbeat_answer` in ext/guard.pyx.

The guard draws a challenge, and an answer renews the heartbeat and brings the next one. So only what has read it can
answer: a thread that beats on for a program that hangs, and one that repeats what was said before, cannot.
"""

MASK = 0xFFFFFFFF


def answer_of(challenge: int) -> int:
    """What must be given to `Loop.answer` for this `Loop.challenge`, both from 0 to 2^32 - 1."""
    x = challenge ^ 0xA5C35A3C
    x = (x ^ x >> 16) * 0x7FEB352D & MASK
    x = (x ^ x >> 15) * 0x846CA68B & MASK
    return x ^ x >> 16
