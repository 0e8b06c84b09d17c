"""The whole study in miniature, cell by cell without Prefect: two models, few steps, little of everything."""

import re

import pytest

from trackstar.flows.mnist import MnistConfig
from trackstar.tasks.mnist.cells import (
    GeometryRequest,
    ParametersRequest,
    SweepsRequest,
    TermsRequest,
    measure_geometry,
    measure_parameters,
    measure_sweeps,
    measure_terms,
)
from trackstar.tasks.mnist.data import ImagesRequest, write_images
from trackstar.tasks.mnist.model import VARIANTS, StudyConfig
from trackstar.tasks.mnist.pictures import PicturesRequest, draw_pictures
from trackstar.tasks.mnist.render import PAGE, render_report, write_report
from trackstar.tasks.mnist.results import Study
from trackstar.tasks.runtime.stage import build

SMALL = StudyConfig(num_seeds=2, num_images=400, num_hidden=8, num_steps=60, num_candidates=120, num_queries=60)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("study"))
    images = build(write_images.body, ImagesRequest(index=out, data="digits", num_images=SMALL.num_images))
    common = {"index": out, "images": images, "config": SMALL}
    clean = {**common, "variant": "clean"}
    return Study(
        data="/somewhere/<b>digits</b>.npz",
        num_images=images.facts["num_images"],
        config=SMALL,
        pictures=[draw_pictures.fn(PicturesRequest(**common, variant=v, seed=0)) for v in VARIANTS],
        terms=[measure_terms.fn(TermsRequest(**common, variant=v, seed=s)) for v in VARIANTS for s in (0, 1)],
        geometry=[measure_geometry.fn(GeometryRequest(**clean, seed=s, keep_matrices=s == 0)) for s in (0, 1)],
        sweeps=[measure_sweeps.fn(SweepsRequest(**clean, seed=s)) for s in (0, 1)],
        parameters=[measure_parameters.fn(ParametersRequest(**clean, seed=s)) for s in (0, 1)],
    )


def test_a_sweep_passes_through_the_number_of_the_table(study):
    swept = dict(study.curves("damping")["two-sided, train R"])[SMALL.damping]
    table = next(both for way, both in study.table().items() if way == ("clean", "two_sided_train", "cosine"))
    assert swept["same_class"].value == pytest.approx(table["same_class"].value, abs=1e-6)  # float32 in another order


def test_keeping_every_direction_is_no_cut(study):
    [(_, whole)] = study.curves("directions")["two-sided, no R"][-1:]
    table = study.table()[("clean", "two_sided", "cosine")]
    assert whole["same_class"].value == pytest.approx(table["same_class"].value, abs=1e-3)  # rotated, so ties may turn


def test_a_cell_computed_again_is_the_same(study):
    cell = study.terms[0]
    again = Study.model_validate_json(study.model_dump_json())  # what the cache gives back
    assert again.terms[0] == cell
    assert again.numbers() == study.numbers()


@pytest.fixture(scope="module")
def page(study):
    return render_report(study)


def test_the_page_is_self_contained_and_escaped(page):
    assert "<script" not in page
    assert "<b>digits" not in page
    assert "/somewhere" not in page
    assert not re.search(r'(?:src|href)="(?!data:image/png;base64,|#)', page)
    assert page.count("<svg") == page.count('<svg class="plot" viewBox=') >= 15


def test_the_page_names_every_claim_and_every_row_and_comes_out_the_same_again(study, page, tmp_path):
    assert write_report(study, str(tmp_path)).endswith(PAGE)
    assert (tmp_path / PAGE).read_text(encoding="utf-8") == page
    assert all(claim.sentence in page for claim in study.claims())
    assert page.count('<td class="published">') == 2 * 2 * 8 * 2  # tests × variants × encodings × norms


def test_the_seed_changes_the_cell_and_the_number_of_seeds_does_not():
    common = {"index": "/x", "images": {"name": f"images/{0:016x}", "digest": "d", "facts": {}}, "variant": "clean"}
    one, other = (TermsRequest(**common, config=SMALL, seed=seed) for seed in (0, 1))
    more = TermsRequest(**common, config=SMALL.model_copy(update={"num_seeds": 20}), seed=0)
    assert one.cache_key != other.cache_key
    assert one.cache_key == more.cache_key


def test_a_file_is_made_absolute_and_a_name_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert MnistConfig(out="x", data="digits").data == "digits"
    assert MnistConfig(out="x", data="a.npz").data == str(tmp_path / "a.npz")
