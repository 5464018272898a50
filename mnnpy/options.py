"""Session options."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

from mnnpy.classes import dataclass, field, field_names
from mnnpy.errors import InputError

__all__ = ["OPTIMIZATIONS", "Options"]

#: Optimisations that can be switched off one by one; results do not depend on them beyond rounding.
OPTIMIZATIONS = frozenset(
    {"patterns", "merge_vertical", "merge_horizontal", "cse", "layout", "fuse_attention", "factor", "fuse_epilogue",
     "merge_matmul", "fuse_norm", "fuse_elementwise", "fuse_strips", "in_place"}
)  # fmt: skip
PRECISIONS = ("high", "normal", "low")
TUNE_MODES = ("off", "cache", "background")
#: Instruction sets that the CPU backend has kernels for, in rising order.
ISAS = ("generic", "avx2", "avx512")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a Session plans and runs.

    threads: worker threads of the CPU backend, 0 = one per available core.
    precision: ``high`` strict fp32 with direct algorithms, ``normal`` fp32 within 3e-5 of the output's maximum,
        ``low`` bf16 products with fp32 sums where backend and processor have them (about 1e-2 of the output's maximum);
        ``Session.explain()`` says how many.
    tune: how algorithms and devices are chosen. ``"off"``: by the cost model alone. ``"cache"`` (default): by the cost
        model and what earlier sessions of this machine measured (``MNNPY_CACHE_DIR``), at once. A number: measure too,
        for so many seconds while planning; decisions are kept on disk, so the next Session pays nothing.
        ``"background"``: as ``"cache"``, then measure while the session is idle and change to the better plan.
    placement: ``"cost"``: of several backends each part of a graph gets the one that is predicted or measured to be
        fastest for the whole; ``"order"``: the first one of the list that can run it.
    optimize: names out of ``OPTIMIZATIONS``; all by default.
    algorithms: op → algorithm that is taken wherever a kernel accepts it, whatever the cost model and measurements say
        (``{"Convolution": "winograd4", "MatMul": "direct"}``; ``Device.algorithms`` lists the names). For debugging and
        measuring; ``Session.explain()`` says where it was taken ("forced").
    fallback: allow ops that no chosen backend supports to run on ``reference`` (host ops always may); every
        op that fell back is named in ``Session.explain()``.
    max_plans: how many specialisations (input shapes) a Session keeps compiled.
    memory_limit: bytes that one plan may need for activations; 0 = the machine's physical memory.
    isa: the highest instruction set of the CPU backend's kernels: ``generic`` (SSE2 on x86-64, NEON on arm64), ``avx2``
        or ``avx512`` (with AVX512_BF16 where the processor has it); None = the best there is. One that the processor
        lacks raises BackendUnavailableError.
    cache: keep plans on disk (``MNNPY_CACHE_DIR``), so that a later Session of the same model need not plan again.
        Weights stay where the model has them.
    """

    threads: int = 0
    precision: str = "normal"
    tune: str | float = "cache"
    placement: str = "cost"
    optimize: frozenset[str] = OPTIMIZATIONS
    algorithms: Mapping[str, str] = field(default_factory=dict)
    fallback: bool = False
    max_plans: int = 32
    memory_limit: int = 0
    isa: str | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision '{self.precision}' is not one of {', '.join(PRECISIONS)}")
        if self.threads < 0 or self.threads > 1024:
            raise InputError(f"threads={self.threads}: give 0 (all cores) to 1024")
        unknown = sorted(set(self.optimize) - OPTIMIZATIONS)
        if unknown:
            near = difflib.get_close_matches(unknown[0], OPTIMIZATIONS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(OPTIMIZATIONS))}"
            raise InputError(f"unknown optimisation '{unknown[0]}'{hint}")
        if not isinstance(self.algorithms, Mapping):
            raise InputError(f"algorithms={self.algorithms!r}: give a mapping of op to algorithm")
        if isinstance(self.tune, str) and self.tune not in TUNE_MODES:
            raise InputError(f"tune='{self.tune}' is not one of {', '.join(TUNE_MODES)}, and no number of seconds")
        if not isinstance(self.tune, str) and not 0 <= self.tune <= 3600:
            raise InputError(f"tune={self.tune}: give 0 to 3600 seconds, or one of {', '.join(TUNE_MODES)}")
        if self.placement not in ("cost", "order"):
            raise InputError(f"placement='{self.placement}' is neither 'cost' nor 'order'")
        if self.max_plans < 1:
            raise InputError(f"max_plans={self.max_plans}: at least 1")
        if self.isa is not None and self.isa not in ISAS:
            raise InputError(f"isa '{self.isa}' is not one of {', '.join(ISAS)}; None takes the best of this processor")

    @property
    def seconds(self) -> float:
        """Seconds for measuring while planning."""
        return 0.0 if isinstance(self.tune, str) else float(self.tune)

    @property
    def thread_count(self) -> int:
        """Threads that will be used."""
        if self.threads:
            return self.threads
        try:
            return len(os.sched_getaffinity(0))
        except AttributeError:
            return os.cpu_count() or 1

    @classmethod
    def make(cls, options: Options | None, **keywords: object) -> Options:
        """*options* with *keywords* replaced; an unknown keyword raises TypeError with a near match."""
        known = field_names(cls)
        for key in keywords:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known))}"
                raise TypeError(f"unknown option '{key}'{hint}")
        base = {name: getattr(options, name) for name in known} if options else {}
        return cls(**{**base, **keywords})
