"""The machine: its cores, and how disturbed it was while something was measured."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOOP = 100_000  # steps of the calibrated loop, some milliseconds


def cores() -> tuple[int, int]:
    """Return a core for the server and one for the load generator; the same if there is one."""
    free = sorted(os.sched_getaffinity(0))
    return free[0], free[-1]


def describe() -> str:
    """Return the machine in a line: its processor, cores, system and Python."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    count = os.cpu_count()
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    python = f"Python {platform.python_version()}"
    return f"{model or platform.machine()}, {count} cores, {system}, {python}"


@dataclass
class Disturbance:
    """What else the machine did.

    The calibrated loop is plain Python of a known size, run on the server's core before each
    measurement: its wall time grows if others use the core, its CPU time if the core is slow.
    """

    server_core: int
    generator_core: int
    _loops_ms: list[tuple[float, float]] = field(default_factory=list)
    _loads: list[float] = field(default_factory=list)
    _began: dict[str, int] = field(default_factory=lambda: _jiffies())

    def look(self) -> None:
        """Run the calibrated loop on the server's core."""
        os.sched_setaffinity(0, {self.server_core})
        began, began_cpu = time.perf_counter(), time.process_time()
        total = 0
        for i in range(LOOP):
            total += i
        ended, ended_cpu = time.perf_counter(), time.process_time()
        os.sched_setaffinity(0, {self.generator_core})
        self._loops_ms.append(((ended - began) * 1000, (ended_cpu - began_cpu) * 1000))
        self._loads.append(os.getloadavg()[0])

    def summary(self) -> dict[str, Any]:
        """Return steal, load and the loop's times since the beginning."""
        now = _jiffies()
        spent = {name: now[name] - self._began[name] for name in now}
        total = sum(spent.values()) or 1
        walls = sorted(wall for wall, _ in self._loops_ms) or [0.0]
        cpus = sorted(cpu for _, cpu in self._loops_ms) or [0.0]
        return {
            "steal_percent": 100 * spent["steal"] / total,
            "load_average_max": max(self._loads, default=0.0),
            "loop_wall_ms": {
                "least": walls[0],
                "median": walls[len(walls) // 2],
                "most": walls[-1],
            },
            "loop_cpu_ms": {"least": cpus[0], "median": cpus[len(cpus) // 2], "most": cpus[-1]},
        }


def _jiffies() -> dict[str, int]:
    """Return the time that all cores have spent, by kind (proc(5), /proc/stat)."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    values = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    return dict(zip(names, map(int, values), strict=True))
