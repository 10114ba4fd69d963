"""Tests of the public functions against the golden values: to 1e-5, and to 1e-4 for gradients and densities.

The golden tables were computed in float32, where `1 - abar_t` near `t = 1` has lost up to three digits. States agree to 1e-5 nevertheless;
differences of nearly equal states (KL terms of each step) agree only relative to the states.
"""

import pytest
import torch

import ddvi_fast
from ddvi_fast import _backend, interop, metrics, ops, schedules
from ddvi_fast.objectives.annealing import kl_weight
from ddvi_fast.testing import assert_close


@pytest.fixture(autouse=True, params=["reference", "cpp", "triton"])
def backend(request):
    """Golden values hold on every backend."""
    if request.param != "reference" and (reason := _backend.unavailable(request.param)):
        pytest.skip(reason)
    with ddvi_fast.use_backend(request.param):
        yield request.param


class Chain:
    """One of the two golden chains: its denoiser, schedule and deterministic table."""

    def __init__(self, golden, name):
        self.value = lambda key: torch.tensor(golden[f"{name}/{key}"])
        prefix = f"{name}/state/"
        self.denoiser = interop.denoiser_from_ddvi({key[len(prefix) :]: torch.tensor(golden[key]) for key in golden if key.startswith(prefix)})
        self.schedule = schedules.make("linear", self.denoiser.num_steps)
        self.table = self.schedule.coefficients("eps", eta=0.0)

    def differences(self, steps):
        """(posterior mean - predicted mean) [S, N, D] at 0-based `steps`, with `y_t` from the golden trajectory and `y_0` its end."""
        # The float32 table of the released code, because these differences are as small as its cancellation error.
        schedule = schedules.NoiseSchedule(self.schedule.betas.float())
        trajectory, context, table = self.value("trajectory"), self.value("context"), schedule.coefficients("eps", eta=0.0)
        weight_y0, weight_y = schedule.posterior_mean_weights()
        t = torch.tensor(steps).unsqueeze(1)
        y = trajectory[self.schedule.num_steps - 1 - t.squeeze(1)]
        predictions = self.denoiser(y, context.expand(len(t), -1, -1), t.expand(y.shape[:2]))
        states, outputs, weight_y0, weight_y = (column[t].unsqueeze(2) for column in (table[:, 0], table[:, 1], weight_y0, weight_y))
        return (weight_y0 * trajectory[-1] + weight_y * y - states * y - outputs * predictions).detach()


@pytest.fixture
def unconditional(golden):
    return Chain(golden, "uncond")


@pytest.fixture
def conditional(golden):
    return Chain(golden, "cond")


def relative_to_largest(got, expected, tolerance, name="value"):
    """Compare with a tolerance relative to the largest element, because elements may cancel to almost zero."""
    assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()), name=name)


def test_unconditional_trajectory(unconditional):
    start = unconditional.value("x_T")
    sample = ops.sample_chain(start, None, unconditional.denoiser, unconditional.table, return_trajectory=True)
    relative_to_largest(sample.trajectory, unconditional.value("trajectory"), 1e-5)
    assert torch.equal(sample.trajectory[0], start) and torch.equal(sample.trajectory[-1], sample.z) and sample.path is None


def test_noising_and_loss(unconditional):
    x0, t, noise = (unconditional.value(key) for key in ("x0", "t", "noise"))
    x_t, used = ops.add_noise(x0, t, unconditional.schedule, noise=noise)
    relative_to_largest(x_t, unconditional.value("q_sample"), 1e-5)
    assert torch.equal(used, noise)
    for loss, key in (("absolute", "l1"), ("squared", "l2"), ("huber", "huber")):
        value = ops.denoising_loss(x0, t, None, unconditional.denoiser, unconditional.schedule, loss=loss, noise=noise)
        assert_close(value.mean(), unconditional.value(f"denoise_loss/{key}"), rtol=1e-5, name=loss)


