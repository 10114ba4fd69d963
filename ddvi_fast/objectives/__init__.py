"""Training objectives: named loss terms over samples of a posterior."""

from ddvi_fast.objectives.adversarial import Adversarial
from ddvi_fast.objectives.annealing import KLSchedule, PriorGuide, kl_weight
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.covering import Covering
from ddvi_fast.objectives.elbo import ELBO
from ddvi_fast.objectives.iwae import IWAE
from ddvi_fast.objectives.wae import WAE
from ddvi_fast.objectives.wake_sleep import DDVI, Sleep, WakeSleep

__all__ = [
    "DDVI",
    "ELBO",
    "IWAE",
    "WAE",
    "Adversarial",
    "Covering",
    "KLSchedule",
    "Objective",
    "PriorGuide",
    "Progress",
    "Sleep",
    "Terms",
    "Update",
    "WakeSleep",
    "kl_weight",
]
