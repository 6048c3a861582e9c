"""Real checkpoints small enough to be made on the spot."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(vocabulary: int = 384):
    """A byte-level BPE tokenizer with BOS, EOS and a chat template, trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog again and again"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


def make_backbone(kind: str = "llama", seed: int = 0, vocabulary: int = 384, hidden: int = 32, **options):
    """A random causal LM of one architecture, float32, 2 layers."""
    import torch
    import transformers

    common = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind.startswith("gemma"):
        common["head_dim"] = hidden // 4
    config = transformers.AutoConfig.for_model(kind, **common | options)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    # Random weights of transformers' default scale give nearly uniform predictions; spread them, so that tests see
    # something.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def in_float64(backbone):
    """A tiny Llama in float64 throughout; `double()` alone leaves its norms rounding to float32."""
    import torch

    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "LlamaRMSNorm":
                norm = torch.nn.RMSNorm(len(child.weight), eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)
    return backbone.double()


WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "while", "cats", "sleep"]


def random_text(rng, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS, size=rng.integers(low, high)))


def make_pairs(count: int, seed: int = 0, splits=("train",)):
    """A pairs table in the workflow's format; the chosen completion always holds the word "good"."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    names = ("pair_id", "prompt_id", "split", "source", "messages", "chosen", "rejected", "group")
    columns = {name: [] for name in names}
    for i in range(count):
        columns["pair_id"].append(f"pair-{i:04d}")
        columns["prompt_id"].append(f"prompt-{i // 2:04d}")
        columns["split"].append(splits[i % len(splits)])
        columns["source"].append(f"source-{i % 3}")
        columns["group"].append(f"person-{i % 7}")
        columns["messages"].append([{"role": "user", "content": random_text(rng, 2, 8)}])
        columns["chosen"].append("good " + random_text(rng, 1, 10))
        columns["rejected"].append("bad " + random_text(rng, 1, 10))
    return pa.table(columns)
