"""The lm-eval model class against lm-eval's own, and against one request at a time computed naively."""

import random

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import make_backbone, make_tokenizer, random_text

from lpc import latents
from lpc.data.tokens import encode_prompts
from lpc.evaluation.harness import LatentLM
from lpc.model.policy import LatentPolicy

LENGTH = 64  # the longest input, so that some requests must be cut


def settings_of(kind: str = "lpc", **settings) -> dict:
    """As given, with sharp networks where the kind has them."""
    sharp = {"codes": 8, "logit_scale": 20.0}
    fields = latents.kind(kind).Settings.model_fields
    return {"kind": kind, **{key: value for key, value in sharp.items() if key in fields}, **settings}


def save(folder, *, codebook_std=1.0, **settings):
    """A checkpoint with a latent whose codebook and prior are large enough for every prompt to get a z of its own."""
    latent = latents.build(latents.parse(settings_of(**settings)), 32, seed=1)
    if latent.has_codes:
        torch.nn.init.normal_(latent.codebook, std=codebook_std, generator=torch.Generator().manual_seed(2))
    LatentPolicy(make_backbone(), latent).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latent_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("latent"))


@pytest.fixture(scope="module")
def zero_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("zero"), codebook_std=0.0)


def load(folder, batch_size=4, **options):
    return LatentLM(folder, batch_size=batch_size, device="cpu", max_length=LENGTH, **options)


def hf(folder, batch_size=4):
    return HFLM(str(folder), batch_size=batch_size, device="cpu", dtype="float32", max_length=LENGTH)


def texts(count=40, seed=0):
    """(context, continuation) pairs of many lengths: one-token choices under one context, contexts that end in white
    space, an empty context, and some that are too long."""
    import numpy as np

    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count // 4):
        context = random_text(rng, 1, 40)
        pairs += [(context, f" {choice}") for choice in "abc"] + [(context, " " + random_text(rng, 1, 8))]
    pairs += [
        ("the quick ", "brown fox"),
        ("the quick\n\n", "brown"),
        ("", "lazy dog"),
        ("the quick", " brown fox dog"),
    ]
    return pairs


def instances(kind, arguments):
    return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]


def loglikelihoods(lm, pairs):
    return lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)


def worst(results, expected):
    assert len(results) == len(expected)
    return max(abs(a - b) for (a, _), (b, _) in zip(results, expected, strict=True))


@torch.no_grad()
def naive(lm, context, continuation, end=None):
    """One request alone, in float64, with full logits. `end`: index of the last token of the context."""
    joint = context + continuation
    end = len(context) - 1 if end is None else end
    cut = max(0, len(joint) - (LENGTH + 1))
    ids = torch.tensor([joint[cut:-1]])
    backbone = lm.policy.backbone
    hidden = backbone.base_model(ids).last_hidden_state[0].double()
    z = lm.policy.latent.infer(hidden[end - cut][None].float())[0].double()
    logits = torch.nn.functional.linear(hidden + z, backbone.lm_head.weight.double())
    logps = logits.log_softmax(-1)[-len(continuation) :]
    labels = torch.tensor(continuation)
    return logps[torch.arange(len(labels)), labels].sum().item(), bool((logps.argmax(-1) == labels).all())


def reference(lm, pairs):
    results = []
    for context, continuation in pairs:
        if context:
            tokens = lm._encode_pair(context, continuation)
            whole = lm.tok_encode(context)
            end = len(whole) - 1 if whole == [*tokens[0], *tokens[1]][: len(whole)] else None
        else:
            tokens, end = ([lm.prefix_token_id], lm.tok_encode(continuation, add_special_tokens=False)), None
        results.append(naive(lm, *tokens, end))
    return results


def test_a_plain_checkpoint_scores_as_hf(checkpoint):
    assert worst(loglikelihoods(load(checkpoint), texts()), loglikelihoods(hf(checkpoint), texts())) < 1e-4


def test_a_codebook_of_zeros_scores_as_hf(zero_folder):
    results, expected = loglikelihoods(load(zero_folder), texts()), loglikelihoods(hf(zero_folder), texts())
    assert worst(results, expected) < 1e-4
    assert [greedy for _, greedy in results] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("kind", ["lpc", "vector", "mlp", "gaussian"])
def test_each_log_likelihood_is_that_of_the_request_alone(tmp_path, kind):
    folder = save(tmp_path, kind=kind, code_scale=0.02 if kind == "lpc" else 1.0)
    lm, pairs = load(folder), texts()
    results = loglikelihoods(lm, pairs)
    assert worst(results, reference(lm, pairs)) < 1e-4
    # And z matters here: without it, the same requests score otherwise.
    assert worst(results, loglikelihoods(hf(folder), pairs)) > 0.1


def test_greedy_flags_are_those_of_the_request_alone(latent_folder):
    lm = load(latent_folder)
    context = lm.tok_encode("the quick brown")
    ids = lm.policy.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False, pad_token_id=0)[0].tolist()
    greedy = (None, context, ids[len(context) :])
    other = (None, context, [*ids[len(context) : -1], (ids[-1] + 1) % 384])
    results = lm._loglikelihood_tokens([greedy, other], disable_tqdm=True)
    assert [flag for _, flag in results] == [True, False]


