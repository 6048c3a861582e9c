"""Training: the loss and its checks, exact resume, several processes, checkpoints that cannot be mistaken."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc import latents, objectives, reference
from lpc.cli import UserError
from lpc.data.tokens import tokenize_pairs
from lpc.files import canonical, sha256, write_json, write_parquet
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps
from lpc.scoring import attach_reference, prompt_states
from lpc.training import Checkpointing, EpochSampler, PreferenceTrainer, complete_checkpoints, train

TOKENS = {"max_length": 64, "max_prompt_length": 32}
TRAINING = {
    "epochs": 2,
    "batch_size": 16,
    "micro_batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "precision": "float32",
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_minutes": 60,
}
LATENT = latents.parse({"codes": 6, "learning_rate": 1e-3}).model_dump()
EXACT = latents.parse({"kind": "exact", "codes": 6, "learning_rate": 1e-3}).model_dump()
VOLATILE = {"tokens_per_second": None, "memory_gib": None}  # in lines of the log: of the clock and the machine
OBJECTIVES = {
    "dpo": {"name": "dpo", "beta": 0.1},
    "ipo": {"name": "ipo", "tau": 0.1},
    "simpo": {"name": "simpo", "beta": 2.0, "margin": 1.0},
}


def tokenised(count: int = 48, reference_of=None):
    tokens = tokenize_pairs(make_pairs(count), make_tokenizer(), **TOKENS)
    policy = LatentPolicy(reference_of or make_backbone())
    tokens.reference, statistics = reference_logps(
        policy, tokens, np.ones(len(tokens), bool), batch_size=16, precision="float32"
    )
    return tokens, statistics


def run(
    folder: Path, objective: str | dict = "dpo", latent: dict | None = None, tokens=None, seed: int = 0, **training
):
    policy = LatentPolicy(make_backbone())
    if latent is not None:
        policy.latent = latents.build(latents.parse(latent), 32, seed)
    trainer = train(
        policy,
        tokens or tokenised()[0],
        objective=objectives.parse(OBJECTIVES[objective] if isinstance(objective, str) else objective),
        training=TRAINING | training,
        seed=seed,
        checkpoints=folder / "checkpoints",
        log_file=folder / "train.jsonl",
    )
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return trainer, lines


@pytest.mark.parametrize("name,expected", [("dpo", np.log(2)), ("ipo", 25.0)])
@pytest.mark.parametrize("latent", [None, LATENT, EXACT])
def test_the_first_loss_is_known_and_training_learns(tmp_path, name, expected, latent):
    _, lines = run(tmp_path, name, latent)
    assert lines[0]["objective"] == pytest.approx(expected, rel=0.01 if latent else 1e-5)
    assert lines[-1]["objective"] < 0.8 * lines[0]["objective"] and lines[-1]["accuracy"] > 0.9
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_the_loss_holds_what_the_objective_adds_to_it(tmp_path):
    """One batch of all pairs, at the start: mean −log π / tokens of the chosen completions, of the reference still."""
    tokens, _ = tokenised()
    nll = np.mean([-logp / len(ids) for logp, ids in zip(tokens.reference[:, 0], tokens.chosen, strict=True)])
    settings = {"name": "dpo", "nll_weight": 0.5}
    _, lines = run(tmp_path, settings, tokens=tokens, batch_size=48, epochs=1)
    assert lines[0]["loss"] - lines[0]["objective"] == pytest.approx(0.5 * nll, rel=1e-5)
    assert lines[0]["objective"] == pytest.approx(np.log(2), rel=1e-5)


@pytest.mark.parametrize("kind", ["lpc", "exact", "mlp"])
def test_the_backbone_waits_for_the_latent(tmp_path, monkeypatch, kind):
    """latent_first 0.5 of 6 steps: the backbone is the base's for three steps, with no moments kept, then learns."""
    latent = {"kind": kind, "codes": 6, "learning_rate": 1e-3, "latent_first": 0.5}
    base = {name: p.clone() for name, p in make_backbone().named_parameters()}
    moved = []

    def watch(self, args, state, control, model=None, optimizer=None, **kwargs):
        parameters = dict(model.backbone.named_parameters())
        moved.append(
            (
                any(not torch.equal(p, base[name]) for name, p in parameters.items()),
                sum(p in optimizer.optimizer.state for p in parameters.values()) / len(parameters),
                all(p in optimizer.optimizer.state for p in model.latent.parameters()),
            )
        )

    monkeypatch.setattr(Checkpointing, "on_step_end", watch)
    _, lines = run(tmp_path, latent=latent, weight_decay=0.1)
    assert moved == [(False, 0, True)] * 3 + [(True, 1, True)] * 3
    assert lines[0]["grad_norm"] < 0.5 * lines[3]["grad_norm"]


