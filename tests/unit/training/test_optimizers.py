"""Parameter groups, and optimizers in less memory against AdamW in float32."""

import signal
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from small import LATENT, TRAINING, make_base, run, tokenised
from tiny import make_backbone

from lpc import latents
from lpc.cli import UserError
from lpc.config.models import Training
from lpc.config.specs import Train
from lpc.model.policy import LatentPolicy
from lpc.training.checkpoints import Checkpointing
from lpc.training.identity import identity
from lpc.training.optimizers import SplitAdamW, join, low_weights, parameter_groups, split
from lpc.training.train import check_optimizer

needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="torchao is not installed: pip install -e '.[optimizers]'"
)
EIGHT_BITS = [pytest.param(name, marks=needs_torchao) for name in ("adamw_8bit", "adamw_8bit_bfloat16")]
LOW = ["adamw_split", *EIGHT_BITS]
BFLOAT16 = {"precision": "bfloat16", "learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.5}


@pytest.fixture(autouse=True)
def uncompiled():
    """torchao compiles its step, which takes a CPU a minute for a small model."""
    with torch.compiler.set_stance("force_eager"):
        yield


def test_parameter_groups():
    """Own rates for networks and codebook; decay for the backbone's matrices alone."""
    policy = LatentPolicy(make_backbone())
    policy.latent = latents.build(
        latents.parse(LATENT | {"learning_rate": 2e-3, "codebook_learning_rate": 3e-3}), 32, 0
    )
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    decayed = {name for name in names.values() if not name.endswith("norm.weight")}
    groups = parameter_groups(policy, decayed, learning_rate=1e-3, weight_decay=0.1)
    found = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert set(found) == set(names.values())
    assert found["latent.codebook"] == (3e-3, 0.0) and found["latent.prior.0.weight"] == (2e-3, 0.0)
    assert found["backbone.model.layers.0.mlp.up_proj.weight"] == (1e-3, 0.1)
    assert found["backbone.model.norm.weight"] == (1e-3, 0.0)


def test_split_numbers_are_joined_bit_for_bit():
    """All kinds of lower halves, ties among them, over odd and even upper halves of both signs, and subnormal ones."""
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    upper = torch.cat([torch.arange(5), torch.arange(0x3F80, 0x3F85), torch.arange(0x7F70, 0x7F7F)])
    upper = torch.cat([upper, upper - 0x8000])
    bits = ((upper[:, None] << 16) | lower).int()
    whole = bits.view(torch.float32)
    high, (low, ties) = whole.bfloat16(), split(whole)
    assert torch.equal(join(high, low, ties).view(torch.int32), bits)
    assert low.dtype == torch.int16 and len(ties) == (upper % 2).sum()  # halves are rounded to even


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """AdamW in float32, in two micro-batches a step, with gradients that are cut."""
    return run(tmp_path_factory.mktemp("plain"), latent=LATENT, tokens=tokenised("bfloat16"), **BFLOAT16)


def test_split_adamw_is_adamw_bit_for_bit(tmp_path, plain):
    trainer, lines = run(tmp_path, latent=LATENT, tokens=tokenised("bfloat16"), optimizer="adamw_split", **BFLOAT16)
    assert isinstance(trainer.optimizer.optimizer, SplitAdamW)
    for name in ("loss", "grad_norm", "margin", "kl"):
        assert [line[name] for line in lines] == [line[name] for line in plain[1]], name
    found, expected = (dict(each.policy.named_parameters()) for each in (trainer, plain[0]))
    for name, weight in expected.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], weight), name


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_8bit_optimizers_follow_adamw(tmp_path, plain, name):
    """The losses fall as those of AdamW do; the weights have moved as far, in nearly the same direction."""
    trainer, lines = run(tmp_path, latent=LATENT, tokens=tokenised("bfloat16"), optimizer=name, **BFLOAT16)
    losses, expected = ([line["loss"] for line in each] for each in (lines, plain[1]))
    assert losses[0] == pytest.approx(expected[0], rel=1e-3) and losses[-1] < 0.9 * losses[0]
    assert losses == pytest.approx(expected, rel=0.1)
    base = dict(make_base().named_parameters())
    moved, wanted = (
        torch.cat([(weight - base[name]).flatten() for name, weight in each.policy.backbone.named_parameters()])
        for each in (trainer, plain[0])
    )
    assert torch.cosine_similarity(moved, wanted, 0) > 0.8
    assert moved.norm().item() == pytest.approx(wanted.norm().item(), rel=0.2)


