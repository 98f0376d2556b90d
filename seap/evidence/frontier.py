"""One calibration, many sparsities: what `seap prune --max-loss …` and `seap sweep` prune from."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from seap.activations.stats import Statistics
from seap.errors import UserError
from seap.evidence.sizes import footprint_for
from seap.files import digest
from seap.pruning.prune import build_corpora, calibrate_corpora, check, prune, with_rounding, with_what_is_needed
from seap.pruning.report import Report
from seap.selection.footprint import Footprint
from seap.selection.mixture import check_mixture
from seap.selection.options import Pruning
from seap.selection.ranking import Ranking, rank
from seap.text.corpus import Corpus
from seap.text.options import Calibration


@dataclass
class Frontier:
    """A dense model and the ranking of its units from one calibration; the sparsity is open."""

    model: Any
    calibration: Calibration
    ranking: Ranking
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
        footprint: Footprint | None = None,
        progress: bool = True,
    ) -> "Frontier":
        """Calibrate, where the method looks at activations and no statistics are given.

        footprint: of the model, where the options count something else than parameters.
        """
        pruning, _ = with_rounding(model, pruning)
        check(model, replace(pruning, sparsity=0.0))
        how: dict[str, Any] = {"footprint": footprint or footprint_for(model, pruning), "seed": calibration.seed}
        how["progress"] = progress
        if statistics or not pruning.needs_text:
            return cls(model, calibration, rank(model, statistics or {}, pruning, **how))
        corpora = build_corpora(model, tokenizer, list(tasks), calibration)
        check_mixture(pruning, list(corpora))
        made = calibrate_corpora(model, corpora, with_what_is_needed(calibration, pruning), progress=progress)
        ranking = rank(model, made, pruning, **how)
        return cls(model, calibration, ranking, corpora)

    def make(self, sparsity: float) -> tuple[Any, Report]:
        """A pruned copy of the model."""
        copy = deepcopy(self.model)
        return copy, self.cut_(copy, sparsity, measure_damage=False)

    def cut_(self, model: Any, sparsity: float, *, measure_damage: bool = True) -> Report:
        """Prune in place. The report tells of the calibration as if it had been made for this sparsity."""
        options = asdict(self.ranking.options) | {"sparsity": sparsity, "seed": self.calibration.seed}
        told: dict[str, Any] = {"measure_damage": measure_damage, "save_dtype": model.config.dtype, "progress": False}
        report = prune(model, ranking=self.ranking, **told, **options)
        if not self.corpora:
            return report
        texts = {name: corpus.told for name, corpus in self.corpora.items()}
        about = {"calibration": asdict(self.calibration), "corpora": texts}
        key = digest([report.provenance["key"], about])
        return replace(report, provenance=report.provenance | about | {"key": key})

    def possible(self, sparsities: Sequence[float]) -> list[float]:
        """Those that this model's layers can give up. Raises UserError where that is none."""
        found: list[float] = []
        for sparsity in sparsities:
            try:
                check(self.model, replace(self.ranking.options, sparsity=sparsity))
            except UserError:
                if not found:
                    raise
                break
            found.append(sparsity)
        return found
