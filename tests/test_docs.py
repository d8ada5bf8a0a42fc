"""What the documentation says to type works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from outputs import list_images, make_content, publish_all

import raymask
from raymask.journal import write_part
from raymask.output import Masks

COOKBOOK = Path(__file__).parent.parent / "docs" / "cookbook.md"
RECIPES = re.findall(r"^\*\*(\d+)\. (.*?)\*\*.*?^```sql\n(.*?)^```", COOKBOOK.read_text(), re.MULTILINE | re.DOTALL)
PLAN = (9, "truncated", 0, 12, "out_of_memory", 8, 15, 9, "not_found", 0)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Masks:
    out = str(tmp_path_factory.mktemp("out"))
    content = make_content(PLAN)
    manifest = list_images(out, content.listed)
    write_part(manifest.folder, content.part, attempt=0)
    publish_all(out, manifest)
    return raymask.open(out)


def test_there_are_twenty_recipes() -> None:
    assert [int(number) for number, _, _ in RECIPES] == list(range(1, 21))


@pytest.mark.parametrize("sql", [sql for _, _, sql in RECIPES], ids=[number for number, _, _ in RECIPES])
def test_each_recipe_answers(masks: Masks, sql: str) -> None:
    """On a table with categories of its own."""
    sql = sql.replace("'cat'", "'bottle'")
    frame = masks.instances.to_pandas(["uri", "area"])
    parameters = {"uri": frame.uri[frame.area > 0].iloc[0], "x": 1.0, "y": 2.0} if "$uri" in sql else None
    found = masks.sql(sql, parameters)
    assert found is not None
    assert len(found.df()) > 0
