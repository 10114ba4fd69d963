"""The fused operations as problems, by name."""

from bench.diffusion import Chain, Noise, Sleep
from bench.reductions import Elbo, Kde, Mmd

OPERATIONS = {"noise": Noise, "chain": Chain, "sleep": Sleep, "elbo": Elbo, "kde": Kde, "mmd": Mmd}
