"""The demo model as it is shipped, and how it is made."""

import json
import random

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from armature.engines.demo_model import DEMO_MODEL_PATH, corpus
from armature.engines.demo_model.chats import conversation
from armature.engines.demo_model.corpus import Entry
from armature.engines.demo_model.packing import IGNORED, TOKENS_PER_STEP, Packer, Texts
from armature.engines.demo_model.tokenizer import TURN_END, VOCAB_SIZE, train_tokenizer

MAX_SIZE_BYTES = 8_000_000


@pytest.fixture(scope="module")
def texts() -> Texts:
    return Texts(corpus.entries(), corpus.topics())


@pytest.fixture(scope="module")
def shipped() -> tuple[AutoTokenizer, AutoModelForCausalLM]:
    return AutoTokenizer.from_pretrained(DEMO_MODEL_PATH), AutoModelForCausalLM.from_pretrained(DEMO_MODEL_PATH)


def answer(shipped: tuple[AutoTokenizer, AutoModelForCausalLM], *contents: str) -> str:
    """The greedy answer to a conversation, with its end token if it has one."""
    tokenizer, model = shipped
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        made = model.generate(**prompt, max_new_tokens=160, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(made)


def test_everything_for_it_is_small_enough_to_travel_with_the_package() -> None:
    assert sum(path.stat().st_size for path in DEMO_MODEL_PATH.iterdir()) < MAX_SIZE_BYTES


def test_it_says_what_it_is_in_the_files_that_servers_read() -> None:
    config = json.loads((DEMO_MODEL_PATH / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert config["vocab_size"] == VOCAB_SIZE
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL_PATH / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert config["eos_token_id"] == tokenizer.token_to_id(TURN_END)
    generation = json.loads((DEMO_MODEL_PATH / "generation_config.json").read_text())
    assert config["eos_token_id"] in generation["eos_token_id"]


def test_every_text_survives_its_tokenizer() -> None:
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL_PATH / "tokenizer.json"))
    for text in ("def f(x):\n    return x\t# ½", "Grüße, 你好, 🙂", " leading", "trailing  \n\n"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What does os.path.join do?", "Join two or more pathname components"),
        ("What does json.dumps do?", "Serialize ``obj`` to a JSON formatted ``str``."),
        ("What does len do?", "Return the number of items in a container."),
        ("Hello!", "Hello! Ask me about"),
    ],
)
def test_it_answers_with_the_docstring_and_ends(
    shipped: tuple[AutoTokenizer, AutoModelForCausalLM], question: str, expected: str
) -> None:
    told = answer(shipped, question)
    assert told.startswith(expected)
    assert told.endswith(TURN_END)


def test_it_answers_the_last_of_several_questions(shipped: tuple[AutoTokenizer, AutoModelForCausalLM]) -> None:
    first = answer(shipped, "What does len do?").removesuffix(TURN_END)
    second = answer(shipped, "What does len do?", first, "What does os.path.join do?")
    assert second.startswith("Join two or more pathname components")


def test_a_long_conversation_does_not_confuse_it(
    shipped: tuple[AutoTokenizer, AutoModelForCausalLM], texts: Texts
) -> None:
    rng = random.Random(5)
    popular = [entry for entry in texts.entries if entry.is_popular]
    earlier = conversation(rng.sample(popular, 50), rng)
    while earlier[0].role == "system":
        earlier.pop(0)
    contents = [turn.content for turn in earlier]
    assert sum(len(content) for content in contents) > 5000
    assert answer(shipped, *contents, "What does os.path.join do?").startswith("Join two or more pathname components")


def test_the_corpus_knows_names_as_people_write_them(texts: Texts) -> None:
    entries = {entry.name: entry for entry in texts.entries}
    assert {"json.dumps", "os.path.join", "len", "str.split", "pathlib.Path.mkdir", "json"} < entries.keys()
    assert len(entries) == len(texts.entries)
    assert entries["json.dumps"].is_popular
    assert "dumps" in entries["json"].members


def test_a_summary_is_short_and_ends_with_a_sentence() -> None:
    sentence = "One more thing that is said. "
    long = Entry("x", "function", sentence * 50)
    assert 100 < len(long.summary) <= 480
    assert long.summary.endswith("said.")
    assert Entry("x", "function", "Short.\n\nAlso short.\n\n>>> x()").summary == "Short.\n\nAlso short."


def test_training_text_is_what_the_chat_template_renders(texts: Texts) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH)
    packer = Packer(texts, Tokenizer.from_file(str(DEMO_MODEL_PATH / "tokenizer.json")), seed=1)
    turns = conversation(texts.entries[:3], random.Random(2))
    ids, labels = packer._render(turns)  # pyright: ignore[reportPrivateUsage]
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    counted = tokenizer.decode([label for label in labels if label != IGNORED])
    assert counted == "".join(turn.content + TURN_END for turn in turns if turn.role == "assistant")


def test_a_seed_fixes_the_batches_and_rows_begin_documents(texts: Texts) -> None:
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL_PATH / "tokenizer.json"))
    first, second = Packer(texts, tokenizer, seed=3), Packer(texts, tokenizer, seed=3)
    for progress in (0.0, 0.5, 1.0):
        ids, labels = first.batch(progress)
        again, _ = second.batch(progress)
        assert torch.equal(ids, again)
        assert ids.numel() == TOKENS_PER_STEP
        assert ids.shape == labels.shape
    assert (ids[:, 0] == tokenizer.token_to_id("<|im_start|>")).all()


def test_the_same_text_makes_the_same_tokenizer(texts: Texts) -> None:
    some = [entry.text for entry in texts.entries[:200]]
    assert train_tokenizer(some).to_str() == train_tokenizer(some).to_str()
