"""What each piece of a run was started with: a run that is resumed has several, and its config.json names them all."""

import json
import shlex
import sys
from pathlib import Path

from common.record.files import finite, write_json
from common.record.folder import RUN_MARK

OF_ONE_PIECE = {"given", "origins", "resume", "started"}  # what differs between pieces of the same run anyway


def add_piece(output_dir: Path, network: str, first_step: int, here: dict, continues: bool) -> dict:
    """Write config.json: the network's name, `values` and `environment` of this piece, and a list `pieces` of all.

    network: as result.json calls it, for whoever looks at the run before it has one. here: {"values": ...,
    "environment": ...}. Returns the last entry of the list.
    An entry has the first step, the command line, values and environment, and what changed since the piece before:
    {"values": {name: [before, now]}, "environment": {...}}.
    """
    path = output_dir / RUN_MARK
    before = json.loads(path.read_text(encoding="utf-8")) if continues and path.exists() else {}
    pieces = before.get("pieces", [])
    if before and not pieces:  # written by an earlier version
        pieces = [{"first_step": 0, "values": before["values"], "environment": before["environment"]}]
    # as they are once they have been written
    piece = json.loads(json.dumps(finite(here), default=str))
    piece = {"first_step": first_step, "command": shlex.join(sys.argv), **piece}
    if pieces:
        piece["changed"] = {name: _changed(pieces[-1][name], piece[name]) for name in ("values", "environment")}
    of_this = {name: piece[name] for name in ("values", "environment")}
    write_json(path, {"network": network, **of_this, "pieces": [*pieces, piece]})
    return piece


def _changed(before: dict, now: dict) -> dict[str, list]:
    names = [name for name in before | now if name not in OF_ONE_PIECE]
    return {name: [before.get(name), now.get(name)] for name in names if before.get(name) != now.get(name)}
