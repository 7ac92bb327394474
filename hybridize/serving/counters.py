"""Counters of a server, as Prometheus reads them."""

import os
import threading

from hybridize.engines.processes import memory_bytes

HELP = {
    "answers_total": ("counter", "answers that ended, by reason"),
    "prompt_tokens_total": ("counter", "tokens of the prompts of those"),
    "generated_tokens_total": ("counter", "tokens of those answers"),
    "refused_total": ("counter", "requests answered with an error, by status"),
    "answering": ("gauge", "requests being answered"),
    "waiting": ("gauge", "requests that wait"),
    "cache_bytes": ("gauge", "keys, values and states held for requests"),
    "memory_bytes": ("gauge", "memory of the process"),
}
"""Name -> its type and its meaning; names begin with `hybridize_` where they are shown."""


class Counters:
    """Numbers that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, str], float] = {}

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        """Add to a counter."""
        with self._lock:
            key = name, label
            self._values[key] = self._values.get(key, 0) + amount

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        with self._lock:
            self._values[name, ""] = value

    def count_end(self, reason: str, prompt_tokens: int, generated_tokens: int) -> None:
        """Count an answer that ended."""
        self.add("answers_total", label=f'reason="{reason}"')
        self.add("prompt_tokens_total", prompt_tokens)
        self.add("generated_tokens_total", generated_tokens)

    def count_refused(self, status: int) -> None:
        """Count a request that was answered with an error."""
        self.add("refused_total", label=f'status="{status}"')

    def render(self) -> str:
        """Return all in Prometheus' text form."""
        self.set("memory_bytes", memory_bytes(os.getpid()))
        with self._lock:
            values = dict(self._values)
        lines: list[str] = []
        for name, (kind, meaning) in HELP.items():
            full = f"hybridize_{name}"
            lines += [f"# HELP {full} {meaning}", f"# TYPE {full} {kind}"]
            for (found, label), value in sorted(values.items()):
                if found == name:
                    lines.append(f"{full}{{{label}}} {value:g}" if label else f"{full} {value:.0f}")
        return "\n".join(lines) + "\n"
