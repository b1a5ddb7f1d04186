"""The native engine, made from what the server is configured to be."""

from __future__ import annotations

from pathlib import Path

from polyhost.engine.native.engine import NativeEngine
from polyhost.engine.native.hardening import hardening_of
from polyhost.engine.start import handlers_environ, inspector_of
from polyhost.memory import cpu_limit
from polyhost.metrics import Metrics
from polyhost.plan import Plan


def native_engine(plan: Plan, run: Path, metrics: Metrics) -> NativeEngine:
    """`run`: a folder of this run's own. Raises InvalidSetting."""
    config = plan.config
    hardening = hardening_of(plan, run)
    unpacked = run / "models"  # archives that are no folders
    unpacked.mkdir()
    environ = worker_environ(plan)
    return NativeEngine(
        inspector=inspector_of(plan, environ, unpacked),
        environ=environ,
        shared_workers=cpu_limit(),
        limits=plan.limits,
        isolation=config.isolation,
        imports_late=config.import_frameworks == "late",
        metrics=metrics,
        budget_bytes=config.memory_budget,
        hardening=hardening,
    )


def worker_environ(plan: Plan) -> dict[str, str]:
    """What workers see: what handlers are to see, and MMS's own defaults for workers."""
    environ = {**handlers_environ(plan), "POLYHOST_LOG_FORMAT": plan.config.log_format}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environ.setdefault(name, "1")
    environ.setdefault("MXNET_USE_OPERATOR_TUNING", "0")
    environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's reports to its makers, from its import on
    environ.setdefault("MMS_DECODE_INPUT_REQUEST", "false")
    return environ