def test_conditional_trajectory_and_gradients(golden, conditional):
    start, context = (conditional.value(key).requires_grad_() for key in ("x_T", "context"))
    sample = ops.sample_chain(start, context, conditional.denoiser, conditional.table, return_trajectory=True)
    relative_to_largest(sample.trajectory, conditional.value("trajectory"), 1e-5)
    (sample.z * conditional.value("z_cotangent")).sum().backward()
    relative_to_largest(start.grad, conditional.value("grad/x_T"), 1e-4, "x_T")
    relative_to_largest(context.grad, conditional.value("grad/context"), 1e-4, "context")
    ours = {"lin_mean.weight": conditional.denoiser.last.grad, "lin_mean.bias": conditional.denoiser.last_bias.grad}
    for layer in range(4):
        ours[f"lin{layer + 1}.lin.weight"] = conditional.denoiser.hidden.grad[layer - 1] if layer else conditional.denoiser.first.grad
        ours[f"lin{layer + 1}.lin.bias"] = conditional.denoiser.bias.grad[layer]
        ours[f"lin{layer + 1}.embed.weight"] = conditional.denoiser.embedding.grad[:, layer]
    assert {f"cond/grad/{name}" for name in (*ours, "x_T", "context")} == {key for key in golden if key.startswith("cond/grad/")}
    for name, gradient in ours.items():
        relative_to_largest(gradient, conditional.value(f"grad/{name}"), 1e-4, name)


def test_mean_matching(conditional):
    """Huber between the mean of r(y_{t-1} | y_t, z) and the chain's, quadratic here: compared as differences of means."""
    t = conditional.value("t")
    difference = conditional.differences(range(40))[t, torch.arange(len(t))]
    assert difference.abs().max() < 1, "the linear part of the Huber loss is not reached"
    golden = conditional.value("mean_matching_huber_per_element")
    scale = float(conditional.value("trajectory").abs().max())
    assert_close(difference.abs(), (2 * golden).sqrt(), rtol=1e-5, atol=1e-6 * scale)
    assert_close((difference**2 / 2).mean(), conditional.value("mean_matching_huber"), rtol=1e-5)


def test_kl_per_step(conditional):
    """KL(r(y_{t-1} | y_t, z) || q(y_{t-1} | y_t)), both with the posterior variance, summed over latent dimensions."""
    steps = range(1, 40)
    golden, variances = conditional.value("kl_per_step"), conditional.schedule.posterior_variances[1:].float()
    differences = conditional.differences(steps)
    normal, scale = torch.distributions.Normal, variances.sqrt().view(-1, 1, 1)
    kl = torch.distributions.kl_divergence(normal(differences, scale), normal(torch.zeros_like(differences), scale)).sum(-1)
    # Relative to the states the means agree to 1e-6; their differences are compared on that scale.
    states = 1e-6 * float(conditional.value("trajectory").abs().max())
    to_length = (2 * variances).sqrt().unsqueeze(1)
    assert_close(kl.sqrt() * to_length, golden.sqrt() * to_length, rtol=1e-4, atol=states)
    assert_close(kl, golden, rtol=2e-3)


def test_kernel_density(golden):
    z = torch.tensor(golden["kde/z"]).requires_grad_()
    value = ops.kde_log_density(z, torch.tensor(golden["kde/points"]), golden["kde/bandwidths"].tolist(), clamp=1000.0)
    value.sum().backward()
    relative_to_largest(value, torch.tensor(golden["kde/log_density_clamped"]), 1e-4)
    relative_to_largest(z.grad, torch.tensor(golden["kde/grad_z"]), 1e-4, "gradient")


def test_mmd(golden):
    x, y = torch.tensor(golden["mmd/x"]), torch.tensor(golden["mmd/y"])
    assert_close(ops.mmd(x, y, golden["mmd/sigma"].tolist()), torch.tensor(golden["mmd/value"]), rtol=1e-5)


def test_latent_nll(golden, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    latents, samples = torch.tensor(golden["latent_nll/latents"]).to(dtype), torch.tensor(golden["latent_nll/prior_samples"]).to(dtype)
    value = metrics.latent_nll(latents, samples, tuple(golden["latent_nll/bandwidths"].tolist()))
    assert value == pytest.approx(float(golden["latent_nll/value"]), rel=1e-5)


@pytest.mark.parametrize("kind", ["constant", "linear", "cyclic", "reverse_warmup"])
@pytest.mark.parametrize("start", ["plain", "warmup"])
def test_kl_weight(golden, kind, start):
    expected = golden[f"kl_weight/{kind}/{start}"]
    hold = 0.1 if start == "warmup" else 0.0
    got = [kl_weight(kind, epoch, len(expected), 0.01, fraction=0.8, hold=hold) for epoch in range(len(expected))]
    assert got == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-12)
