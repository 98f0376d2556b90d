"""How each target of `seap export` is written: what can be refused before a weight is read is, then the folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from seap.disk.digests import weight_digests
from seap.disk.whole import written_whole
from seap.errors import UserError
from seap.exports.measured import Losses
from seap.exports.options import Export, Target
from seap.files import to_json
from seap.models import loader
from seap.models.arch import describe
from seap.models.axes import AXIS_NAMES, KV_GROUPS, QUERY_HEADS
from seap.models.families import find_family, refuse_experts, refuse_states
from seap.models.loader import check_not_quantized
from seap.pruning import checkpoint
from seap.pruning.card import exported_card

BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 2}  # at most, per parameter
MEASURED: tuple[Target, ...] = ("gguf", "torchao", "compressed-tensors")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be exported, as what, and the tests on which rounding is measured."""

    name: str
    out: Path
    target: Target
    config: Any
    options: Export
    losses: Losses
    trust_remote_code: bool = False

    @property
    def told(self) -> dict[str, Any] | None:
        """What seap.json beside a local checkpoint says; None where there is none."""
        folder = Path(loader.resolve_model(self.name))
        return checkpoint.read_provenance(folder) if (folder / "seap.json").is_file() else None

    def loaded(self) -> tuple[Any, Any]:
        model, tokenizer = loader.load(self.name, device="cpu", trust_remote_code=self.trust_remote_code)
        check_not_quantized(model)
        return model, tokenizer

    def measured(self, values: Callable[[], Mapping[str, Tensor]]) -> list[dict[str, Any]]:
        """The loss with and without these values of the weights, a row per task."""
        if not self.losses.tests:
            return []
        model, tokenizer = loader.load_for_work(self.name, device="cpu", trust_remote_code=self.trust_remote_code)
        self.losses.begin(model, tokenizer)
        return self.losses.rows(model, values())


@dataclass(frozen=True)
class Written:
    """What to know about an export, and what rounding cost."""

    notes: list[str]
    rows: list[dict[str, Any]]


def write(job: Job) -> Written:
    """Write a job's target."""
    return WRITERS[job.target](job)


def check_padded(config: Any) -> None:
    """Raise UserError for a model that can't be filled up with zeros."""
    refuse_experts(config, "--to padded", "prune with --allocate one-width and export --to uniform")


def check_torchao(config: Any) -> None:
    """Raise UserError for a model whose linears torchao doesn't know."""
    refuse_experts(config, "--to torchao", "leave it in 16 bits: only its attention would be quantized")
    refuse_states(config, "--to torchao", "leave it in 16 bits")
    if find_family(config).transposed:
        raise UserError(f"{config.model_type} has no linears that torchao knows; use --to openvino --weights int8")


def _stock(job: Job) -> Written:
    from seap.exports.stock import stock_model

    if getattr(job.config, "seap", None) is None:
        raise UserError(
            f"{job.name} isn't pruned by seap: its class is a stock one already, and --to {job.target} adds nothing"
        )
    if job.target == "padded":
        check_padded(job.config)
    model, tokenizer = job.loaded()
    dense = _dense_widths(job.name, model) if job.options.pad_to == "dense" else None
    stock, notes = stock_model(model, pad=job.target == "padded", dense=dense)
    _save(job, stock, tokenizer)
    return Written([*notes, *_about_padding(model, stock, job.target)], [])


def _gguf(job: Job) -> Written:
    from seap.exports.gguf_file import check_config, gguf_package, round_trip, write_gguf
    from seap.exports.gguf_vocabulary import vocabulary_of

    gguf_package()
    check_config(job.config)
    model, tokenizer = job.loaded()
    vocabulary = vocabulary_of(tokenizer, model.config, job.options.tokenizer)
    size = sum(p.numel() for p in model.parameters()) * BYTES[job.options.quantize]
    checkpoint.check_space(job.out, size, "the export")
    with written_whole(job.out, "gguf") as draft:
        notes = write_gguf(model, vocabulary, draft, job.options, job.told)
    return Written(notes, job.measured(lambda: round_trip(model, job.options)))


def _openvino(job: Job) -> Written:
    from seap.exports.openvino_folder import check_config, openvino_bytes, openvino_packages, write_openvino

    openvino_packages(job.options)
    check_config(job.config)
    model, tokenizer = job.loaded()
    return _folder(job, openvino_bytes(model, job.options), lambda f: write_openvino(model, tokenizer, f, job.options))


