"""One call for all packed pairs (`Varlen`, `Flex`) against the loop over pairs: outputs, gradients, recompilations.

FlashAttention runs on CUDA alone. Here its operators have kernels for CPUs, which compute what their arguments mean.
The rest of the way is that of a GPU: gathered keys, ends of sequences, PyTorch's function, operator and autograd rule.
"""

import pytest
import torch
from tiny import make_backbone, make_pairs, make_tokenizer
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention, varlen

from lpc.cli import UserError
from lpc.data.tokens import MODEL_INPUTS, collate, tokenize_pairs
from lpc.model.attention import LAYOUTS, sdpa
from lpc.model.policy import LatentPolicy

CPU = torch.device("cpu")


def sequences(query, key, value, query_ends, key_ends, causal, scale, window):
    """Each sequence's slice of queries and of keys, its queries, keys and values [H, n, D], and softmax(scores), by the
    documented arguments of varlen_attn, with the causal mask aligned to the end."""
    left, right = window
    assert causal == (window == [-1, 0]) and right == 0
    for i in range(len(query_ends) - 1):
        own, seen = (slice(int(ends[i]), int(ends[i + 1])) for ends in (query_ends, key_ends))
        q, k, v = query[own].transpose(0, 1), key[seen].transpose(0, 1), value[seen].transpose(0, 1)
        k, v = (tensor.repeat_interleave(len(q) // len(k), 0) for tensor in (k, v))
        behind = torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None] - torch.arange(k.shape[1])
        hidden = (behind < 0) | ((behind > left) & (left >= 0))
        yield own, seen, q, k, v, (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf).softmax(-1)


@pytest.fixture(autouse=True, scope="module")
def kernels():
    """Kernels for CPUs of PyTorch's two operators, with their own signatures."""

    @varlen._varlen_attn.register_kernel("cpu")
    def forward(query, key, value, query_ends, key_ends, max_q, max_k, causal, scale, window, gqa=False):
        assert max_q == query_ends.diff().max() and max_k == key_ends.diff().max()
        assert query_ends.dtype == key_ends.dtype == torch.int32 and gqa == (query.shape[1] != key.shape[1])
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        output = torch.empty_like(query)
        for own, _, _, _, v, weights in sequences(query, key, value, query_ends, key_ends, causal, scale, window):
            output[own] = (weights @ v).transpose(0, 1)
        return output, query.new_empty(query.shape[1], len(query), dtype=torch.float32), torch.zeros(2).to(torch.uint64)

    @varlen._varlen_attn_backward.register_kernel("cpu")
    def backward(grad, query, key, value, out, lse, query_ends, key_ends, max_q, max_k, causal, rng, scale, window):
        gradients = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        for own, seen, q, k, v, weights in sequences(query, key, value, query_ends, key_ends, causal, scale, window):
            of_output = grad[own].transpose(0, 1)
            of_weights = of_output @ v.transpose(1, 2)
            of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
            gradients[0][own] = (of_scores @ k).transpose(0, 1)
            parts = of_scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ of_output
            for total, part in zip(gradients[1:], parts, strict=True):
                total[seen] = part.unflatten(0, (key.shape[1], -1)).sum(1).transpose(0, 1)
        return tuple(gradients)


@pytest.fixture
def flex_with_gradients(monkeypatch):
    """FlexAttention without compilation has gradients on a CPU, too; its own check speaks of compiled kernels."""
    torch._dynamo.reset()  # else what was traced for other shapes is traced anew for any shape
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)


