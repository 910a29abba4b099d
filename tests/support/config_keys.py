"""The tables of configs/README.md that list every key of a config, made from the code that reads them.

    python tests/support/config_keys.py    # writes them into the page; tests/test_pages.py holds the page to it
"""
from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "configs" / "README.md"
BEGIN, END = "<!-- keys: made by tests/support/config_keys.py -->", "<!-- end of the keys -->"


def options_rows(options, without=object) -> list:
    """(key, default, comment) of each field of a dataclass, from its source; `without`: a base whose fields are left
    out."""
    rows = {}
    for cls in reversed(options.__mro__):
        if cls is not object and not issubclass(without, cls):
            source = textwrap.dedent(inspect.getsource(cls))
            lines = source.splitlines()
            for field in ast.parse(source).body[0].body:
                if isinstance(field, ast.AnnAssign):
                    comment = re.search(r"#\s*(.*)", lines[field.end_lineno - 1][field.end_col_offset:])
                    rows[field.target.id] = (_yaml(ast.unparse(field.value)) if field.value else "needed",
                                             comment.group(1) if comment else "")
    return [(key, *row) for key, row in rows.items()]


def constructor_rows(dataset) -> list:
    """(keyword, default, "") of a data set's constructor."""
    return [(name, "needed" if p.default is p.empty else _yaml(repr(p.default)), "")
            for name, p in dataset.arguments().items()]


def _yaml(text: str) -> str:
    text = {"None": "null", "True": "true", "False": "false"}.get(text, text)
    if text.startswith("(") and text.endswith(")"):
        text = f"[{text[1:-1].rstrip(',')}]"
    return text.strip("'\"") if re.fullmatch(r"'[^']*'|\"[^\"]*\"", text) else text


def table(rows: list) -> str:
    if not rows:
        return "No keys of its own.\n"
    lines = ["| key | default | |", "|---|---|---|"]
    lines += [f"| `{key}` | {default} | {comment.replace('|', chr(92) + '|')} |" for key, default, comment in rows]
    return "\n".join(lines) + "\n"


def keys_text() -> str:
    """All tables, as they stand between the page's two marks."""
    from jea.data import DATASETS
    from jea.tasks import TASKS
    from jea.tasks.options import task_options
    from jea.tasks.options.training import TrainOptions
    text = ["### `train`, every task\n", table(options_rows(TrainOptions))]
    for name in TASKS:
        train, evaluation, _ = task_options(name)
        text += [f"### `train` of {name}\n", table(options_rows(train, without=TrainOptions)),
                 f"### `eval` of {name}\n", table(options_rows(evaluation))]
    text.append("### `data`\n\nThe data set `name` takes these keys; the docstring of its class says what they do.\n")
    lines = ["| name | keys and defaults |", "|---|---|"]
    for name, cls in DATASETS.items():
        keys = ", ".join(f"`{key}`" if default == "needed" else f"`{key}` {default}"
                         for key, default, _ in constructor_rows(cls))
        lines.append(f"| `{name}` | {keys} |")
    text.append("\n".join(lines) + "\n")
    return "\n".join(text)


def page_with(keys: str) -> str:
    page = PAGE.read_text(encoding="utf-8")
    return page[:page.index(BEGIN) + len(BEGIN)] + "\n\n" + keys + "\n" + page[page.index(END):]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page_with(keys_text()), encoding="utf-8")
