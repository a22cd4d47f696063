"""hypothesis, or one line that says where it is to be had."""

try:
    from hypothesis import stateful, strategies
except ImportError:
    raise ImportError("ionto_rt.testing needs hypothesis here: install ionto-rt[test]") from None

__all__ = ["stateful", "strategies"]
