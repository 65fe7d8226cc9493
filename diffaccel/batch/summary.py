"""The figures of a run, summed up record by record."""

from dataclasses import dataclass, field, fields

from diffaccel.batch.store import Record


@dataclass
class Calls:
    """Network calls of a run, and the multiply-accumulates (MACs) that replaying saved."""

    computed: int = 0
    replayed: int = 0
    macs: int = 0
    macs_plain: int = 0

    @property
    def macs_saved(self) -> float:
        """Fraction of the multiply-accumulates that was saved, 0 to 1."""
        return 1 - self.macs / self.macs_plain if self.macs_plain else 0.0

    def __iadd__(self, other: "Calls") -> "Calls":
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        return self


@dataclass
class Summary:
    """What a run did: pictures done and failed, and seconds of wall time.

    Attributes:
        psnr: of each compared picture, in dB.
        plain_seconds, cached_seconds: rendering time of all compared pictures.
        joules: energy of the accelerators, where they tell it.
    """

    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    first_error: str | None = None
    psnr: list[float] = field(default_factory=list)
    plain_seconds: float = 0.0
    cached_seconds: float = 0.0
    joules: float | None = None

    def add(self, record: Record) -> None:
        """Count one record."""
        self.done += record.status == "done"
        self.failed += record.status == "failed"
        self.first_error = self.first_error or record.error
        if record.compare:
            self.psnr.append(record.compare["psnr"])
            self.plain_seconds += record.compare["plain_seconds"]
            self.cached_seconds += record.seconds or 0.0

    def __iadd__(self, other: "Summary") -> "Summary":
        for name in ("done", "failed", "seconds", "psnr", "plain_seconds", "cached_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_error = self.first_error or other.first_error
        return self

    @property
    def images_per_second(self) -> float:
        """Pictures done per second of wall time."""
        return self.done / self.seconds if self.seconds else 0.0
