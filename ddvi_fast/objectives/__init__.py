"""Training objectives, each written once over `(z, log_ratio)`."""

from ddvi_fast.objectives.adversarial import Adversarial
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.ddvi import DDVI
from ddvi_fast.objectives.elbo import ELBO
from ddvi_fast.objectives.iwae import IWAE
from ddvi_fast.objectives.wae import WAE
from ddvi_fast.objectives.weights import PriorGuide, kl_weight

__all__ = ["DDVI", "ELBO", "IWAE", "WAE", "Adversarial", "Objective", "PriorGuide", "Progress", "Terms", "Update", "kl_weight"]
