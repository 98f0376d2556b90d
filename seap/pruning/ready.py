"""Whether a model in memory can be cut at all: seen before anything is changed."""

from typing import Any

from seap.activations.ranks import Ranks
from seap.activations.stats import Statistics
from seap.errors import UserError
from seap.models.arch import Arch, describe
from seap.models.loader import check_not_quantized
from seap.selection.options import Pruning

# whose modules, found inside a model, hold its weights in a way of their own → what to do
FOREIGN = {
    "peft.": "it has adapters of peft's inside; merge them first: model = model.merge_and_unload()",
    "torch._dynamo.": "it is compiled in part; prune first, compile afterwards",
    "torch.distributed.": "it is spread over processes; prune it in one, whole",
    "bitsandbytes.": "the model is quantized; start from the unquantized one: prune first, quantize last",
}


def check_in_memory(model: Any) -> None:
    """Raise UserError when some weights aren't there to be cut: offloaded, quantized, shared, computed or wrapped."""
    arch = describe(model)
    for module in model.modules():
        place = type(module).__module__
        for start, what in FOREIGN.items():
            if place.startswith(start):
                raise UserError(f"the model can't be cut: {what}")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UserError(f"{name} is offloaded; load the model whole, without device_map offloading, to prune it")
    check_not_quantized(model)
    _check_own_weights(arch)


def _check_own_weights(arch: Arch) -> None:
    """Every weight that is cut is a parameter of its linear, and of no other."""
    seen: dict[int, str] = {}
    for axis in arch.axes:
        for part in () if axis.usage_key else axis.slices:
            linear, name = arch.linear(axis.layer, part.module), f"{arch.family.layers}.{axis.layer}.{part.module}"
            if part.values:
                continue
            if "weight" not in linear._parameters:
                raise UserError(
                    f"{name}.weight isn't a parameter but computed from others (a parametrization, or torch's own "
                    "pruning); make it permanent first, as with torch.nn.utils.parametrize.remove_parametrizations"
                )
            first = seen.setdefault(id(linear.weight), name)
            if first != name:
                raise UserError(f"{name} and {first} share one weight, so they can't be cut apart; give each its own")


def check_sizes(arch: Arch, statistics: Statistics) -> None:
    """Raise UserError unless the statistics have this model's axes."""
    expected = arch.measured(statistics.keys())
    found = {key: moments.mean.numel() for key, moments in statistics.items()}
    if expected != found:
        key = sorted(dict(expected.items() ^ found.items()))[0]
        got, own = found.get(key, "no"), expected.get(key, "no")
        raise UserError(f"the statistics aren't this model's: {key} has {got} inputs in them, {own} in the model")


def check_together(options: Pruning, ranks: Ranks) -> None:
    """Raise UserError for choices that several processes might make differently."""
    method = options.resolved()
    wanted = {"--mix auto": options.mix == "auto", "--worst-task": options.worst_task}
    wanted |= {"--allocate iterative": method.allocate == "iterative", f"--method {options.method}": method.behind}
    for name in [name for name, is_wanted in wanted.items() if is_wanted and ranks.size > 1]:
        raise UserError(f"{name} is chosen by one process; run it without torchrun or --ray, or leave it out")
