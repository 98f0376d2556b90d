"""Rows in batches: like lengths together, little padding."""

from seap.text.corpus import batches, num_batches, num_with_padding


def test_a_batch_that_is_large_enough_takes_no_much_shorter_rows() -> None:
    rows = [[1] * length for length in (100, 20, 95, 90, 99, 85, 21, 81, 79, 22)]
    found = [tuple(batch.ids.shape) for batch in batches(rows, batch_tokens=4096)]
    assert found == [(6, 100), (4, 79)]  # 600 tokens are enough; 79 is less than 0.8 of 100; 316 are not
    assert num_batches(rows, batch_tokens=4096) == 2
    assert num_with_padding(rows, batch_tokens=4096) == 6 * 100 + 4 * 79
    assert [tuple(b.ids.shape) for b in batches(rows, batch_tokens=300)][:2] == [(3, 100), (3, 90)]
