"""What mkdocs does beyond its plugins: pages made of the code, and names in docstrings that are links.

configuration.md    gets the tables of every option in place of its marker
tour.md             is the notebook tour.ipynb, without outputs
:func:`cxrl.x.y`    in a docstring becomes a link where the page has that name, and code elsewhere
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from cxrl.config import Config, sections
from cxrl.options import Section, allowed, field_types, show
from cxrl.presets import load_preset, preset_sentence, presets

NOTEBOOK, TOUR, CONFIGURATION = "tour.ipynb", "tour.md", "configuration.md"
MARKER = "<!-- every option -->"
_ROLE = re.compile(r":(?:func|class|mod|meth|data|attr):<code>~?([^<]*)</code>")
_TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the tour."""
    text = tour_page(Path(config.docs_dir, NOTEBOOK))
    files.append(File.generated(config, TOUR, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the page of the configuration."""
    if page.file.src_uri != CONFIGURATION:
        return markdown
    if MARKER not in markdown:
        raise ValueError(f"{CONFIGURATION} has lost its marker {MARKER}")
    return markdown.replace(MARKER, configuration())


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn Sphinx's roles into links that autorefs resolves, if it can."""
    return _ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', html)


def tour_page(notebook: Path) -> str:
    """The Markdown of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"]).strip()
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join(parts) + "\n"


def configuration() -> str:
    """Every option of every section, as Markdown."""
    parts = ["## Presets\n", "| preset | what it is |\n|---|---|"]
    parts += [f"| `{name}` | {_cell(preset_sentence(name))} |" for name in presets()]
    parts += ["\n## The run as a whole\n", *_table(Config, "")]
    for name, section in sections().items():
        parts += [f"\n## {name}\n", f"{section.help[0].upper()}{section.help[1:]}.\n", *_table(section, name)]
    return "\n".join(parts)


def _table(owner: type[Section], name: str) -> Iterator[str]:
    yield "| option | default | allowed | why |\n|---|---|---|---|"
    of_presets = {preset: load_preset(preset) for preset in presets()}
    for field in fields(owner):
        if field.metadata:
            values = {
                preset: getattr(getattr(config, name) if name else config, field.name)
                for preset, config in of_presets.items()
            }
            yield _row(field, f"{name}.{field.name}".lstrip("."), field_types(owner)[field.name], values)


def _row(field: Field[Any], name: str, tp: Any, of_presets: dict[str, Any]) -> str:
    default = f"`{show(field.default)}`" if field.default not in ("", ()) else "empty"
    others: dict[str, list[str]] = {}
    for preset, value in of_presets.items():
        if value != field.default and field.name != "preset":
            others.setdefault(show(value), []).append(preset)
    default += "".join(f"<br>`{value}` in {', '.join(names)}" for value, names in others.items())
    kind = _TYPES.get(tp, "list")
    limits = allowed(field.metadata) or kind
    unit = field.metadata["unit"]
    needs = "".join(f"<br>*needs {_cell(need.words)}*" for need in field.metadata["only_if"])
    why = f"{_cell(field.metadata['reason'])}{needs}"
    return f"| `{name}` | {default} | {limits}{f' {unit}' if unit else ''} | {why} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_").replace("*", "\\*").replace("<", "&lt;")
