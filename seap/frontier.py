"""One calibration, many sparsities: what `seap prune --max-loss …` and `seap sweep` prune from."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from seap import calibration as calibrating
from seap.config import Calibration, Pruning
from seap.corpus import Corpus
from seap.errors import UserError
from seap.files import digest
from seap.pruning import build_corpora, check, check_mixture, prune
from seap.report import Report
from seap.stats import Statistics


@dataclass
class Frontier:
    """A model, the statistics of its one calibration, and the pruning whose sparsity is open."""

    model: Any
    pruning: Pruning
    calibration: Calibration
    statistics: Mapping[str, Statistics]
    corpora: dict[str, Corpus] = field(default_factory=dict)

    @classmethod
    def measure(
        cls,
        model: Any,
        tokenizer: Any,
        tasks: Sequence[str],
        pruning: Pruning,
        calibration: Calibration,
        *,
        statistics: Mapping[str, Statistics] | None = None,
        progress: bool = True,
    ) -> "Frontier":
        """Calibrate, where the method looks at activations and no statistics are given."""
        check(model, replace(pruning, sparsity=0.0))
        if statistics or not pruning.needs_text:
            return cls(model, pruning, calibration, statistics or {})
        corpora = build_corpora(model, tokenizer, list(tasks), calibration)
        check_mixture(pruning, list(corpora))
        made = {
            name: calibrating.calibrate(model, corpus, calibration, progress=progress)
            for name, corpus in corpora.items()
        }
        return cls(model, pruning, calibration, made, corpora)

    def make(self, sparsity: float) -> tuple[Any, Report]:
        """A pruned copy of the model."""
        copy = deepcopy(self.model)
        return copy, self.cut_(copy, sparsity)

    def cut_(self, model: Any, sparsity: float) -> Report:
        """Prune in place. The report tells of the calibration as if it had been made for this sparsity."""
        options = asdict(self.pruning) | {"sparsity": sparsity, "seed": self.calibration.seed}
        report = prune(model, statistics=self.statistics, progress=False, **options)
        if not self.corpora:
            return report
        told = {n: {"source": c.source, "tokens": c.num_tokens, "hash": c.data_hash} for n, c in self.corpora.items()}
        about = {"calibration": asdict(self.calibration), "corpora": told}
        key = digest([report.provenance["key"], about])
        return replace(report, provenance=report.provenance | about | {"key": key})

    def possible(self, sparsities: Sequence[float]) -> list[float]:
        """Those that this model's layers can give up. Raises UserError where that is none."""
        found: list[float] = []
        for sparsity in sparsities:
            try:
                check(self.model, replace(self.pruning, sparsity=sparsity))
            except UserError:
                if not found:
                    raise
                break
            found.append(sparsity)
        return found
