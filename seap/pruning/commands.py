"""Prune over files: what can be refused is refused before anything long starts."""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seap.activations.calibration import check_measured, check_same_model
from seap.activations.ranks import Ranks, joined, local_device
from seap.allocation import give_back
from seap.disk.claim import claimed
from seap.errors import UserError
from seap.models import loader
from seap.models.axes import Masks
from seap.models.options import Streaming
from seap.models.sizes import dtype_on_disk
from seap.pruning import checkpoint
from seap.pruning.probe import check_saved
from seap.pruning.provenance import note_
from seap.pruning.prune import needs_text, prune, split_options
from seap.pruning.report import Report
from seap.pruning.stages import check_tasks, read_statistics
from seap.pruning.streaming import check_streamable
from seap.pruning.targets import check_one_amount
from seap.pruning.vocabulary import NEEDS_TEXT
from seap.schema import converted, needed
from seap.selection.mask import load_masks
from seap.selection.mixture import check_mixture
from seap.selection.options import Pruning
from seap.text.sources import sources_of
from seap.text.tasks import load_items, parse_spec
from seap.vocabulary.options import Vocabulary, vocabulary_of


def prune_to_folder(
    name: str,
    out: Path,
    *,
    tasks: Sequence[str] = (),
    stats_files: Sequence[Path] = (),
    mask_file: Path | None = None,
    general: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    loading: Mapping[str, Any] | None = None,
    save_dtype: str | None = None,
    streaming: Streaming = Streaming(),  # noqa: B008
    prune: Callable[..., Report] = prune,
    least: float | None = None,
    verify: bool = True,
    ready: Callable[[], None] = lambda: None,
    said: Collection[str] = (),
    **options: Any,
) -> Report:
    """`seap prune`: refuse what can be refused, load, prune, and save the folder whole or not at all.

    loading: the keyword arguments of `seap.load`. save_dtype: of the weights on disk; by default that of `loading`, the
    checkpoint's own where that is auto. prune: what cuts the model, with the arguments of `seap.prune`; least: the
    share that it is sure to remove, by default the sparsity. verify: load what was written and run it, before it takes
    its name. ready: called once nothing is left to be refused but what needs the model. said: the options that the user
    gave, which a mask may contradict.

    Under torchrun each process takes its part of the text, and rank 0 writes.
    """
    ranks = Ranks.here()
    texts = [*tasks, general] if general is not None else tasks
    reads = sources_of(name, texts, [*stats_files, mask_file])
    own = claimed(out, "checkpoint", overwrite=overwrite, inputs=reads) if ranks.is_first else contextlib.nullcontext()
    with own:
        return _prune_claimed(
            name,
            out,
            ranks,
            tasks=tasks,
            stats_files=stats_files,
            mask_file=mask_file,
            general=general,
            progress=progress,
            loading=loading or {},
            save_dtype=save_dtype,
            streaming=streaming,
            prune=prune,
            least=least,
            verify=verify,
            ready=ready,
            said=said,
            options=options,
        )


def _prune_claimed(
    name: str,
    out: Path,
    ranks: Ranks,
    *,
    tasks: Sequence[str],
    stats_files: Sequence[Path],
    mask_file: Path | None,
    general: str | None,
    progress: bool,
    loading: Mapping[str, Any],
    save_dtype: str | None,
    streaming: Streaming,
    prune: Callable[..., Report],
    least: float | None,
    verify: bool,
    ready: Callable[[], None],
    said: Collection[str],
    options: Mapping[str, Any],
) -> Report:
    """`prune_to_folder`, once its output is known to be fit."""
    made = _Made.read(stats_files, mask_file)
    options = options_of_mask(options, made.about, said) if mask_file else options
    pruning = _checked(made, options, tasks, general, streaming)
    if ranks.is_first:
        ready()
    place = {**loading, "device": local_device(loading.get("device", "auto"))}
    together: dict[str, Any] = {"ranks": ranks} if ranks.size > 1 else {}
    with joined(ranks), loader.loaded(name, out, place, save_dtype, streaming) as (model, tokenizer):
        made.check(model)
        removed = (pruning.sparsity if pruning.cost == "params" else 0.0) if least is None else least
        checkpoint.check_space(out, checkpoint.written_bytes(model, removed, save_dtype), "the pruned model")
        written_as = getattr(torch, save_dtype) if save_dtype else dtype_on_disk(model)
        if pruning.cost != "params" and not streaming.stream:
            together["save_dtype"] = written_as
        report = prune(
            model,
            tokenizer,
            task=list(tasks) or None,
            statistics={task: part for task, (part, _) in made.stored.items()} or None,
            masks=made.masks,
            general=general,
            progress=progress,
            **together,
            **options,
        )
        if not ranks.is_first:
            return report
        if mask_file:
            tokens = report.num_tokens or made.about["num_tokens"]
            report = replace(report, tasks=tuple(made.about["tasks"]), num_tokens=tokens)
        if not streaming.stream:
            model.to(written_as)
        trust = bool(loading.get("trust_remote_code"))
        notes = save_pruned(model, tokenizer, report, out, verify=verify, trust_remote_code=trust)
        return replace(report, notes=(*report.notes, *notes))


