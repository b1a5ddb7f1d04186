"""`polyhost deploy` and `polyhost destroy`: what was asked for, what is there, the plan, and doing it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from polyhost.errors import InvalidSetting

from polyhost_aws import names, performing, prepare
from polyhost_aws.deploy import Found, Step, first_invocation, leftovers, plan_deploy, plan_destroy
from polyhost_aws.found import find, find_users
from polyhost_aws.progress import Progress, progress
from polyhost_aws.session import Aws, NotAsked
from polyhost_aws.wanted import Autoscale, Deployment, First, Variant, parse_autoscale, parse_environ, parse_variant

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """As the command has them."""

    name: str
    models: str
    image: str
    role: str
    instance_type: str
    instance_count: int | None
    env: Sequence[str]
    handler: str
    no_cache: bool
    variant: Sequence[str]
    autoscale: str
    wait: bool
    target: str
    content_type: str
    body: str
    region: str
    endpoint_url: str
    dry_run: bool


def deploy(options: Options) -> None:
    names.check_name(options.name)
    asked = _wanted(options)
    first = _first(options)
    if not options.wait and (asked.autoscale or first):
        raise InvalidSetting("--no-wait goes with neither --autoscale nor --first: they need the endpoint in service.")
    aws, said = Aws(options.region, options.endpoint_url), progress()
    wanted, found = _looked_up(aws, asked, said, options)
    steps = plan_deploy(wanted, found, waits=options.wait)
    performing.check(steps)
    if options.dry_run:
        _print_requests([*steps, *([first_invocation(wanted.name, first)] if first else [])])
        return
    performing.perform(aws, steps, said)
    _say_outcome(aws, wanted, steps, said, options)
    if first:
        answer = performing.invoke(aws, wanted.name, first, said)
        click.echo(answer, nl=not answer.endswith(b"\n"))


def destroy(name: str, region: str, endpoint_url: str, *, is_dry: bool) -> None:
    names.check_name(name)
    aws, said = Aws(region, endpoint_url), progress()
    found = _settled(aws, name, said, may_wait=True, is_dry=is_dry)
    if found.configs or found.models:
        found = dataclasses.replace(found, users=find_users(aws, name, found))
    steps = plan_destroy(name, found)
    if is_dry:
        _print_requests(steps)
        return
    performing.perform(aws, steps, said)
    for kept, user in found.users.items():
        said.say(f"{kept} stays: {user} uses it")
    said.say(f"{name}: {'all is removed' if steps else 'there is nothing to remove'}")


# What is asked for


def _wanted(options: Options) -> Deployment:
    """As far as the options alone tell."""
    autoscale = parse_autoscale(options.autoscale) if options.autoscale else None
    default = Variant(
        name="AllTraffic", weight=1, models=options.models, image=options.image, instance_type=options.instance_type,
        instance_count=options.instance_count or _default_count(autoscale),
    )  # fmt: skip
    variants = tuple(parse_variant(text, default) for text in options.variant) or (default,)
    _check_variants(variants, autoscale)
    handler = [f"POLYHOST_HANDLER={options.handler}"] if options.handler else []
    is_own = bool(options.endpoint_url)
    return Deployment(
        name=options.name,
        role=options.role,
        variants=tuple(
            dataclasses.replace(variant, models=prepare.source(variant.models, is_own=is_own)) for variant in variants
        ),
        environ=parse_environ([*handler, *options.env]),
        is_cached=not options.no_cache,
        autoscale=autoscale,
    )


def _default_count(autoscale: Autoscale | None) -> int:
    return max(autoscale.least, min(2, autoscale.most)) if autoscale else 2


def _check_variants(variants: Sequence[Variant], autoscale: Autoscale | None) -> None:
    if len({variant.name for variant in variants}) < len(variants):
        raise InvalidSetting("--variant: each needs a name of its own.")
    if not any(variant.weight for variant in variants):
        raise InvalidSetting("--variant: one needs a weight above 0.")
    for variant in variants:
        if autoscale and not autoscale.least <= variant.instance_count <= autoscale.most:
            raise InvalidSetting(
                f"Variant {variant.name} would begin with {variant.instance_count} instances, --autoscale allows "
                f"{autoscale.least} to {autoscale.most}."
            )


def _first(options: Options) -> First | None:
    if not options.target:
        if options.body:
            raise InvalidSetting("--body is what --first sends: name the model with --first, too.")
        return None
    body = options.body.encode()
    if options.body.startswith("@"):
        try:
            body = Path(options.body[1:]).read_bytes()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise InvalidSetting(f"--body: {options.body[1:]} cannot be read ({reason}).") from error
    return First(options.target, options.content_type, body)


# What is there


def _looked_up(aws: Aws, asked: Deployment, said: Progress, options: Options) -> tuple[Deployment, Found]:
    """What is wanted, with the role and the images there are; and what there is already."""

    def look(question: Callable[[], T], assumed: T) -> T:
        """A plan alone can also be made where nobody answers."""
        try:
            return question()
        except NotAsked as error:
            if not options.dry_run:
                raise
            said.say(f"Not looked up: {error}")
            return assumed

    if asked.autoscale and aws.is_own:
        said.say("--autoscale is passed over: a server of your own has no instances.")
        asked = dataclasses.replace(asked, autoscale=None)
    for models in {variant.models for variant in asked.variants}:
        look(lambda models=models: prepare.check_source(aws, models, said), None)  # type: ignore[misc]
    images = {
        image: look(lambda image=image: prepare.pinned_image(aws, image), image)  # type: ignore[misc]
        for image in {variant.image for variant in asked.variants}
    }
    wanted = dataclasses.replace(
        asked,
        role=look(lambda: prepare.role_arn(aws, asked.role), f"arn:aws:iam::000000000000:role/{asked.role}"),
        variants=tuple(dataclasses.replace(variant, image=images[variant.image]) for variant in asked.variants),
    )
    found = look(lambda: _settled(aws, wanted.name, said, may_wait=options.wait, is_dry=options.dry_run), Found())
    if options.wait and leftovers(wanted, found):
        found = dataclasses.replace(found, users=find_users(aws, wanted.name, found))
    return wanted, found


def _settled(aws: Aws, name: str, said: Progress, *, may_wait: bool, is_dry: bool) -> Found:
    """What there is, once no change of it is under way."""
    found = find(aws, name)
    while not is_dry and performing.settle(aws, found, name, said, may_wait=may_wait):
        found = find(aws, name)
    return found


# What is said


def _print_requests(steps: Sequence[Step]) -> None:
    click.echo(json.dumps([step.shown() for step in steps], indent=2, default=_shown))


def _shown(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _say_outcome(aws: Aws, wanted: Deployment, steps: Sequence[Step], said: Progress, options: Options) -> None:
    if not steps:
        said.say(f"{wanted.name}: nothing to change")
    where = f"at {aws.endpoint_url}" if aws.is_own else f"in {aws.region}"
    state = "in service" if options.wait else "on its way"
    said.say(f"endpoint {wanted.name} {where} is {state}: invoke_endpoint(EndpointName='{wanted.name}', TargetModel=…)")
