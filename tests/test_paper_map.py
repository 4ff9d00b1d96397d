"""docs/paper-map.md points at code that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "paper-map.md").read_text()
POINTERS = re.findall(r"`([\w/]+\.py)(?:: ([^`]+))?`", TEXT)


@pytest.mark.parametrize(("file", "names"), sorted(set(POINTERS)))
def test_every_pointer_of_the_paper_map_leads_somewhere(file, names):
    path = ROOT / file if file.startswith("tests/") else ROOT / "src" / "emo_cli" / file
    code = path.read_text()
    for name in filter(None, re.split(r",\s*", names)):
        last = name.split(".")[-1]
        pattern = rf"(def|class) {last}\b|^\s*{last}\s*(=|:)|[( ]{last}="
        assert re.search(pattern, code, re.MULTILINE), f"{name} is not in {file}"


@pytest.mark.parametrize(
    "part",
    ["Backbone", "ReferenceNet", "Reference-attention", "Audio", "Temporal modules", "Face locator",
     "Speed", "Training", "Data", "Inference", "Metrics", "Table 1", "Table 2", "Figure 7"],
)  # fmt: skip
def test_every_part_of_the_paper_has_a_row(part):
    assert part in TEXT
