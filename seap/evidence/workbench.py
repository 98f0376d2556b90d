"""What the networks of a comparison share: the model, tests, statistics and rankings, made once, and keys of rows."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from seap.activations.calibration import about_statistics, calibrate, fingerprint
from seap.activations.stats import Statistics, load_statistics, merge, save_statistics
from seap.environment import commit, versions
from seap.evaluation.evaluate import Exam
from seap.evaluation.likeness import Reference
from seap.evidence.plan import Comparison, Network
from seap.evidence.sizes import footprint_for
from seap.files import digest, is_current
from seap.pruning.report import Report
from seap.selection.ranking import Ranking, rank
from seap.text.corpus import Corpus, build_corpus, longest_sequence
from seap.text.items import Item
from seap.text.options import Calibration
from seap.text.shapes import without_answer
from seap.text.tasks import parse_spec, spec_source
from seap.text.tokens import check_ids

PUBLISHED_FLAP = Calibration(num_texts=10**9, seq_len=128, pack=True, max_tokens=1024 * 128)


@dataclass
class Bench:
    """The loaded model and everything that is made once and used by many networks.

    model, tokenizer and tests are those of which the networks are made: with --vocabulary with fewer tokens than the
    dense model has, of which `whole` are model and tests.
    """

    plan: Comparison
    model: Any
    tokenizer: Any
    out: Path
    tests: dict[str, Exam]
    items: dict[str, list[Item]]  # to calibrate on, by spec
    progress: bool
    whole: tuple[Any, dict[str, Exam]] | None = None
    finished: Callable[[Report], Report] = lambda report: report  # of a report on the layers one on the whole model
    reference: Reference | None = field(init=False)
    fingerprint: str = field(init=False)
    max_tokens: int = field(init=False)  # of calibration text behind every network
    code: Any = field(init=False)  # that makes the numbers
    latest: tuple[Any, dict[str, Statistics], list[str]] = (None, {}, [])  # what `measured` found last
    ranked: tuple[Any, Ranking | None] = (None, None)  # what `ranking` made last

    def __post_init__(self) -> None:
        self.reference = Reference(self.model) if self.whole is None else None  # first choices of other tokens differ
        self.fingerprint = fingerprint(self.model)
        self.max_tokens = equal_tokens(self)
        self.code = [commit(), versions()]

    @property
    def dense(self) -> tuple[Any, dict[str, Exam]]:
        """The dense model and its tests."""
        return self.whole or (self.model, self.tests)

    def measured(self, seed: int, text: str) -> tuple[dict[str, Statistics], list[str]]:
        """Statistics of a text, by name as `pruning.make_masks` takes them, and the hashes of what they are of.

        Only the latest are kept in memory, since they can be large: networks come text by text.
        """
        if self.latest[0] != (seed, text):
            self.latest = (None, {}, [])
            hashes: list[str] = []
            self.latest = ((seed, text), self._measure(seed, text, hashes), hashes)
        return self.latest[1:]

    def ranking(self, network: Network) -> tuple[Ranking, list[str]]:
        """The ranking of a network's method on its text, shared by all sparsities; and the text's hashes."""
        statistics, hashes = self.measured(network.seed, network.text)
        wanted = (network.seed, network.text, network.method)
        if self.ranked[0] != wanted or self.ranked[1] is None:
            options = replace(self.plan.pruning, method=network.method)
            seen = footprint_for(self.dense[0], options, self.model)
            ranking = rank(self.model, statistics, options, footprint=seen, seed=network.seed)
            self.latest = (self.latest[0], ranking.statistics, hashes)  # with what the next method may need too
            self.ranked = (wanted, ranking)
        assert self.ranked[1] is not None
        return self.ranked[1], hashes

    def _measure(self, seed: int, text: str, noted: list[str]) -> dict[str, Statistics]:
        options = replace(self.plan.calibration, seed=seed, max_tokens=self.max_tokens)
        shared = replace(options, max_tokens=max(self.max_tokens // len(self.plan.tasks), 2))
        if text == "weights":
            return {}
        if text in ("general", "pooled"):
            parts = {
                name: self._statistics(self._corpus(spec, shared), shared, noted)
                for name, spec in self._specs().items()
            }
            return parts if text == "general" else {"pooled": merge(parts.values())}
        if text == "flap-1024x128":
            published = replace(PUBLISHED_FLAP, seed=seed)
            return {text: self._statistics(self._corpus(self._general(), published), published, noted)}
        if text == "general-text":
            return {text: self._statistics(self._corpus(self._general(), options), options, noted)}
        name = text.removeprefix("no-answers:")
        corpus = self._corpus(self._specs()[name], options, answers=name == text)
        return {name: self._statistics(corpus, options, noted)}

    def _specs(self) -> dict[str, str]:
        return dict(zip(self.plan.names, self.plan.tasks, strict=True))

    def _general(self) -> str:
        assert self.plan.general is not None
        return self.plan.general

    def _corpus(self, spec: str, options: Calibration, *, answers: bool = True) -> Corpus:
        parsed = parse_spec(spec)
        corpus = build_corpus(
            parsed.name if answers else f"{parsed.name}-no-answers",
            self.items[spec] if answers else [without_answer(item) for item in self.items[spec]],
            self.tokenizer,
            options if answers else replace(options, weigh="all"),
            source=spec_source(parsed),
            seq_len=longest_sequence(self.model, options),
        )
        check_ids((*corpus.rows, *corpus.contrast.rows), self.model, self.tokenizer, f"task {corpus.name}")
        return corpus

    def _statistics(self, corpus: Corpus, options: Calibration, noted: list[str]) -> Statistics:
        """Of one corpus, kept on disk by content; its hash is noted."""
        noted.append(corpus.data_hash)
        about = about_statistics(self.model, corpus, options)
        path = self.out / "stats" / f"{corpus.name}-{about['key']}.safetensors"
        if is_current(path, about["key"]):
            return load_statistics(path)[0]
        found = calibrate(self.model, corpus, options, progress=self.progress)
        save_statistics(path, found, about)
        return found

    @cached_property
    def contents(self) -> dict[str, str]:
        """By spec, a hash of what its texts are; item by item, since pictures may be in them."""
        return {spec: digest([digest(asdict(item)) for item in items]) for spec, items in self.items.items()}

    def made_key(self, network: Network) -> str:
        """Everything that decides a network, the code included."""
        plan = self.plan
        options = [asdict(plan.calibration), plan.pruning.deciding, asdict(plan.vocabulary)]
        made = asdict(replace(network, tested_on=())) | {"texts": [plan.tasks, plan.general], "of": self.contents}
        return digest([self.fingerprint, made, options, self.max_tokens, self.code])

    def key(self, network: Network, task: str) -> str:
        """Everything that decides a row."""
        return digest([self.made_key(network), asdict(self.plan.evaluation), task, self.tests[task].test.data_hash])

    def row_file(self, network: Network, task: str) -> Path:
        return self.out / "rows" / f"{self.key(network, task)}.json"

    def mask_file(self, network: Network) -> Path:
        name = f"{network.method}-{network.sparsity}-{network.text.replace(':', '-')}-seed{network.seed}"
        return self.out / "masks" / f"{name}-{self.made_key(network)}.safetensors"


def equal_tokens(bench: Bench) -> int:
    """Calibration tokens of every network: as many as the smallest text in the comparison has under the options."""
    options = bench.plan.calibration
    seeds = range(bench.plan.seeds)
    texts = bench.plan.calibrated
    return min(bench._corpus(spec, replace(options, seed=seed)).num_tokens for spec in texts for seed in seeds)