@pytest.mark.parametrize("name", LOW)
def test_interrupted_trainings_resume_bit_equal(tmp_path, monkeypatch, name):
    settings = {"latent": LATENT, "tokens": tokenised("bfloat16"), "optimizer": name, "epochs": 1, **BFLOAT16}
    whole, lines = run(tmp_path / "a", **settings)
    end_of_step = Checkpointing.on_step_end

    def interrupt(self, args, state, control, **rest):
        if state.global_step == 2:
            self._on_signal(signal.SIGTERM, None)
        return end_of_step(self, args, state, control, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpointing, "on_step_end", interrupt)
        stopped, _ = run(tmp_path / "b", **settings)
    torch.manual_seed(123)  # the state of random numbers is the checkpoint's
    resumed, again = run(tmp_path / "b", **settings)
    assert stopped is None and resumed.totals["resumed_from"] == [2]
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]
    for (name, weight), expected in zip(resumed.policy.named_parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(weight, expected), name


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_products_alone_read_are_low(tied):
    policy = LatentPolicy(make_backbone(tie_word_embeddings=tied))
    names = {id(parameter): name for name, parameter in policy.backbone.named_parameters()}
    low = [names[id(weight)] for weight in low_weights(policy)]
    assert len(low) == 2 * 7 and all(name.endswith("_proj.weight") for name in low)


@pytest.mark.parametrize("name", LOW)
def test_untested_combinations_are_refused(monkeypatch, name):
    training = Training(**TRAINING | {"optimizer": name, "precision": "bfloat16"})
    for processes, sharded, how in ((1, True, "FSDP"), (2, True, "FSDP"), (2, False, "2 processes")):
        with pytest.raises(UserError, match=f"^training.optimizer: {name} is for one GPU, not for {how}; [^\n]*$"):
            check_optimizer(training, processes, sharded=sharded)
    if name != "adamw_8bit":
        with monkeypatch.context() as older:
            older.setattr("lpc.training.train.torch", SimpleNamespace(Tensor=object, __version__="2.6.0"))
            with pytest.raises(UserError, match=r"needs Tensor.grad_dtype, which PyTorch 2\.6\.0 does not have"):
                check_optimizer(training, 1, sharded=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    if name == "adamw_split":
        check_optimizer(training, 1, sharded=False)
    else:
        with pytest.raises(UserError, match=f"^training.optimizer: {name} needs a C compiler [^\n]*$"):
            check_optimizer(training, 1, sharded=False)
    with pytest.raises(ValidationError, match="requires lora: null"):
        Training(optimizer=name, lora={"rank": 2})
    if name != "adamw_8bit":
        with pytest.raises(ValidationError, match="requires precision: bfloat16"):
            Training(optimizer=name, precision="float32")


def test_without_torchao_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(UserError, match=r"needs torchao, .* pip install 'lpc\[optimizers\]'"):
        check_optimizer(Training(optimizer="adamw_8bit"), 1, sharded=False)


@needs_torchao
def test_the_version_of_torchao_is_part_of_the_identity(inputs):
    files = {"base": inputs / "base.json", "pairs": inputs / "pairs.parquet", "reference": None, "statistics": None}
    for name in ("adamw_split", "adamw_8bit"):
        spec = Train.parse({"objective": {"name": "simpo"}, "training": {"optimizer": name}}, {})
        assert ("torchao" in identity(spec, **files)["versions"]) == (name == "adamw_8bit")
