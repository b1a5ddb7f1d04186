"""The native engine, made from what the server is configured to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from polyhost_handlers.artifacts import HANDLER_ENVIRONMENT

from polyhost.config import Config
from polyhost.engine.handlers import handler_spec
from polyhost.engine.native.engine import NativeEngine
from polyhost.engine.source import Inspector
from polyhost.limits import is_multi_model
from polyhost.memory import cpu_limit
from polyhost.metrics import Metrics
from polyhost.plan import Plan


def native_engine(plan: Plan, run: Path, metrics: Metrics) -> NativeEngine:
    """`run`: the folder where archives that are no folders are unpacked."""
    config, limits = plan.config, plan.limits
    told = worker_environ(config, plan.environ)
    return NativeEngine(
        inspector=Inspector(
            model_roots=config.model_root,
            default_handler=handler_spec(config.handler),
            environ=told,
            run_folder=run,
            model_store=plan.model_store,
        ),
        environ=told,
        shared_workers=cpu_limit(),
        workers_per_model=limits.workers_per_model,
        response_timeout_secs=limits.response_timeout_secs,
        job_queue_size=limits.job_queue_size,
        isolation=config.isolation,
        metrics=metrics,
        budget_bytes=config.memory_budget,
    )


def worker_environ(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """What workers see: the container's environment, and MMS's own defaults for workers."""
    told = {**environ, "SAGEMAKER_MULTI_MODEL": "true" if is_multi_model(environ) else "false"}
    told["POLYHOST_LOG_FORMAT"] = config.log_format
    if config.handler_environment:
        told[HANDLER_ENVIRONMENT] = config.handler_environment
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        told.setdefault(name, "1")
    told.setdefault("MXNET_USE_OPERATOR_TUNING", "0")
    told.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's reports to its makers, from its import on
    told.setdefault("MMS_DECODE_INPUT_REQUEST", "false")
    return told
