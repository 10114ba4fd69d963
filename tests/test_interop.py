"""Tests of the conversion of released weights: names and shapes (test_golden compares outputs)."""

import pytest
import torch

from ddvi_fast import InputError, interop


def state(golden, name):
    prefix = f"{name}/state/"
    return {key[len(prefix) :]: torch.tensor(golden[key]) for key in golden if key.startswith(prefix)}


@pytest.mark.parametrize("name, sizes, residual", [("uncond", (2, 0, 20), False), ("cond", (2, 2, 40), True)])
def test_sizes_are_read_from_the_weights(golden, name, sizes, residual):
    denoiser = interop.denoiser_from_ddvi(state(golden, name))
    assert (denoiser.latent_dim, denoiser.context_dim, denoiser.num_steps) == sizes
    assert denoiser.residual == residual and denoiser.hidden_dim == 128


def test_dtype_is_kept_and_nothing_shared(golden):
    weights = {name: value.double() for name, value in state(golden, "cond").items()}
    denoiser = interop.denoiser_from_ddvi(weights)
    assert denoiser.first.dtype == torch.float64
    denoiser.first.data.zero_()
    assert weights["lin1.lin.weight"].abs().max() > 0


def test_bad_states(golden, one_line):
    weights = state(golden, "cond")
    with pytest.raises(InputError, match=r"state_dict: expected the names of a released denoiser.*missing .*lin2.lin.bias.*unexpected .*extra"):
        interop.denoiser_from_ddvi({name: value for name, value in weights.items() if name != "lin2.lin.bias"} | {"extra": torch.zeros(1)})
    one_line(lambda: interop.denoiser_from_ddvi(weights | {"lin_mean.bias": torch.zeros(3)}), "last_bias")
    one_line(lambda: interop.denoiser_from_ddvi(weights | {"lin3.lin.weight": torch.zeros(128, 64)}), r"lin3.lin.weight")
    one_line(lambda: interop.denoiser_from_ddvi(weights | {"lin1.embed.weight": torch.zeros(128)}), r"lin1.embed.weight")


def test_denoisers_and_steps_are_found_inside_a_whole_model(golden):
    model = {f"model.chain.{name}": value for name, value in state(golden, "cond").items()} | {"decoder.weight": torch.zeros(1)}
    model |= {f"flows.{number}.{name}": value for number in (0, 1) for name, value in state(golden, "iaf").items()}
    found = interop.denoisers_in(model)
    assert list(found) == ["model.chain."] and found["model.chain."].num_steps == 40
    assert torch.equal(found["model.chain."].last, model["model.chain.lin_mean.weight"])
    assert {prefix: part.reverse for prefix, part in interop.iaf_steps_in(model).items()} == {"flows.0.": False, "flows.1.": True}


def test_an_encoder_with_two_heads_becomes_one_network(golden, one_line):
    with torch.random.fork_rng():
        body, mean, log_var = torch.nn.Linear(6, 5), torch.nn.Linear(5, 2), torch.nn.Linear(5, 2)
    weights = torch.nn.ModuleDict({"body": body, "mean": mean, "log_var": log_var}).state_dict()
    x = torch.linspace(-1, 1, 18).view(3, 6)
    hidden = torch.nn.functional.leaky_relu(body(x), 0.2)
    torch.testing.assert_close(interop.mlp_from_ddvi(weights)(x), torch.cat((mean(hidden), log_var(hidden)), 1))
    with pytest.raises(InputError, match="follow one another"):
        interop.mlp_from_ddvi({"a.weight": torch.zeros(8, 5), "a.bias": torch.zeros(8), "b.weight": torch.zeros(2, 7), "b.bias": torch.zeros(2)})
    one_line(lambda: interop.mlp_from_ddvi({"a.weight": torch.zeros(8, 5), "a.running_mean": torch.zeros(8)}), "names of linear layers")
