import pytest

from trackstar.tasks.methods.settings import FINEST_IN_FLOAT32, InfluenceConfig


def test_a_tolerance_that_float32_does_not_hold_is_refused():
    InfluenceConfig(dtype="float32", tolerance=FINEST_IN_FLOAT32)
    with pytest.raises(ValueError, match="finer than float32 holds"):
        InfluenceConfig(dtype="float32", tolerance=FINEST_IN_FLOAT32 / 2)
