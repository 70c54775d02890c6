"""Reasoning in front of an answer, between tags: `<think>...</think>` and its like.

Where the model's template writes the opening tag into the prompt, the answer begins inside. Tags that come later are
content.
"""

from dataclasses import dataclass

from armature.openai.parsers.events import Reasoning
from armature.openai.parsers.reader import Reader, Script


@dataclass(frozen=True, slots=True)
class Tags:
    start: str
    end: str

    def are_open(self, prompt: str) -> bool:
        """Whether the answer to `prompt` begins inside."""
        return prompt.rstrip().endswith(self.start)


THINK = Tags("<think>", "</think>")
MISTRAL = Tags("[THINK]", "[/THINK]")
GRANITE = Tags("Here is my thought process:", "Here is my response:")


def reasoning(reader: Reader, tags: Tags, *, is_inside: bool) -> Script[None]:
    """Tell the reasoning, if the answer has any; what follows it is left."""
    yield from reader.skip_space()
    if not (yield from reader.accept(tags.start)) and not is_inside:
        return reader.rewind()
    yield from reader.drop_space()
    yield from reader.pass_until((tags.end,), Reasoning)
    yield from reader.drop_space()
