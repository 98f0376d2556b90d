"""The keyword arguments that editors and type checkers know are the options that there are."""

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

import seap
from seap.evaluation.keywords import EvaluationKeywords
from seap.evaluation.options import Evaluation
from seap.exports.keywords import ExportKeywords
from seap.exports.options import Export
from seap.selection.keywords import ChoicesKeywords, PruningKeywords, VocabularyKeywords
from seap.selection.options import Choices, Pruning
from seap.text.keywords import CalibrationKeywords, ReadingKeywords
from seap.text.options import Calibration, Reading
from seap.vocabulary.options import Vocabulary

PAIRS = [
    (Choices, ChoicesKeywords),
    (Pruning, PruningKeywords),
    (Reading, ReadingKeywords),
    (Calibration, CalibrationKeywords),
    (Evaluation, EvaluationKeywords),
    (Export, ExportKeywords),
    (Vocabulary, VocabularyKeywords),
]


@pytest.mark.parametrize(("options", "keywords"), PAIRS, ids=lambda kind: kind.__name__)
def test_keywords_are_the_fields_of_the_options(options: Any, keywords: Any) -> None:
    own, named = get_type_hints(options), get_type_hints(keywords)
    assert set(named) == {field.name for field in fields(options)}, f"bring {keywords.__name__} in line (keywords.py)"
    differing = {name for name in named if name != "sparsity" and own[name] != named[name]}
    assert not differing, f"{keywords.__name__} has other types than {options.__name__} for these"


def test_what_python_offers_is_there() -> None:
    for name in seap.__all__:
        assert getattr(seap, name) is not None
    assert callable(seap.evaluate) and callable(seap.compare) and callable(seap.export)