def test_equal_inputs_with_different_contexts_get_their_own_z(latent_folder):
    """Both requests feed the model the same tokens; only where the context ends tells them apart."""
    lm = load(latent_folder)
    tokens = lm.tok_encode("the quick brown fox jumps over")
    requests = [(None, tokens[:2], tokens[2:]), (None, tokens[:4], tokens[4:])]
    results = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    expected = [naive(lm, context, continuation) for _, context, continuation in requests]
    assert worst(results, expected) < 1e-4


@pytest.mark.parametrize("inference", ["mean", "mode", "sample"])
def test_batch_size_and_order_change_nothing(tmp_path, inference):
    folder = save(tmp_path, inference=inference)
    pairs = texts()
    expected = loglikelihoods(load(folder, 1), pairs)
    for batch_size in (3, 64):
        assert worst(loglikelihoods(load(folder, batch_size), pairs), expected) < 1e-4
    order = random.Random(0).sample(range(len(pairs)), len(pairs))
    shuffled = loglikelihoods(load(folder), [pairs[i] for i in order])
    assert worst(shuffled, [expected[i] for i in order]) < 1e-4


def test_too_long_a_context_loses_its_beginning_alone(latent_folder):
    lm = load(latent_folder)
    long, short = [5, 6, 7] * 60, [9, 10, 11]
    kept = long[-(LENGTH + 1 - len(short)) :]
    results = lm._loglikelihood_tokens([(None, long, short), (None, kept, short)], disable_tqdm=True)
    assert results[0] == pytest.approx(results[1])
    assert worst(results[:1], [naive(lm, long, short)]) < 1e-4


def test_z_of_a_chat_prompt_is_the_one_of_training(tmp_path):
    """A template that ends in a new line: lm-eval scores that new line, but z is computed after it, as in training."""
    lm = load(save(tmp_path), chat_template="{% for m in messages %}[{{ m.content }}]{{ '\n\n' }}{% endfor %}")
    messages = [{"role": "user", "content": "the quick brown"}]
    prompt = lm.apply_chat_template(messages)
    assert prompt.endswith("]\n\n")
    trained = encode_prompts(lm.tokenizer, [messages])[0]
    hidden = lm.policy.hidden(torch.tensor([trained]))[:, -1]
    seen = []
    prior_z = lm.policy.prior_z
    lm.policy.prior_z = lambda h_x, prompts: seen.append(h_x) or prior_z(h_x, prompts)
    loglikelihoods(lm, [(prompt, "fox jumps")])
    torch.testing.assert_close(seen[0], hidden)


def test_a_rolling_log_likelihood_takes_its_first_token_as_context(latent_folder):
    lm = load(latent_folder)
    text = "the quick brown fox jumps over a lazy dog"
    (result,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]), disable_tqdm=True)
    assert result == pytest.approx(naive(lm, [lm.prefix_token_id], lm.tok_encode(text))[0], abs=1e-4)


def test_full_logits_never_exist(latent_folder):
    """The largest tensor that scoring allocates is far below batch × length × vocabulary numbers."""
    lm = load(latent_folder, batch_size=16)
    vocabulary, tokens = 384, [[i] + [7] * (LENGTH - 4) for i in range(16)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        lm._loglikelihood_tokens([(None, row, [8, 9]) for row in tokens], disable_tqdm=True)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    full = 16 * LENGTH * vocabulary * 4
    assert 0 < largest < full / 4


def generate(lm, prompts, **options):
    options = {"until": ["fox"], "max_gen_toks": 12, "do_sample": False} | options
    return lm.generate_until(instances("generate_until", [(prompt, options) for prompt in prompts]), disable_tqdm=True)


def prompts(count=13):
    import numpy as np

    rng = np.random.default_rng(3)
    return [random_text(rng, 1, 25) for _ in range(count)]


def test_a_codebook_of_zeros_writes_as_hf(zero_folder):
    assert generate(load(zero_folder), prompts()) == generate(hf(zero_folder), prompts())


@torch.no_grad()
def naive_generate(lm, prompt, count):
    """Greedy decoding of one prompt without a cache: z from its last token, added before the head at every step."""
    ids = lm.tok_encode(prompt)[-(LENGTH - count) :]
    start, z = len(ids), None
    while len(ids) < start + count and ids[-1] != lm.eot_token_id:
        hidden = lm.policy.backbone.base_model(torch.tensor([ids])).last_hidden_state[:, -1]
        z = lm.policy.latent.infer(hidden) if z is None else z
        ids.append(lm.policy.head(hidden + z).argmax().item())
    return lm.tok_decode(ids[start:])


def test_each_row_is_written_with_its_own_z(latent_folder):
    lm = load(latent_folder)
    written = generate(lm, prompts(), until=["never written"])
    assert written == [naive_generate(lm, prompt, 12) for prompt in prompts()]
    assert written != generate(hf(latent_folder), prompts(), until=["never written"])


def test_batch_size_and_order_change_no_text(latent_folder):
    expected = generate(load(latent_folder, 1), prompts())
    assert generate(load(latent_folder, 5), prompts()) == expected
    assert generate(load(latent_folder, 5), prompts()[::-1]) == expected[::-1]


def test_logits_without_z_are_refused(latent_folder):
    with pytest.raises(NotImplementedError, match="no plain logits"):
        load(latent_folder)._model_call(torch.tensor([[1, 2]]))
