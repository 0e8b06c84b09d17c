"""The equation taken apart, term by term, on handwritten digits."""

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from threadpoolctl import threadpool_limits

from trackstar.flows.config import MnistConfig
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
from trackstar.tasks.mnist.model import VARIANTS
from trackstar.tasks.mnist.pictures import PicturesRequest, draw_pictures
from trackstar.tasks.mnist.render import write_report
from trackstar.tasks.mnist.results import Study
from trackstar.tasks.runtime.stage import gather


# Cells are independent and single-threaded: one a core of a small machine.
@flow(name="mnist", flow_run_name="mnist {config.data}", task_runner=ThreadPoolTaskRunner(max_workers=2))
def mnist(config: MnistConfig) -> str:
    """Measure every term on models of its own, and write the page that explains them; return the page's place."""
    images = write_images(ImagesRequest(index=config.out, data=config.data, num_images=config.study.num_images))
    common = {"index": config.out, "images": images, "config": config.study}
    clean, seeds = {**common, "variant": "clean"}, range(config.study.num_seeds)
    with threadpool_limits(1, user_api="blas"):
        pictures = [draw_pictures.submit(PicturesRequest(**common, variant=v, seed=0)) for v in VARIANTS]
        terms = [measure_terms.submit(TermsRequest(**common, variant=v, seed=s)) for v in VARIANTS for s in seeds]
        geometry = [measure_geometry.submit(GeometryRequest(**clean, seed=s, keep_matrices=s == 0)) for s in seeds]
        sweeps = [measure_sweeps.submit(SweepsRequest(**clean, seed=s)) for s in seeds]
        parameters = [measure_parameters.submit(ParametersRequest(**clean, seed=s)) for s in seeds]
        gather([*pictures, *terms, *geometry, *sweeps, *parameters])
    study = Study(
        data=config.data,
        num_images=images.facts["num_images"],
        config=config.study,
        pictures=gather(pictures),
        terms=gather(terms),
        geometry=gather(geometry),
        sweeps=gather(sweeps),
        parameters=gather(parameters),
    )
    return write_report(study, config.out)
