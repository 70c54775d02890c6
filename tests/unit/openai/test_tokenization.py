"""What a model's directory gives, and what it must not."""

from pathlib import Path

import pytest

from armature.openai.errors import ApiError
from armature.openai.rules import ChatPrompt, TextPrompt
from armature.openai.tokenization import ModelTokenizer
from tests.unit.openai.vocabularies import byte_level


def test_a_directory_without_template_answers_completions_only(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = ModelTokenizer.load(tmp_path)
    prompt = TextPrompt("The quick")
    assert tokenizer.text_of("m", prompt) == "The quick"
    assert tokenizer.vocabulary.tokenizer.decode(list(tokenizer.encoder.encode("The quick"))) == "The quick"
    with pytest.raises(ApiError) as caught:
        tokenizer.text_of("m", ChatPrompt([{"role": "user", "content": "hi"}]))
    assert caught.value.code == "unsupported_parameter"


def test_a_broken_tokenizer_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"tokenizer\.json"):
        ModelTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        ModelTokenizer.load(tmp_path)
