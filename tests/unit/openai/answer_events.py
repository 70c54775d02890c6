"""Answers as lists of what they say, and the same answers in smaller pieces."""

from hypothesis import strategies as st

from armature.openai.parsers.events import AnswerEvent, Content, Reasoning, ToolCallArguments, ToolCallStart

TEXT = st.text(alphabet='ab"\\{}é🙂\n', min_size=1, max_size=6)


@st.composite
def answers(draw: st.DrawFn) -> list[AnswerEvent]:
    """What a parser may say, adjacent texts of a kind joined."""
    said: list[AnswerEvent] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from([Content, Reasoning, ToolCallStart]), max_size=5)):
        if kind is ToolCallStart:
            said += [ToolCallStart(calls, draw(st.sampled_from("fg")), f"call_{calls}")]
            said += [ToolCallArguments(calls, '{"a": 1}')] if draw(st.booleans()) else []
            calls += 1
        elif not said or type(said[-1]) is not kind:
            said.append(kind(draw(TEXT)))
    return said


@st.composite
def cut(draw: st.DrawFn, said: list[AnswerEvent]) -> list[list[AnswerEvent]]:
    """The same answer as it may come: texts in pieces, pieces in batches."""
    pieces: list[AnswerEvent] = []
    for event in said:
        if isinstance(event, ToolCallStart):
            pieces.append(event)
            continue
        places = sorted(draw(st.sets(st.integers(1, len(event.text) - 1), max_size=3))) if len(event.text) > 1 else []
        for start, end in zip([0, *places], [*places, len(event.text)], strict=True):
            part = event.text[start:end]
            is_call = isinstance(event, ToolCallArguments)
            pieces.append(ToolCallArguments(event.index, part) if is_call else type(event)(part))
    batches: list[list[AnswerEvent]] = [[]]
    for piece in pieces:
        if draw(st.booleans()):
            batches.append([])
        batches[-1].append(piece)
    return batches
