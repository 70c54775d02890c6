"""Answers followed through compiled grammars: again from any point, many at once, and only what is used is kept."""

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from armature.engines.demo_model import DEMO_MODEL_PATH
from armature.grammars.compiler import MAX_COMPILED, Follower, GrammarCompiler
from armature.grammars.notation import GrammarError
from armature.v1.common_pb2 import Grammar, TextChoice

VOCAB, EOS = 4096, 2
TOKENIZER = Tokenizer.from_file(str(DEMO_MODEL_PATH / "tokenizer.json"))
SCHEMA = """{"type": "object", "additionalProperties": false, "required": ["name", "on", "sizes"], "properties": {
    "name": {"type": "string", "maxLength": 12}, "on": {"type": "boolean"},
    "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3}}}"""


@pytest.fixture
def compiler() -> GrammarCompiler:
    return GrammarCompiler(DEMO_MODEL_PATH, VOCAB, [EOS])


def allowed(follower: Follower) -> list[int]:
    words: NDArray[np.int32] = np.zeros(VOCAB // 32, dtype=np.int32)
    follower.matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


def random_answer(follower: Follower, seed: int) -> list[int]:
    choice, output = random.Random(seed), list[int]()
    while not output or not follower.accept(output[-1]):
        output.append(choice.choice(allowed(follower)))
        assert len(output) < 200
    return output


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_can_be_followed_again_from_any_point(compiler: GrammarCompiler, seed: int) -> None:
    grammar = Grammar(json_schema=SCHEMA)
    prompt, output = [7, 8, 9], random_answer(compiler.compile(grammar), seed)
    stepwise, back_and_forth = compiler.compile(grammar), compiler.compile(grammar)
    for made in range(len(output)):
        stepwise.follow(prompt + output, len(prompt), len(prompt) + made)
        at_once = compiler.compile(grammar)
        at_once.follow(prompt + output, len(prompt), len(prompt) + made)
        # A token that was accepted but, since the step failed, never told.
        back_and_forth.follow(prompt + output, len(prompt), len(prompt) + made)
        back_and_forth.accept(allowed(back_and_forth)[0])
        back_and_forth.follow(prompt + output, len(prompt), len(prompt) + made)
        assert output[made] in allowed(stepwise) == allowed(at_once) == allowed(back_and_forth)
        assert not stepwise.problem


def test_only_the_last_token_says_that_nothing_can_follow(compiler: GrammarCompiler) -> None:
    follower = compiler.compile(Grammar(choice=TextChoice(texts=["yes please"])))
    assert [follower.accept(token) for token in TOKENIZER.encode("yes please").ids][-2:] == [False, True]


def test_the_end_token_is_allowed_where_the_answer_may_end_and_nowhere_else(compiler: GrammarCompiler) -> None:
    follower = compiler.compile(Grammar(regex="ab*"))
    assert EOS not in allowed(follower)
    follower.accept(TOKENIZER.token_to_id("a"))
    assert EOS in allowed(follower)
    assert follower.accept(EOS)


def test_an_output_that_breaks_the_grammar_is_a_problem(compiler: GrammarCompiler) -> None:
    follower = compiler.compile(Grammar(regex="[0-9]+"))
    follower.follow(TOKENIZER.encode("five").ids, 0, 1)
    assert follower.problem


def test_answers_do_not_disturb_each_other(compiler: GrammarCompiler) -> None:
    one, other = (compiler.compile(Grammar(regex="ab{2}")) for _ in range(2))
    before = allowed(other)
    one.accept(TOKENIZER.token_to_id("a"))
    assert allowed(other) == before != allowed(one)


def test_a_grammar_that_cannot_be_compiled_is_refused_with_the_reason(compiler: GrammarCompiler) -> None:
    with pytest.raises(GrammarError, match="strng"):
        compiler.compile(Grammar(json_schema='{"type": "strng"}'))


def test_a_model_without_a_tokenizer_refuses_grammars(tmp_path: Path) -> None:
    with pytest.raises(GrammarError, match="tokenizer"):
        GrammarCompiler(tmp_path, VOCAB, [EOS]).compile(Grammar(json_object=True))


def test_no_more_grammars_are_kept_than_there_is_room_for(compiler: GrammarCompiler) -> None:
    for number in range(MAX_COMPILED):
        compiler.compile(Grammar(regex=f"a{number}"))
        compiler.compile(Grammar(regex="a0"))
    assert len(compiler) == MAX_COMPILED
    compiler.compile(Grammar(regex="one more"))
    assert len(compiler) == MAX_COMPILED
