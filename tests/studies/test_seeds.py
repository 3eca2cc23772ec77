"""The interval of a mean over seeds, against the table of Student's t and scipy's own interval."""

import pytest
from scipy.stats import ttest_1samp

from hf_warmscale.studies import mean_over_seeds


def test_it_is_the_t_interval() -> None:
    values = [-0.021, 0.004, -0.013]
    found = mean_over_seeds(values)
    assert found is not None and found.seeds == 3
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    # Of three values 1 apart, the standard error is 1 / sqrt(3); the quantile at two degrees of freedom is 4.3027.
    table = mean_over_seeds([1.0, 2.0, 3.0])
    assert table is not None and table.high - table.mean == pytest.approx(4.3027 / 3**0.5, abs=1e-4)


def test_one_seed_has_no_interval() -> None:
    assert mean_over_seeds([0.1]) is None
