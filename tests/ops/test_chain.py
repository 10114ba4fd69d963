"""The chain: its path log-ratio against torch.distributions, its shapes, its gradients, its sources of noise."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import ddvi_fast
from ddvi_fast import InputError, _backend, ops, rng, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.reference import chain as reference
from ddvi_fast.rng import Draws
from ddvi_fast.testing import assert_close, strided
from tests.operands import BACKENDS, device_of, draw_normals

normals = partial(draw_normals, dtype=torch.float64)

STEPS, DIM, CONTEXT = 6, 3, 2


def small(groups=None, context_dim=CONTEXT, dtype=torch.float64, hidden_dim=8):
    return ResidualMLP(DIM, context_dim, STEPS, hidden_dim, groups, draws=Draws(9)).to(dtype)


def table(parametrisation="v", eta=0.8, kind="vp"):
    return schedules.make("linear", STEPS, kind=kind, start=0.05, end=0.4).coefficients(parametrisation, eta, dtype=torch.float64)


@pytest.mark.parametrize("parametrisation", schedules.PARAMETRISATIONS)
@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_path_against_distributions(parametrisation, kind):
    """Every density of the path written out from the trajectory, with means from the module called on its own."""
    eta = 1.0 if parametrisation == "increment" else 0.8  # its steps have the variances of the noising process
    denoiser, coefficients, y, context = small(), table(parametrisation, eta, kind), normals(5, DIM), normals(5, CONTEXT, seed=1)
    sample = ops.sample_chain(y, context, denoiser, coefficients, draws=Draws(2), return_trajectory=True)
    schedule = schedules.make("linear", STEPS, kind=kind, start=0.05, end=0.4)
    scale = (1 - schedule.betas).sqrt() if kind == "vp" else torch.ones(STEPS, dtype=torch.float64)
    normal, expected = torch.distributions.Normal, torch.zeros(5, dtype=torch.float64)
    for step in range(STEPS):
        above, below = sample.trajectory[STEPS - 1 - step], sample.trajectory[STEPS - step]
        weight_state, weight_output = (weight[step] for weight in schedule.prediction_weights(parametrisation, 0.8))
        mean = weight_state * above + weight_output * denoiser(above, context, torch.full((5,), step))
        expected = expected + normal(scale[step] * below, schedule.betas[step].sqrt()).log_prob(above).sum(-1)
        expected = expected - normal(mean, coefficients[step, 2]).log_prob(below).sum(-1)
    assert_close(sample.path, expected, rtol=1e-9)
    assert_close(ops.trajectory_log_ratio(sample.trajectory, context, denoiser, coefficients), sample.path, rtol=1e-9)
    with torch.no_grad():  # by the fused regression
        assert_close(ops.trajectory_log_ratio(sample.trajectory, context, denoiser, coefficients), sample.path, rtol=1e-9)


def test_draws_are_the_chain_streams():
    draws, y, context, denoiser = Draws(5, 77), normals(2, 4, DIM), normals(4, CONTEXT, seed=1), small()
    noise = torch.stack([rng.normal(draws, (2, 4, DIM), rng.CHAIN + step, dtype=torch.float64) for step in range(STEPS)])
    drawn = ops.sample_chain(y, context, denoiser, table(), draws=draws)
    given = ops.sample_chain(y, context, denoiser, table(), noise=noise)
    assert torch.equal(drawn.z, given.z) and torch.equal(drawn.path, given.path)


def test_tables_of_all_parametrisations_give_the_same_chain():
    """The states agree at every step when each table gets the same noise prediction in its own parametrisation."""
    schedule, eta = schedules.make("cosine", STEPS), 0.7
    y_start, eps, noise = normals(4, DIM), normals(STEPS, 4, DIM, seed=1), normals(STEPS, 4, DIM, seed=2)
    signal, deviation = schedule.alpha_bars.sqrt(), schedule.noise_variances.sqrt()
    ends = {}
    for parametrisation in ("eps", "x0", "v", "mean"):  # the variances of increments are others
        coefficients, y = schedule.coefficients(parametrisation, eta, dtype=torch.float64), y_start
        as_mean = schedule.coefficients("eps", eta, dtype=torch.float64)
        for step in reversed(range(STEPS)):
            x0 = (y - deviation[step] * eps[step]) / signal[step]
            mean = as_mean[step, 0] * y + as_mean[step, 1] * eps[step]
            output = {"eps": eps[step], "x0": x0, "v": signal[step] * eps[step] - deviation[step] * x0, "mean": mean}[parametrisation]
            y = coefficients[step, 0] * y + coefficients[step, 1] * output + coefficients[step, 2] * noise[step]
        ends[parametrisation] = y
    for parametrisation, end in ends.items():
        assert_close(end, ends["eps"], rtol=1e-8, atol=1e-8, name=parametrisation)


@pytest.mark.parametrize("context_dim", [0, CONTEXT])
def test_groups_equal_separate_chains(context_dim):
    grouped = small(groups=3, context_dim=context_dim)
    y, noise = normals(3, 2, 5, DIM), normals(STEPS, 3, 2, 5, DIM, seed=2)
    context = normals(3, 2, 5, context_dim, seed=1) if context_dim else None
    together = ops.sample_chain(y, context, grouped, table(), noise=noise, return_trajectory=True)
    for group in range(3):
        single = small(context_dim=context_dim)
        single.load_state_dict({name: value[group] for name, value in grouped.state_dict().items()})
        own = None if context is None else context[group]
        alone = ops.sample_chain(y[group], own, single, table(), noise=noise[:, group], return_trajectory=True)
        assert_close(together.z[group], alone.z, rtol=1e-12, atol=1e-12)
        assert_close(together.path[group], alone.path, rtol=1e-10)
        assert_close(together.trajectory[:, group], alone.trajectory, rtol=1e-12, atol=1e-12)


def test_context_broadcasts_over_samples():
    y, context, denoiser = normals(4, 5, DIM), normals(5, CONTEXT, seed=1), small()
    together = ops.sample_chain(y, context, denoiser, table(), draws=Draws(1))
    for sample in range(4):
        alone = ops.sample_chain(y[sample], context, denoiser, table(), draws=Draws(1).importance(sample))
        assert_close(together.z[sample], alone.z, rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match="context: expected leading axes that broadcast to"):
        ops.sample_chain(y, normals(4, CONTEXT), denoiser, table(), draws=Draws(1))


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_rows_and_strides(rows):
    denoiser, y, context = small(dtype=torch.float32), normals(rows, DIM, dtype=torch.float32), normals(rows, CONTEXT, dtype=torch.float32)
    sample = ops.sample_chain(y, context, denoiser, table(), draws=Draws(1), return_trajectory=True)
    assert sample.z.shape == (rows, DIM) and sample.path.shape == (rows,) and sample.trajectory.shape == (STEPS + 1, rows, DIM)
    apart = ops.sample_chain(strided(y), strided(context), denoiser, table(), draws=Draws(1))
    assert torch.equal(apart.z, sample.z) and torch.equal(apart.path, sample.path)


def test_gradcheck_of_the_chain():
    denoiser, noise = small(hidden_dim=4), normals(STEPS, 2, DIM, seed=3)
    weights = [weight.detach().requires_grad_() for weight in denoiser.chain_weights()]
    inputs = [normals(2, DIM).requires_grad_(), normals(2, CONTEXT, seed=1).requires_grad_(), table().requires_grad_(), *weights]

    def chain(y, context, coefficients, *weights):
        return reference.sample_chain(y, context, reference.ChainWeights(*weights), coefficients, noise, True)

    assert torch.autograd.gradcheck(chain, inputs, fast_mode=True)
    trajectory = chain(*inputs)[2].detach().requires_grad_()

    def log_ratio(trajectory, context, coefficients, *weights):
        return reference.trajectory_log_ratio(trajectory, context, reference.ChainWeights(*weights), coefficients, True)

    assert torch.autograd.gradcheck(log_ratio, [trajectory, *inputs[1:]], fast_mode=True)


@pytest.mark.parametrize("loss", ops.LOSSES)
@pytest.mark.parametrize("parametrisation", schedules.PARAMETRISATIONS)
def test_denoising_loss(loss, parametrisation):
    denoiser, schedule = small(context_dim=0), schedules.make("cosine", STEPS)
    x0, noise, t = normals(STEPS, DIM), normals(STEPS, DIM, seed=1), torch.arange(STEPS)
    got = ops.denoising_loss(x0, t, None, denoiser, schedule, parametrisation=parametrisation, loss=loss, noise=noise)
    signal, deviation = schedule.alpha_bars.sqrt().unsqueeze(1), schedule.noise_variances.sqrt().unsqueeze(1)
    x_t = signal * x0 + deviation * noise
    weight_x0, weight_state = (weight.unsqueeze(1) for weight in schedule.posterior_mean_weights())
    mean = weight_x0 * x0 + weight_state * x_t
    increment = mean - schedule.alphas.sqrt().unsqueeze(1) * x_t
    target = {"eps": noise, "x0": x0, "v": signal * noise - deviation * x0, "mean": mean, "increment": increment}[parametrisation]
    error = (denoiser(x_t, None, t) - target).abs()
    each = {"squared": error**2, "absolute": error, "huber": torch.where(error < 1, error**2 / 2, error - 0.5)}[loss]
    assert_close(got, each.mean(-1), rtol=1e-9)


def test_sources_of_noise():
    y, context, denoiser = normals(2, DIM), normals(2, CONTEXT), small()
    deterministic, partly = table(eta=0.0), table()
    partly[2, 2] = 0.0
    assert ops.sample_chain(y, context, denoiser, deterministic).path is None
    for bad in (deterministic, partly):
        with pytest.raises(InputError, match="coefficients: expected positive step deviations"):
            ops.sample_chain(y, context, denoiser, bad, draws=Draws(0))
    for bad in (table(), partly):
        with pytest.raises(InputError, match="draws: expected draws or noise"):
            ops.sample_chain(y, context, denoiser, bad)
    trajectory = normals(STEPS + 1, 2, DIM)
    with pytest.raises(InputError, match="coefficients"):
        ops.trajectory_log_ratio(trajectory, context, denoiser, deterministic)
    with pytest.raises(InputError, match=r"trajectory: expected shape \[7, .., N, 3\]"):
        ops.trajectory_log_ratio(trajectory[1:], context, denoiser, table())


@pytest.mark.parametrize(
    "y, context, message",
    [
        (torch.zeros(2, 4), torch.zeros(2, 2), "y_T: expected 3 latent dimensions"),
        (torch.zeros(3), torch.zeros(2, 2), r"y_T: expected shape \[..., N, D\]"),
        (torch.zeros(2, 3), None, "context: expected a tensor, got None"),
        (torch.zeros(2, 3), torch.zeros(2, 5), r"context: expected shape \[.., N, 2\]"),
    ],
)
def test_bad_shapes(y, context, message):
    with pytest.raises(InputError, match=message):
        ops.sample_chain(y, context, small(dtype=torch.float32), table(), draws=Draws(0))


INDEX = torch.tensor([[3, 0, 3, 1, 0], [0, 3, 3, 3, 1]])  # the third of four groups has no rows


def alone(grouped, group):
    """One network of a grouped denoiser."""
    single = ResidualMLP(DIM, grouped.context_dim, STEPS, grouped.hidden_dim).to(grouped.first.dtype)
    single.load_state_dict({name: value[group] for name, value in grouped.state_dict().items()})
    return single


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("context_dim", [0, CONTEXT])
def test_rows_with_an_index_equal_chains_of_their_own_network(backend, context_dim):
    """Bit for bit in C++, where a row does not depend on the rows beside it. The noise is that of the row's place."""
    if backend == "cpp" and (reason := _backend.unavailable("cpp")):
        pytest.skip(reason)
    dtype = torch.float64 if backend == "reference" else torch.float32
    grouped, y, draws = small(4, context_dim, dtype, hidden_dim=64), normals(2, 5, DIM).to(dtype), Draws(3, 40)
    context = normals(5, context_dim, seed=1).to(dtype) if context_dim else None
    with ddvi_fast.use_backend(backend):
        together = ops.sample_chain(y, context, grouped, table(), draws=draws, groups=INDEX, return_trajectory=True)
        for sample, row in [(sample, row) for sample in range(2) for row in range(5)]:
            own = draws.importance(sample).advance(row)
            place = (y[sample, row].unsqueeze(0), None if context is None else context[row].unsqueeze(0))
            single = ops.sample_chain(*place, alone(grouped, INDEX[sample, row]), table(), draws=own, return_trajectory=True)
            tolerance = {"rtol": 1e-12, "atol": 1e-12} if backend == "reference" else {"rtol": 0, "atol": 0}
            assert_close(together.z[sample, row], single.z[0], **tolerance)
            assert_close(together.path[sample, row], single.path[0], **tolerance)
            assert_close(together.trajectory[:, sample, row], single.trajectory[:, 0], **tolerance)


