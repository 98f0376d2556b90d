"""What a cut did to the loss, seen where it is done: on a thousand tokens of the task's held-out text.

It is a look, not a test: `seap eval` measures more text, and errors. Shapes: B rows, T tokens, V vocabulary.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn import functional

from seap.activations.layerwise import Walk, few_logits, model_inputs, resume, vocabulary_size
from seap.activations.stats import Statistics
from seap.errors import UserError
from seap.models.arch import describe
from seap.models.modes import evaluation
from seap.models.residency import streamed
from seap.selection.damage import probe_rows
from seap.text.builtin import TASKS as BUILTIN_TASKS
from seap.text.corpus import Batch, build_corpus, longest_sequence
from seap.text.options import Calibration
from seap.text.tasks import load_items, parse_spec
from seap.text.tokens import check_ids

TOKENS = 1024
HELD, FITTED = "held-out text", "text that it was calibrated on"


@dataclass(frozen=True)
class Dense:
    """The dense model on some rows: its hidden states after the last layer, per batch."""

    walk: Walk
    last: list[Tensor]
    text: str  # what it is to the run

    def damage_to(self, model: Any) -> dict[str, Any] | None:
        """Loss before and after the cut, and KL(dense ‖ cut), nats per token, of the model now that it is cut."""
        depth = len(self.walk.arch.layers)
        sums = dict.fromkeys(("loss_before", "loss_after", "kl"), 0.0)
        count = predicted = 0
        with evaluation(model):
            for batch, last in zip(self.walk.batches, self.last, strict=True):
                dense = resume(self.walk.arch, batch, depth, last).float().log_softmax(-1)
                pruned = model(**model_inputs(describe(model), batch)).logits.float().log_softmax(-1)
                sums["loss_before"] += _loss(dense, batch)
                sums["loss_after"] += _loss(pruned, batch)
                less = pruned.sub_(dense).mul_(dense.exp_()).sum(-1).double()  # in place: they are large
                sums["kl"] -= float((less * batch.said.to(less.device)).sum())
                count += int(batch.said.sum())
                predicted += int(batch.predicting.sum())
        if not predicted:
            return None
        losses = {name: sums[name] / predicted for name in ("loss_before", "loss_after")}
        return losses | {"kl": sums["kl"] / count, "tokens": count, "text": self.text}


def _loss(log_p: Tensor, batch: Batch) -> float:
    """Summed over the places that count; log_p (B, T, V)."""
    targets = batch.ids[:, 1:].to(log_p.device)
    losses = functional.nll_loss(log_p[:, :-1].transpose(1, 2), targets, reduction="none").double()
    return float((losses * batch.predicting.to(losses.device)).sum())


def heard(
    model: Any, tokenizer: Any, tasks: Any, statistics: Mapping[str, Statistics], options: Calibration
) -> Dense | None:
    """The dense model on a thousand tokens: of the tasks' test parts or, where they have none at hand, calibration's.

    tasks: as of `seap.prune`. None where there is no text, and for models that are streamed layer by layer.
    """
    if streamed(model) is not None:
        return None
    rows, text = rows_of_tests(model, tokenizer, tasks, options), HELD
    if not rows:
        rows, text = probe_rows([row for part in statistics.values() for row in part.rows], TOKENS, 0), FITTED
    if not rows:
        return None
    with evaluation(model):
        arch = describe(model)
        few = few_logits(vocabulary_size(arch), Calibration.batch_tokens)  # there are some copies of them
        walk = Walk.start(arch, rows, batch_tokens=few, apart=False)
        for layer in range(len(walk.arch.layers)):
            walk.hidden = [walk.run(layer, index) for index in range(len(walk.batches))]
    return Dense(walk, walk.hidden, text)


def rows_of_tests(model: Any, tokenizer: Any, tasks: Any, options: Calibration) -> list[Sequence[int]]:
    """Some of the test part of every task that is a file, a folder or built in: what nothing is chosen or fitted on."""
    named = [tasks] if isinstance(tasks, str) else tasks if isinstance(tasks, list | tuple) else []
    if tokenizer is None or not named or not all(isinstance(one, str) for one in named):
        return []
    specs = [parse_spec(one) for one in named]
    if any(spec.path is None and spec.name not in BUILTIN_TASKS for spec in specs):
        return []  # on the Hub, whose other parts aren't fetched for this
    wanted = replace(options, max_tokens=max(TOKENS // len(specs), 2), pack=False)
    rows: list[Sequence[int]] = []
    for spec in specs:
        with contextlib.suppress(UserError):  # one text only, or none that counts
            items, length = load_items(spec, "test"), longest_sequence(model, options)
            corpus = build_corpus(spec.name, items, tokenizer, wanted, source="", seq_len=length)
            check_ids(corpus.rows, model, tokenizer, f"the test part of {spec.name}")
            rows += corpus.rows
    return rows