@dataclass(frozen=True)
class _Made:
    """What was made before: statistics by task, or masks, each with its metadata."""

    stats_files: Sequence[Path]
    mask_file: Path | None
    stored: Mapping[str, tuple[Any, dict[str, Any]]]
    masks: Masks | None
    about: Mapping[str, Any]  # of the masks

    @classmethod
    def read(cls, stats_files: Sequence[Path], mask_file: Path | None) -> "_Made":
        masks, about = load_masks(mask_file) if mask_file else (None, {})
        if mask_file:
            needed(mask_file, about, "options", "tasks", "num_tokens")
        return cls(stats_files, mask_file, read_statistics(stats_files), masks, about)

    def check(self, model: Any) -> None:
        """Raise UserError for what was made of another model."""
        check_same_model(self.stats_files, [about for _, about in self.stored.values()], model)
        check_measured(self.stats_files, [part for part, _ in self.stored.values()], model)
        if self.mask_file:
            check_same_model([self.mask_file], [self.about], model)


def _checked(
    made: _Made, options: Mapping[str, Any], tasks: Sequence[str], general: str | None, streaming: Streaming
) -> Pruning:
    """The options of the pruning. Raises UserError for what doesn't go together, before anything is loaded."""
    wanted, others = vocabulary_of(options)
    pruning, _ = split_options(others)
    if not made.mask_file:
        check_one_amount(others)
    check_vocabulary(wanted, tasks, made.stats_files, streaming)
    needed_text = wanted.is_cut or (not made.stored and needs_text(pruning, made.masks))
    if streaming.stream:
        check_streamable(pruning)
    check_texts(tasks, pruning, needed=needed_text, stored=made.stored, general=general)
    return pruning


def check_vocabulary(
    wanted: Vocabulary, tasks: Sequence[str], stats_files: Sequence[Path], streaming: Streaming
) -> None:
    """Refuse, before anything is read, what the vocabulary can't be cut with."""
    if not wanted.is_cut:
        return
    asked = f"--vocabulary {wanted.vocabulary}"
    if not tasks:
        raise UserError(f"{asked}: {NEEDS_TEXT}; add --task NAME or --task NAME=PATH")
    if stats_files:
        raise UserError(f"{asked}: --stats were measured with the whole vocabulary; leave one of them out")
    if streaming.stream:
        raise UserError(f"{asked} needs the whole model in memory, which --stream doesn't have; leave one of them out")


def check_texts(
    tasks: Sequence[str], pruning: Pruning, *, needed: bool, stored: Collection[str], general: str | None
) -> None:
    """Refuse texts that can't be read or mixed; `needed` says whether the tasks' are, `stored` names statistics."""
    check_tasks(tasks, needed=needed)
    names = [parse_spec(spec).name for spec in tasks] if needed else list(stored)
    check_mixture(pruning, names, general=general is not None)
    if general is not None:
        load_items(parse_spec(general), "train")


def options_of_mask(options: Mapping[str, Any], about: Mapping[str, Any], said: Collection[str] = ()) -> dict[str, Any]:
    """A mask's own options in place of this run's. Raises UserError for an option that the mask has settled.

    said: those that the user gave, which count also where they are the default.
    """
    made_with = converted(about["options"], Pruning, "the options in the mask's metadata")
    settled = {name: value for name, value in asdict(made_with).items() if name in about["options"]}
    defaults = asdict(Pruning())
    for name, value in options.items():
        if name in settled and name != "compensate" and value != settled[name]:
            if name not in said and value == defaults[name]:
                continue
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {value} has no effect with --mask-file, whose mask is made already; leave it out")
    own = {name: value for name, value in options.items() if name not in settled}
    compensate = options.get("compensate") or made_with.compensate
    return settled | own | {"compensate": compensate, "mix": 0.0, "worst_task": False}


def save_pruned(
    model: Any, tokenizer: Any, report: Report, out: Path, *, verify: bool = True, trust_remote_code: bool = False
) -> list[str]:
    """Save a checkpoint, with the report as it is now. Returns what is to be said about verifying it."""
    assert report.origin is not None
    note_(model, report.to_dict(), report.masks, report.origin)
    notes: list[str] = []
    give_back()

    def run_again(folder: Path) -> None:
        give_back()
        own = tokenizer if report.vocabulary else None
        if verify and (note := check_saved(folder, model, own, trust_remote_code=trust_remote_code)):
            notes.append(note)

    checkpoint.save(model, tokenizer, out, verify=run_again)
    return notes
