"""What to reuse: modules that are skipped or replayed, named by their path in the network.

On a call that reuses, a *skipped* module returns a placeholder of its recorded shape, because something downstream
reads no more than that, and a *replayed* module returns its stored output. DeepCache skips everything below a boundary
and replays the boundary alone; an inheritance of features skips nothing and replays in place.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Branch:
    """A reusable portion of a network.

    Attributes:
        replayed: names of the modules whose outputs are stored and returned again.
        skipped: names of the modules whose outputs are never read on a call that reuses.
    """

    replayed: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules of the branch."""
        return self.skipped + self.replayed
