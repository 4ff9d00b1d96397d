"""Which people and clips stay out of training, for every stage and benchmark alike.

The rule, once: in each portrait set the ten identities, and among GRID's clips the forty, whose
names ("SET/IDENTITY") have the smallest sha256. The result is written out below, so that membership
is a pure function of one file's name and does not move when a folder holds fewer files. Files of
any other folder: one identity in twenty, or the share that is asked for, by the same hash.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ONE_IN = 20  # identities held out in folders that are not ours
HELD_OUT_SHARE = 1 / ONE_IN
HELD_OUT = {
    "london": "002 016 019 067 087 097 118 121 136 141",
    "canada": "022f 024f 045f 048f 049f 063f 065f 095m 098m 152m",
    "faker": "f22 f32 f42 f44 f5 f84 m43 m63 m75 m96",
    "grid_s1": (
        "bbas2p bgbu2n bgit7a bram2n bwba6p bwig2p bwwu2p lgal9s lgam1a lrbr6p lriy2p lwae8n "
        "lwar7s pbai5s pbap1a pbwp9a pgix7s pgwe6n pgwl2p prbq1a prbx2n prip1s pwbyzp pwixzn "
        "pwwy5a sbbu2p sbim8n sbwh7s sgapzn sgbxzp sgic1a sgwd2p srbo4p srwi5a srwo7s srwo9a "
        "swbc1s swbi7a swib2n swiu7a"
    ),
}


def identity(path: Path) -> str:
    """Who or what a file shows, "SET/NAME": the folder, and the name up to the first "_".

    All pictures of one person ("001_neutral.jpg", "001_smile.jpg") share an identity; so do a
    GRID clip, its alignment and all that is made from it under the same name.
    """
    return f"{path.parent.name}/{path.stem.split('_')[0]}"


def is_held_out(path: Path, share: float = HELD_OUT_SHARE) -> bool:
    """Whether a file belongs to validation, by its name and its folder's name alone.

    share: of identities, in folders that are not ours; a larger one holds out the same and more.
    """
    group, name = identity(path).split("/", 1)
    if group in HELD_OUT:
        return name in HELD_OUT[group].split()
    # A place 0..ONE_IN in units of 2**-256; the default share takes those whose rest is 0.
    turn, rest = divmod(int(name_hash(f"{group}/{name}"), 16), ONE_IN)
    return rest * 2**256 + turn * ONE_IN < share * ONE_IN * 2**256


def name_hash(name: str) -> str:
    """sha256 of a name in hex: an order of names that no one chose."""
    return hashlib.sha256(name.encode("utf-8")).hexdigest()
