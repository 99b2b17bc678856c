from ntk_inr.variance.assumptions import check_assumptions as check_assumptions
from ntk_inr.variance.assumptions_report import AssumptionsReport as AssumptionsReport
from ntk_inr.variance.assumptions_report import Correction as Correction
from ntk_inr.variance.assumptions_report import Finding as Finding
from ntk_inr.variance.budget import GramMatrices as GramMatrices
from ntk_inr.variance.budget import VarianceBudget as VarianceBudget
from ntk_inr.variance.budget import variance_budget as variance_budget
from ntk_inr.variance.budget_change import BudgetChange as BudgetChange
