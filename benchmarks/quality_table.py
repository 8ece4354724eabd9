"""The table of the quality benchmark in docs/results.md."""

from collections.abc import Iterable
from typing import Any

from hwr_ray.errors import UserError

BEGIN, END = "<!-- quality:begin -->\n", "<!-- quality:end -->\n"


def table(rows: dict[str, Any], names: Iterable[str]) -> str:
    """Returns the rows with these names as a Markdown table; it omits those that were not run yet."""
    lines = [
        "| model | epochs | minutes | parameters | multiply-adds per line | CER (95 % interval) "
        "| exact match (95 % interval) | CER minus that of `short, greedy`, in points (95 % interval) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        row = rows.get(name)
        if row is None:
            continue
        (low, high), (least, most) = row["cer_ci"], row["exact_match_ci"]
        lines.append(
            f"| {name} | {row['epochs']} | {row['minutes']:.0f} | {row['parameters'] / 1e6:.2f} M "
            f"| {row['multiply_adds'] / 1e6:.0f} M | {100 * row['cer']:.2f} % ({100 * low:.2f} to {100 * high:.2f}) "
            f"| {100 * row['exact_match']:.1f} % ({100 * least:.1f} to {100 * most:.1f}) | {against_short(row)} |"
        )
    return "".join(line + "\n" for line in lines)


def against_short(row: dict[str, Any]) -> str:
    """Returns a row's CER minus that of the short row in percentage points, or an empty string."""
    if not (row.get("against_short") or {}).get("cer_ci"):
        return ""
    difference, (low, high) = row["against_short"]["cer"], row["against_short"]["cer_ci"]
    return f"{100 * difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def with_table(page: str, rows: str) -> str:
    """Returns the page with the rows between its marks. Raises UserError if a mark is missing."""
    if END not in page.partition(BEGIN)[2]:
        raise UserError(f"docs/results.md lacks {BEGIN.strip()}, or {END.strip()} after it: restore both lines")
    before, rest = page.split(BEGIN, 1)
    return before + BEGIN + rows + END + rest.split(END, 1)[1]
