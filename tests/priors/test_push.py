"""Priors as functions of noise (docs/method.md, section 7): `push` against samples, densities, evidence, finite differences."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import priors
from ddvi_fast.rng import Draws

F64 = torch.float64
MAKERS = {
    "gaussian": lambda: priors.make("gaussian", dim=3, scale=0.7),
    "mixture": lambda: priors.make("mixture", learnable=True),
    "pinwheel": lambda: priors.make("pinwheel"),
    "blurred_pinwheel": lambda: priors.make("pinwheel").blurred(0.05),
    "swiss_roll": lambda: priors.make("swiss_roll"),
    "swiss_roll_noisy": lambda: priors.make("swiss_roll_noisy", num_classes=7),
    "square": lambda: priors.make("square"),
    "hard_square": lambda: priors.make("square", corner_width=0.0),
    "centres": lambda: priors.Centres(num_centres=5),
    "pinwheels": lambda: priors.Centres(priors.make("pinwheel"), num_centres=4, scale=0.3),
    "blurred_squares": lambda: priors.Centres(priors.make("square"), num_centres=4, scale=0.3).blurred(0.05),
    "one_hot": lambda: priors.OneHotGaussian(style_dim=2, num_classes=4),
    "circle": lambda: priors.Pushforward(lambda u: torch.nn.functional.normalize(u, dim=-1), 2, 2),
    "rays": lambda: priors.Pushforward(lambda u, labels: torch.cat((u, u * labels.unsqueeze(-1)), -1), 1, 2, num_classes=3),
}
SIZES = {
    "gaussian": (3, 3), "swiss_roll": (1, 1), "swiss_roll_noisy": (3, 3), "square": (3, 3), "hard_square": (3, 3), "pinwheels": (3, 4),
    "blurred_squares": (3, 4), "circle": (2, 2), "rays": (1, 2),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", MAKERS)
def test_samples_are_their_noise_pushed(name, dtype):
    prior, draws = MAKERS[name](), Draws(3, 40)
    drawn = prior.draw(2000, draws, dtype=dtype)
    assert (prior.noise_dim, prior.joint_noise_dim) == SIZES.get(name, (2, 3))
    assert drawn.noise.shape == (2000, prior.noise_dim) and drawn.z.dtype == drawn.noise.dtype == dtype
    assert torch.equal(drawn.z, prior.sample(2000, draws, dtype=dtype))
    exact = 1e-5 if dtype == torch.float32 else 1e-12
    pushed = prior.push(drawn.noise, drawn.labels)
    assert pushed.dtype == dtype
    torch.testing.assert_close(pushed, drawn.z, rtol=0, atol=exact)
    if prior.num_classes:
        assert torch.equal(drawn.labels, prior.sample_labels(2000, draws))
        labels = drawn.labels.flip(0)
        again = prior.draw(2000, draws, labels, dtype=dtype)
        assert torch.equal(again.z, prior.sample(2000, draws, labels, dtype=dtype))
        torch.testing.assert_close(prior.push(again.noise, labels), again.z, rtol=0, atol=exact)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", MAKERS)
def test_joint_noise_carries_the_class_of_the_same_samples(name, dtype):
    prior, draws = MAKERS[name](), Draws(3, 40)
    apart, joint = prior.draw(2000, draws, dtype=dtype), prior.draw(2000, draws, joint=True, dtype=dtype)
    assert joint.noise.shape == (2000, prior.joint_noise_dim) and joint.noise.dtype == dtype
    exact = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(joint.z, apart.z, rtol=0, atol=exact)
    torch.testing.assert_close(prior.push(joint.noise), joint.z, rtol=0, atol=exact)
    assert joint.labels is None if prior.num_classes is None else torch.equal(joint.labels, apart.labels)
