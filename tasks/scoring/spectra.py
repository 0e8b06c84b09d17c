"""What the spectra say about R_train, R_eval and λ: for run.json, for a person, and for the Prefect UI."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy import ndarray
from upath import UPath

from trackstar.storage.layout import SPECTRUM
from trackstar.storage.manifest import Artifact, read_manifest
from trackstar.storage.matrices import read_arrays
from trackstar.storage.removal import artifacts_of
from trackstar.tasks.numerics import curvature

Spectrum = Mapping[str, ndarray]  # eigenvalues of each block


def train_facts(spectrum: Spectrum, damping: float) -> dict[str, Any]:
    """R_train as a whole and block by block; damping sits on it."""
    reports = {block: curvature.spectrum_report(values, damping=damping) for block, values in spectrum.items()}
    return {
        **curvature.joint_report(list(reports.values())).facts(),
        "blocks": {block: report.facts() for block, report in reports.items()},
    }


def eval_facts(spectrum: Spectrum) -> dict[str, Any]:
    """R_eval as a whole."""
    values = np.concatenate(list(spectrum.values()))
    above = values > len(values) * np.finfo(np.float64).eps * values.max()
    return {"rank": int(above.sum()), "effective_rank": curvature.effective_rank(values)}


def known_reports(index: UPath, autocorrelation: Artifact) -> Iterator[tuple[float, dict[str, Any]]]:
    """A report for each damping that an index has been asked with, as far as there is a spectrum."""
    for directory, _ in _derived(index / "spectrum", autocorrelation):
        spectrum = read_arrays(directory, SPECTRUM, order=autocorrelation.facts["block_dims"])
        for damping in sorted(identity["damping"] for _, identity in _derived(index / "factors", autocorrelation)):
            yield damping, train_facts(spectrum, damping)


def spectra_markdown(facts: Mapping[str, Any]) -> str:
    """One method's spectra and λ, as Markdown."""
    train, evaluation = facts["spectra"].get("R_train"), facts["spectra"].get("R_eval")
    lines = [f"λ = {facts['mixing_weight']:.6g}, {_choice(facts)}; {damping_words(facts)}.", ""]
    if evaluation:
        lines += [f"R_eval: rank {evaluation['rank']}, effective rank {evaluation['effective_rank']}.", ""]
    if train:
        lines += ["| R_train | rank | effective rank | condition | effective dimension | damping's share |"]
        lines += ["|-|-|-|-|-|-|"]
        lines += [_row(name, block) for name, block in {"all": train, **train["blocks"]}.items()]
    return "\n".join(lines)


def damping_words(facts: Mapping[str, Any]) -> str:
    """What was added to R_train, or that there was none to add to."""
    return "R_train flat" if facts["damping"] is None else f"damping {facts['damping']:g}"


def _choice(facts: Mapping[str, Any]) -> str:
    if not facts["crossing_index"]:
        return "given" if facts["whitening"] == "mixed" else f"whitening {facts['whitening']}"
    values = facts["crossing_values"]
    limit = f", where {facts['limited_by']} ends" if facts["limited_by"] else ""
    return (
        f"where the spectra cross at component {facts['crossing_index']} (σ_train {values['R_train']:.3g}, σ_eval "
        f"{values['R_eval']:.3g}) of {facts['wanted_index']} wanted{limit}"
    )


def _row(name: str, report: Mapping[str, Any]) -> str:
    condition = "∞" if report["condition"] is None else f"{report['condition']:.3g}"
    return (
        f"| {name} | {report['rank']} of {report['num_dims']} | {report['effective_rank']} | {condition} | "
        f"{report['effective_dimension']:.1f} | {report['damping_share']:.1%} |"
    )


def _derived(kind: UPath, autocorrelation: Artifact) -> Iterator[tuple[UPath, dict[str, Any]]]:
    """The finished artifacts of a kind that were made from this R_train."""
    for directory in artifacts_of(kind):
        manifest = read_manifest(directory)
        if manifest is not None and manifest.identity.get("autocorrelation") == autocorrelation.digest:
            yield directory, manifest.identity
