"""Scores by bergson's TrackStar on the same checkpoint and the same tokens. Runs in bergson's own environment.

    BERGSON_PYTHON benchmarks/against/bergson_trackstar.py SETTINGS.json

Settings: checkpoint, documents and queries (JSON Lines with input_ids, labels, length), run_path, out (.npy),
projection_dim, damping, downweighted (components by which λ is chosen), token_batch_size.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from bergson.cli.trackstar import trackstar
from bergson.config.config import (
    DataConfig,
    DistributedConfig,
    InversionConfig,
    PreprocessConfig,
    QuerySetConfig,
    TrackstarConfig,
    TrackstarIndexConfig,
)
from bergson.data import load_scores


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    shutil.rmtree(settings["run_path"], ignore_errors=True)
    index = TrackstarIndexConfig(
        run_path=settings["run_path"],
        model=settings["checkpoint"],
        data=DataConfig(dataset=settings["documents"]),
        projection_dim=settings["projection_dim"],
        optimizer_state=settings["checkpoint"],
        token_batch_size=settings["token_batch_size"],
        distributed=DistributedConfig(nproc_per_node=1),
    )
    method = TrackstarConfig(
        query=QuerySetConfig(dataset=settings["queries"]),
        preprocess_cfg=PreprocessConfig(
            unit_normalize=True, inversion_cfg=InversionConfig(damping_factor=settings["damping"])
        ),
        target_downweight_components=settings["downweighted"],
    )
    trackstar(index, method)
    scores = load_scores(Path(settings["run_path"]) / "scores")
    np.save(settings["out"], scores[:].astype(np.float64))


if __name__ == "__main__":
    main()
