"""Working ahead changes when things happen, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscore.ahead import ahead


class Source:
    """A generator that tells how far it is and where it was closed."""

    def __init__(self, n: int, error: BaseException | None = None, wait: threading.Event | None = None) -> None:
        self.n, self.error, self.wait = n, error, wait
        self.made = 0
        self.threads: set[int] = set()
        self.closed_in: list[int] = []

    def items(self) -> Iterator[int]:
        """0, 1, 2 …, then the error if there is one."""
        try:
            for i in range(self.n):
                if self.wait:
                    self.wait.wait(30)
                self.threads.add(threading.get_ident())
                self.made += 1
                yield i
            if self.error:
                raise self.error
        finally:
            self.closed_in.append(threading.get_ident())


def comes_to(value: Callable[[], int], expected: int) -> bool:
    """Whether a number that a thread counts up comes to the expected one, and stays there."""
    deadline = time.monotonic() + 10
    while value() < expected and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    return value() == expected


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    """No test leaves a thread behind."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and set(threading.enumerate()) - before:
        time.sleep(0.01)

    assert set(threading.enumerate()) <= before


class TestOrder:
    """What the consumer sees."""

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers() | st.none(), max_size=30), st.integers(1, 4))
    def test_same_items(self, items: list[int | None], depth: int) -> None:
        """Every item comes once, in order, None among them; then the iterator stays at its end."""
        with ahead(items, depth) as found:
            assert list(found) == items
            assert list(found) == []

    @pytest.mark.parametrize("before", [0, 1, 5])
    def test_exception(self, before: int) -> None:
        """An exception comes behind the items before it, itself and not another; then the iterator is at its end."""
        error = ValueError("here")
        seen = []

        with ahead(Source(before, error).items()) as found:
            with pytest.raises(ValueError, match="here") as caught:
                seen.extend(found)
            assert caught.value is error
            assert list(found) == []

        assert seen == list(range(before))

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_no_exception_is_lost(self, kind: type[BaseException]) -> None:
        """An exception that is no error of anybody's reaches the consumer as well."""
        with ahead(Source(1, kind()).items()) as found:
            next(found)
            with pytest.raises(kind):
                next(found)

    def test_items_before_the_exception(self) -> None:
        """The items before an exception are given out even when it has happened long since."""
        source = Source(2, ValueError("late"))
        with ahead(source.items(), depth=3) as found:
            assert comes_to(lambda: len(source.closed_in), 1)
            assert [next(found), next(found)] == [0, 1]
            with pytest.raises(ValueError, match="late"):
                next(found)


class TestLookAhead:
    """How far ahead."""

    @pytest.mark.parametrize("depth", [1, 2, 5])
    def test_bounded(self, depth: int) -> None:
        """Up to `depth` items wait and one is in hand: never more are made, whatever the consumer does."""
        source = Source(50)
        with ahead(source.items(), depth) as found:
            for taken in range(4):
                assert comes_to(lambda: source.made, taken + depth + 1)
                assert next(found) == taken

    def test_begins_at_once(self) -> None:
        """The first item is made before anybody asks for it, in a thread that is not the consumer's."""
        source = Source(1)
        with ahead(source.items()):
            assert comes_to(lambda: source.made, 1)

        assert threading.get_ident() not in source.threads

    def test_overlap(self) -> None:
        """Reader and consumer meet only if each works while the other does."""
        meet = threading.Barrier(2)

        def items() -> Iterator[int]:
            yield 0
            meet.wait(10)
            yield 1

        with ahead(items()) as found:
            assert next(found) == 0
            meet.wait(10)
            assert next(found) == 1


class TestEnd:
    """What is left."""

    @pytest.mark.parametrize("taken", [0, 1, 3])
    def test_early(self, taken: int) -> None:
        """When the block ends early no more is made, and the generator is closed once, in its own thread, by then."""
        source = Source(1_000_000)
        with ahead(source.items(), depth=2) as found:
            for _ in range(taken):
                next(found)

        assert source.made <= taken + 2 + 1
        assert source.closed_in == list(source.threads)

    def test_consumer_fails(self) -> None:
        """The consumer's exception is its own, and ends the thread like an early end."""
        source = Source(1_000_000)
        with pytest.raises(KeyError), ahead(source.items()) as found:
            next(found)
            raise KeyError

        assert source.closed_in == list(source.threads)

    def test_exhausted(self) -> None:
        """A generator that has come to its end is closed in its thread too."""
        source = Source(3)
        with ahead(source.items()) as found:
            assert list(found) == [0, 1, 2]

        assert source.closed_in == list(source.threads)

    def test_error_is_not_waited_for(self) -> None:
        """An exception behind the last item taken is nobody's any more."""
        source = Source(1, ValueError("unseen"))
        with ahead(source.items()) as found:
            next(found)

        assert len(source.closed_in) == 1

    def test_while_it_works(self) -> None:
        """A block that ends while an item is being made waits for that one item."""
        go = threading.Event()
        source = Source(5, wait=go)
        timer = threading.Timer(0.3, go.set)
        timer.start()
        with ahead(source.items()):
            pass

        assert source.made == 1
        assert len(source.closed_in) == 1
        timer.join()

    def test_unclosable(self) -> None:
        """Items that cannot be closed are only let go."""
        with ahead(range(100)) as found:
            assert next(found) == 0


class TestNested:
    """A thread that reads from another's."""

    def test_chain(self) -> None:
        """Items pass through several threads in order."""
        with (
            ahead(Source(100).items()) as read,
            ahead(i * 2 for i in read) as doubled,
            ahead(str(i) for i in doubled) as written,
        ):
            assert list(written) == [str(i * 2) for i in range(100)]

    def test_exception_from_the_first(self) -> None:
        """An exception of the first thread comes out of the last, behind the items before it."""
        seen = []
        with (
            ahead(Source(3, ValueError("deep")).items()) as read,
            ahead(i * 2 for i in read) as doubled,
            pytest.raises(ValueError, match="deep"),
        ):
            seen.extend(doubled)

        assert seen == [0, 2, 4]

    def test_exception_in_between(self) -> None:
        """An exception of the second thread ends the first one's generator."""
        source = Source(1_000_000)
        with (
            ahead(source.items()) as read,
            ahead(1 // (2 - i) for i in read) as shares,
            pytest.raises(ZeroDivisionError),
        ):
            list(shares)

        assert source.closed_in == list(source.threads)

    @pytest.mark.parametrize("taken", [0, 2])
    def test_early(self, taken: int) -> None:
        """An early end closes every generator of the chain, each in its own thread."""
        source = Source(1_000_000)
        second = []

        def double(items: Iterator[int]) -> Iterator[int]:
            try:
                for i in items:
                    yield i * 2
            finally:
                second.append(threading.current_thread().name)

        with ahead(source.items()) as read, ahead(double(read)) as doubled:
            for _ in range(taken):
                next(doubled)

        assert source.closed_in == list(source.threads)
        assert second == ["batchscore-ahead"]
        assert source.made < taken + 8

    def test_early_and_slow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thread that waits for another which is given up on ends as well, once that one's item is made."""
        monkeypatch.setattr("batchscore.ahead._JOIN_SECONDS", 0.1)
        go = threading.Event()
        source = Source(5, wait=go)
        with ahead(source.items()) as read, ahead(i * 2 for i in read):
            pass
        go.set()

        assert comes_to(lambda: len(source.closed_in), 1)
