"""`emo eval --report DIR`: one page that holds everything; opened, it asks the network nothing."""

from __future__ import annotations

import json
import string
import tempfile
from html import escape
from pathlib import Path

from emo_cli import __version__
from emo_cli.errors import EmoError
from emo_cli.files import write_atomically
from emo_cli.metrics import decode, report_page
from emo_cli.metrics.evaluate import Evaluation
from emo_cli.metrics.report_clips import ranking_column, shown_clips
from emo_cli.metrics.result_json import as_json, library_versions

TEMPLATE = Path(__file__).parent / "report_template.html"
PAGE, FIGURES = "index.html", "eval.json"


def check_folder(folder: Path) -> None:
    """Makes the folder, now and not when all videos are scored.

    Raises: EmoError when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EmoError(
            f"cannot write the report to {folder}: {error.strerror or error}",
            "Name another folder with --report.",
        ) from error


def write_report(result: Evaluation, folder: Path, *, with_published: bool) -> Path:
    """Writes the page and, beside it, the same figures as JSON; returns the page's path.

    Raises: EmoError when the folder cannot be written.
    """
    check_folder(folder)
    figures = json.dumps(as_json(result), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / FIGURES, figures)
    write_atomically(folder / PAGE, render(result, with_published=with_published))
    return folder / PAGE


def render(result: Evaluation, *, with_published: bool) -> str:
    """The whole page as HTML."""
    title = f"emo eval: {', '.join(one.name for one in result.methods)}"
    body = [
        report_page.head_section(result, title),
        report_page.tables_section(result, with_published=with_published),
        report_page.notes_section(result),
        report_page.distributions_section(result),
        report_page.clips_section(result, shown_clips(result), ranking_column(result)),
        report_page.protocol_section(result, _about(result)),
    ]
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(part for part in body if part))


def _about(result: Evaluation) -> dict[str, str]:
    return {
        "date": result.date,
        "emo-cli": __version__,
        "libraries": ", ".join(f"{name} {v}" for name, v in library_versions().items()),
        "decoding": decode.PROTOCOL,
        "faces": decode.FACES,
    }
