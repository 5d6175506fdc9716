"""A container's end: kill it, keep what its attacker changed, leave nothing. Called by `service.py` in worker threads.

HARVEST/<container id>/upper.tar        everything created or changed
                       container.json   the record; written last, so the directory counts only when complete
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from bus.model import now
from bus.records import ContainerRecord
from containerd.container import erase
from containerd.errors import ContainerError
from containerd.harvest import Harvest
from containerd.members import Assignment
from containerd.record import Record, read_record
from containerd.spec import Roots

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


def farewell(  # noqa: PLR0913 - what a record is made of
    roots: Roots,
    container: str,
    harvests: Path,
    sensor: str,
    assignment: Assignment | None,
    *,
    patient: bool,
) -> bool:
    """End a container, alive, dead or half made; say whether there was something to harvest.

    On a full disk the patient keep what is left of the container and get `ContainerError`, to try again when there is
    room. Any other harvest that can't be written is said in the record, and the container ends all the same.
    """
    record = read_record(roots.directory(container))
    if assignment is None or record is None:
        erase(roots, container)
        return False
    place = harvests / container
    harvest, problem = None, None
    try:
        place.mkdir(mode=0o770, exist_ok=True)
        harvest = erase(roots, container, place / "upper.tar")
    except OSError as error:
        if patient and error.errno in _FULL:
            raise ContainerError(f"its harvest waits for room in {harvests}") from error
        problem = f"{error.strerror}"
        log.exception("not harvested: %s", problem, extra={"container": container})
        (place / "upper.tar").unlink(missing_ok=True)
        erase(roots, container)
    _publish(place, _record(record, sensor, assignment, harvest, problem))
    return True


def _record(
    record: Record, sensor: str, assignment: Assignment, harvest: Harvest | None, problem: str | None
) -> ContainerRecord:
    template = record.spec.template
    return ContainerRecord(
        id=record.spec.id,
        sensor=sensor,
        template=template.name,
        image=template.record.image,
        source=assignment.source,
        sessions=assignment.sessions,
        created_at=record.created_at,
        destroyed_at=now(),
        deleted=harvest.deleted if harvest else (),
        harvest_error=problem,
    )


def _publish(place: Path, record: ContainerRecord) -> None:
    """Put the record beside the harvest; `ContainerError` where even that can't be written."""
    try:
        place.mkdir(mode=0o770, exist_ok=True)
        draft = place / ".container.json"
        draft.write_text(record.model_dump_json())
        draft.rename(place / "container.json")
    except OSError as error:
        raise ContainerError(f"{place} can't be written: {error.strerror}") from error
