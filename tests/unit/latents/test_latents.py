"""What every kind of latent shares: the registry, the contract, its start, its settings."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lpc
from lpc import latents
from lpc.cli import UserError
from lpc.config.keys import Role, role_of
from lpc.model.noise import counter_uniform


def make(kind: str, features: int = 16, seed: int = 0, **settings):
    return latents.build(latents.parse({"kind": kind} | settings), features, seed)


def step_of(latent, count: int = 7, progress: float = 0.5):
    h = [torch.randn(count, latent.features) for _ in range(3)]
    size, noise = latent.noise_size, None
    if size:
        noise = counter_uniform(0, 0, torch.arange(count), 2 * size).unflatten(1, (2, size))
    return latent(*h, progress=progress, noise=noise)


def test_importing_every_kind_imports_no_torch():
    """Each job of a workflow reads the configuration, and so the settings of all kinds."""
    program = "import sys, lpc.latents; assert len(lpc.latents.KINDS) > 3; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(lpc.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_a_file_of_the_package_is_a_kind():
    folder = Path(latents.__file__).parent
    shared = {"__init__", "base", "prior", "codes", "variational"}
    assert sorted(latents.KINDS) == sorted({file.stem for file in folder.glob("*.py")} - shared)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "gausian"}, r"latent\.kind: 'gausian' is not one of .*did you mean gaussian\?"),
        ({"codes": 1}, r"latent\.codes: Input should be greater than or equal to 2 \(it is 1\)"),
        ({"gamma": {"until": 0.0}}, r"latent\.gamma\.until: Input should be greater than 0"),
        ({"kind": "vector", "codes": 8}, r"latent\.codes: Extra inputs are not permitted"),
        ({"kind": "gaussian", "inference": "mode"}, r"latent\.inference: Input should be 'mean' or 'sample'"),
        ({"kind": "mlp", "kl_weight": 0.1}, r"latent\.kl_weight: Extra inputs are not permitted"),
    ],
)
def test_a_kind_takes_only_what_it_uses(settings, message):
    with pytest.raises(UserError, match=message):
        latents.parse(settings)


@pytest.mark.parametrize("kind", latents.KINDS)
def test_settings_say_what_they_mean_and_what_depends_on_them(kind):
    fields = latents.kind(kind).Settings.model_fields
    assert [name for name, field in fields.items() if not field.description] == ["kind"]
    roles = {name for name in fields if role_of(latents.kind(kind).Settings, name) != Role.SCIENCE}
    assert roles == ({"inference", "inference_seed"} & set(fields))
    assert ("inference" in fields) == (latents.kind(kind).has_posterior or latents.kind(kind).has_codes)


def test_defaults_that_kinds_share_are_those_of_lpc():
    """But for a mixture, which is not scored with one z, and whose pairs can share a code."""
    lpc_settings = latents.parse({}).model_dump()
    for kind in latents.KINDS:
        settings = latents.parse({"kind": kind}).model_dump()
        own = {"kind", "inference", "group_size", "prior", "rank"} if latents.kind(kind).marginal else {"kind"}
        assert {key: value for key, value in settings.items() if key not in own}.items() <= lpc_settings.items()


@pytest.mark.parametrize("kind", latents.KINDS)
def test_every_kind_starts_small_and_trains(kind):
    """z is small at the start, every parameter gets a gradient, and inference depends on the prompt alone."""
    latent = make(kind)
    step = step_of(latent)
    assert step.z.shape == (7, 16) and step.kl.shape == (7,) and step.z.abs().max() < 0.2
    (step.z.pow(2).sum() + step.kl.sum() + (0 if step.codes is None else step.codes.sum())).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in latent.parameters())
    h, uniform = torch.randn(7, 16), torch.rand(7, latent.draw_size) if latent.draw_size else None
    alone = latent.infer(h[2:3], None if uniform is None else uniform[2:3])
    torch.testing.assert_close(latent.infer(h, uniform)[2:3], alone)


@pytest.mark.parametrize("kind", latents.KINDS)
def test_every_kind_is_what_it_says(kind):
    latent, h = make(kind), torch.randn(3, 16)
    assert isinstance(latent, latents.kind(kind)) and isinstance(latent, torch.nn.Module) and latent.title
    step = step_of(latent)
    assert (step.prior_logits is not None) == latent.has_codes
    assert (step.posterior_logits is not None) == (latent.has_codes and latent.has_posterior)
    if latent.has_codes:
        assert latent.shift(latent.force(0, 3), h).shape == (3, 16)
        assert latent.prior_logits(h).shape == (3, latent.settings.codes)
    else:
        with pytest.raises(ValueError, match=f"a latent of kind {kind} has no codes to force"):
            latent.force(0, 3)
    if latent.has_posterior:
        assert latent.posterior_z(h, h).shape == (3, 16) and list(latent.posterior.parameters())
        torch.testing.assert_close(latent.cost(step, 0.5), 0.05 * step.kl)
    else:
        assert step.kl.tolist() == [0.0] * 7 and latent.cost(step, 0.5) == 0.0


@pytest.mark.parametrize("kind", latents.KINDS)
def test_every_parameter_is_in_one_group(kind):
    latent = make(kind, learning_rate=0.25)
    groups = latent.parameter_groups(1e-6)
    assert sorted(name for names, _ in groups for name in names) == sorted(
        name for name, _ in latent.named_parameters()
    )
    assert {rate for _, rate in groups} == {0.25}
    assert {rate for _, rate in make(kind, learning_rate=None).parameter_groups(1e-6)} == {1e-6}


@pytest.mark.parametrize("kind", latents.KINDS)
def test_a_unit_scales_z_and_the_steps_of_what_z_is_made_of(kind):
    """A step of 1 in every parameter at the rates of both latents moves z by `unit` times as much, too."""
    one, other, h = make(kind, learning_rate=0.25), make(kind, learning_rate=0.25), torch.randn(3, 16)
    other.rescale(4.0)
    uniform = torch.rand(3, one.draw_size) if one.draw_size else None
    moved = []
    for latent in (one, other):
        moved.append([latent.shift(latent.infer(h, uniform), h)])
        with torch.no_grad():
            for names, rate in latent.parameter_groups(1e-6):
                for name in names:
                    latent.get_parameter(name).add_(rate)
        moved[-1].append(latent.shift(latent.infer(h, uniform), h))
    for small, large in zip(*moved, strict=True):
        torch.testing.assert_close(large, 4 * small)
    assert {rate for _, rate in other.parameter_groups(1e-6)} <= {0.25, 1.0}


def test_the_old_name_of_the_scale_is_refused_with_the_new_one():
    with pytest.raises(UserError, match=r"latent: init_std is now code_scale, in nats of logits"):
        latents.parse({"kind": "vector", "init_std": 0.1})


@pytest.mark.parametrize("kind", latents.KINDS)
def test_it_starts_from_statistics_where_it_needs_them(kind):
    if "standardize" not in latents.kind(kind).Settings.model_fields:
        assert not latents.parse({"kind": kind}).needs_statistics
        return
    assert not latents.parse({"kind": kind}).needs_statistics
    latent = make(kind, standardize=True)
    assert latent.settings.needs_statistics
    names = [f"{side}.{moment}" for side in ("prompt", "completion") for moment in ("mean", "std")]
    statistics = {name: torch.rand(16) + 0.5 for name in names}
    latent.start_from(statistics, seed=0)
    for name in names:
        standardizer = getattr(latent, f"{name.partition('.')[0]}_standardizer", None)
        if standardizer is not None:
            assert torch.equal(getattr(standardizer, name.partition(".")[2]), statistics[name])


@pytest.mark.parametrize("kind", latents.KINDS)
def test_a_copy_is_a_latent_of_the_same_weights(kind):
    latent = make(kind)
    other = copy.deepcopy(latent)
    assert type(other) is type(latent) and other.settings == latent.settings
    for name, value in latent.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_names_of_weights():
    """Files of finished runs have these."""
    networks = [
        f"{network}.{part}"
        for network in ("prior", "posterior")
        for part in ("0.weight", "0.bias", "2.weight", "2.bias")
    ]
    standardizers = [f"{side}_standardizer.{moment}" for side in ("prompt", "completion") for moment in ("mean", "std")]
    assert set(make("lpc").state_dict()) == {"codebook", *networks, *standardizers}
    assert set(make("exact").state_dict()) == {"codebook", *networks[:4], *standardizers[:2]}
    assert set(make("heads").state_dict()) == {"codebook", "up", "down", *networks[:4], *standardizers[:2]}
    assert set(make("gaussian").state_dict()) == {"scale", *networks, *standardizers}
    assert list(make("vector").state_dict()) == ["vector"]
    mlp = ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"]
    assert list(make("mlp").state_dict()) == [*mlp, *standardizers[:2]]


@pytest.mark.parametrize("kind", ["lpc", "gaussian"])
def test_posterior_of_a_pair_comes_from_the_others_of_its_group(kind):
    """Groups of 3, γ = 0: z of a pair changes with the completions of the other two alone."""
    latent = make(kind, group_size=3, gumbel_noise=False, gamma={"start": 0.0, "end": 0.0}, code_scale=1.0)
    h = torch.randn(3, 6, 16)
    other = h.clone()
    other[1:, 1] += 1.0
    before, after = (latent(*states, progress=0.5).z for states in (h, other))
    changed = (before != after).any(-1)
    assert changed.tolist() == [True, False, True, False, False, False]
    outputs = latent.posterior_outputs(h[1], h[2])
    torch.testing.assert_close(before[4], latent.mean_z(latent.combine(outputs[[3, 5]])))


def test_build_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = make("lpc", seed=5)
    assert torch.equal(torch.rand(3), expected)
    second, other = make("lpc", seed=5), make("lpc", seed=6)
    assert torch.equal(first.codebook, second.codebook) and not torch.equal(first.codebook, other.codebook)
