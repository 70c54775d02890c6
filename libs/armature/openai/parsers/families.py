"""Which parser goes with which model: by name, or by what its chat template says that it writes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from armature.openai.parsers import deepseek, harmony, hermes, llama, mistral, qwen_coder
from armature.openai.parsers.calls import Tools
from armature.openai.parsers.events import AnswerParser, Content
from armature.openai.parsers.reader import Reader, Script, ScriptParser
from armature.openai.parsers.reasoning import GRANITE, MISTRAL, THINK, Tags, reasoning

AUTO, NONE, HARMONY = "auto", "none", "harmony"


@dataclass(frozen=True, slots=True)
class ToolFamily:
    """How models write tool calls."""

    script: Callable[[Reader, Tools], Script[None]]
    markers: frozenset[str]
    """Of these, those that are special tokens must show in the text."""


TOOL_FAMILIES: Mapping[str, ToolFamily] = {
    "hermes": ToolFamily(hermes.hermes, frozenset((hermes.START, hermes.END))),
    "qwen3_coder": ToolFamily(qwen_coder.qwen_coder, frozenset((qwen_coder.OUTER_START, qwen_coder.OUTER_END))),
    "llama3": ToolFamily(llama.llama, frozenset((llama.TAG,))),
    "mistral": ToolFamily(mistral.mistral, frozenset((mistral.START, mistral.ID, mistral.ARGUMENTS))),
    "deepseek": ToolFamily(
        deepseek.deepseek,
        frozenset((deepseek.CALLS_START, deepseek.CALLS_END, deepseek.START, deepseek.SEPARATOR, deepseek.END)),
    ),
    HARMONY: ToolFamily(harmony.harmony, harmony.MARKERS),
}

REASONING_FAMILIES: Mapping[str, Tags] = {"think": THINK, "mistral": MISTRAL, "granite": GRANITE}

TOOL_PARSERS = (AUTO, NONE, *TOOL_FAMILIES)
REASONING_PARSERS = (AUTO, NONE, *REASONING_FAMILIES, HARMONY)


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How a model writes reasoning and tool calls: names of families, or `none`. Harmony is always both."""

    tools: str = NONE
    reasoning: str = NONE

    @property
    def has_tools(self) -> bool:
        return self.tools != NONE

    def reading(self, tools: Tools, prompt: str, *, is_parallel: bool = True) -> "Reading | None":
        """How to read an answer to `prompt`, which offers these functions; None: all of it is content."""
        tags = REASONING_FAMILIES.get(self.reasoning)
        if self.tools != HARMONY and tags is None and not (tools and self.has_tools):
            return None
        is_inside = tags is not None and tags.are_open(prompt)
        return Reading(self, tools, is_inside=is_inside, is_parallel=is_parallel)


@dataclass(frozen=True, slots=True)
class Reading:
    """How one request's answers are read."""

    format: AnswerFormat
    tools: Tools
    is_inside: bool
    """The prompt ends inside reasoning."""
    is_parallel: bool = True
    """Otherwise only the first call counts."""

    @property
    def has_reasoning(self) -> bool:
        return self.format.reasoning != NONE

    @property
    def reasons_again(self) -> bool:
        """Reasoning may come after content."""
        return self.format.reasoning == HARMONY

    @property
    def markers(self) -> frozenset[str]:
        """Of these, those that are special tokens must show in the text that the parser gets."""
        tags, family = REASONING_FAMILIES.get(self.format.reasoning), self._family
        return (family.markers if family else frozenset()) | ({tags.start, tags.end} if tags else frozenset())

    def parser(self) -> AnswerParser:
        """For one answer."""
        return ScriptParser(self._script)

    @property
    def _family(self) -> ToolFamily | None:
        name = self.format.tools
        return TOOL_FAMILIES[name] if name == HARMONY or (self.tools and name != NONE) else None

    def _script(self, reader: Reader) -> Script[None]:
        tags, family = REASONING_FAMILIES.get(self.format.reasoning), self._family
        if tags is not None:
            yield from reasoning(reader, tags, is_inside=self.is_inside)
        if family is not None:
            yield from family.script(reader, self.tools)
        else:
            yield from reader.pass_rest(Content)


def detect(template: str) -> AnswerFormat:
    """What a model with this chat template writes. Templates show earlier answers, so they have their markers."""
    if harmony.CHANNEL in template:
        return AnswerFormat(HARMONY, HARMONY)
    return AnswerFormat(_detect(_TOOL_SIGNS, template), _detect(_REASONING_SIGNS, template))


def chosen(tools: str, reasoning_name: str, template: str) -> AnswerFormat:
    """The format that a worker has named; what it left open (`auto` or nothing) is detected.

    Raises:
        ValueError: there is no such parser.
    """
    found = detect(template)
    tools, reasoning_name = tools or AUTO, reasoning_name or AUTO
    if tools not in TOOL_PARSERS:
        raise ValueError(f"the tool call parser must be one of {', '.join(TOOL_PARSERS)}, not '{tools}'")
    if reasoning_name not in REASONING_PARSERS:
        raise ValueError(f"the reasoning parser must be one of {', '.join(REASONING_PARSERS)}, not '{reasoning_name}'")
    if HARMONY in (tools, reasoning_name):
        return AnswerFormat(HARMONY, HARMONY)
    return AnswerFormat(
        found.tools if tools == AUTO else tools, found.reasoning if reasoning_name == AUTO else reasoning_name
    )


# The first whose words are all in the template; a word with `!` must not be.
_TOOL_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("deepseek", (deepseek.START,)),
    ("mistral", (mistral.START,)),
    ("qwen3_coder", (qwen_coder.START,)),
    ("hermes", (hermes.START, "!<arg_key>")),  # GLM has the same tags and other words between them
    ("llama3", ("ipython", '"parameters": ')),
)
_REASONING_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("think", (THINK.end,)),
    ("mistral", (MISTRAL.start,)),
    ("granite", (GRANITE.start,)),
)


def _detect(signs: tuple[tuple[str, tuple[str, ...]], ...], template: str) -> str:
    for name, words in signs:
        if all((word[1:] not in template) if word[0] == "!" else (word in template) for word in words):
            return name
    return NONE
