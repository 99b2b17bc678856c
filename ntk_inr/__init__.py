"""Neural tangent kernels of implicit neural representations: compute, explain, predict, check."""

from ntk_inr._version import __version__
from ntk_inr.closed_forms.factors import TwoLayerFactors
from ntk_inr.closed_forms.two_layer import TwoLayerMoments, two_layer_moments
from ntk_inr.infinite.network import InfiniteKernel, infinite_kernel
from ntk_inr.kernels.adapters import init, split
from ntk_inr.kernels.api import ntk, training_kernel
from ntk_inr.kernels.operator import NTKOperator
from ntk_inr.kernels.planning import Plan, explain
from ntk_inr.networks.activations import Erf, Gabor, Gauss, Quadratic, ReLU, Sine
from ntk_inr.networks.catalogue import variant, variants
from ntk_inr.networks.dense import Dense
from ntk_inr.networks.encodings import GaussianFourier, Identity, NeRFEncoding, OneBlob, TriangleWave
from ntk_inr.networks.film import FiLM
from ntk_inr.networks.filter_networks import BACON, FourierNet, GaborNet
from ntk_inr.networks.hash_grid import HashGrid
from ntk_inr.networks.initializers import Law, Scheme, geometric, vi3nr
from ntk_inr.networks.mlp import CoordinateMLP
from ntk_inr.networks.modulated_sines import Finer, Hosc, Sinc, Spder
from ntk_inr.networks.modulation import FourierModulation, GaborModulation, MLPModulation
from ntk_inr.networks.normalization import BatchNorm, LayerNorm, Sphere, WeightNorm
from ntk_inr.networks.settings import settings_of, with_settings
from ntk_inr.networks.sparsity import TopK
from ntk_inr.networks.two_layer import TwoLayerNetwork, two_layer_network
from ntk_inr.networks.wire import Wire
from ntk_inr.spectra.dense import Moments, moments
from ntk_inr.spectra.density import Moment, SpectralDensity, spectral_density
from ntk_inr.spectra.eigen import (
    Alignment,
    Condition,
    Eigensystem,
    alignment,
    condition_number,
    eigensystem,
    eigenvalues,
    max_learning_rate,
    rounding_floor,
)
from ntk_inr.spectra.grid import grid_eigenvalues, grid_moments
from ntk_inr.spectra.lanczos import Eigenpairs, top_eigenpairs
from ntk_inr.spectra.sampled import SampledMoments, sampled_moments, streamed_moments
from ntk_inr.spectra.stochastic import StochasticMoments, stochastic_moments
from ntk_inr.study.comparison import compare
from ntk_inr.study.record import Study, VariantResult
from ntk_inr.study.record import load as load_study
from ntk_inr.study.report import write_report
from ntk_inr.study.search import tune
from ntk_inr.study.single import Fitted, fit_task
from ntk_inr.study.summary import Summary, summarize
from ntk_inr.study.tuning import Candidate, Tuning
from ntk_inr.study.tuning import read as load_tuning
from ntk_inr.tasks.audio import AudioTask, audio_task
from ntk_inr.tasks.eikonal import EikonalLoss
from ntk_inr.tasks.image import ImageTask, image_task
from ntk_inr.tasks.image_gradients import ImageGradientTask
from ntk_inr.tasks.interface import Task
from ntk_inr.tasks.pde import EquationTask, pde_task
from ntk_inr.tasks.registry import load_task
from ntk_inr.tasks.restored import RestorationTask, denoising_task, inpainting_task, super_resolution_task
from ntk_inr.tasks.shape import ShapeTask, shape_task
from ntk_inr.tasks.signal import SignalTask, signal_task
from ntk_inr.tasks.tomography import TomographyTask, tomography_task
from ntk_inr.tasks.volume import VolumeTask, volume_task
from ntk_inr.training.dynamics import Prediction, predict_training
from ntk_inr.training.fitting import fit, fit_seeds
from ntk_inr.training.optimizers import optimizer
from ntk_inr.training.recorder import Recorder
from ntk_inr.training.result import FitResult
from ntk_inr.variance.assumptions import check_assumptions
from ntk_inr.variance.assumptions_report import AssumptionsReport
from ntk_inr.variance.budget import GramMatrices, VarianceBudget, variance_budget
from ntk_inr.variance.budget_change import BudgetChange

__all__ = [
    "BACON",
    "Alignment",
    "AssumptionsReport",
    "AudioTask",
    "BatchNorm",
    "BudgetChange",
    "Candidate",
    "Condition",
    "CoordinateMLP",
    "Dense",
    "Eigenpairs",
    "Eigensystem",
    "EikonalLoss",
    "EquationTask",
    "Erf",
    "FiLM",
    "Finer",
    "FitResult",
    "Fitted",
    "FourierModulation",
    "FourierNet",
    "Gabor",
    "GaborModulation",
    "GaborNet",
    "Gauss",
    "GaussianFourier",
    "GramMatrices",
    "HashGrid",
    "Hosc",
    "Identity",
    "ImageGradientTask",
    "ImageTask",
    "InfiniteKernel",
    "Law",
    "LayerNorm",
    "MLPModulation",
    "Moment",
    "Moments",
    "NTKOperator",
    "NeRFEncoding",
    "OneBlob",
    "Plan",
    "Prediction",
    "Quadratic",
    "ReLU",
    "Recorder",
    "RestorationTask",
    "SampledMoments",
    "Scheme",
    "ShapeTask",
    "SignalTask",
    "Sinc",
    "Sine",
    "Spder",
    "SpectralDensity",
    "Sphere",
    "StochasticMoments",
    "Study",
    "Summary",
    "Task",
    "TomographyTask",
    "TopK",
    "TriangleWave",
    "Tuning",
    "TwoLayerFactors",
    "TwoLayerMoments",
    "TwoLayerNetwork",
    "VarianceBudget",
    "VariantResult",
    "VolumeTask",
    "WeightNorm",
    "Wire",
    "__version__",
    "alignment",
    "audio_task",
    "check_assumptions",
    "compare",
    "condition_number",
    "denoising_task",
    "eigensystem",
    "eigenvalues",
    "explain",
    "fit",
    "fit_seeds",
    "fit_task",
    "geometric",
    "grid_eigenvalues",
    "grid_moments",
    "image_task",
    "infinite_kernel",
    "init",
    "inpainting_task",
    "load_study",
    "load_task",
    "load_tuning",
    "max_learning_rate",
    "moments",
    "ntk",
    "optimizer",
    "pde_task",
    "predict_training",
    "rounding_floor",
    "sampled_moments",
    "settings_of",
    "shape_task",
    "signal_task",
    "spectral_density",
    "split",
    "stochastic_moments",
    "streamed_moments",
    "summarize",
    "super_resolution_task",
    "tomography_task",
    "top_eigenpairs",
    "training_kernel",
    "tune",
    "two_layer_moments",
    "two_layer_network",
    "variance_budget",
    "variant",
    "variants",
    "vi3nr",
    "volume_task",
    "with_settings",
    "write_report",
]