def test_a_latent_alone_leaves_the_base_as_it_was(tmp_path):
    trainer, _ = run(tmp_path, latent=LATENT | {"latent_first": 1.0})
    for name, p in make_backbone().named_parameters():
        assert torch.equal(dict(trainer.policy.backbone.named_parameters())[name], p), name


def test_statistics_hold_hidden_states_of_training_prompts(monkeypatch):
    """The sample is h_x of evenly spaced training pairs, in their order, whatever the batches; its moments are those
    that stand beside it where it holds them all."""
    tokens, policy = tokenize_pairs(make_pairs(48), make_tokenizer(), **TOKENS), LatentPolicy(make_backbone())
    train_rows = np.arange(48) % 3 > 0
    options = {"batch_size": 5, "precision": "float32"}
    _, statistics = reference_logps(policy, tokens, train_rows, **options)
    expected = prompt_states(policy, tokens, **options).cpu()[train_rows]
    torch.testing.assert_close(statistics["prompt.sample"], expected)
    torch.testing.assert_close(statistics["prompt.mean"], expected.mean(0), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(reference, "SAMPLE", 8)
    _, statistics = reference_logps(policy, tokens, train_rows, **options)
    torch.testing.assert_close(statistics["prompt.sample"], expected[::4])


def test_log_lines_hold_what_a_person_needs(tmp_path):
    _, lines = run(tmp_path, latent=LATENT)
    keys = {"loss", "objective", "kl", "chosen_reward", "rejected_reward", "margin", "accuracy", "gamma", "z_norm"}
    keys |= {"h_norm", "grad_norm", "learning_rate", "prior_perplexity", "posterior_perplexity", "memory_gib"}
    keys |= {"mean_prior_perplexity", "tokens_per_second", "epoch", "step", "temperature"}
    assert set(lines[0]) == keys
    assert [line["gamma"] for line in lines] == pytest.approx([i / 5 for i in range(6)])
    for line in lines:
        assert line["loss"] == pytest.approx(line["objective"] + LATENT["kl_weight"] * line["kl"], rel=1e-5)
        assert 1 <= line["prior_perplexity"] <= line["mean_prior_perplexity"] * 1.0001 <= 6.001
    assert tensorboard_values(tmp_path / "tensorboard", "train/kl") == pytest.approx([x["kl"] for x in lines], rel=1e-5)


def tensorboard_values(folder: Path, tag: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def test_a_reference_of_another_model_is_noticed_at_once(tmp_path):
    tokens, _ = tokenised(reference_of=make_backbone(seed=1))
    with pytest.raises(UserError, match=r"first batch: the dpo loss is .* where a policy equal to its reference"):
        run(tmp_path, tokens=tokens)


def test_a_latent_that_starts_too_large_is_noticed_at_once(tmp_path):
    with pytest.raises(UserError, match=r"lower latent\.init_std"):
        run(tmp_path, latent=LATENT | {"init_std": 3.0})


def test_codes_of_an_exact_latent_may_start_large(tmp_path):
    """Its first loss is checked on the policy without them, and so is the reference."""
    latent = EXACT | {"init_std": 3.0}
    trainer, lines = run(tmp_path / "a", latent=latent)
    assert trainer.totals["first_loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert abs(lines[0]["objective"] / np.log(2) - 1) > 0.01
    tokens, _ = tokenised(reference_of=make_backbone(seed=1))
    with pytest.raises(UserError, match=r"first batch: the dpo loss is .* where a policy equal to its reference"):
        run(tmp_path / "b", latent=latent, tokens=tokens)


def test_log_lines_of_an_exact_latent(tmp_path):
    """−log Σ p exp(−ℓ) is the mean loss under the posterior plus its KL to the prior; no schedule, no bound."""
    _, lines = run(tmp_path, latent=EXACT | {"init_std": 1.0})
    assert "gamma" not in lines[0] and "temperature" not in lines[0]
    for line in lines:
        assert line["loss"] == line["objective"]
        assert 1 <= line["posterior_perplexity"] <= 6.001 and 0 < line["kl"] < np.log(6)


def test_an_exact_run_goes_on_bit_equal(tmp_path, monkeypatch):
    """Stopped and saved after step 3 of 6, and run again: the losses and weights of the unbroken run."""
    latent = EXACT | {"latent_first": 0.4}
    whole, expected = run(tmp_path / "a", latent=latent)
    on_step_end = Checkpointing.on_step_end

    def stop(self, args, state, control, **kwargs):
        self.signalled = "SIGTERM" if state.global_step == 3 else None
        return on_step_end(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointing, "on_step_end", stop)
        stopped, _ = run(tmp_path / "b", latent=latent)
    assert stopped is None
    resumed, lines = run(tmp_path / "b", latent=latent)
    assert resumed.totals["resumed_from"] == [3]
    for a, b in zip(expected, lines, strict=True):
        assert a | VOLATILE == b | VOLATILE
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, resumed.policy.state_dict()[name]), name


def test_a_dead_posterior_is_noticed_at_once(tmp_path):
    """A posterior whose parameters are frozen by mistake."""
    policy = LatentPolicy(make_backbone())
    policy.latent = latents.build(latents.parse(LATENT), 32, 0)
    for parameter in policy.latent.posterior.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="no gradient reaches the posterior"):
        train(
            policy,
            tokenised()[0],
            objective=objectives.parse(OBJECTIVES["dpo"]),
            training=TRAINING,
            seed=0,
            checkpoints=tmp_path / "c",
            log_file=tmp_path / "l",
        )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(UserError, match=r"lower the learning rate|not finite"):
        run(tmp_path, "ipo", learning_rate=1e30, max_grad_norm=0.0, epochs=4)


@pytest.mark.parametrize("latent", [None, LATENT, EXACT])
def test_micro_batches_do_not_change_the_run(tmp_path, latent):
    """The global batch is what counts: 16 pairs at once, or 4 times 4."""
    tokens, _ = tokenised()
    _, whole = run(tmp_path / "a", latent=latent, tokens=tokens, micro_batch_size=16)
    _, parts = run(tmp_path / "b", latent=latent, tokens=tokens, micro_batch_size=4)
    for a, b in zip(whole, parts, strict=True):
        for key in ("loss", "margin", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6)


def test_gradient_checkpointing_does_not_change_the_run(tmp_path):
    _, plain = run(tmp_path / "a", latent=LATENT)
    _, checkpointed = run(tmp_path / "b", latent=LATENT, gradient_checkpointing=True)
    assert [x["loss"] for x in plain] == pytest.approx([x["loss"] for x in checkpointed], rel=1e-6)


@pytest.mark.parametrize("latent", [LATENT, EXACT])
def test_bfloat16_follows_float32(tmp_path, latent):
    """Autocast training needs its reference in the same precision; then it learns alike."""
    tokens, _ = tokenised()
    policy = LatentPolicy(make_backbone())
    tokens.reference, _ = reference_logps(
        policy, tokens, np.ones(len(tokens), bool), batch_size=16, precision="bfloat16"
    )
    _, lines = run(tmp_path, latent=latent, tokens=tokens, precision="bfloat16")
    assert lines[0]["objective"] == pytest.approx(np.log(2), rel=0.01) and lines[-1]["accuracy"] > 0.9


def test_plain_and_latent_runs_see_the_same_pairs_in_the_same_order(tmp_path, monkeypatch):
    seen = []
    original = PreferenceTrainer.compute_loss

    def spy(self, model, inputs, *rest, **options):
        seen[-1].append(inputs["index"].tolist())
        return original(self, model, inputs, *rest, **options)

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", spy)
    for i, latent in enumerate((None, LATENT)):
        seen.append([])
        run(tmp_path / str(i), latent=latent)
    assert seen[0] == seen[1] and len(seen[0]) == 12
    first_epoch, second_epoch = np.concatenate(seen[0][:6]).tolist(), np.concatenate(seen[0][6:]).tolist()
    assert sorted(first_epoch) == sorted(second_epoch) == list(range(48)) and first_epoch != second_epoch


def test_epochs_have_whole_batches_of_distinct_pairs():
    sampler = EpochSampler(50, 16, 3, lambda: 0)
    assert len(list(sampler)) == len(set(sampler)) == len(sampler) == 48
    assert list(sampler) == list(sampler) != list(EpochSampler(50, 16, 3, lambda: 1))


def test_parameter_groups(tmp_path):
    """Own rates for networks and codebook; decay for the backbone's matrices alone."""
    latent = LATENT | {"learning_rate": 2e-3, "codebook_learning_rate": 3e-3}
    trainer, _ = run(tmp_path, latent=latent, weight_decay=0.1, epochs=1)
    names = {id(p): n for n, p in trainer.policy.named_parameters()}
    groups = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            groups[names[id(parameter)]] = (group["initial_lr"], group["weight_decay"])
    assert set(groups) == set(names.values())
    assert groups["latent.codebook"] == (3e-3, 0.0) and groups["latent.prior.0.weight"] == (2e-3, 0.0)
    assert groups["backbone.model.layers.0.mlp.up_proj.weight"] == (1e-3, 0.1)
    assert groups["backbone.model.norm.weight"] == (1e-3, 0.0)


@pytest.mark.parametrize(
    "training,message",
    [
        ({"batch_size": 64}, "fewer than training.batch_size"),
        ({"micro_batch_size": 5}, "micro_batch_size: 5 does not divide"),
    ],
)
def test_batch_sizes_that_do_not_fit_are_refused(tmp_path, training, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, **training)


def test_more_processes_than_started_are_refused(tmp_path):
    with pytest.raises(UserError, match="2 processes were asked for, 1 with"):
        train(
            LatentPolicy(make_backbone()),
            tokenised()[0],
            objective=objectives.parse(OBJECTIVES["dpo"]),
            training=TRAINING,
            seed=0,
            checkpoints=tmp_path,
            log_file=tmp_path / "l",
            processes=2,
        )


# ---- the step as a process of its own


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A base, pairs and reference on disk, as the workflow leaves them."""
    folder = tmp_path_factory.mktemp("inputs")
    backbone, tokenizer, pairs = make_backbone(), make_tokenizer(), make_pairs(48)
    backbone.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    record = {
        "path": str(folder / "base"),
        "sha256": "0",
        "chat_template": None,
        "dtype": "float32",
    }
    write_json(folder / "base.json", record | {"trust_remote_code": False})
    write_parquet(folder / "pairs.parquet", pairs)
    command = [sys.executable, "-m", "lpc.steps.reference", "--base", folder / "base.json"]
    command += ["--pairs", folder / "pairs.parquet", "--output", folder / "reference.parquet"]
    command += ["--statistics", folder / "statistics.safetensors"]
    command += ["--spec", canonical({"tokens": TOKENS, "batch_size": 16, "precision": "float32"})]
    subprocess.run(command, check=True, env=environment())
    return folder


def environment(**extra: str) -> dict:
    source = str(Path(__file__).parents[2] / "src")
    return os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | extra


def command(inputs: Path, folder: Path, launcher=(sys.executable, "-m"), processes: int = 1, seed: int = 0, **training):
    # With what a resume or a second process could break: weights that wait, and codes that start from a file.
    latent = LATENT | {"standardize": True, "codebook_init": "kmeans", "latent_first": 0.4}
    spec = {"objective": OBJECTIVES["dpo"], "latent": latent, "tokens": TOKENS, "seed": seed}
    spec["training"] = TRAINING | {"save_minutes": 0} | training
    arguments = [*launcher, "lpc.steps.train", "--base", inputs / "base.json", "--pairs", inputs / "pairs.parquet"]
    arguments += ["--reference", inputs / "reference.parquet", "--statistics", inputs / "statistics.safetensors"]
    arguments += ["--checkpoints", folder / "checkpoints", "--output", folder / "model"]
    arguments += ["--metrics", folder / "train.jsonl", "--summary", folder / "train.json", "--processes", processes]
    return [str(a) for a in [*arguments, "--spec", canonical(spec)]]


def lines_of(folder: Path) -> list[dict]:
    file = folder / "train.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def assert_same_run(a: Path, b: Path):
    """Bit-equal weights and log lines, but for the clock and the memory."""
    for name in ("model.safetensors", "latent.safetensors"):
        assert sha256(a / "model" / name) == sha256(b / "model" / name), name
    strip = lambda lines: [line | VOLATILE for line in lines]  # noqa: E731
    assert strip(lines_of(a)) == strip(lines_of(b)) and lines_of(a)


UNEVEN = {"epochs": 6, "logging_steps": 4}  # checkpoints fall inside log windows and inside epochs of three steps


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    subprocess.run(command(inputs, folder, **UNEVEN), check=True, env=environment())
    return folder


def start_and_wait_for_step(inputs, folder, step, **extra) -> subprocess.Popen:
    process = subprocess.Popen(command(inputs, folder, **UNEVEN), env=environment(**extra), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        done = [int(p.name.split("-")[1]) for f in folder.glob("checkpoints/*") for p in complete_checkpoints(f)]
        if done and max(done) >= step:
            return process
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"step {step} was not reached: {process.communicate()[1].decode()[-2000:]}")


def test_killed_runs_go_on_bit_equal(inputs, unbroken, tmp_path):
    """SIGKILL twice, wherever it hits; the third attempt ends with the unbroken run's losses and weights."""
    for step in (2, 7):
        process = start_and_wait_for_step(inputs, tmp_path, step)
        process.kill()
        process.communicate()
        assert not (tmp_path / "model").exists()
    result = subprocess.run(command(inputs, tmp_path, **UNEVEN), env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "resuming from checkpoint-" in result.stderr
    assert len(json.loads((tmp_path / "train.json").read_text())["resumed_from"]) == 2
    assert_same_run(unbroken, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_save_first(inputs, unbroken, tmp_path, number):
    process = start_and_wait_for_step(inputs, tmp_path, 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 85 and f"on {signal.Signals(number).name}" in errors.decode()
    subprocess.run(command(inputs, tmp_path, **UNEVEN), check=True, env=environment())
    assert_same_run(unbroken, tmp_path)


def test_the_end_of_the_job_saves_first(inputs, unbroken, tmp_path):
    """SLURM_JOB_END_TIME is near: the run saves and stops by itself after its first step."""
    soon = environment(SLURM_JOB_END_TIME=str(int(time.time()) + 5))
    result = subprocess.run(command(inputs, tmp_path, **UNEVEN), env=soon, capture_output=True, text=True)
    assert result.returncode == 85 and "the end of the job's time" in result.stderr
    subprocess.run(command(inputs, tmp_path, **UNEVEN), check=True, env=environment())
    assert_same_run(unbroken, tmp_path)


def test_a_torn_checkpoint_is_not_resumed(inputs, unbroken, tmp_path):
    """A later checkpoint without its last file (killed while saving) is passed over for the last complete one."""
    process = start_and_wait_for_step(inputs, tmp_path, 3)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    (folder,) = tmp_path.glob("checkpoints/*/checkpoint-*")
    torn = folder.with_name("checkpoint-17")
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    subprocess.run(command(inputs, tmp_path, **UNEVEN), check=True, env=environment())
    assert_same_run(unbroken, tmp_path)


def test_a_checkpoint_of_another_spec_is_never_resumed_and_says_so(inputs, unbroken, tmp_path):
    process = start_and_wait_for_step(inputs, tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    other = subprocess.run(
        command(inputs, tmp_path, seed=1, **UNEVEN), env=environment(), capture_output=True, text=True
    )
    assert other.returncode == 0 and "a checkpoint of other data, base or settings; not resumed" in other.stderr
    assert json.loads((tmp_path / "train.json").read_text())["resumed_from"] == []
    assert sha256(tmp_path / "model/latent.safetensors") != sha256(unbroken / "model/latent.safetensors")


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")


def test_two_processes_give_the_losses_of_one(inputs, unbroken, tmp_path):
    """DDP on gloo, the same global batch: every logged value to 1e-5, and the summary says two processes."""
    subprocess.run(command(inputs, tmp_path, TORCHRUN, processes=2, **UNEVEN), check=True, env=environment())
    assert json.loads((tmp_path / "train.json").read_text())["processes"] == 2
    for one, two in zip(lines_of(unbroken), lines_of(tmp_path), strict=True):
        for key in set(one) - {"tokens_per_second", "memory_gib"}:
            assert one[key] == pytest.approx(two[key], rel=1e-5, abs=1e-5), key
    a, b = (safetensors.torch.load_file(f / "model/latent.safetensors") for f in (unbroken, tmp_path))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)


def test_a_sharded_step_equals_the_whole_one():
    """torch's fully_shard on two gloo processes: the loss and every gradient of a latent step (Trainer cannot on
    CPU)."""
    tests = Path(__file__).parent
    paths = os.pathsep.join([environment()["PYTHONPATH"], str(tests.parent)])
    launcher = [*TORCHRUN[:-1], str(tests / "fsdp_worker.py")]
    result = subprocess.run(launcher, env=environment(PYTHONPATH=paths), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "gradients on 2 processes" in result.stdout


def test_a_launcher_that_starts_fewer_processes_than_asked_fails_loudly(inputs, tmp_path):
    result = subprocess.run(command(inputs, tmp_path, processes=2), env=environment(), capture_output=True, text=True)
    assert result.returncode == 1 and "error: 2 processes were asked for, 1 with" in result.stderr
    assert not (tmp_path / "model").exists()


def test_the_finished_model_scores_as_the_trainer_left_it(tmp_path):
    """save_pretrained after training and from_pretrained give the trainer's own log-probabilities."""
    tokens, _ = tokenised()
    trainer, _ = run(tmp_path, latent=LATENT, tokens=tokens)
    trainer.policy.save_pretrained(tmp_path / "model")
    loaded = LatentPolicy.from_pretrained(tmp_path / "model")
    options = {"batch_size": 16, "precision": "float32"}
    everything = np.ones(len(tokens), bool)
    a, _ = reference_logps(trainer.policy.eval(), tokens, everything, **options)
    b, _ = reference_logps(loaded.eval(), tokens, everything, **options)
    assert np.array_equal(a, b)


def test_attach_reference_is_what_training_starts_from(inputs):
    """The reference step's file, joined again, gives a first DPO loss of ln 2 to float32 rounding."""
    import pyarrow.parquet as parquet

    pairs = parquet.read_table(inputs / "pairs.parquet")
    tokens = tokenize_pairs(pairs, make_tokenizer(), **TOKENS)
    attach_reference(tokens, pairs, inputs / "reference.parquet")
    direct, _ = tokenised()
    np.testing.assert_allclose(tokens.reference, direct.reference, rtol=1e-6)
