"""One of every kind of result, by the names of their classes; what goes for results is tested on all of them.

A class under ``@result`` that is missing here fails ``tests/test_results.py``. A new one is one line.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import ntk_inr as ni
from ntk_inr._results import Record
from ntk_inr.infinite.network import InfiniteKernel
from ntk_inr.spectra.density import Moment
from ntk_inr.spectra.sampled import SampledMoments
from ntk_inr.study.fitted import Fitted
from ntk_inr.study.record import Study, VariantResult
from ntk_inr.study.summary import Correlation, summarize
from ntk_inr.study.table import Cell
from ntk_inr.study.tuning import Candidate, Tuning
from ntk_inr.tasks.surface import Surface
from ntk_inr.training.result import FitResult
from ntk_inr.training.solvers import plan as solver_plan

KEY = jax.random.key(0)
DENSE = np.diag([3.0, 2.0, 1.0])
CURVE = np.linspace(5.0, 20.0, 11)


def fit_result():
    history = {"step": np.arange(3), "loss": np.ones(3), "psnr": np.ones(3), "seconds": np.ones(3)}
    apply, params = Partial(lambda bias, p, x: x @ p + bias, jnp.zeros((200, 3))), jnp.ones((2, 3))
    return FitResult(params, apply, "finished", 2, history, np.ones(2), True, 1.0, "mse", True)


def network(params, x):
    return jnp.sin(x @ params["in"]) @ params["out"]


PARAMS = {"in": np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32), "out": np.ones((8, 1), np.float32)}
X = np.random.default_rng(1).uniform(-1, 1, (6, 2)).astype(np.float32)


@functools.cache
def plan():
    return ni.explain(network, PARAMS, X)


@functools.cache
def checklist():
    return ni.check(network, PARAMS, X)


def variant_result(name="relu"):
    seeds = [Record(cv=3.0 + seed, adam_status="finished", score_psnr=20.0, condition_resolved=True) for seed in (0, 1)]
    figures = ["ntk_mean", "ntk_variance", "effective_rank", "condition_number"]
    seeds = [Record({**dict.fromkeys(figures, 2.0), **seed}) for seed in seeds]
    curves = {"adam_psnr": np.stack([CURVE, CURVE]), "adam_seconds": np.stack([CURVE, CURVE])}
    network = "CoordinateMLP(features=16, depth=2, out=1, encoding=None, activation='relu', normalization=None)"
    return VariantResult(name, network, 33, seeds, curves, Record(features=16, depth=2))


def study():
    task = {"kind": "image", "name": "a" * 200, "metric": "psnr", "rows": 100, "data_range": 1.0, "descends": False}
    asked = {"steps": 10, "seeds": 2, "learning_rate": 1e-3}
    variants = [variant_result(f"relu {i}") for i in range(30)]
    known = {"eight_bit": False, "eight_bit_curves": False}
    return Study(Record(task | known), Record(asked), Record(), np.ones((4, 4, 1)), variants, warnings=("slow",))


def tuning():
    asked = Record(objective="heldout", steps=500, optimizer="adam")
    return Tuning(Record(name="chirp"), asked, Record(), [candidate(float(scale)) for scale in range(1, 30)])


def candidate(scale=2.0):
    return Candidate("rff", Record({"encoding.scale": scale}), score=[20.0, 21.0], heldout_psnr=[20.0, np.nan])


@functools.cache
def budget(name="pe", depth=20):
    x = np.random.default_rng(0).uniform(-1, 1, (8, 2)).astype(np.float32)
    net = ni.variant(name, features=4, depth=depth)
    return ni.variance_budget(*ni.init(net, KEY, x), x, matrices=True)


@functools.cache
def report():
    x = np.random.default_rng(0).uniform(-1, 1, (8, 2)).astype(np.float32)
    return ni.check_assumptions(*ni.init(ni.variant("pe", features=8, depth=4), KEY, x), x, key=KEY, size=6)


@functools.cache
def two_layers():
    return ni.two_layer_moments(np.eye(4, dtype=np.float32) + 0.5, width=32, sparsity=ni.TopK(8))


RESULTS = {
    "Alignment": lambda: ni.alignment(DENSE, np.ones((3, 1))),
    "AssumptionsReport": report,
    "BudgetChange": lambda: budget("pe").compare(budget("siren")),
    "Candidate": candidate,
    "Cell": lambda: Cell(1.0, np.nan, "1.0 ± 0.1", best=True),
    "Checklist": checklist,
    "Condition": lambda: ni.condition_number(DENSE),
    "Correction": lambda: report().corrections[0],
    "Correlation": lambda: Correlation("cv", "steps_to_target", 0.9, "cv and steps +0.90 (7 variants)"),
    "Eigenpairs": lambda: ni.top_eigenpairs(DENSE, 1, key=KEY),
    "Eigensystem": lambda: ni.spectra.eigensystem(DENSE),
    "Finding": lambda: report().findings[0],
    "FitResult": fit_result,
    "Fitted": lambda: Fitted(fit_result(), {"psnr": 20.0}, np.ones((4, 4, 1)), Record(figure="run/figure.png")),
    "GramMatrices": lambda: budget(depth=1).matrices,
    "InfiniteKernel": lambda: InfiniteKernel(jnp.eye(3), jnp.eye(3)),
    "LeafPlan": lambda: plan().leaves[0],
    "MethodCost": lambda: plan().costs[0],
    "Moment": lambda: Moment(jnp.ones(()), jnp.ones(())),
    "Moments": lambda: ni.moments(DENSE),
    "Plan": plan,
    "SolverPlan": lambda: solver_plan("auto", 4, 1, 100, np.float32, 2**30),
    "NTKBlocks": lambda: ni.ntk_blocks(dict.fromkeys(("values", "edge"), (network, X[:2])), PARAMS),
    "Prediction": lambda: ni.predict_training(DENSE, np.ones((3, 1)), learning_rate=0.1, steps=4),
    "SampledMoments": lambda: SampledMoments(1.0, 4.0, 2.0, 100, 0.1, 0.2, submatrices=8, size=12),
    "SpectralDensity": lambda: ni.spectral_density(DENSE, key=KEY, probes=2),
    "Stage": lambda: checklist().stages[0],
    "StochasticMoments": lambda: ni.stochastic_moments(DENSE, key=KEY, probes=2, method="probes"),
    "Study": study,
    "Summary": lambda: summarize(study()),
    "Surface": lambda: Surface(np.ones((2, 2, 2)), np.zeros((0, 3)), np.zeros((0, 3), int)),
    "Tuning": tuning,
    "TwoLayerFactors": lambda: two_layers().factors,
    "TwoLayerMoments": two_layers,
    "VarianceBudget": budget,
    "VariantResult": variant_result,
}
