"""The loop that answers: takes jobs in, fills prompts between steps, steps all together."""

import threading
import traceback
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

import torch

from hybridize.serving.counters import Counters
from hybridize.serving.jobs import Ended, Job
from hybridize.serving.sampling import draw
from hybridize.serving.stepping import Stepper

MOST_WAITING = 1024
"""Jobs that may wait; one more is refused."""
SECONDS_IDLE = 0.05
"""Between two looks at whether to stop, while nothing is asked."""


class Loop:
    """Answers jobs in a thread of its own, the only one that touches the model.

    Args:
        stepper: computes.
        counters: told what happens.
        on_failure: called when the loop itself fails, which is a bug.
    """

    def __init__(
        self, stepper: Stepper, counters: Counters, on_failure: Callable[[], None]
    ) -> None:
        self.stepper, self.counters = stepper, counters
        self.failure: str | None = None
        self._on_failure = on_failure
        self._inbox: SimpleQueue[Job] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._filling: Job | None = None
        self._answering: dict[int, Job] = {}
        self._stops_at_once = threading.Event()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Take a job in; False where too many wait or the server stops."""
        if self._is_stopping.is_set() or self.failure or self.num_waiting >= MOST_WAITING:
            return False
        self._inbox.put(job)
        return True

    def stop(self, seconds: float) -> None:
        """Take nothing more in; answer what is asked for so many seconds, then end the rest."""
        self._is_stopping.set()
        self._thread.join(seconds)
        self._stops_at_once.set()
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Jobs that are not begun."""
        return self._inbox.qsize() + len(self._waiting)

    @property
    def num_answering(self) -> int:
        """Jobs that are begun."""
        return len(self._answering) + (self._filling is not None)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._stops_at_once.is_set() and self._turn():
                    pass
            self._end_all(Ended(reason="cancelled", message="the server is stopping"))
        except BaseException:
            self.failure = traceback.format_exc()
            self._end_all(Ended(reason="error", message="the server has failed; see its log"))
            self._on_failure()
            raise

    def _turn(self) -> bool:
        """Do one piece of work; return whether to go on."""
        if not self._take_in():
            return False
        self._drop_cancelled()
        slot = self.stepper.free_slot
        if self._filling is None and self._waiting and slot is not None:
            self._filling = self._waiting.popleft()
        if self._filling is not None:
            self._guard([self._filling], self._fill)
        if self._answering:
            self._guard(list(self._answering.values()), self._step)
        self.counters.set("answering", self.num_answering)
        self.counters.set("waiting", self.num_waiting)
        self.counters.set("cache_bytes", self.stepper.memory.count_bytes())
        return True

    def _take_in(self) -> bool:
        """Move what came to those that wait; return False where there is nothing left to do."""
        is_idle = not (self._answering or self._filling or self._waiting)
        try:
            if is_idle:
                self._waiting.append(self._inbox.get(timeout=SECONDS_IDLE))
            while True:
                self._waiting.append(self._inbox.get_nowait())
        except Empty:
            return not (is_idle and not self._waiting and self._is_stopping.is_set())

    def _guard(self, jobs: list[Job], work: Callable[[], None]) -> None:
        """Do work for jobs; where memory or the computation fails, end them and go on."""
        try:
            work()
        except (RuntimeError, MemoryError) as error:
            traceback.print_exc()
            for job in jobs:
                self._end(job, Ended(reason="error", message=f"the computation failed: {error}"))

    def _fill(self) -> None:
        job = self._filling
        assert job is not None, "nothing is filled"
        logits_V = self.stepper.fill(job)
        if logits_V is None:
            return
        slot = self.stepper.free_slot
        assert slot is not None, "a prompt is filled while no slot is free"
        self._filling = None
        end = job.finish_prompt()
        end = end or job.accept(draw(logits_V, job.drawing, job.generator))
        if end is not None:
            self._end(job, end)
            return
        self.stepper.place(job, slot)
        self._answering[slot] = job

    def _step(self) -> None:
        for slot, job in list(self._answering.items()):
            if self.stepper.is_past_switch(job):
                self._leave(slot)
                job.num_filled = 0
                self._waiting.appendleft(job)
        if not self._answering:
            return
        logits_RV = self.stepper.step(self._answering)
        for slot, job in list(self._answering.items()):
            end = job.accept(draw(logits_RV[slot], job.drawing, job.generator))
            if end is not None:
                self._end(job, end)

    def _drop_cancelled(self) -> None:
        jobs = [*self._waiting, *self._answering.values(), *filter(None, [self._filling])]
        for job in jobs:
            if job.is_cancelled:
                self._end(job, Ended(reason="cancelled"))

    def _end(self, job: Job, end: Ended) -> None:
        """Tell the reader, and forget the job wherever it is."""
        if job is self._filling:
            self._filling = None
        if job in self._waiting:
            self._waiting.remove(job)
        for slot in [slot for slot, other in self._answering.items() if other is job]:
            self._leave(slot)
        job.cache = None
        self.counters.count_end(end.reason, len(job.prompt), len(job.tokens))
        job.events.put(end)

    def _end_all(self, end: Ended) -> None:
        while not self._inbox.empty():
            self._waiting.append(self._inbox.get())
        for job in [*self._waiting, *self._answering.values(), *filter(None, [self._filling])]:
            self._end(job, end)

    def _leave(self, slot: int) -> None:
        del self._answering[slot]
        self.stepper.memory.drop(slot)
