"""Who is let in, who waits, and when accepting stops: pure."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bus.settings import Config, GlobalSettings, Limits, Service
from listener.admission import Admission, Ticket, Verdict


def config(most: int, service: int, source: int, names: str = "ab") -> Config:
    limits = Limits(max_sessions=service, max_sessions_per_source=source)
    services = tuple(
        Service(name=name, port=number, container_template="t", limits=limits)
        for number, name in enumerate(names, start=1)
    )
    return Config(**{"global": GlobalSettings(max_sessions=most)}, service=services)


def ticket(number: int, service: str = "a", source: str = "x") -> Ticket:
    return Ticket(str(number), service, source)


def test_one_source_waits_at_its_limit_while_another_is_let_in() -> None:
    admission = Admission(config(10, 10, 1))
    verdicts = [admission.arrive(ticket(n, source=source)) for n, source in enumerate("xxy")]
    assert verdicts == [Verdict.ADMITTED, Verdict.WAITING, Verdict.ADMITTED]
    admission.leave(ticket(0))
    assert admission.advance() == [ticket(1)]


def test_a_source_may_keep_only_so_many_waiting() -> None:
    admission = Admission(config(10, 10, 2))
    verdicts = [admission.arrive(ticket(n)) for n in range(5)]
    assert verdicts == [Verdict.ADMITTED] * 2 + [Verdict.WAITING] * 2 + [Verdict.REFUSED]


def test_nobody_overtakes_those_of_his_source_who_wait() -> None:
    admission = Admission(config(10, 10, 1))
    admission.arrive(ticket(0))
    admission.arrive(ticket(1))
    admission.leave(ticket(0))
    assert admission.arrive(ticket(2)) is Verdict.REFUSED
    assert admission.advance() == [ticket(1)]


def test_at_a_services_limit_only_that_service_stops_accepting() -> None:
    admission = Admission(config(10, 1, 5))
    admission.arrive(ticket(0))
    assert (admission.open("a"), admission.open("b")) == (False, True)
    admission.leave(ticket(0))
    assert admission.open("a")


def test_at_the_limit_of_all_every_service_stops_accepting() -> None:
    admission = Admission(config(1, 5, 5))
    admission.arrive(ticket(0))
    assert (admission.open("a"), admission.open("b")) == (False, False)


def test_a_line_as_long_as_all_sessions_stops_accepting() -> None:
    admission = Admission(config(2, 5, 1))
    for number in range(3):
        admission.arrive(ticket(number, source="xxy"[number]))
    admission.leave(ticket(2))
    assert admission.open("a")
    admission.enter(ticket(7, source="y"))
    admission.arrive(ticket(8, source="y"))
    admission.leave(ticket(7, source="y"))
    assert not admission.open("a")


def test_new_limits_hold_at_once_and_put_nobody_out() -> None:
    admission = Admission(config(10, 10, 10))
    for number in range(4):
        admission.arrive(ticket(number))
    admission.configure(config(2, 10, 10))
    assert (admission.open("a"), admission.live("a")) == (False, 4)
    admission.configure(config(5, 10, 10))
    assert admission.open("a")


def test_a_service_that_is_gone_accepts_nobody() -> None:
    admission = Admission(config(10, 10, 10))
    admission.configure(config(10, 10, 10, names="b"))
    assert (admission.open("a"), admission.arrive(ticket(1))) == (False, Verdict.WAITING)


def test_sessions_of_an_earlier_life_count_until_they_leave() -> None:
    admission = Admission(config(10, 10, 1))
    admission.enter(ticket(0))
    assert admission.arrive(ticket(1)) is Verdict.WAITING
    admission.leave(ticket(0))
    admission.leave(ticket(0))
    assert admission.advance() == [ticket(1)]
    assert admission.live("a") == 1


moves = st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab"), st.sampled_from("xyz"), st.booleans()))


@given(moves, st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_no_limit_is_ever_passed_and_nobody_who_fits_is_left_in_line(
    played: list[tuple[int, str, str, bool]], most: int, service: int, source: int
) -> None:
    admission = Admission(config(most, service, source))
    live: dict[str, Ticket] = {}
    known: dict[str, Ticket] = {}
    for number, at, who, arrives in played:
        if arrives and str(number) not in known:
            one = ticket(number, at, who)
            verdict = admission.arrive(one)
            if verdict is not Verdict.REFUSED:
                known[one.id] = one
            if verdict is Verdict.ADMITTED:
                live[one.id] = one
        elif not arrives and str(number) in known:
            gone = known.pop(str(number))
            live.pop(gone.id, None)
            admission.leave(gone)
        live |= {one.id: one for one in admission.advance()}
        by_service = Counter(one.service for one in live.values())
        by_source = Counter((one.service, one.source) for one in live.values())
        assert len(live) <= most
        assert all(count <= service for count in by_service.values())
        assert all(count <= source for count in by_source.values())
        if known.keys() - live.keys() and len(live) < most:
            waiting = [known[name] for name in known.keys() - live.keys()]
            assert all(
                by_service[one.service] == service or by_source[one.service, one.source] == source for one in waiting
            )
        assert (admission.live("a"), admission.live("b")) == (by_service["a"], by_service["b"])
