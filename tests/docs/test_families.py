"""The page of the families lists what there is, and its diff is the code."""

import re

from hybridize.core.families import FAMILIES
from hybridize.models.mixers import MIXERS
from tests.test_architecture import ROOT

PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")


def test_every_family_and_every_mixer_has_its_place():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert rows == list(FAMILIES)
    heads = re.search(r"^\| in the attention \|(.*)\|$", PAGE, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", heads[1])) == set(MIXERS)


def test_the_diff_is_the_code():
    diff = re.search(r"```diff\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    files = re.split(r"^--- .*\n\+\+\+ b/(.*)\n", diff, flags=re.MULTILINE)[1:]
    assert len(files) == 6
    for name, part in zip(files[::2], files[1::2], strict=True):
        code = (ROOT / name).read_text(encoding="utf-8")
        lines = part.splitlines()
        assert lines and all(line[1:] in code.splitlines() for line in lines), name
        if name.endswith("olmo2.py"):
            assert code == "".join(f"{line[1:]}\n" for line in lines)