@pytest.mark.parametrize("name", ["varlen", "flex"])
@pytest.mark.parametrize("groups,softcap,window", [(1, None, None), (2, None, 1), (2, None, 4), (2, 2.0, 4)])
def test_one_call_is_the_loop(flex_with_gradients, name, groups, softcap, window):
    lengths = [(5, 3, 4), (1, 1, 6), (3, 7, 1)]
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(map(sum, lengths)), 4) for heads in (2 * groups, 2, 2)]
    dtype = torch.float64 if softcap is None else torch.float32  # the loop's softmax with a cap is float32
    inputs = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    weights = torch.randn(1, shapes[0][2], 2 * groups, 4, generator=generator, dtype=dtype)
    options = {"dropout": 0.0, "scale": 0.7, "window": window, "softcap": softcap}
    layout, loop = (LAYOUTS[kind](lengths, CPU, {None, window}) for kind in (name, "loop"))
    if name == "varlen" and softcap is not None:
        with pytest.raises(UserError, match=r"varlen has no soft cap of scores, but this model's is 2; use flex"):
            layout.attend(*inputs, **options)
        return
    expected, found = (each.attend(*inputs, **options) for each in (loop, layout))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((output * weights).sum(), inputs) for output in (expected, found)]
    for actual, wanted in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_in_bfloat16_on_a_cpu_rounds_its_output_alone(autocast):
    inputs = [torch.randn(1, heads, 9, 16).bfloat16().requires_grad_() for heads in (4, 2, 2)]
    options = {"mask": None, "causal": True, "dropout": 0.0, "scale": None, "softcap": None}
    query = inputs[0].float() if autocast else inputs[0]  # as after a norm of queries
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = sdpa(query, *inputs[1:], **options)
    expected = sdpa(*(tensor.float() for tensor in inputs), **options).bfloat16()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    gradients = [torch.autograd.grad(output.float().square().sum(), inputs) for output in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["varlen", "flex"])
def test_dropout_is_refused(name):
    tensor = torch.randn(1, 1, 3, 4)
    with pytest.raises(ValueError, match=r"dropout of 0\.1"):
        LAYOUTS[name]([(1, 1, 1)], CPU).attend(tensor, tensor, tensor, dropout=0.1, scale=1, window=None, softcap=None)


def batches_of(*rows) -> list[dict]:
    """The model's inputs of some pairs of other lengths."""
    tokens = tokenize_pairs(make_pairs(12), make_tokenizer(), max_length=64, max_prompt_length=32)
    batches = [collate([tokens[i] for i in numbers]) for numbers in rows]
    return [{name: batch[name] for name in MODEL_INPUTS} for batch in batches]


BOTH = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    "kind,options,name,bfloat16",
    [
        ("llama", {}, "varlen", False),
        ("mistral", {"sliding_window": 4}, "varlen", False),
        ("gemma3_text", BOTH, "varlen", False),
        ("gemma2", BOTH, "flex", False),  # with a soft cap
        # Norms of queries and keys, which under autocast make them float32, but not the values.
        ("qwen3", {"head_dim": 8}, "varlen", True),
        ("qwen3", {"head_dim": 8}, "flex", True),
    ],
)
def test_models_have_the_loop_s_states_and_gradients(flex_with_gradients, kind, options, name, bfloat16):
    policy = LatentPolicy(make_backbone(kind, **options))
    (batch,) = batches_of(range(3))
    weights, found = torch.randn(len(batch["labels"]), 32, generator=torch.Generator().manual_seed(0)), {}
    for policy.attention in ("loop", name):
        policy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            states = policy.encode(**batch).tokens
        (states * weights).sum().backward()
        found[policy.attention] = [states.detach(), *(p.grad for p in policy.parameters() if p.grad is not None)]
    for actual, wanted in zip(found[name], found["loop"], strict=True):
        error = (actual - wanted).abs().max() / wanted.abs().max()
        assert error < (0.05 if bfloat16 else 1e-4), error


def test_compiled_layers_serve_all_lengths():
    """Three batches of other sizes and lengths: the first is compiled for its own lengths, the second for any."""
    policy = LatentPolicy(make_backbone())
    policy.attention = "varlen"
    expected, found, graphs = [], [], []
    batches = batches_of((0, 1), (2, 3, 4), (5, 6, 7, 8), (9, 10))
    assert len({batch["input_ids"].shape for batch in batches}) == 4
    for batch in batches:
        expected.append(policy.encode(**batch).tokens)
    torch._dynamo.reset()
    counter = CompileCounter()
    for layer in policy.backbone.model.layers:
        layer.compile(backend=counter, fullgraph=True)
    for batch in batches:
        found.append(policy.encode(**batch).tokens)
        graphs.append(counter.frame_count)
    torch.testing.assert_close(found, expected)
    assert graphs[1] == graphs[-1] <= 2
    torch._dynamo.reset()
