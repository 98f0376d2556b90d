"""OBS scores against the errors that they say."""

import subprocess
import sys

import pytest
import torch
from correlated import moments

from seap.compensation.compensate import output_error, ridge
from seap.scoring.obs import removal, removal_costs


@pytest.mark.parametrize("unit_inputs", [1, 2])
def test_obs_costs_are_the_errors_left_after_refitting(unit_inputs: int) -> None:
    found, _, weight = moments()
    covariance = found.covariance
    costs = removal_costs(weight, torch.linalg.inv(covariance), unit_inputs)
    for unit in range(6 // unit_inputs):
        keep = torch.ones(6, dtype=torch.bool)
        keep[unit * unit_inputs : (unit + 1) * unit_inputs] = False
        left = output_error(weight, found, keep, ridge(weight, found, keep, 1e-14))
        assert float(costs[unit]) == pytest.approx(left, rel=1e-6)


def test_obs_removal_takes_each_unit_once_and_scores_follow_the_order() -> None:
    found, _, weight = moments(size=12)
    order = removal(weight, found, 2)
    assert sorted(order.order.tolist()) == list(range(6))
    assert torch.sort(order.scores()).indices.tolist() == order.order.tolist()


AS_OF_A_PUBLIC_MODEL = """
import torch
from seap.scoring.obs import removal_costs
torch.set_num_threads(2)
square = torch.randn(576, 900, dtype=torch.float64)
print(removal_costs(torch.randn(576, 576, dtype=torch.float64), square @ square.t() / 900, 192).isfinite().all().item())
"""


def test_groups_of_a_public_models_size_are_scored_with_two_threads() -> None:
    """The LU of a batch of matrices never ends there, once two threads share it."""
    done = subprocess.run([sys.executable, "-c", AS_OF_A_PUBLIC_MODEL], capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[-1] == "True", done.stderr[-2000:]
