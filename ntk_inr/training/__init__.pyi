from ntk_inr.training.dynamics import Prediction as Prediction
from ntk_inr.training.dynamics import predict_training as predict_training
from ntk_inr.training.fitting import fit as fit
from ntk_inr.training.fitting import fit_seeds as fit_seeds
from ntk_inr.training.optimizers import optimizer as optimizer
from ntk_inr.training.recorder import Recorder as Recorder
from ntk_inr.training.result import FitResult as FitResult
