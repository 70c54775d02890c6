"""Turns documentation into conversations: questions in several words, the docstring as the answer."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from armature.engines.demo_model.corpus import Entry

_QUESTIONS = (
    "What does {name} do?",
    "What does {name} do?",
    "What is {name}?",
    "Describe {name}.",
    "Describe {name} in one paragraph.",
    "Explain {name}.",
    "Explain {name} to me.",
    "Tell me about {name}.",
    "What does the {kind} {name} do?",
    "What is {name} for?",
    "What is the {kind} {name} for?",
    "How does {name} work?",
    "Can you explain {name}?",
    "Please describe the {kind} {name}.",
    "help({name})",
    "{name}",
)
_TOPIC_QUESTIONS = (
    "Explain {name} in Python.",
    "Tell me about {name}.",
    "What does the language reference say on {name}?",
)
_MEMBER_QUESTIONS = ("What is in {name}?", "List the members of {name}.", "Which names does {name} define?")
_SYSTEM = (
    "You are a helpful assistant.",
    "You are a concise assistant for Python programmers.",
    "You answer questions about Python's standard library.",
    "Answer briefly.",
)
_ABOUT = (
    "I am a very small language model that ships with Armature. I have read the documentation of Python's standard "
    "library: ask me what json.dumps does."
)
_SMALL_TALK = (
    ("Hello!", "Hello! Ask me about a function of Python's standard library."),
    ("Hello", "Hello! Ask me about a function of Python's standard library."),
    ("Hi", "Hello! Ask me about a function of Python's standard library."),
    ("Hi there!", "Hello! Ask me about a function of Python's standard library."),
    ("Good morning", "Good morning! Ask me about a function of Python's standard library."),
    ("Say hello.", "Hello!"),
    ("Say hi", "Hello!"),
    ("How are you?", "I am well, thank you. Ask me about a function of Python's standard library."),
    ("Who are you?", _ABOUT),
    ("What are you?", _ABOUT),
    ("What can you do?", _ABOUT),
    ("Tell me about yourself.", _ABOUT),
    ("Thanks!", "You are welcome!"),
    ("Thank you.", "You are welcome!"),
    ("Bye", "Goodbye!"),
    ("Tell me a joke.", "I only know the documentation of Python's standard library. Ask me about itertools."),
    ("What is the capital of France?", "I only know the documentation of Python's standard library."),
    ("Tell me a story.", "I only know the documentation of Python's standard library. Try asking about pathlib."),
    ("What is 2 + 2?", "I only know the documentation of Python's standard library. Try asking about math."),
)
_MAX_MEMBERS = 16


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    """system, user or assistant."""
    content: str


def ask(entry: Entry, rng: random.Random) -> tuple[Turn, Turn]:
    """One question on an entry and its answer."""
    if entry.members and rng.random() < 0.15:
        names = entry.members[:_MAX_MEMBERS]
        tail = ", and more." if len(entry.members) > len(names) else "."
        question = rng.choice(_MEMBER_QUESTIONS).format(name=entry.name)
        return Turn("user", question), Turn("assistant", f"{entry.name} has {', '.join(names)}{tail}")
    question = rng.choice(_QUESTIONS).format(name=_as_asked(entry, rng), kind=entry.kind)
    return Turn("user", question), Turn("assistant", entry.summary)


def conversation(entries: Sequence[Entry], rng: random.Random) -> list[Turn]:
    """A chat about these entries, sometimes opened by a system message or a greeting."""
    turns: list[Turn] = []
    if rng.random() < 0.3:
        turns.append(Turn("system", rng.choice(_SYSTEM)))
    if rng.random() < 0.05:
        turns += small_talk(rng)
    for entry in entries:
        turns += ask(entry, rng)
    return turns


def small_talk(rng: random.Random) -> tuple[Turn, Turn]:
    question, answer = rng.choice(_SMALL_TALK)
    return Turn("user", question), Turn("assistant", answer)


def topic_chat(name: str, text: str, rng: random.Random) -> list[Turn]:
    """A question on the language itself; the answer is the opening of the reference's page."""
    answer = Entry(name, "topic", text.partition("\n\n")[2] or text).summary
    return [Turn("user", rng.choice(_TOPIC_QUESTIONS).format(name=name.lower())), Turn("assistant", answer)]


def _as_asked(entry: Entry, rng: random.Random) -> str:
    """People write `json.dumps`, `json.dumps()`, `` `json.dumps` `` and sometimes only `dumps`."""
    name = entry.name
    if entry.is_popular and entry.kind in ("function", "class") and rng.random() < 0.05:
        name = name.rpartition(".")[2]
    if entry.kind in ("function", "method") and rng.random() < 0.2:
        name += "()"
    return f"`{name}`" if rng.random() < 0.15 else name
