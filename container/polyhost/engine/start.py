"""What both engines are made of, from what the server is configured to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from polyhost.engine.building import EnvironmentBuilder
from polyhost.engine.handlers import handler_spec
from polyhost.engine.source import Inspector
from polyhost.environment import environments_told
from polyhost.interpreters import folder_of
from polyhost.limits import is_multi_model
from polyhost.plan import Plan
from polyhost.unpacking import Unpacker


def handlers_environ(plan: Plan) -> dict[str, str]:
    """The container's environment, as handlers are to see it."""
    is_multi = "true" if is_multi_model(plan.environ) else "false"
    return {**plan.environ, "SAGEMAKER_MULTI_MODEL": is_multi, **environments_told(plan.config)}


def inspector_of(plan: Plan, environ: Mapping[str, str], run_folder: Path) -> Inspector:
    """`environ`: what workers see. `run_folder`: where archives that are no folders are unpacked."""
    config = plan.config
    return Inspector(
        model_roots=config.model_root,
        default_handler=handler_spec(config.handler),
        environ=environ,
        run_folder=run_folder,
        unpacker=Unpacker(plan.environ, config.unpack_timeout_secs),
        model_store=plan.model_store,
        builder=_builder_of(plan, environ),
    )


def _builder_of(plan: Plan, environ: Mapping[str, str]) -> EnvironmentBuilder | None:
    if not plan.config.build_environments:
        return None
    return EnvironmentBuilder(folder_of(environ).absolute(), plan.endpoints_environ or plan.environ)
