"""What a preset sets, what comes before it, and settings that make no sense together."""

import pytest
from pydantic import ValidationError

from trackstar.flows.config import IndexConfig
from trackstar.storage.errors import InputError


def config(**settings) -> IndexConfig:
    return IndexConfig.model_validate({"checkpoint": "c", "index": "i", "corpus": {"paths": ["t.jsonl"]}, **settings})


def is_flat(built: IndexConfig) -> bool:
    is_white = built.gradient.has_kronecker_factors
    return built.curvature.resolve(is_white=is_white).autocorrelation == "off"


def test_the_paper_is_the_default_and_small_is_kfac_without_R_train():
    paper, small = config(), config(preset="small")
    assert config(preset="paper") == paper
    assert (paper.preset, paper.gradient.correction, paper.gradient.projection_dim) == ("paper", "v", 64)
    assert (paper.store_as, is_flat(paper)) == ("float32", False)
    assert (small.preset, small.gradient.correction, small.gradient.projection_dim) == ("small", "kfac", 64)
    assert (small.store_as, is_flat(small)) == ("sign", True)


def test_single_settings_come_before_a_preset():
    small = config(preset="small", gradient={"projection_dim": 128, "seed": 3}, curvature={"autocorrelation": "on"})
    gradient = small.gradient
    assert (gradient.correction, gradient.projection_dim, gradient.seed, is_flat(small)) == ("kfac", 128, 3, False)
    assert config(preset="small", store_as="float32").store_as == "float32"


def test_R_train_goes_with_the_correction_unless_it_is_asked_for():
    assert is_flat(config(gradient={"correction": "kfac"}))
    assert is_flat(config(gradient={"correction": "ekfac"}))
    assert not is_flat(config(gradient={"correction": "none"}))
    assert not is_flat(config(gradient={"correction": "kfac"}, curvature={"autocorrelation": "on"}))
    assert is_flat(config(curvature={"autocorrelation": "off"}))


def test_a_preset_that_there_is_none_of_is_refused():
    with pytest.raises(ValidationError, match="'paper' or 'small'"):
        config(preset="large")


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        ({"projection": "none", "projection_rows": "orthonormal"}, "which has no rows; leave out --projection-rows"),
        ({"factor_damping": 0.1}, "the correction is v, which has no Kronecker factors; leave out --factor-damping"),
    ],
)
def test_settings_that_take_no_part_beside_others_are_refused(gradient, words):
    with pytest.raises(InputError, match=words):
        config(gradient=gradient).check()


def test_settings_added_since_change_no_identity_of_an_index_that_is_there():
    known = {"projection", "projection_dim", "num_layer_blocks", "pooling", "epsilon", "seed"}
    assert config().gradient.identity().keys() == known
    kfac = config(gradient={"correction": "kfac", "parameters": ["mlp"]}).gradient.identity()
    assert kfac.keys() == known | {"correction", "factor_damping", "parameters"}
    both = [config(gradient={"parameters": order}).gradient for order in (["attention", "mlp"], ["mlp", "attention"])]
    assert both[0].identity() == both[1].identity()
