"""Calibration: one forward pass over a task's corpus, which records the moments of every consumer's input.

Shapes: B rows, T tokens, C inputs of a consumer.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from seap.activations.checks import check_axes
from seap.activations.layerwise import Walk, model_inputs
from seap.activations.moments import Moments
from seap.activations.recording import accumulator_of, check_finite, moments_of, recording
from seap.activations.stats import IN_MEMORY_BYTES, Statistics
from seap.allocation import give_back
from seap.disk.place import check_space
from seap.environment import versions
from seap.errors import UserError
from seap.files import digest
from seap.models.arch import Arch, describe
from seap.models.axes import Axis
from seap.models.loader import name_of
from seap.models.modes import evaluation
from seap.models.residency import release, resident, streamed
from seap.models.shelf import offloading
from seap.schema import needed
from seap.text.corpus import Corpus, batches, num_batches
from seap.text.options import Calibration


def calibrate(model: Any, corpus: Corpus, options: Calibration, *, progress: bool = True) -> Statistics:
    """Moments of the inputs of every o_proj and down_proj over the corpus's tokens that count, padding left out.

    float64 and exact up to its rounding, whatever the batching and the model's dtype (co-moments of more than 256
    inputs: products in float32, sums in float64). The output layer isn't computed. With second moments, layer after
    layer, and the moments of the held-out rows apart too. Raises UserError naming the first layer whose activations
    aren't finite.
    """
    arch = describe(model)
    with evaluation(model):
        if options.second_moments or streamed(model):
            return _by_layer(arch, corpus, options, progress=progress)
        moments = _in_one_pass(arch, corpus, options, progress=progress)
        return Statistics({key: value.cpu() for key, value in moments.items()}, corpus.rows, contrast=corpus.contrast)


def _in_one_pass(arch: Arch, corpus: Corpus, options: Calibration, *, progress: bool) -> dict[str, Moments]:
    into = {axis.key: accumulator_of(arch, axis) for axis in arch.axes}
    total = num_batches(corpus.rows, batch_tokens=options.batch_tokens)
    stream = batches(corpus.rows, batch_tokens=options.batch_tokens)
    bar = tqdm(stream, total=total, desc=f"calibrate {corpus.name}", unit="batch", disable=not progress, leave=False)
    for batch in bar:
        with recording(arch, arch.axes, into, batch):
            arch.model.base_model(**model_inputs(arch, batch))
        check_finite(arch.axes, into)
    return moments_of(arch.axes, into)


def _by_layer(arch: Arch, corpus: Corpus, options: Calibration, *, progress: bool) -> Statistics:
    """One layer over all batches before the next one, so that only its own co-moments are in memory where they go."""
    second = options.second_moments
    found = Statistics(rows=corpus.rows, on_disk=too_large(arch, options), contrast=corpus.contrast)
    walk = Walk.start(arch, corpus.rows, batch_tokens=options.batch_tokens, apart=second)
    layers = range(len(arch.layers))
    bar = tqdm(layers, desc=f"calibrate {corpus.name}", unit="layer", disable=not progress, leave=False)
    with offloading(arch.model) as offload:
        walk.hidden = [offload(index, hidden) for index, hidden in enumerate(walk.hidden)]
        for layer in bar:
            axes = arch.layer_axes(layer)
            with resident(arch, layer):
                measure_layer(walk, layer, axes, options, found, offload)
    return found


def measure_layer(
    walk: Walk,
    layer: int,
    axes: Sequence[Axis],
    options: Calibration,
    found: Statistics,
    offload: Callable[[int, Tensor], Tensor],
) -> None:
    """Run all batches through one layer; its axes' moments go into `found`."""
    arch = walk.arch
    blocks = {axis.key: num_blocks(axis, options.moments) if options.second_moments else 0 for axis in axes}
    parts: list[dict[str, Moments]] = []
    for held in (False, True):
        into = {axis.key: accumulator_of(arch, axis, blocks[axis.key], is_small=found.on_disk) for axis in axes}
        for index in [index for index, is_held in enumerate(walk.held) if is_held == held]:
            with recording(arch, axes, into, walk.batches[index]):
                walk.hidden[index] = offload(index, walk.run(layer, index))
        check_finite(axes, into)
        give_back()
        parts.append(moments_of(axes, into))
    for key in list(parts[0]):
        found[key] = _with_held(parts[0].pop(key), parts[1].pop(key))


def _with_held(fit: Moments, held: Moments) -> Moments:
    """All rows' moments, with the held-out ones apart. A function, so that no layer's outlive it in a variable."""
    if held.count:
        fit.add_(held)
        fit.held = held
    return fit


