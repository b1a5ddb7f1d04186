"""
The commands that talk to AWS: `polyhost deploy`, `destroy`, `models`, `push` and `add-role`.

Read at every start of the command, also by `polyhost serve`: what is heavy is imported inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from polyhost.help_groups import GroupedCommand

# boto3 itself reads AWS_DEFAULT_REGION only.
_region = click.option(
    "--region",
    default="",
    envvar="AWS_REGION",
    show_envvar=True,
    metavar="REGION",
    help="Use this region instead of that of the AWS settings.",
)
_endpoint_url = click.option(
    "--endpoint-url",
    default="",
    metavar="URL",
    envvar="AWS_ENDPOINT_URL_SAGEMAKER",
    show_envvar=True,
    help="Call the Polyhost at this address instead of AWS.",
)
_dry_run = click.option(
    "--dry-run", is_flag=True, help="Print all requests as JSON, and send none that changes anything."
)
_models = click.option(
    "--models",
    required=True,
    envvar="POLYHOST_MODELS",
    show_envvar=True,
    metavar="FOLDER|s3://BUCKET/PREFIX/",
    help="Find the models' archives in this folder or bucket.",
)


@click.command(
    cls=GroupedCommand,
    groups={
        "Models": ("models", "image", "role", "env", "handler", "no_cache"),
        "Instances": ("instance_type", "instance_count", "autoscale", "variant"),
        "The first call": ("wait", "target", "content_type", "body"),
        "AWS": ("region", "endpoint_url", "dry_run"),
    },
)
@click.argument("name")
@_models
@click.option(
    "--image",
    default="polyhost:mms",
    show_default=True,
    metavar="NAME:TAG",
    help="Run this image of the account's ECR, or of the registry that it names.",
)
@click.option(
    "--role",
    default="polyhost-execution",
    show_default=True,
    metavar="NAME|ARN",
    help="Let the endpoint read models and image in this role.",
)
@click.option(
    "--instance-type", default="ml.m5.xlarge", show_default=True, metavar="TYPE", help="Run on instances of this type."
)
@click.option(
    "--instance-count",
    type=click.IntRange(1),
    metavar="N",
    help="Run each variant on this many instances  [default: 2, for availability].",
)
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Set this variable in the container. May be repeated.")
@click.option(
    "--handler", default="", metavar="HANDLER", help="Serve models with this handler, as `polyhost serve` does."
)
@click.option("--no-cache", is_flag=True, help="Unload and delete each model after its call.")
@click.option(
    "--variant",
    multiple=True,
    metavar="NAME=WEIGHT[,SETTING=VALUE…]",
    help="Send a share of the traffic to this variant. May be repeated. Settings: models, image, instance-type, "
    "instance-count.",
)
@click.option(
    "--autoscale",
    default="",
    metavar="MIN:MAX:TARGET",
    help="Keep from MIN to MAX instances, with TARGET invocations of each a minute.",
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the endpoint is in service.")
@click.option(
    "--first", "target", default="", metavar="TARGET", help="Call this model when the endpoint is in service."
)
@click.option(
    "--content-type", default="text/csv", show_default=True, metavar="TYPE", help="Say that --body is of this type."
)
@click.option("--body", default="", metavar="TEXT|@FILE", help="Send this with --first.")
@_region
@_endpoint_url
@_dry_run
def deploy(**options: Any) -> None:
    """
    Make or change the endpoint NAME, on SageMaker or Polyhost.

    It serves the models of --models. The command changes what is there into what the options say. The same command
    again changes nothing.
    """
    from polyhost_aws.deploying import Options
    from polyhost_aws.deploying import deploy as run

    run(Options(**options))


@click.command()
@click.argument("name")
@_region
@_endpoint_url
@_dry_run
def destroy(name: str, region: str, endpoint_url: str, dry_run: bool) -> None:
    """
    Remove what `polyhost deploy NAME` has made.

    Models in S3, images and roles stay.
    """
    from polyhost_aws.deploying import destroy as run

    run(name, region, endpoint_url, is_dry=dry_run)


@click.group()
def models() -> None:
    """List, add and remove archives of a folder or bucket."""


@models.command("list")
@_models
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@_region
def list_models(models: str, as_json: bool, region: str) -> None:
    """Print all archives: size in bytes, date (UTC), name."""
    from polyhost_aws.publishing import list_models as run

    run(models, region, as_json=as_json)


@models.command("add")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…", type=click.Path(exists=True))
@_models
@click.option("--name", default="", metavar="NAME", help="Call a single PATH by this name, its TargetModel.")
@click.option("--overwrite", is_flag=True, help="Replace archives of the same name.")
@_region
def add_models(paths: Sequence[str], models: str, name: str, overwrite: bool, region: str) -> None:
    """
    Upload archives, and pack and upload folders.

    The folder houston becomes houston.tar.gz.
    """
    from polyhost_aws.publishing import add_models as run

    run(paths, models, region, name=name, overwrite=overwrite)


@models.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@_models
@click.option("--yes", is_flag=True, help="Do not ask.")
@_region
def remove_models(names: Sequence[str], models: str, yes: bool, region: str) -> None:
    """
    Delete archives.

    A server goes on serving what it has loaded until it looks again or needs the memory.
    """
    from polyhost_aws.publishing import remove_models as run

    run(names, models, region, is_sure=yes)


@click.command()
@click.argument("image")
@click.argument("to", default="", metavar="[REPOSITORY[:TAG]]")
@click.option("--registry", default="", metavar="HOST", help="Push to this registry instead of the account's ECR.")
@_region
def push(image: str, to: str, registry: str, region: str) -> None:
    """
    Push a local IMAGE to ECR, in the form that SageMaker takes.

    Prints where the image is, by its digest. Makes the repository if it is missing. Without REPOSITORY it has the
    image's own name.
    """
    from polyhost_aws.push import push as run

    run(image, to or image, registry, region)


@click.command("add-role")
@click.argument("name")
@click.option(
    "--auth-file",
    required=True,
    envvar="POLYHOST_AUTH_FILE",
    show_envvar=True,
    type=click.Path(exists=True),
    metavar="FILE",
    help="Add the role to this file.",
)
@click.option(
    "--assumed-by",
    multiple=True,
    metavar="USER|ARN|*",
    help="Let this user or role of the file assume it. May be repeated  [default: those whom its trust policy names].",
)
@_region
def add_role(name: str, auth_file: str, assumed_by: Sequence[str], region: str) -> None:
    """
    Copy a role from IAM, with its policies, into --auth-file.

    Run it again when the role has changed there. AWS_ENDPOINT_URL_IAM is the address of a server in IAM's place.
    """
    from polyhost_aws.roles import add_role as run

    run(name, auth_file, assumed_by, region)


COMMANDS = (deploy, destroy, models, push, add_role)
