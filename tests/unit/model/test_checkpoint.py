"""What `describe_base` accepts and refuses: weights, vocabulary, chat template."""

import shutil

import pytest
import torch
import transformers
from chat import FAMILIES, chat_tokenizer
from safetensors.torch import load_file, save_file
from tiny import make_backbone, make_tokenizer
from transformers import AutoConfig

from lpc.cli import UserError
from lpc.model.backbone import load_backbone
from lpc.model.checkpoint import SMALL_FILES, describe_base, read_config
from lpc.model.policy import LatentPolicy


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


# Models of more than text

TEXT = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0}
PICTURES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "depth": 1}
PICTURES |= {"image_size": 28, "patch_size": 14, "num_heads": 2, "out_hidden_size": 32, "projector_input_dim": 32}
PICTURES |= {"projector_output_dim": 32, "vision_output_dim": 32}


def multimodal(folder, kind, name, **options):
    """A tiny checkpoint of a class that reads text and images."""
    config = AutoConfig.for_model(kind, text_config={**TEXT, **options}, vision_config=PICTURES)
    getattr(transformers, name)(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("gemma3", "Gemma3ForConditionalGeneration", {}),
        ("llama4", "Llama4ForConditionalGeneration", {"intermediate_size_mlp": 64, "num_local_experts": 2}),
        ("mistral3", "Mistral3ForConditionalGeneration", {}),
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", {}),
        ("qwen3_vl", "Qwen3VLForConditionalGeneration", {}),
        ("llava", "LlavaForConditionalGeneration", {}),
    ],
)
def test_a_model_of_more_than_text_is_refused_by_name(tmp_path, kind, name, options):
    multimodal(tmp_path, kind, name, **options)
    for load in (describe, load_backbone):
        with pytest.raises(UserError) as raised:
            load(tmp_path)
        assert str(raised.value) == (
            f"{tmp_path}: {name} ({kind}) reads more than text, and only models of text alone can be trained; "
            "use a text-only checkpoint as this base's `model`"
        )


@pytest.mark.parametrize("kind", ["phi4_multimodal", "qwen2_audio"])
def test_other_inputs_are_refused_from_the_configuration_alone(tmp_path, kind):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"Config \({kind}\) reads more than text"):
        read_config(tmp_path, False)


def test_a_text_model_that_transformers_takes_out_is_accepted(tmp_path):
    """Qwen 3.5's class of the text model leaves out the weights of images; it is saved as a model of text."""
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    layers = {"layer_types": ["linear_attention", "full_attention"], "linear_value_head_dim": 8}
    multimodal(tmp_path / "whole", "qwen3_5", "Qwen3_5ForConditionalGeneration", **linear, **layers)
    policy = LatentPolicy.from_pretrained(tmp_path / "whole")
    assert describe(tmp_path / "whole")["parameters"] == sum(weights.numel() for weights in policy.parameters())
    policy.save_pretrained(tmp_path / "text")
    again, ids = LatentPolicy.from_pretrained(tmp_path / "text"), torch.tensor([[5, 6, 7]])
    assert again.config.model_type == "qwen3_5_text"
    assert torch.equal(again.backbone(ids).logits, policy.backbone(ids).logits)


def test_a_model_of_the_hub_is_refused_before_its_weights_are_downloaded(tmp_path, monkeypatch):
    """The small files lie in the folder; a download of anything else would be the weights'."""
    multimodal(tmp_path, "gemma3", "Gemma3ForConditionalGeneration")
    asked = []
    monkeypatch.setattr(
        "lpc.model.checkpoint.download", lambda name, kind, revision, files: asked.append(files) or tmp_path
    )
    with pytest.raises(UserError, match=r"Gemma3ForConditionalGeneration \(gemma3\) reads more than text"):
        describe_base(
            name="b", model="org/tiny", revision=None, dtype="float32", chat_template=None, trust_remote_code=False
        )
    assert asked == [SMALL_FILES]


def test_an_encoder_with_a_decoder_is_refused_in_one_line(tmp_path):
    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no causal language model .*T5Config[^\n]*\)$"):
        describe(tmp_path)


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