def _onnx(job: Job) -> Written:
    from seap.exports.onnx_folder import check_config, onnx_bytes, onnx_package, write_onnx

    onnx_package()
    check_config(job.config)
    model, tokenizer = job.loaded()

    def write_into(folder: Path) -> list[str]:
        write_onnx(model, tokenizer, folder)
        return []

    return _folder(job, onnx_bytes(model), write_into)


def _mlx(job: Job) -> Written:
    from seap.exports.mlx_folder import check_config, write_mlx

    check_config(job.config)
    model, tokenizer = job.loaded()
    return _folder(job, loader.weight_bytes(model), lambda folder: write_mlx(model, tokenizer, folder))


def _nemotron_nas(job: Job) -> Written:
    from seap.exports.nemotron_nas import check_config, tensors, write_nas

    check_config(job.config)
    model, tokenizer = job.loaded()
    size = sum(value.numel() * value.element_size() for _, value in tensors(describe(model)))
    return _folder(job, size, lambda folder: write_nas(model, tokenizer, folder))


def _torchao(job: Job) -> Written:
    from seap.exports.quantization import check_saved, load_int8, rounded_values, torchao_package

    check_saved(job.options.weights)
    check_torchao(job.config)
    torchao_package("--to torchao")
    model, tokenizer = load_int8(job.name, trust_remote_code=job.trust_remote_code)
    rows = job.measured(lambda: rounded_values(model))
    _save(job, model, tokenizer, rows)
    return Written([], rows)


def _compressed(job: Job) -> Written:
    from seap.exports.compressed import check_config, compress, entry, stored

    if job.options.weights == "float":
        raise UserError("--to compressed-tensors: say how many bits, with --weights int8 or int4")
    check_config(job.config)
    model, tokenizer = job.loaded()
    found, notes = compress(model, job.options.weights)
    rows = job.measured(lambda: {f"{name}.weight": one.floats() for name, one in found.items()})
    model.config.quantization_config = entry(model, found)
    _save(job, model, tokenizer, rows, state_dict=stored(model, found))
    return Written(notes, rows)


WRITERS: dict[Target, Callable[[Job], Written]] = {
    "uniform": _stock,
    "padded": _stock,
    "gguf": _gguf,
    "openvino": _openvino,
    "onnx": _onnx,
    "mlx": _mlx,
    "nemotron-nas": _nemotron_nas,
    "torchao": _torchao,
    "compressed-tensors": _compressed,
}


def _folder(job: Job, size: int, write_into: Callable[[Path], list[str]]) -> Written:
    """An engine's own folder, with what is known of the pruning beside it."""
    checkpoint.check_space(job.out, size, "the export")
    with written_whole(job.out, "export") as draft:
        notes = write_into(draft)
        _save_provenance(job, draft, [])
    return Written(notes, [])


def _save(
    job: Job,
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]] | None = None,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """A folder that transformers loads, with its card where it is known how the model was pruned."""
    from seap.exports.quantization import stored_bytes

    values = model.parameters() if state_dict is None else state_dict.values()
    checkpoint.check_space(job.out, sum(stored_bytes(value) for value in values), "the export")
    with written_whole(job.out, "export") as draft:
        model.save_pretrained(draft, **({} if state_dict is None else {"state_dict": dict(state_dict)}))
        tokenizer.save_pretrained(draft)
        if job.told is not None:
            _save_provenance(job, draft, rows or [])
            (draft / "README.md").write_text(exported_card(job.told, job.target, type(model).__name__))


def _save_provenance(job: Job, folder: Path, rows: list[dict[str, Any]]) -> None:
    if job.told is not None:
        about = {**job.told, "exported": job.target, "digests": weight_digests(folder)}
        about |= {"rounding": {"weights": job.options.weights, "measured": rows}} if rows else {}
        (folder / "seap.json").write_text(to_json(about, indent=2) + "\n")


def _dense_widths(name: str, model: Any) -> Mapping[str, int]:
    """Axis name → units before pruning, which the mask file knows."""
    found = checkpoint.previous(name, model)
    if found is None:
        raise UserError(f"{name} has no {checkpoint.MASK_FILE}, so its dense widths aren't known; use --pad-to widest")
    sizes = {key.rpartition(".")[2]: mask.numel() for key, mask in found[0].items()}
    if QUERY_HEADS in sizes:
        sizes[QUERY_HEADS] //= sizes[KV_GROUPS]
    return {name: sizes[name] for name in (*AXIS_NAMES, QUERY_HEADS) if name in sizes}


def _about_padding(model: Any, stock: Any, target: Target) -> list[str]:
    if target != "padded":
        return []
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, stock)]
    added = counts[1] / counts[0] - 1
    return [f"padded with zeros: the same outputs, {added:.1%} more parameters, and no faster than its widest layer"]
