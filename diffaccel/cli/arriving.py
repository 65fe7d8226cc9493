"""Rows from a pipe or a terminal, drawn as they come: each part of the input is rendered before the next is read."""

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from diffaccel.cli.options import Request
from diffaccel.cli.planning import GenerateWork, Preparation, require_fit, require_prompts

if TYPE_CHECKING:
    from diffaccel.batch.distribute import Share
    from diffaccel.batch.jobs import Job
    from diffaccel.batch.rows import BadRow, PlacedRow


def arrives(request: Request) -> bool:
    """Whether rows come from a pipe or a terminal, and are rendered here, in one process."""
    alone = request.engine == "local" and request.processes == 1 and request.shard is None
    if "-" not in request.prompts or not alone or request.dry_run:
        return False
    try:
        return not stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError):  # something in place of standard input
        return False


def own_input() -> TextIO:
    """Standard input under a handle of its own, on which a thread may wait while the program ends."""
    return os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8")


class RunCourse:
    """The input as far as it has come, and what is made of it.

    Args:
        share: jobs as a share that can be rendered.
        tell_bad, tell_notes: called with rows that cannot be used, and with what there is to say about jobs.
    """

    def __init__(
        self,
        prepared: Preparation,
        share: "Callable[[tuple[Job, ...]], Share]",
        tell_bad: "Callable[[Sequence[BadRow]], None]",
        tell_notes: "Callable[[Sequence[tuple[str, Job]]], None]",
    ) -> None:
        self.places: dict[str, str] = {}
        self._prepared, self._share, self._tell_bad, self._tell_notes = prepared, share, tell_bad, tell_notes
        self._jobs: list[Job] = []
        self._todo: list[Job] = []
        self._bad = 0

    def parts(self) -> "Iterator[Share]":
        """What is to be rendered of each part of the input. Raises `InputError` where all of it was of no use."""
        from diffaccel.batch.arrivals import arriving

        for rows in arriving(self._prepared.rows):
            jobs = self._planned(rows)
            todo = self._prepared.todo(jobs)
            if not self._todo:
                require_fit(self._prepared.request, self._prepared.options, todo, self._prepared.source)
            self._todo += todo
            self._tell_notes([(self.places[job.id], job) for job in todo if job.notes])
            if todo:
                yield self._share(todo)
            if self._is_full:
                break
        require_prompts(self._prepared.planner.bad, len(self._jobs), self._prepared.request)

    def _planned(self, rows: "Sequence[PlacedRow | BadRow]") -> "list[Job]":
        """The jobs of rows that came together, up to the limit."""
        planner, begin = self._prepared.planner, len(self._jobs)
        for row in rows:
            for where, job in planner(row):
                if not self._is_full:
                    self._jobs.append(job)
                    self.places[job.id] = where
            if self._is_full:
                break
        self._tell_bad(planner.bad[self._bad :])
        self._bad = len(planner.bad)
        return self._jobs[begin:]

    @property
    def _is_full(self) -> bool:
        most = self._prepared.request.limit
        return most is not None and len(self._jobs) >= most

    def work(self) -> GenerateWork:
        """All that came, as work."""
        from diffaccel.batch.jobs import JobPlan

        planner, jobs = self._prepared.planner, tuple(self._jobs)
        plan = JobPlan(jobs, tuple(planner.bad), planner.duplicates, self.places)
        return GenerateWork(plan, jobs, tuple(self._todo), self._prepared.source, self._prepared.cache)
