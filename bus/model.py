"""The frozen base of every message, setting and record, and the two scalars they share: ids and instants.

Imported by everything; imports nothing of ours.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Self

import msgpack
from pydantic import AwareDatetime, BaseModel, ConfigDict, PlainSerializer


def iso(moment: datetime) -> str:
    """Write an instant as ISO 8601 in UTC with six decimals and `Z`, so that text order is time order."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Instant = Annotated[AwareDatetime, PlainSerializer(iso, return_type=str)]


def now() -> datetime:
    """Give the present instant in UTC."""
    return datetime.now(UTC)


def instant(at_ns: int) -> datetime:
    """Turn nanoseconds since 1970 into an instant (microseconds are kept)."""
    return datetime.fromtimestamp(at_ns / 1e9, UTC)


def new_id() -> str:
    """Make an id of 24 hex digits that sorts by time: 16 of nanoseconds since 1970, 8 of chance."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"


class Frozen(BaseModel):
    """A value: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    def pack(self) -> bytes:
        """Encode as msgpack of JSON types."""
        packed: bytes = msgpack.packb(self.model_dump(mode="json", by_alias=True))
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode what `pack` made; `ValueError` (pydantic's ValidationError is one) for anything else."""
        return cls.model_validate(unpack(data))


def pack(value: object) -> bytes:
    """Encode JSON types as msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(data: bytes) -> Any:
    """Decode msgpack into JSON types; `ValueError` for anything else."""
    try:
        return msgpack.unpackb(data)
    except (msgpack.UnpackException, msgpack.exceptions.ExtraData, RecursionError) as error:
        raise ValueError(f"not msgpack: {error}") from error
