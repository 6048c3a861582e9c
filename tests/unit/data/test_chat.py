"""What is trained as the assistant's turn, against what the templates of six families of models write."""

import html
import re
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from chat import FAMILIES, chat_tokenizer
from tiny import make_backbone

from lpc.cli import UserError
from lpc.data.tokens import (
    encode_completions,
    encode_prompts,
    load_tokenizer,
    render,
    set_chat_template,
    stop_tokens,
    tokenize_pairs,
    turn_end,
)
from lpc.evaluation.completions import answer
from lpc.model import scratch
from lpc.model.loading import stop_at_turn_end
from lpc.model.policy import LatentPolicy

PROMPT = [{"role": "user", "content": "What colour is the sky?"}]

# Family: (prompt as rendered, completion " Blue. " as trained)
TURNS = {
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat colour is the sky?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Blue.<|eot_id|>",
    ),
    "gemma": (
        "<bos><start_of_turn>user\nWhat colour is the sky?<end_of_turn>\n<start_of_turn>model\n",
        "Blue.<end_of_turn>",
    ),
    "phi-3": ("<|user|>\nWhat colour is the sky?<|end|>\n<|assistant|>\n", " Blue. <|end|>"),
    "qwen3": (
        "<|im_start|>user\nWhat colour is the sky?<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\n Blue. <|im_end|>",
    ),
    "zephyr": ("<|user|>\nWhat colour is the sky?</s>\n<|assistant|>\n", " Blue. </s>"),
    "chatml": ("<|im_start|>user\nWhat colour is the sky?<|im_end|>\n<|im_start|>assistant\n", " Blue. <|im_end|>"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_turns_are_what_the_template_writes(name):
    tokenizer, (prompt, completion) = chat_tokenizer(name), TURNS[name]
    (prompt_ids,) = encode_prompts(tokenizer, [PROMPT])
    (ids,) = encode_completions(tokenizer, [PROMPT], [" Blue. "])
    assert tokenizer.decode(prompt_ids) == prompt
    assert tokenizer.decode(ids) == completion
    conversation = tokenizer.apply_chat_template([*PROMPT, *said(" Blue. ")], tokenize=False)
    assert conversation.startswith(prompt + completion)
    end = tokenizer.convert_tokens_to_ids("<" + completion.rpartition("<")[2])
    assert ids[-1] == turn_end(tokenizer)[0] == end
    assert ids.count(end) == 1


def test_the_table_of_turns_in_the_documents():
    page = (Path(__file__).parents[3] / "docs/method.md").read_text(encoding="utf-8")
    table = page.partition("<!-- turns -->")[2].partition("<!-- end -->")[0]
    rows = re.findall(r"<tr><td>(.*?)</td><td><code>(.*?)</code></td><td><code>(.*?)</code></td></tr>", table)
    assert {name: tuple(html.unescape(cell).replace(r"\n", "\n") for cell in cells) for name, *cells in rows} == TURNS


def said(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_completion_that_holds_its_own_end_has_it_once(name):
    tokenizer = chat_tokenizer(name)
    end = tokenizer.convert_ids_to_tokens(turn_end(tokenizer)[0])
    (once, twice, inside) = encode_completions(tokenizer, [PROMPT] * 3, ["blue", f"blue{end}", f"blue{end}sky"])
    assert once == twice
    assert inside[: len(once)] == once and len(inside) > len(once) + 1


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_of_a_prompt_are_those_of_generation(name):
    """In several turns, too, and whatever the completion is."""
    tokenizer = chat_tokenizer(name)
    messages = [*PROMPT, *said("Blue."), {"role": "user", "content": "And the sea?"}]
    pairs = {"messages": [messages], "chosen": ["\nblue"], "rejected": ["green"]}
    tokens = tokenize_pairs(pa.table(pairs), tokenizer, max_length=400, max_prompt_length=300)
    assert tokens.prompts[0].tolist() == encode_prompts(tokenizer, [messages])[0]


def test_the_scratch_template_gives_the_ids_of_text_and_eos():
    """For a template that writes turns as they are and ends them with EOS, nothing is left to the template."""
    tokenizer = scratch.train_tokenizer(["what colour is the sky? the sky is blue"] * 5, 300)
    texts = [
        "the sky is blue.",
        "",
        " two  spaces ",
        "çé 漢字 🙂\n",
        "a<|end|>",
        "a<|end|>b",
        "a<|user|>",
        "a\n<|end|>\n",
    ]
    eos = tokenizer.eos_token_id
    apart = tokenizer(texts, add_special_tokens=False)["input_ids"]
    expected = [row if row[-1:] == [eos] else [*row, eos] for row in apart]
    assert encode_completions(tokenizer, [PROMPT] * len(texts), texts) == expected
    text = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    assert encode_prompts(tokenizer, [PROMPT]) == [tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert stop_tokens(tokenizer, eos) == eos


@pytest.mark.parametrize(("written", "trained"), [("", "blue</s>"), ("\n\n", "blue</s>"), (" ###\n", "blue ###</s>")])
def test_eos_where_the_template_writes_no_end(written, trained):
    tokenizer = chat_tokenizer("zephyr")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + end }}{% endfor %}"
    set_chat_template(tokenizer, None, {"end": written})
    assert tokenizer.decode(encode_completions(tokenizer, [PROMPT], ["blue"])[0]) == trained


# Settings of the template


def test_variables_of_the_template_are_saved_with_it(tmp_path):
    """Thinking switched off: the empty thought is part of the prompt, also for whoever loads the folder alone."""
    chat_tokenizer("qwen3").save_pretrained(tmp_path / "base")
    settings = {"enable_thinking": False}
    tokenizer = load_tokenizer(tmp_path / "base", chat_template_kwargs=settings)
    assert render(tokenizer, PROMPT).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(encode_completions(tokenizer, [PROMPT], ["Blue."])[0]) == "Blue.<|im_end|>"
    tokenizer.save_pretrained(tmp_path / "run")
    for again in (load_tokenizer(tmp_path / "run"), load_tokenizer(tmp_path / "run", chat_template_kwargs=settings)):
        assert again.chat_template == tokenizer.chat_template
        assert render(again, PROMPT) == render(tokenizer, PROMPT)


@pytest.mark.parametrize("value", [True, None, 3, 0.5, 'quo"te\n', "it's é", ["a", {"b": {"c": "%}"}}]])
@pytest.mark.parametrize("start", ["", "\n", "  {% if true %}x{% endif %}", "{%- if true %}x{% endif %}"])
def test_every_json_value_reaches_the_template_and_nothing_else_changes(value, start):
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = start + "{{ value }}|" + FAMILIES["chatml"].template
    expected = tokenizer.apply_chat_template(PROMPT, tokenize=False, value=value)
    set_chat_template(tokenizer, None, {"value": value, "other": 1})
    assert tokenizer.apply_chat_template(PROMPT, tokenize=False) == expected
    with pytest.raises(UserError, match="'no name' must be the name of a variable"):
        set_chat_template(tokenizer, None, {"no name": 1})


# Templates that cannot be used


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}<think>{% endif %}",
            "the chat template renders a prompt that the conversation does not begin with .*'<think>'",
        ),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out the assistant's turn"),
        ("{{ raise_exception('no chat today') }}", r"the chat template fails \(no chat today\)"),
        ("{% for m in messages %}", "the chat template fails"),
        ("{{ messages[0].nothing.at_all }}", "the chat template fails"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, words):
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=words):
        encode_completions(tokenizer, [PROMPT], ["Blue."])


