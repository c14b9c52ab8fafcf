"""Traffic in all, from counters that begin anew."""

from hypothesis import given
from hypothesis import strategies as st

from corral.clusters.traffic import COUNT_MAX, Counts, cap_of, total_after

amounts = st.builds(Counts, *(st.integers(0, 2**40) for _ in Counts._fields))
steps = st.lists(st.tuples(st.sampled_from(["more", "agent is new", "namespace is new"]), amounts), max_size=12)


@given(steps)
def test_total_is_what_was_counted_whoever_starts_anew(history: list[tuple[str, Counts]]) -> None:
    """A report without counts changes nothing; what a new namespace has counted comes on top of the old."""
    total, last, truth = Counts(), Counts(), Counts()
    for what, amount in history:
        said = amount
        if what == "agent is new":
            said = Counts()
        elif what == "more" or not any(now < before for now, before in zip(amount, last, strict=True)):
            said = Counts(*(before + more for before, more in zip(last, amount, strict=True)))
        total = total_after(total, last, said)
        if any(said):
            last, truth = said, Counts(*(one + more for one, more in zip(truth, amount, strict=True)))
        assert total == truth


@given(st.lists(st.builds(Counts, *(st.integers(0, 2**53) for _ in Counts._fields)), max_size=20), st.integers(0, 2))
def test_total_never_falls_and_always_fits(said: list[Counts], near: int) -> None:
    """Whatever a host claims."""
    total, last = Counts(*([COUNT_MAX - near] * 4)), Counts()
    for counts in said:
        after = total_after(total, last, counts)
        assert all(before <= now <= COUNT_MAX for before, now in zip(total, after, strict=True))
        total, last = after, counts if any(counts) else last


def test_cap_of_a_node_is_that_of_its_devices_together() -> None:
    """One device without a cap, or no device at all, leaves none."""
    assert cap_of([5, 5, 7]) == 17
    assert cap_of([5, None]) is None
    assert cap_of([]) is None