def test_an_index_of_one_axis_is_that_of_every_sample():
    grouped, y, context = small(4), normals(2, 5, DIM), normals(5, CONTEXT, seed=1)
    one, whole = (ops.sample_chain(y, context, grouped, table(), draws=Draws(3), groups=index) for index in (INDEX[0], INDEX[:1].expand(2, -1)))
    assert torch.equal(one.z, whole.z) and torch.equal(one.path, whole.path)


def test_the_denoiser_computes_each_row_with_an_index_once(monkeypatch):
    rows, denoise = [], reference.denoise
    monkeypatch.setattr(reference, "denoise", lambda y, *others: rows.append(y[..., 0].numel()) or denoise(y, *others))
    ops.sample_chain(normals(2, 5, DIM), normals(5, CONTEXT), small(4), table(), draws=Draws(3), groups=INDEX)
    assert sum(rows) == STEPS * INDEX.numel()


@pytest.mark.parametrize("loss", ops.LOSSES)
def test_regression_of_rows_with_an_index(loss):
    grouped, x0, context, t = small(4), normals(2, 5, DIM), normals(5, CONTEXT, seed=1), torch.arange(10).view(2, 5) % STEPS
    schedule, noise = schedules.make("cosine", STEPS), normals(2, 5, DIM, seed=2)
    together = ops.denoising_loss(x0, t, context, grouped, schedule, loss=loss, noise=noise, groups=INDEX)
    for place in [(sample, row) for sample in range(2) for row in range(5)]:
        given = (x0[place].unsqueeze(0), t[place].unsqueeze(0), context[place[1]].unsqueeze(0))
        single = ops.denoising_loss(*given, alone(grouped, INDEX[place]), schedule, loss=loss, noise=noise[place].unsqueeze(0))
        assert_close(together[place], single[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_no_rows_with_an_index(backend):
    if backend == "cpp" and (reason := _backend.unavailable("cpp")):
        pytest.skip(reason)
    grouped = small(4, dtype=torch.float32, hidden_dim=64)
    with ddvi_fast.use_backend(backend):
        sample = ops.sample_chain(torch.zeros(2, 0, DIM), torch.zeros(0, CONTEXT), grouped, table(), draws=Draws(3), groups=INDEX[:, :0])
    assert sample.z.shape == (2, 0, DIM) and sample.path.shape == (2, 0)


@pytest.mark.parametrize(
    "groups, message",
    [
        (INDEX + 1, r"groups: expected groups in \[0, 4\), got 1 to 4"),
        (INDEX - 1, r"groups: expected groups in \[0, 4\), got -1 to 2"),
        (INDEX.int(), r"groups: expected an int64 tensor of shape \[2, 5\] or \[5\]"),
        (INDEX[:, :4], r"groups: expected an int64 tensor of shape \[2, 5\] or \[5\]"),
        (INDEX.tolist(), "groups: expected a tensor"),
    ],
)
def test_bad_groups(groups, message):
    with pytest.raises(InputError, match=message):
        ops.sample_chain(normals(2, 5, DIM), normals(5, CONTEXT), small(4), table(), draws=Draws(3), groups=groups)
    with pytest.raises(InputError, match="groups: expected None, for a denoiser without groups"):
        ops.sample_chain(normals(2, 5, DIM), normals(5, CONTEXT), small(), table(), draws=Draws(3), groups=INDEX)


@pytest.mark.usefixtures("validation")
def test_a_group_that_does_not_exist_is_noticed_by_compiled_code():
    if reason := _backend.unavailable("cpp"):
        pytest.skip(reason)
    grouped, coefficients = small(4, dtype=torch.float32, hidden_dim=64), table()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def chain(groups):
        return ops.sample_chain(torch.zeros(2, 5, DIM), torch.zeros(5, CONTEXT), grouped, coefficients, draws=Draws(3), groups=groups).z

    assert chain(INDEX).isfinite().all()
    for wrong in (INDEX + 1, INDEX - 1):
        with pytest.raises(InputError, match=r"groups: expected groups in \[0, 4\)"):
            chain(wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_learned_tables_have_gradients(backend):
    """A, B and s of docs/method.md, section 7, the last step included: gradients reach learned variances through every backend."""
    y, context = normals(4, DIM), normals(4, CONTEXT, seed=1)
    noise, given = normals(STEPS, 4, DIM, seed=2), normals(2, STEPS, seed=3)

    def gradients(backend, dtype, device="cpu"):
        log_odds, log_spread = leaves = [value.to(device, dtype).requires_grad_() for value in given]
        beta = torch.sigmoid(log_odds)
        scale = (1 - beta).sqrt()
        coefficients = torch.stack((scale, torch.ones_like(beta), beta.sqrt() * log_spread.exp(), scale, beta), dim=1)
        tensors = [value.to(device, dtype) for value in (y, context, noise)]
        with ddvi_fast.use_backend(backend):
            sample = ops.sample_chain(*tensors[:2], small(dtype=dtype, hidden_dim=64).to(device), coefficients, noise=tensors[2])
        return [value.cpu() for value in torch.autograd.grad((sample.path + sample.z.square().sum(-1)).sum(), leaves)]

    for got, expected in zip(gradients(backend, torch.float32, device_of(backend)), gradients("reference", torch.float64), strict=True):
        assert expected.abs().min() > 1e-3  # every step matters
        assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