def test_a_system_turn_that_the_template_refuses_or_drops_is_named_by_its_row():
    system = [{"role": "system", "content": "Be brief."}, *PROMPT]
    with pytest.raises(UserError, match=r"row 1: the chat template fails \(System role not supported\)"):
        encode_prompts(chat_tokenizer("gemma"), [PROMPT, system])
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("in messages", "in messages if message.role != 'system'")
    with pytest.raises(UserError, match="row 1: the chat template leaves out the system turn"):
        encode_prompts(tokenizer, [PROMPT, system])


# Generation


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_stops_at_the_end_of_a_turn(name, tmp_path):
    """As well as where the checkpoint's own generation_config.json says; the saved folder knows both."""
    tokenizer, policy = chat_tokenizer(name), LatentPolicy(make_backbone(vocabulary=400)).eval()
    stop_at_turn_end(policy, tokenizer)
    end, eos = turn_end(tokenizer)[0], tokenizer.eos_token_id
    stops = policy.backbone.generation_config.eos_token_id
    assert set(stops) == {2, end, eos}
    assert stop_tokens(tokenizer, stops) == stops

    prompt = encode_prompts(tokenizer, [PROMPT])[0]
    with torch.no_grad():  # after this prompt the model ends its turn at once
        state = policy.hidden(torch.tensor([prompt]))[0, -1]
        policy.head.weight[end] = 100 * state / state.norm()
    ids = policy.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0, len(prompt) :]
    assert ids.tolist() == [end]
    assert answer(policy, tokenizer, prompt, max_new_tokens=8, do_sample=False) == ""

    policy.save_pretrained(tmp_path)
    assert LatentPolicy.from_pretrained(tmp_path).backbone.generation_config.eos_token_id == stops
