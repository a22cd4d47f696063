"""hypothesis, or one line that says where it is to be had."""

try:
    from hypothesis import stateful, strategies
except ImportError:
    raise ImportError("ionto_rt.testing needs hypothesis here: in its checkout, pip install '.[testing]'") from None

__all__ = ["stateful", "strategies"]
