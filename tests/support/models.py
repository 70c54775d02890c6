"""Tiny models with random weights, made on the spot: a real checkpoint directory with a tokenizer and a chat template.

The same arguments give the same bytes, so that two processes which each make a model hold the same weights.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("llama", "qwen2", "qwen3", "mistral")
END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
"""Token ids 0, 1 and 2 of every tokenizer made here; the first and the last of them end an answer."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CORPUS = (
    "A block holds the keys and values of a few tokens. The router knows which worker has which block.",
    "Prefill computes the prompt; decode makes one token at a time. The bytes move between them while it runs.",
    "The quick brown fox jumps over the lazy dog, again and again, until 1234567890 is counted.",
    "system user assistant: What is the weather like today? I cannot know, but I can guess: it is fine.",
    "def add(left: int, right: int) -> int:\n    return left + right\n\nprint(add(2, 3))\n",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "unit": "°C"}}',
    "Grüße aus Köln, salutations à tous, こんにちは世界, привет мир, مرحبا, 你好。 🙂🚀",
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a model. The defaults make about 0.2 million parameters."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 128
    vocab: int = 512
    context: int = 1024
    seed: int = 0


SPEED_SHAPE = Shape(hidden=512, layers=8, heads=8, kv_heads=4, head_dim=64, ffn=1408, vocab=8192, context=2048)
"""About 32 million parameters."""


def make_model(directory: Path | str, kind: str = "llama", dtype: str = "float32", **shape: Any) -> Path:
    """Write a checkpoint of `kind` (one of `KINDS`) into `directory`, with fields of `Shape` in `shape`; return it.

    Weights are drawn wide enough that greedy answers vary and the two likeliest logits are far apart.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    size = Shape(**shape)
    config = _config(kind, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.generation_config.eos_token_id = [0, 2]
    model.save_pretrained(directory)
    make_tokenizer(directory, size.vocab)
    return directory


def edit_config(directory: Path | str, **changes: Any) -> None:
    """Set keys of a checkpoint's `config.json`; None removes a key."""
    path = Path(directory) / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}, indent=1))


def make_tokenizer(directory: Path | str, vocab_size: int = 512, texts: Sequence[str] = CORPUS) -> None:
    """Write a byte-level BPE tokenizer with a chat template; every text can be encoded and comes back unchanged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, START_OF_TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TURN, pad_token=END_OF_TEXT)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(directory))


def _config(kind: str, size: Shape) -> Any:
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    classes = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "mistral": MistralConfig}
    extra: dict[str, Any] = {"sliding_window": None} if kind == "mistral" else {}
    return classes[kind](
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        intermediate_size=size.ffn,
        vocab_size=size.vocab,
        max_position_embeddings=size.context,
        initializer_range=2.0 * size.hidden**-0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        **extra,
    )
