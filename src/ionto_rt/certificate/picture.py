"""The stable region as a picture: how much further gain a load bears, with a model that is 1.3 off."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ionto_rt.certificate.envelope import CASES, VoltageCase
from ionto_rt.certificate.grid import remaining_gain
from ionto_rt.certificate.loop import Tuning, running
from ionto_rt.core.constant_current import PARALLEL_RATIO_MOST
from ionto_rt.errors import RefusedError

_DPI = 130
_LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
_LEVELS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)


def draw(path: str | Path, delays: Sequence[int], tuning: Callable[[int], Tuning] = running) -> None:
    """Write the picture as PNG: a panel per delay, over Ts/tau_p and Rp/Rs' of the model.

    Raises `RefusedError` if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RefusedError("--plot: matplotlib is not installed; pip install 'ionto-rt[report]'") from None
    case = CASES[0]
    assert isinstance(case, VoltageCase)
    tick_ratio, parallel_ratio = np.geomspace(1e-3, 60.0, 90), np.geomspace(0.05, 1e3, 70)
    figure = Figure(figsize=(3.2 * len(delays) + 1.2, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(delays), sharey=True, squeeze=False)[0]
    for panel, ticks in zip(panels, delays, strict=True):
        across, up = np.meshgrid(tick_ratio, parallel_ratio)
        gain = remaining_gain(across, up, case, ticks, ticks, tuning(ticks))
        filled = panel.contourf(across, up, gain, levels=_LEVELS, cmap="YlGnBu", extend="max")
        panel.contourf(across, up, gain, levels=(0.0, 1.0), colors=["#c0392b"])
        panel.axhline(PARALLEL_RATIO_MOST, color="black", linewidth=1.2)
        panel.text(
            1.3e-3, PARALLEL_RATIO_MOST * 1.15, f"certified below {PARALLEL_RATIO_MOST:g}", fontsize=8, bbox=_LABEL
        )
        panel.set(xscale="log", yscale="log", xlabel="tick over time constant, Ts/τp")
        panel.set_title(f"delay {ticks}, tracking pole {tuning(ticks).tracking_pole:g}", fontsize=9)
    panels[0].set_ylabel("Rp over series resistance, Rp/Rs'")
    figure.colorbar(filled, ax=list(panels), label="further gain that it bears")
    figure.suptitle("Rs', Rp and C of the model each up to 1.3 off; red: unstable", fontsize=10)
    figure.savefig(path, dpi=_DPI)
