"""
The commands that talk to AWS: `polyhost deploy`, `destroy`, `models`, `push` and `add-role`.

Read at every start of the command, also by `polyhost serve`: what is heavy is imported inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

# boto3 itself reads AWS_DEFAULT_REGION only.
_region = click.option(
    "--region", default="", envvar="AWS_REGION", show_envvar=True, help="If another than that of the AWS settings."
)
_endpoint_url = click.option(
    "--endpoint-url",
    default="",
    metavar="URL",
    envvar="AWS_ENDPOINT_URL_SAGEMAKER",
    show_envvar=True,
    help="A Polyhost of your own instead of AWS.",
)
_dry_run = click.option("--dry-run", is_flag=True, help="Print all requests as JSON; send none that changes anything.")
_models = click.option(
    "--models", required=True, envvar="POLYHOST_MODELS", show_envvar=True, metavar="s3://BUCKET/PREFIX/|FOLDER"
)


@click.command()
@click.argument("name")
@_models
@click.option("--image", default="polyhost:mms", show_default=True, help="In the account's ECR, or with its registry.")
@click.option(
    "--role",
    default="polyhost-execution",
    show_default=True,
    metavar="NAME|ARN",
    help="Reads the models and the image.",
)
@click.option("--instance-type", default="ml.m5.xlarge", show_default=True)
@click.option("--instance-count", type=click.IntRange(1), help="Of each variant.  [default: 2, for availability]")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable of the container; may be repeated.")
@click.option("--handler", default="", help="What handles all models, as of `polyhost serve`.")
@click.option("--no-cache", is_flag=True, help="Unload and delete each model after its call.")
@click.option(
    "--variant",
    multiple=True,
    metavar="NAME=WEIGHT[,SETTING=VALUE…]",
    help="A share of the traffic; may be repeated. Settings: models, image, instance-type, instance-count.",
)
@click.option(
    "--autoscale", default="", metavar="MIN:MAX:TARGET", help="Instances, and invocations of each in a minute."
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until the endpoint is in service.")
@click.option(
    "--first", "target", default="", metavar="TARGET", help="Call this model when the endpoint is in service."
)
@click.option("--content-type", default="text/csv", show_default=True, help="Of --body.")
@click.option("--body", default="", metavar="TEXT|@FILE", help="What --first sends.")
@_region
@_endpoint_url
@_dry_run
def deploy(**options: Any) -> None:
    """
    Serve the models of a prefix at the endpoint NAME: on SageMaker, or at a Polyhost of your own.

    What is there is changed into what is asked for; the same command again changes nothing.
    """
    from polyhost.aws.deploying import Options
    from polyhost.aws.deploying import deploy as run

    run(Options(**options))


@click.command()
@click.argument("name")
@_region
@_endpoint_url
@_dry_run
def destroy(name: str, region: str, endpoint_url: str, dry_run: bool) -> None:
    """Remove what `polyhost deploy NAME` has made, and only that; models in S3, images and roles stay."""
    from polyhost.aws.deploying import destroy as run

    run(name, region, endpoint_url, is_dry=dry_run)


@click.group()
def models() -> None:
    """The models below a prefix of a bucket, or in a folder."""


@models.command("list")
@_models
@click.option("--json", "as_json", is_flag=True)
@_region
def list_models(models: str, as_json: bool, region: str) -> None:
    """All archives: size in bytes, date (UTC), name."""
    from polyhost.aws.publishing import list_models as run

    run(models, region, as_json=as_json)


@models.command("add")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…", type=click.Path(exists=True))
@_models
@click.option("--name", default="", help="Of a single PATH: what callers name as TargetModel.")
@click.option("--overwrite", is_flag=True, help="Replace what has the same name.")
@_region
def add_models(paths: Sequence[str], models: str, name: str, overwrite: bool, region: str) -> None:
    """Upload archives, and folders, which are packed: the folder houston becomes houston.tar.gz."""
    from polyhost.aws.publishing import add_models as run

    run(paths, models, region, name=name, overwrite=overwrite)


@models.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@_models
@click.option("--yes", is_flag=True, help="Do not ask.")
@_region
def remove_models(names: Sequence[str], models: str, yes: bool, region: str) -> None:
    """Delete archives. A server goes on serving what it has loaded, until it looks again or needs the memory."""
    from polyhost.aws.publishing import remove_models as run

    run(names, models, region, is_sure=yes)


@click.command()
@click.argument("image")
@click.argument("to", default="", metavar="[REPOSITORY[:TAG]]")
@click.option("--registry", default="", metavar="HOST", help="Another registry than the account's ECR.")
@_region
def push(image: str, to: str, registry: str, region: str) -> None:
    """
    Push a local IMAGE to ECR, as SageMaker takes it; prints where it is, by its digest.

    The repository is made if it is missing. Without REPOSITORY it is the image's own name.
    """
    from polyhost.aws.push import push as run

    run(image, to or image, registry, region)


@click.command("add-role")
@click.argument("name")
@click.option("--auth-file", required=True, envvar="POLYHOST_AUTH_FILE", show_envvar=True, type=click.Path(exists=True))
@click.option(
    "--assumed-by",
    multiple=True,
    metavar="USER|ARN|*",
    help="Who may assume it, of those in the file; may be repeated.  [default: whom its trust policy names]",
)
@_region
def add_role(name: str, auth_file: str, assumed_by: Sequence[str], region: str) -> None:
    """
    Copy the role NAME from IAM into the file of who may call what, with its policies.

    AWS_ENDPOINT_URL_IAM is the address of a server in IAM's place. Run it again when the role has changed there.
    """
    from polyhost.aws.roles import add_role as run

    run(name, auth_file, assumed_by, region)


COMMANDS = (deploy, destroy, models, push, add_role)