def num_blocks(axis: Axis, moments: str) -> int:
    """Into how many equal blocks `--moments` divides an axis's inputs, units whole: as few as keep to its size.

    Inputs of different experts are never in one block.
    """
    if moments == "full":
        return axis.experts
    size = int(moments.removeprefix("block:"))
    inputs = axis.units * axis.unit_inputs
    divisors = (count for count in range(1, axis.units + 1) if axis.units % count == 0)
    return axis.experts * next((count for count in divisors if inputs // count <= size), axis.units)


def too_large(arch: Arch, options: Calibration) -> bool:
    """Whether there are co-moments that should lie on disk. Raises UserError where it has no room for them."""
    sizes = [axis.num_inputs**2 / num_blocks(axis, options.moments) for axis in arch.axes]
    if not options.second_moments or 16 * sum(sizes) <= IN_MEMORY_BYTES:  # float64, and those of the held-out rows
        return False
    needed, place = 8 * sum(sizes), tempfile.gettempdir()  # float32 there, with those of the held-out rows
    if shutil.disk_usage(place).free < 1.05 * needed:
        raise UserError(
            f"second moments need {needed / 1e9:.1f} GB of disk in {place}, which has less; set TMPDIR to a larger "
            "disk, or use --moments block:1024"
        )
    return True


def file_bytes(arch: Arch, options: Calibration) -> float:
    """What a statistics file takes, without its rows: float64, and once more for the held-out rows."""
    kept = 2 if options.second_moments else 1
    moments = sum(
        2 * axis.num_inputs + (axis.num_inputs**2 / num_blocks(axis, options.moments) if kept == 2 else 0)
        for axis in arch.axes
    )
    return 8 * kept * moments


def check_room(arch: Arch, corpora: Mapping[str, Corpus], options: Calibration, out: Path) -> None:
    """Raise UserError where the disk can't hold the statistics files, with the moments that lie on it meanwhile."""
    files = file_bytes(arch, options) * len(corpora) + sum(4 * corpus.num_tokens for corpus in corpora.values())
    parent = next(p for p in (out.resolve(), *out.resolve().parents) if p.exists())
    if too_large(arch, options) and parent.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        files += file_bytes(arch, options) / 2
    check_space(out, files, "the statistics")


def structure(model: Any) -> str:
    """The model's family and sizes, hashed."""
    arch = describe(model)
    sizes = [[axis.key, axis.units, axis.unit_inputs] for axis in arch.axes]
    sizes += [[axis.usage_key, axis.experts] for axis in arch.axes if axis.usage_key]
    return digest([arch.family.model_type, model.config.hidden_size, model.config.vocab_size, sizes])


def samples(model: Any, *, each: int = 8) -> list[float]:
    """A few values of every prunable linear and of the embedding, by which a model is known again."""
    arch = describe(model)
    weights = [model.get_input_embeddings().weight]
    weights += [weight for axis in arch.axes for weight in arch.weights(axis)]
    found: list[float] = []
    for weight in weights:
        values = weight.detach().reshape(-1)
        taken = values[values.numel() // (2 * each) :: max(values.numel() // each, 1)][:each]
        found += taken.float().cpu().tolist()
        release(model, [weight])  # the system brings in much more around every value
    return [float(f"{value:.5g}") for value in found]


def fingerprint(model: Any) -> str:
    """Structure and samples, hashed: the same model in the same dtype."""
    return digest([structure(model), samples(model)])


def identity(model: Any) -> dict[str, Any]:
    """What statistics and masks remember of their model, so that `check_same_model` can know it again."""
    known: dict[str, Any] = {"model": name_of(model), "fingerprint": fingerprint(model)}
    known |= {"structure": structure(model), "samples": samples(model)}
    read_from = getattr(model.config, "dequantized_from", None)
    return known if read_from is None else known | {"dequantized_from": read_from}


def check_same_model(paths: Sequence[Path], abouts: Sequence[Mapping[str, Any]], model: Any) -> None:
    """Raise UserError unless the files' metadata name this model, in whatever dtype."""
    own_structure, own = structure(model), torch.tensor(samples(model))
    for path, about in zip(paths, abouts, strict=True):
        needed(path, about, "structure", "samples")
        same = about["structure"] == own_structure and len(about["samples"]) == len(own)
        # bfloat16 keeps 8 bits, and float16 nothing below 6e-8
        if not (same and torch.allclose(torch.tensor(about["samples"]), own, rtol=2**-7, atol=1e-6)):
            raise UserError(
                f"{path} was made with another model ({about.get('model') or 'unnamed'}), not with "
                f"{name_of(model) or 'this one'}; make it again with this model"
            )


def check_measured(paths: Sequence[Path], parts: Sequence[Statistics], model: Any) -> None:
    """Raise UserError unless statistics files have the axes of the model."""
    arch = describe(model)
    vocabulary = model.get_input_embeddings().num_embeddings
    for path, part in zip(paths, parts, strict=True):
        check_axes(path, part, {} if part.on_disk else {key: part[key].mean.numel() for key in part}, arch)
        if max((max(row, default=0) for row in (*part.rows, *part.contrast.rows)), default=0) >= vocabulary:
            raise UserError(f"{path}: its token rows have ids beyond the model's {vocabulary}; make it again")


def about_statistics(model: Any, corpus: Corpus, options: Calibration) -> dict[str, Any]:
    """The metadata of a statistics file: everything that decides its content, under `key`."""
    about = {
        **identity(model),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "task": corpus.name,
        "source": corpus.source,
        "num_rows": len(corpus.rows),
        "num_tokens": corpus.num_tokens,
        "num_counted": corpus.num_counted,
        "in_template": corpus.in_template,
        "data_hash": corpus.data_hash,
        "seed": options.seed,
        "second_moments": options.second_moments,
        "moments": options.moments,
        "parts": [corpus.data_hash],
        "options": asdict(options),
        "versions": versions(),
    }
    deciding = [about[name] for name in ("fingerprint", "dtype", "task", "data_hash", "second_moments", "moments")]
    return about | {"key": digest([*deciding, *([corpus.contrast.as_lists()] if corpus.contrast else [])])}
