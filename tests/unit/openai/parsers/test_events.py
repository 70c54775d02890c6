from armature.openai.parsers.events import (
    Content,
    PlainText,
    Reasoning,
    ToolCallArguments,
    ToolCallStart,
    merged,
)


def test_plain_text_is_content_and_holds_nothing_back() -> None:
    parser = PlainText()
    assert [*parser.feed("<tool_"), *parser.feed(""), *parser.feed("call>"), *parser.finish()] == [
        Content("<tool_"),
        Content("call>"),
    ]


def test_merging_joins_adjacent_pieces_of_the_same_text_only() -> None:
    events = [
        Reasoning("a"), Reasoning("b"), Content("c"), Content("d"),
        ToolCallStart(0, "f"), ToolCallArguments(0, "{"), ToolCallArguments(0, "}"),
        ToolCallStart(1, "g"), ToolCallArguments(1, "{}"), Content("e"),
    ]  # fmt: skip
    assert merged(events) == [
        Reasoning("ab"), Content("cd"),
        ToolCallStart(0, "f"), ToolCallArguments(0, "{}"),
        ToolCallStart(1, "g"), ToolCallArguments(1, "{}"), Content("e"),
    ]  # fmt: skip
