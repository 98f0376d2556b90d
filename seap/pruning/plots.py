"""A picture of what a pruning kept. Needs Matplotlib (`seap[report]`)."""

from typing import TYPE_CHECKING

from seap.errors import missing_extra
from seap.models.axes import Masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0068a8", "#d55e00", "#008a64", "#b8578f")
NAMES = {
    "kv_groups": "KV groups",
    "query_heads": "query heads",
    "channels": "MLP channels",
    "expert_channels": "channels of experts",
}


def plot_widths(masks: Masks) -> "Figure":
    """The share of its units that each layer keeps, a line for each kind of axis."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "report", "a plot") from error
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for colour, axis in zip(COLOURS, dict.fromkeys(key.rpartition(".")[2] for key in masks), strict=False):
        kept = sorted((int(key.split(".")[1]), mask) for key, mask in masks.items() if key.endswith(f".{axis}"))
        shares = [100 * float(mask.float().mean()) for _, mask in kept]
        axes.plot([layer for layer, _ in kept], shares, color=colour, marker="o", ms=4, label=NAMES.get(axis, axis))
    axes.set(xlabel="layer", ylabel="kept, %", ylim=(0, 104), title="What each layer keeps")
    axes.locator_params(axis="x", integer=True)
    axes.grid(color="#dfe3e8")
    axes.legend(frameon=False)
    return figure
