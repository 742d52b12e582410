"""Which offsets may be committed."""

from hypothesis import given
from hypothesis import strategies as st

from internal_transfer.adapters.kafka.progress import Progress


@given(
    gaps=st.lists(st.integers(1, 3), min_size=1, max_size=30),
    data=st.data(),
)
def test_nothing_undone_is_ever_behind_the_position(gaps, data):
    """In any order of work, the position follows exactly the unbroken run of finished messages at the front."""
    offsets = [sum(gaps[: place + 1]) for place in range(len(gaps))]
    progress = Progress(1)
    for offset in offsets:
        progress.receive(offset)
    done: set[int] = set()
    for offset in data.draw(st.permutations(offsets)):
        progress.finish(offset)
        done.add(offset)
        front = 0
        while front < len(offsets) and offsets[front] in done:
            front += 1
        assert progress.position == (offsets[front - 1] + 1 if front else None)
        assert progress.outstanding == len(offsets) - len(done)
