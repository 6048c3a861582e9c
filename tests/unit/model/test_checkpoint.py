"""What `describe_base` accepts and refuses: weights, vocabulary, chat template."""

import shutil

import pytest
import torch
from chat import FAMILIES, chat_tokenizer
from safetensors.torch import load_file, save_file
from tiny import make_backbone, make_tokenizer

from lpc.cli import UserError
from lpc.model.checkpoint import describe_base
from lpc.model.policy import load_backbone


def describe(folder, **changes):
    options = {"dtype": "float32", "chat_template": None, "trust_remote_code": False, **changes}
    return describe_base(name="tiny", model=str(folder), revision=None, **options)


@pytest.fixture
def folder(tmp_path, checkpoint):
    shutil.copytree(checkpoint, tmp_path / "base")
    return tmp_path / "base"


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


NORM, HEAD, LAYER = "model.norm.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(NORM), f"weights that are missing for the architecture in config.json: {NORM};"),
        (lambda w: w.pop(HEAD), f"missing .*{HEAD};"),
        (lambda w: [w.pop(n) for n in list(w) if ".1." in n], r"missing .*model\.layers\.1.* and 6 more;"),
        (lambda w: w.update({NORM: torch.ones(31)}), rf"another shape .*{NORM} \[31\] instead of \[32\];"),
        (lambda w: w.update(v_head=torch.ones(2)), "unexpected .*v_head;"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, words):
    """Otherwise transformers would put random numbers there, or leave tensors out."""
    edit(folder, change)
    with pytest.raises(UserError, match=words):
        describe(folder)
    with pytest.raises(UserError, match=words):
        load_backbone(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("name", "place"), [(NORM, -1), (LAYER, (-1, -1)), (LAYER, (0, 0))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(folder, monkeypatch, value, name, place, dtype):
    monkeypatch.setattr("lpc.model.checkpoint.BLOCK", 100)  # several blocks a tensor

    def change(weights):
        weights.update({key: tensor.to(dtype) for key, tensor in weights.items()})
        weights[name][place] = value

    edit(folder, change)
    with pytest.raises(UserError, match=f"{name} holds NaN or infinite weights"):
        describe(folder)


def test_tied_embeddings_count_once(tmp_path):
    counts = {}
    for tied in (False, True):
        backbone = make_backbone(tie_word_embeddings=tied)
        backbone.save_pretrained(tmp_path / str(tied))
        make_tokenizer().save_pretrained(tmp_path / str(tied))
        counts[tied] = describe(tmp_path / str(tied))["parameters"]
        assert counts[tied] == sum(parameter.numel() for parameter in backbone.parameters())
    assert counts[False] - counts[True] == 384 * 32


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"metadata": {}}'])
def test_an_index_without_a_map_is_named(folder, index):
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"index\.json: must have a `weight_map`"):
        describe(folder)


def test_a_file_that_is_no_safetensors_is_named(folder):
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="no causal language model that transformers can load"):
        describe(folder)


def test_a_tokenizer_larger_than_the_embeddings_is_refused(folder):
    """Chat tokens were added, the embeddings were not resized. Added tokens that no chat contains may be too many."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<extra-{i}>" for i in range(100)])
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) > 384 and describe(folder)
    template = tokenizer.chat_template.replace("<|end|>", "<|im_end|>")
    with pytest.raises(UserError, match=r"token '<\|im_end\|>' has id \d+, but the model has 384 embeddings; resize"):
        describe(folder, chat_template=template)
    make_backbone(vocabulary=300).save_pretrained(folder)
    with pytest.raises(UserError, match=r"has id 300, but the model has 300 embeddings"):
        describe(folder)


# Chat templates


@pytest.mark.parametrize("name", FAMILIES)
def test_system_says_whether_the_template_takes_a_system_turn(tmp_path, name):
    make_backbone(vocabulary=400).save_pretrained(tmp_path)
    chat_tokenizer(name).save_pretrained(tmp_path)
    record = describe(tmp_path)
    assert record["system"] == (name != "gemma")
    assert record["chat_template_kwargs"] is None


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('chats are closed') }}", r"the chat template fails \(chats are closed\)"),
        ("", "the chat template renders nothing"),
        ("Hello!{% for m in messages[1:] %}{{ m.content }}{% endfor %}", "leaves out the user's turn"),
        ("{{ messages[0].content }}", "leaves out the assistant's turn"),
        ("{% for m in messages %}{{ m.content }}", "the chat template fails"),
    ],
)
def test_a_template_that_cannot_be_used_stops(folder, template, words):
    with pytest.raises(UserError, match=words):
        describe(folder, chat_template=template)


def test_variables_of_the_template_are_recorded(tmp_path):
    make_backbone(vocabulary=400).save_pretrained(tmp_path)
    chat_tokenizer("qwen3").save_pretrained(tmp_path)
    settings = {"enable_thinking": False}
    assert describe(tmp_path, chat_template_kwargs=settings)["chat_template_kwargs"] == settings
