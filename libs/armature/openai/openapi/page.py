"""The document as one HTML page: no scripts, and nothing that is fetched from elsewhere."""

from collections.abc import Iterable
from html import escape
from typing import Any

import msgspec

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
code { font: 13px ui-monospace, monospace; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; padding: .3rem .7rem; }
summary { cursor: pointer; }
summary b { display: inline-block; width: 4.5rem; font: bold 12px ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
td, th { border-top: 1px solid var(--line); padding: .2rem .6rem .2rem 0; text-align: left; vertical-align: top; }
.dim { color: var(--dim); }
"""
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


def page(document: bytes) -> str:
    """The page for an OpenAPI document."""
    made = msgspec.json.decode(document)
    about = "".join(f"<p>{_text(part)}</p>" for part in made["info"]["description"].split("\n\n"))
    groups: dict[str, list[str]] = {}
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(method, path, operation))
    schemas = made["components"]["schemas"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(made['info']['title'])}</title><style>{_STYLE}</style>"
        f"<h1>{escape(made['info']['title'])} <span class=dim>{escape(made['info']['version'])}</span></h1>{about}"
        "<p>For programs: <a href=/openapi.json>/openapi.json</a></p>"
        + "".join(f"<h2>{escape(name)}</h2>{''.join(shown)}" for name, shown in groups.items())
        + "<h2>Types</h2>"
        + "".join(_component(name, schema) for name, schema in sorted(schemas.items()))
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [
        f"<summary><b>{method.upper()}</b> <code>{escape(path)}</code> "
        f"<span class=dim>{_text(operation['summary'])}</span></summary>"
    ]
    if not operation["security"]:
        parts.append("<p class=dim>Needs no key.</p>")
    if parameters := operation.get("parameters"):
        rows = ((_code(one["name"]), one["in"], _type(one["schema"]), _text(one.get("description", "")))
                for one in parameters)  # fmt: skip
        parts.append(_table(("parameter", "in", "type", ""), rows))
    if body := operation.get("requestBody"):
        parts.append("".join(f"<p>Body: {_type(kind['schema'])}</p>" for kind in body["content"].values()))
    rows = (
        (status, escape(media), _type(kind.get("x-itemSchema", kind["schema"])), _text(answer["description"]))
        for status, answer in operation["responses"].items()
        for media, kind in answer["content"].items()
    )
    parts.append(_table(("status", "as", "type", ""), rows))
    return f"<details>{''.join(parts)}</details>"


def _component(name: str, schema: dict[str, Any]) -> str:
    needed = schema.get("required", ())
    rows = (
        (_code(field) + ("" if field in needed else " <span class=dim>optional</span>"), _type(kind), _note(kind))
        for field, kind in schema.get("properties", {}).items()
    )
    about = f"<p>{_text(schema['description'])}</p>" if "description" in schema else ""
    return (
        f"<details id='{escape(name)}' open><summary><code>{escape(name)}</code></summary>"
        f"{about}{_table(('field', 'type', ''), rows)}</details>"
    )


def _type(schema: dict[str, Any]) -> str:
    """In a few words, with links to the types that it names."""
    if ref := schema.get("$ref"):
        name = escape(ref.rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if kinds := schema.get("anyOf"):
        return " | ".join(map(_type, kinds))
    if "enum" in schema:
        return " | ".join(_code(msgspec.json.encode(one).decode()) for one in schema["enum"])
    match schema.get("type"):
        case "array":
            return f"list of {_type(schema.get('items', {}))}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"object of {_type(schema['additionalProperties'])}"
        case None:
            return "anything"
        case kind:
            return escape(kind)


def _note(schema: dict[str, Any]) -> str:
    notes = [
        f"{low:g} to {high:g}"
        for kind in schema.get("anyOf", (schema,))
        if (low := kind.get("minimum")) is not None and (high := kind.get("maximum")) is not None
    ]
    if schema.get("default") is not None:
        notes.append(f"default {_code(msgspec.json.encode(schema['default']).decode())}")
    return ", ".join(notes)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{cell}' for cell in row)}" for row in rows)
    return f"<table><tr>{''.join(f'<th>{head}' for head in heads)}{body}</table>" if body else ""


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _text(text: str) -> str:
    """Prose, of whose marks only those of code are known."""
    return "".join(_code(part) if index % 2 else escape(part) for index, part in enumerate(text.split("`")))
