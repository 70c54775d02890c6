"""What the demo model learns: the documentation that every Python installation carries.

Reads the running interpreter's own modules, so the text depends on the Python version and platform, on nothing else.
"""

import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

# Importing these opens windows, prints or changes the process; or nobody would ask about them.
_SKIPPED = {
    "antigravity", "this", "idlelib", "tkinter", "turtle", "turtledemo", "test", "lib2to3", "distutils", "ensurepip",
    "nt", "ntpath", "pydoc_data", "posix", "posixpath", "genericpath", "sre_compile", "sre_parse", "sre_constants",
    "opcode", "symtable", "msilib", "winreg", "winsound", "msvcrt", "nturl2path",
}  # fmt: skip
_SUBMODULES = (
    "asyncio.subprocess", "collections.abc", "concurrent.futures", "email.message", "email.mime.text", "email.policy",
    "email.utils", "html.parser", "http.client", "http.cookies", "http.server", "importlib.metadata",
    "importlib.resources", "importlib.util", "json.decoder", "json.encoder", "logging.config", "logging.handlers",
    "multiprocessing.pool", "multiprocessing.shared_memory", "os.path", "unittest.mock", "urllib.error",
    "urllib.parse", "urllib.request", "urllib.robotparser", "wsgiref.simple_server", "xml.dom.minidom",
    "xml.etree.ElementTree", "xml.sax.handler", "xmlrpc.client", "xmlrpc.server",
)  # fmt: skip
# What people ask about first: learnt more often than the rest.
_POPULAR = {
    "argparse", "asyncio", "base64", "bisect", "builtins", "collections", "concurrent.futures", "contextlib", "copy",
    "csv", "dataclasses", "datetime", "enum", "functools", "glob", "hashlib", "heapq", "itertools", "json", "logging",
    "math", "operator", "os", "os.path", "pathlib", "pickle", "queue", "random", "re", "shutil", "socket", "sqlite3",
    "statistics", "string", "subprocess", "sys", "tempfile", "textwrap", "threading", "time", "typing", "unittest",
    "urllib.parse", "uuid", "zipfile", "zlib",
}  # fmt: skip
_MAX_SUMMARY_CHARS = 480


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented thing: `json.dumps`, what kind it is and what its docstring says."""

    name: str
    kind: str
    """module, class, function or method."""
    text: str
    is_popular: bool = False
    members: tuple[str, ...] = ()
    """Public names inside, for modules and classes."""

    @property
    def summary(self) -> str:
        """The opening paragraphs, as much as makes a short answer, whole sentences where possible."""
        paragraphs = [p for p in self.text.split("\n\n") if p.strip()]
        chosen = paragraphs[0]
        for paragraph in paragraphs[1:]:
            if len(chosen) + len(paragraph) > _MAX_SUMMARY_CHARS // 2 or ">>>" in paragraph:
                break
            chosen += "\n\n" + paragraph
        if len(chosen) <= _MAX_SUMMARY_CHARS:
            return chosen
        head = chosen[:_MAX_SUMMARY_CHARS]
        cut = max(head.rfind(". "), head.rfind(".\n"), head.rfind("\n"))
        return head[: cut + 1].rstrip() if cut > 0 else head


def entries() -> list[Entry]:
    """Every documented public name of the standard library, in a fixed order, each once."""
    found: dict[str, Entry] = {}
    for module_name in _module_names():
        module = _import(module_name)
        if module is None:
            continue
        for entry in _of_module(module_name, module):
            found.setdefault(entry.name, entry)
    return list(found.values())


def topics() -> dict[str, str]:
    """The language reference, as `help("topic")` prints it."""
    from pydoc_data.topics import topics as all_topics

    return {name: _clean(text) for name, text in sorted(all_topics.items())}


def _module_names() -> list[str]:
    top = [n for n in sys.stdlib_module_names if not n.startswith("_") and n not in _SKIPPED]
    return sorted({*top, *_SUBMODULES})


def _import(name: str) -> ModuleType | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


def _of_module(name: str, module: ModuleType) -> Iterator[Entry]:
    popular = name in _POPULAR
    public = [n for n in getattr(module, "__all__", dir(module)) if not n.startswith("_")]
    members = [n for n in public if _belongs(getattr(module, n, None), module)]
    if text := _doc(module):
        yield Entry(name, "module", text, popular, tuple(members))
    prefix = "" if name == "builtins" else f"{name}."
    for member in sorted(members):
        value = getattr(module, member)
        kind = "class" if inspect.isclass(value) else "function"
        inner = _methods(value) if kind == "class" else {}
        if text := _doc(value):
            yield Entry(prefix + member, kind, text, popular, tuple(inner))
        for method, method_text in inner.items():
            yield Entry(f"{prefix}{member}.{method}", "method", method_text, popular)


def _belongs(value: object, module: ModuleType) -> bool:
    """Whether a value is documented here rather than imported from a module of its own."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return False
    if hasattr(module, "__all__"):
        return True
    home = getattr(value, "__module__", None) or module.__name__
    return home.lstrip("_").split(".")[0] in {module.__name__.split(".")[0], "posix", "io", "builtins"}


def _methods(cls: type) -> dict[str, str]:
    own = {n: v for n, v in vars(cls).items() if not n.startswith("_")}
    documented = {n: _doc(v) for n, v in own.items() if callable(v) or inspect.isroutine(v) or isinstance(v, property)}
    return {n: text for n, text in sorted(documented.items()) if text}


def _doc(value: object) -> str:
    text = getattr(value, "__doc__", None)
    return _clean(inspect.cleandoc(text)) if isinstance(text, str) else ""


def _clean(text: str) -> str:
    text = re.sub(r"[^\x09\x0a\x20-\x7e]", "", text.expandtabs(4))
    text = re.sub(r"[ ]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
