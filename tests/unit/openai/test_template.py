"""Chat templates in their sandbox."""

import json
from pathlib import Path

import pytest

from armature.openai.errors import ApiError
from armature.openai.template import ChatTemplate, load_chat_template
from armature.openai.tools import rendered_call

MESSAGES = [{"role": "user", "content": "<hi>"}]


def render(source: str, **names: str) -> str:
    return ChatTemplate(source, names).render(MESSAGES, {"thinking": False})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content }}{% endfor %}", "<s>[user]<hi>"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<hi>"}]'),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{{ thinking }}", "False"),
        ("{% for m in messages %}{% if true %}{% continue %}{% endif %}x{% endfor %}", ""),
        ("{% for m in messages %}{% generation %}{{ m.role }}!{% endgeneration %}{% endfor %}", "user!"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ undefined_name }}", ""),
        ("{%- set ns = namespace(n=0) -%}{%- set ns.n = 3 -%}{{ ns.n }}", "3"),
    ],
)
def test_templates_find_what_their_authors_expect(source: str, text: str) -> None:
    assert render(source, bos_token="<s>") == text


def test_a_template_that_does_not_compile_is_told_as_such() -> None:
    with pytest.raises(ValueError, match="does not compile"):
        render("{% for %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7].content.upper() }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 'x' + 1 }}",
    ],
)
def test_a_template_that_refuses_or_fails_is_the_callers_error(source: str) -> None:
    with pytest.raises(ApiError) as caught:
        render(source)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_a_templates_own_words_reach_the_client() -> None:
    with pytest.raises(ApiError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("place", ["config", "named", "jinja", "json"])
def test_the_template_is_found_wherever_it_lies(place: str, tmp_path: Path) -> None:
    source = "{{ eos_token }}!"
    config: dict[str, object] = {"eos_token": {"content": "</s>"}}
    if place == "config":
        config["chat_template"] = source
    elif place == "named":
        config["chat_template"] = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": source}]
    elif place == "jinja":
        (tmp_path / "chat_template.jinja").write_text(source)
    else:
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": source}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = load_chat_template(tmp_path)
    assert template is not None
    assert template.render(MESSAGES) == "</s>!"


def test_a_model_may_have_no_template(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path) is None


CALLED = [
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": {"a": "é"}}}],
    }
]


def test_arguments_are_objects_or_text_as_the_template_wants_them() -> None:
    source = "{% for m in messages %}{% for c in m.tool_calls %}{{ ARGUMENTS }}{% endfor %}{% endfor %}"
    for arguments in ("c.function.arguments | tojson", "'' + c.function.arguments"):
        template = ChatTemplate(source.replace("ARGUMENTS", arguments), {})
        assert template.render(CALLED) == '{"a": "é"}'
    with pytest.raises(ApiError, match="refuses these messages"):
        ChatTemplate(source.replace("ARGUMENTS", "1 + c.function.arguments"), {}).render(CALLED)


def test_arguments_that_are_no_object_are_told_as_the_text_they_are() -> None:
    cut = [{"role": "assistant", "content": "", "tool_calls": [rendered_call("x", "f", '{"a": "é')]}]
    source = "{% for m in messages %}{% for c in m.tool_calls %}{{ ARGUMENTS }}{% endfor %}{% endfor %}"
    assert ChatTemplate(source.replace("ARGUMENTS", "'' + c.function.arguments"), {}).render(cut) == '{"a": "é'
    quoted = ChatTemplate(source.replace("ARGUMENTS", "c.function.arguments | tojson"), {}).render(cut)
    assert json.loads(quoted) == '{"a": "é'


def test_tools_are_none_where_a_request_has_none() -> None:
    source = "{% if tools is not none %}{{ tools | tojson }}{% endif %}"
    assert render(source) == ""
    assert ChatTemplate(source, {}).render(MESSAGES, {"tools": [{"a": 1}]}) == '[{"a": 1}]'
