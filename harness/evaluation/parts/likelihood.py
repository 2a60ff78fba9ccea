"""Bits/dim of the variational bound, its terms over t, and a Gaussian per pixel as baseline."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.data.base import spread
from harness.evaluation.context import EvaluationContext
from harness.evaluation.result import PartResult
from harness.metrics.likelihood import Likelihood, full_nll, gaussian_baseline_bpd, stratified_nll
from harness.metrics.stratified import curve_timesteps
from harness.spec.evaluation import Nll

BASELINE_IMAGES = 50_000  # that the Gaussian baseline is fitted to; all of ImageNet would not fit into memory


def likelihood(context: EvaluationContext, part: Nll) -> PartResult:
    """Measure the bound with its curve over t, and the baseline if pixels have levels."""
    split, rows, estimate = _estimate(context, part)
    result, data = _terms(estimate), context.data
    curve = [(int(t), float(estimate.L_t_bpd[t])) for t in curve_timesteps(len(estimate.L_t_bpd))]
    result.curves["L_t_bpd"] = [(t, value) for t, value in curve if not np.isnan(value)]
    result.arrays["likelihood"] = {
        "L_t_bpd": estimate.L_t_bpd,
        "prior_bpd": np.array(estimate.prior_bpd),
        "image_index": rows,
    }
    result.protocol["likelihood"] = {
        "estimator": estimate.estimator,
        "num_images": estimate.num_images,
        "num_evaluations": estimate.num_evaluations,
        "clip": part.clip,
        "decoder": part.decoder,
        "levels": data.levels,
        "denominator_dimensions": data.channels * data.image_size**2,
        "padded_share": data.padded_share,
    }
    if data.levels is not None:
        known = data.train.images[spread(len(data.train), BASELINE_IMAGES)]
        result.metrics["gaussian_baseline_bpd"] = gaussian_baseline_bpd(known, split.images[rows], data.levels)
    return result


def likelihood_terms(context: EvaluationContext, part: Nll) -> PartResult:
    """Measure only the bound, as during training."""
    return _terms(_estimate(context, part)[2])


def _estimate(context: EvaluationContext, part: Nll) -> tuple[Any, np.ndarray, Likelihood]:
    """Return the split and the rows of it that were measured, and the estimate."""
    split, rows, x_0, y = context.choose_images(part.num_images)
    options: dict[str, Any] = {"seed": context.evaluation.seed, "batch_size": context.evaluation.batch_size}
    if part.estimator == "stratified":
        options["evaluations_per_image"] = part.evaluations_per_image
    estimate = {"full": full_nll, "stratified": stratified_nll}[part.estimator](
        context.process(part.decoder),
        context.predict,
        x_0,
        y,
        clip=part.clip,
        keep=context.keep_calls("nll"),
        progress=context.count("likelihood"),
        **options,
    )
    return split, rows, estimate


def _terms(estimate: Likelihood) -> PartResult:
    return PartResult(
        {
            "nll_bpd": estimate.total_bpd,
            "nll_standard_error_bpd": estimate.standard_error_bpd,
            "nll_images_standard_error_bpd": estimate.images_standard_error_bpd,
            "L_0_bpd": estimate.decoder_bpd,
            "L_T_bpd": estimate.prior_bpd,
        }
    )
