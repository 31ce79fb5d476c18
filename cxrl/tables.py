"""Tables of plain text: the one writer of them, for training, the doctor, data sets and help."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import Any

_GAP = "  "
_NARROWEST = 20


def format_table(
    rows: Iterable[Sequence[Any]],
    *,
    header: Sequence[str] = (),
    right: Collection[int] = (),
    width: int | None = None,
) -> str:
    """Rows with aligned columns, two spaces apart.

    Args:
        rows: Cells, shown by ``str``.
        header: Above them.
        right: Columns that are aligned at their right, as numbers are.
        width: Where given, the last column is wrapped so that no line is longer, but for words that do not
            fit: paths, digests and URLs stay whole, they are there to be copied.
    """
    cells = [[str(cell) for cell in row] for row in ([header] if header else []) + list(rows)]
    if not cells:
        return ""
    last = max(len(row) for row in cells) - 1
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(last + 1)]
    indent = sum(widths[:last]) + len(_GAP) * last
    lines = []
    for row in cells:
        placed = [
            cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])
            for i, cell in enumerate(row[:last])
        ]
        first = "".join(f"{cell}{_GAP}" for cell in placed)
        text = row[last] if len(row) > last else ""
        if last in right:
            text = text.rjust(widths[last])
        if width is None or indent + len(text) <= width:
            lines.append(f"{first}{text}".rstrip())
            continue
        room = max(width - indent, _NARROWEST)
        parts = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
        lines.append(f"{first}{parts[0]}".rstrip())
        lines += [f"{' ' * indent}{part}" for part in parts[1:]]
    return "\n".join(lines)
