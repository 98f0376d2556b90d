"""Calibration: one forward pass over a task's corpus, which records the moments of every consumer's input.

Shapes: B rows, T tokens, C inputs of a consumer.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from seap.arch import Arch, describe
from seap.config import Calibration
from seap.corpus import Batch, Corpus, batches, num_batches
from seap.errors import UserError
from seap.files import digest
from seap.stats import Moments, Statistics


def calibrate(model: Any, corpus: Corpus, options: Calibration, *, progress: bool = True) -> Statistics:
    """Moments of the inputs of every o_proj and down_proj over the corpus's tokens, padding left out.

    float64 and exact up to its rounding, whatever the batching and the model's dtype. The output layer isn't computed.
    Raises UserError naming the first layer whose activations aren't finite.
    """
    arch = describe(model)
    device = next(model.parameters()).device
    second = options.second_moments
    moments = {
        axis.key: Moments.zeros(axis.num_inputs, second=second, device=_moments_device(arch.consumer(axis).weight))
        for axis in arch.axes
    }
    total = num_batches(corpus.rows, batch_tokens=options.batch_tokens)
    stream = batches(corpus.rows, batch_tokens=options.batch_tokens)
    bar = tqdm(stream, total=total, desc=f"calibrate {corpus.name}", unit="batch", disable=not progress, leave=False)
    with _evaluation(model), torch.no_grad():
        for batch in bar:
            with _recording(arch, moments, batch):
                model.base_model(
                    input_ids=batch.ids.to(device), attention_mask=batch.mask.long().to(device), use_cache=False
                )
            _check_finite(arch, moments)
    return {key: value.cpu() for key, value in moments.items()}


def _moments_device(weight: Tensor) -> torch.device:
    return weight.device if weight.device.type in ("cuda", "cpu") else torch.device("cpu")  # MPS has no float64


@contextlib.contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextlib.contextmanager
def _recording(arch: Arch, moments: Statistics, batch: Batch) -> Iterator[None]:
    """Hooks on the consumers that take in one batch's real tokens."""
    real = None if batch.mask.all() else batch.mask.flatten()

    def recorder(into: Moments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            rows = rows if real is None else rows[real.to(rows.device)]
            into.update_(rows.to(into.mean.device))

        return record

    handles = [arch.consumer(axis).register_forward_pre_hook(recorder(moments[axis.key])) for axis in arch.axes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_finite(arch: Arch, moments: Statistics) -> None:
    sums = torch.stack([moments[axis.key].m2.sum().cpu() for axis in arch.axes])
    bad = (~torch.isfinite(sums)).nonzero().flatten().tolist()
    if bad:
        axis = arch.axes[bad[0]]
        raise UserError(
            f"NaN or infinite activations at the input of layer {axis.layer} {axis.consumer}; "
            "try --dtype bfloat16 or float32, and check the model's weights"
        )


def fingerprint(model: Any) -> str:
    """What makes two models the same for statistics and masks: the widths, and the signs of a sample of the weights.

    Signs rather than values, so that a model loaded in another dtype is the same model.
    """
    arch = describe(model)
    parts: list[Any] = [arch.family.model_type, model.config.hidden_size]
    for axis in arch.axes:
        weight = arch.weight(axis.layer, axis.consumer).detach()
        flat = weight.reshape(-1)
        step = max(flat.numel() // 2048, 1)
        signs = (flat[::step] > 0).cpu().numpy()
        parts.append([axis.key, axis.units, axis.unit_inputs, digest(signs.tobytes().hex())])
    return digest(parts)


def check_same_model(paths: Sequence[Path], abouts: Sequence[Mapping[str, Any]], model: Any) -> None:
    """Raise UserError unless the files' metadata name this model."""
    own = fingerprint(model)
    for path, about in zip(paths, abouts, strict=True):
        if about["fingerprint"] != own:
            raise UserError(
                f"{path} was made with another model ({about.get('model') or 'unnamed'}), not with "
                f"{getattr(model.config, '_name_or_path', '') or 'this one'}; make it again with this model"
            )


def about_statistics(model: Any, corpus: Corpus, options: Calibration) -> dict[str, Any]:
    """The metadata of a statistics file: everything that decides its content, under `key`."""
    about = {
        "model": getattr(model.config, "_name_or_path", ""),
        "fingerprint": fingerprint(model),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "task": corpus.name,
        "source": corpus.source,
        "num_texts": len(corpus.rows),
        "num_tokens": corpus.num_tokens,
        "data_hash": corpus.data_hash,
        "seed": options.seed,
        "second_moments": options.second_moments,
        "parts": 1,
    }
    deciding = ("fingerprint", "dtype", "task", "data_hash", "second_moments")
    return about | {"key": digest([about[name] for name in deciding])}
