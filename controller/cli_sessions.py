"""`honeypot sessions`, `session show`, `session kill`: what attackers did, live and stored."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import click

from bus import spool
from bus.capture import open_blob
from bus.catalogue import EndSession, FindSessions, GetSession, ListLive, LiveSession
from bus.errors import HoneypotError, Refused, SpoolError
from bus.model import iso, now
from bus.records import SessionRecord
from controller.instance import Instance, Trouble, config_option, find, json_option, print_table
from controller.show import record_lines, stream_lines

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SPAN = re.compile(r"(\d{1,9})([smhdw])")
_PAGE = 500


def parse_since(value: str) -> str:
    """Turn a span back from now (24h, 30m, 7d) or an instant in ISO 8601 into an instant's text in UTC."""
    span = _SPAN.fullmatch(value)
    try:
        if span:
            return iso(now() - timedelta(seconds=int(span[1]) * _UNITS_S[span[2]]))
        moment = datetime.fromisoformat(value)
        return iso(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        hint = "neither a span such as 24h, 30m or 7d nor an instant such as 2026-01-31T12:00Z"
        raise click.BadParameter(f"{value!r} is {hint}") from None


def parse_source(value: str) -> str:
    """Turn an address or a network into its one canonical writing."""
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither an address nor a network such as 198.51.100.0/24") from None
    single = network.prefixlen == network.max_prefixlen
    return str(network.network_address if single else network)


@click.command()
@config_option
@json_option
@click.option("--service", help="Only this service's.")
@click.option("--source", type=parse_source, help="Only from this address or network.")
@click.option(
    "--since", type=parse_since, help="Only those that began since then: 24h, 30m, 7d or an ISO 8601 instant."
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at the most.")
def sessions(  # noqa: PLR0913, PLR0917 - one for each option
    file: Path | None, as_json: bool, service: str | None, source: str | None, since: str | None, limit: int
) -> None:
    """List sessions, newest first: those that live, and those that are stored."""
    instance = find(file)
    question = FindSessions(service=service, source=source, since=since, limit=min(limit, _PAGE))
    found = {record.id: record for record in _live(instance, question)}
    found |= {record.id: record for record in _stored(instance, question, limit)}
    newest = [found[key] for key in sorted(found, reverse=True)[:limit]]
    if as_json:
        click.echo("[" + ",\n ".join(record.model_dump_json() for record in newest) + "]")
        return
    print_table(
        ("SESSION", "SERVICE", "SOURCE", "STARTED", "LASTED", "END", "IN", "OUT", "CONTAINER"),
        [_row(record) for record in newest],
    )


def _stored(instance: Instance, question: FindSessions, limit: int) -> list[SessionRecord]:
    records: list[SessionRecord] = []
    while len(records) < limit:
        page = instance.ask("storage", question)
        records += page.sessions
        if page.next is None:
            break
        question = question.model_copy(update={"cursor": page.next})
    return records[:limit]


def _live(instance: Instance, question: FindSessions) -> list[SessionRecord]:
    """Give the sessions that are not over; none while session does not answer, since storage has the rest."""
    try:
        live = instance.ask("session", ListLive(), timeout_s=2)
    except Trouble:
        return []
    return [_living(each) for each in live.sessions if _wanted(each, question)]


def _wanted(live: LiveSession, question: FindSessions) -> bool:
    identity = live.identity
    source = ipaddress.ip_address(identity.source.address.partition("%")[0])
    return (
        question.service in (None, identity.service)
        and (question.source is None or source in ipaddress.ip_network(question.source))
        and (question.since is None or iso(identity.started_at) >= question.since)
    )


def _living(live: LiveSession) -> SessionRecord:
    return SessionRecord.model_validate({**live.identity.model_dump(), "container": live.container})


def _row(record: SessionRecord) -> tuple[object, ...]:
    lasted = (record.ended_at or now()) - record.started_at
    return (
        record.id,
        record.service,
        f"{record.source.address} {record.source.port}",
        iso(record.started_at)[:19] + "Z",
        f"{lasted.total_seconds():.1f} s",
        record.end_reason or "live",
        record.bytes_in if record.ended_at else "-",
        record.bytes_out if record.ended_at else "-",
        record.container.id if record.container else "-",
    )


@click.group()
def session() -> None:
    """Look at one session, or end it."""


@session.command()
@config_option
@json_option
@click.argument("id")
def show(file: Path | None, as_json: bool, id: str) -> None:  # noqa: A002 - what the command line calls it
    """Show a session's record, and what went over the wire as readable text."""
    instance = find(file)
    entry = _in_spool(instance, id)
    record = _of_spool(entry) if entry else _record(instance, id)
    if as_json:
        click.echo(record.model_dump_json(indent=2))
        return
    for line in record_lines(record):
        click.echo(line)
    with _stream(instance, entry, record) as stream:
        for line in stream_lines(stream, record.started_at):
            click.echo(line)


def _record(instance: Instance, id: str) -> SessionRecord:  # noqa: A002 - as above
    try:
        return instance.ask("storage", GetSession(session=id))
    except Trouble as trouble:
        if isinstance(trouble.__cause__, Refused) and trouble.__cause__.code == "not_found":
            raise Trouble(f"there is no session {id}", "list them: honeypot sessions") from None
        raise


def _in_spool(instance: Instance, id: str) -> spool.Entry | None:  # noqa: A002 - as above
    """Find a session that is not stored yet, where we may look."""
    if not re.fullmatch(r"[0-9a-f]{24}", id):
        return None
    with suppress(PermissionError, SpoolError):
        return spool.load(instance.layout.spool / id)
    return None


def _of_spool(entry: spool.Entry) -> SessionRecord:
    identity, ending = entry.opening.handoff.identity, entry.ending
    end = ending.model_dump(include={"ended_at", "end_reason", "bytes_in", "bytes_out"}) if ending else {}
    given = {"container": entry.container, "configuration": entry.opening.handoff.configuration}
    return SessionRecord.model_validate({**identity.model_dump(), **given, **end})


def _stream(instance: Instance, entry: spool.Entry | None, record: SessionRecord) -> BinaryIO:
    """Open the stream: in the spool while it is there, else through the descriptor that storage hands out."""
    if entry:
        with suppress(FileNotFoundError):  # it has just been stored
            return (entry.path / "stream").open("rb")
    blob = record.stream or _record(instance, record.id).stream
    if blob is None:
        raise Trouble("the session has no stream")
    try:
        descriptor, _ = asyncio.run(open_blob(instance.layout.door, blob.sha256))
    except HoneypotError as error:
        raise instance.trouble("storage", error) from error
    return os.fdopen(descriptor, "rb")


@session.command()
@config_option
@click.argument("id")
def kill(file: Path | None, id: str) -> None:  # noqa: A002 - what the command line calls it
    """End a live session, as an operator."""
    instance = find(file)
    try:
        instance.ask("session", EndSession(session=id or "-"))
    except Trouble as trouble:
        if isinstance(trouble.__cause__, Refused) and trouble.__cause__.code == "not_found":
            raise Trouble(f"no live session is {id}", "list them: honeypot sessions") from None
        raise
    click.echo(f"session {id} is ended")
